"""What is measured: each bench yields its lanes as (run, operations), with unit, scale of seconds to that unit, baseline and rounds."""

import json
import sqlite3
import tempfile
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from arbwork.feed.events import BOOK, LEVELS, VALID


def rows(n: int, seed: int = 7) -> np.ndarray:
    "Ten-level books that wander, as a feed would hand them on."
    rng = np.random.default_rng(seed)
    out = np.zeros(n, BOOK)
    out['seq'], out['state'] = np.arange(1, n + 1), VALID
    out['ts_venue_ns'] = out['ts_recv_ns'] = 1_700_000_000_000_000_000 + np.arange(n)*1_000_000
    mid = 27*np.exp(np.cumsum(rng.standard_normal(n))*1e-5)
    steps = (np.arange(LEVELS) + 0.5)*1e-3
    out['bid_px'], out['ask_px'] = mid[:, None] - steps, mid[:, None] + steps
    out['bid_qty'], out['ask_qty'] = rng.lognormal(3, 1, (2, n, LEVELS))
    return out


@contextmanager
def board():
    "Writing and reading the mapped board, both in this process; the baseline is a bare numpy copy of the same row."
    from arbwork.feed.board import BoardReader, BoardWriter
    n, some = 20_000, rows(20_000)
    with tempfile.TemporaryDirectory() as folder:
        writer = BoardWriter(Path(folder)/'board', 1)
        reader, plain = BoardReader(Path(folder)/'board'), np.zeros(1, BOOK)
        writer.write(some[0])

        def copy():
            for row in some: plain[0] = row

        def write():
            for row in some: writer.write(row)

        def read():
            for _ in range(n): reader.latest(0)

        yield {'numpy row copy': (copy, n), 'board write': (write, n), 'board read': (read, n)}, 'µs/row', 1e6, 'numpy row copy', 15
        writer.close()


@contextmanager
def journal():
    "Durable puts, one by one and in rows; the baseline is one SQLite transaction a put, as durable as ours."
    from arbwork.store.journal import open_journal
    n, body, some = 300, b'x'*200, rows(20_000)
    with tempfile.TemporaryDirectory() as folder:
        plain = sqlite3.connect(f'{folder}/plain.db', isolation_level=None)
        plain.executescript('PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; CREATE TABLE t(id INTEGER PRIMARY KEY, body BLOB)')
        ours = open_journal(f'sqlite:///{folder}/ours.db')

        def one_by_one():
            for _ in range(n): plain.execute('INSERT INTO t(body) VALUES (?)', (body,))

        def durable():
            for i in range(n): ours.append('intents', 'intent', body, ts_ns=i, durable=True).wait(5)

        def hot():
            for row in some: ours.append_rows('market', 'rows', row, ts_ns=0)

        def in_rows():
            hot()
            ours.flush()

        yield {'sqlite, a transaction a put': (one_by_one, n), 'durable put, waited for': (durable, n),
               'row handed over': (hot, len(some)), 'row handed over and kept': (in_rows, len(some))}, 'µs/put', 1e6, 'sqlite, a transaction a put', 9
        ours.close()
        plain.close()


def binance_frames(n: int) -> tuple[bytes, list[bytes], list[bytes]]:
    "A snapshot of 1,000 levels a side, best bid and ask, and depth differences of 40 and 40 levels, in Binance's words."
    rng = np.random.default_rng(7)

    def levels(side, ticks): return [[f'{27 + side*t*1e-3:.3f}', f'{q:.2f}'] for t, q in zip(ticks, rng.lognormal(3, 1, len(ticks)))]
    near = [rng.choice(400, 40, replace=False) + 1 for _ in range(2*n)]
    snapshot = json.dumps({'lastUpdateId': 0, 'bids': levels(-1, range(1, 1_001)), 'asks': levels(1, range(1, 1_001))}).encode()
    quotes = [json.dumps({'stream': 'linkusdt@bookTicker', 'data': {'u': i + 1, 's': 'LINKUSDT', 'b': f'{27 - 1e-3*(i % 7 + 1):.3f}', 'B': '12.50', 'a': f'{27 + 1e-3*(i % 5 + 1):.3f}',
                                                                     'A': '30.11'}}).encode() for i in range(n)]
    depth = [json.dumps({'stream': 'linkusdt@depth@100ms', 'data': {'e': 'depthUpdate', 'E': 1_700_000_000_000 + i, 's': 'LINKUSDT', 'U': i + 1, 'u': i + 1,
                                                                     'b': levels(-1, near[2*i]), 'a': levels(1, near[2*i + 1])}}).encode() for i in range(n)]
    return snapshot, quotes, depth


class CcxtPro:
    "ccxt.pro's own handling of frames, without a network: what a stock loop spends on each message."

    def __init__(self, snapshot: bytes):
        import asyncio

        import ccxt.pro
        self.loop = asyncio.new_event_loop()
        self.loop.run_until_complete(self.open(ccxt.pro, json.loads(snapshot)))

    async def open(self, pro, snapshot):
        self.ex = pro.binance()
        self.ex.set_markets([self.ex.safe_market_structure(dict(
            id='LINKUSDT', symbol='LINK/USDT', base='LINK', quote='USDT', baseId='LINK', quoteId='USDT', type='spot', spot=True, margin=False, swap=False, future=False,
            option=False, contract=False, active=True, precision=dict(price=0.001, amount=0.01)))])
        self.client = self.ex.client('wss://127.0.0.1/stream')
        self.client.subscriptions['linkusdt@depth'] = {'id': 1}
        self.snapshot = dict(symbol='LINK/USDT', nonce=0, **{side: [[float(p), float(q)] for p, q in snapshot[side]] for side in ('bids', 'asks')})

    def take(self, frames, book=False):
        async def run():
            if book:
                self.ex.orderbooks['LINK/USDT'] = self.ex.order_book({}, 5_000)
                self.ex.orderbooks['LINK/USDT'].reset(self.snapshot)
            for frame in frames: self.ex.handle_message(self.client, json.loads(frame))
        self.loop.run_until_complete(run())

    def close(self):
        self.loop.run_until_complete(self.ex.close())
        self.loop.close()


def our_codec():
    from decimal import Decimal

    from arbwork.feed.binance import Binance
    from arbwork.market import Listing
    return Binance({'LINK-USDT': Listing('binance', 'LINK-USDT', 'LINKUSDT', Decimal('0.001'), Decimal('0.01'), Decimal('0.01'), Decimal('5'))}, None)


@contextmanager
def quote():
    "A Binance best bid and ask, from bytes to a value, without a socket; the baseline is ccxt.pro's handler fed by json.loads."
    snapshot, quotes, _ = binance_frames(2_000)
    peer, codec = CcxtPro(snapshot), our_codec()

    def ours():
        for frame in quotes: codec.public(frame)
    yield {'ccxt.pro': (lambda: peer.take(quotes), len(quotes)), 'arbwork': (ours, len(quotes))}, 'µs/frame', 1e6, 'ccxt.pro', 9
    peer.close()


@contextmanager
def depth():
    "A Binance depth difference of 40 and 40 levels, from bytes to an applied book and its row, without a socket; the baseline is ccxt.pro's handler."
    from arbwork.feed.book import Book
    snapshot, _, frames = binance_frames(2_000)
    peer, codec, out = CcxtPro(snapshot), our_codec(), np.zeros(1, BOOK)

    def ours():
        book = Book('binance', 'LINK-USDT', codec.follows)
        book.apply(codec.snapshot_reply('LINK-USDT', 200, snapshot))
        for frame in frames:
            for update in codec.public(frame): book.apply(update)
            book.row(out[0], 0, 0)
        assert book.state == VALID and book.seq == len(frames)
    yield {'ccxt.pro': (lambda: peer.take(frames, book=True), len(frames)), 'arbwork': (ours, len(frames))}, 'µs/frame', 1e6, 'ccxt.pro', 9
    peer.close()


@contextmanager
def backtest():
    "Ten-level books through the whole kernel with fills, latency and inventory; the baseline is one numpy pass over the same bytes."
    from arbwork.research.backtest import backtest as run
    from arbwork.settings import Params
    from arbwork.sim.scenarios import load_scenario
    world = load_scenario('stress', seed=7, hours=24.0)
    tape = world.tape()
    how = dict(inventory=world.universe.empty_inventory() + 1e6, latency_ns=50_000_000, seed=7)

    def stream(): np.add.reduce(tape.view('f8'))
    yield {'one numpy pass': (stream, len(tape)), 'backtest, trading': (lambda: run('cross', tape, world.universe, Params(min_edge_bps=2), **how), len(tape)),
           'backtest, nothing to trade': (lambda: run('cross', tape, world.universe, Params(min_edge_bps=500), **how), len(tape))}, 'ns/event', 1e9, 'one numpy pass', 9


BENCHES = {'quote': quote, 'depth': depth, 'board': board, 'journal': journal, 'backtest': backtest}
