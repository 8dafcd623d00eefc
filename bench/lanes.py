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
    "Publishing a book to other processes; the baseline is a bare numpy copy of the same row."
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


@contextmanager
def decode():
    "A Binance depth difference of 40 and 40 levels to an applied book; the baseline only parses its JSON."
    from decimal import Decimal

    from arbwork.feed.binance import Binance
    from arbwork.feed.book import Book
    from arbwork.feed.events import BookUpdate
    from arbwork.market import Listing
    listing = Listing('binance', 'LINK-USDT', 'LINKUSDT', Decimal('0.001'), Decimal('0.01'), Decimal('0.01'), Decimal('5'))
    codec, n, rng = Binance({'LINK-USDT': listing}, None), 2_000, np.random.default_rng(7)

    def levels(side):
        px = 27 + side*(rng.choice(200, 40, replace=False) + 1)*1e-3
        return [[f'{p:.3f}', f'{q:.2f}'] for p, q in zip(px, rng.lognormal(3, 1, 40))]
    frames = [json.dumps({'stream': 'linkusdt@depth@100ms', 'data': {'e': 'depthUpdate', 'E': 1_700_000_000_000 + i, 's': 'LINKUSDT', 'U': i + 1, 'u': i + 1,
                                                                       'b': levels(-1), 'a': levels(1)}}).encode() for i in range(n)]
    out = np.zeros(1, BOOK)

    def parse():
        for frame in frames: json.loads(frame)

    def ours():
        book = Book('binance', 'LINK-USDT', codec.follows)
        book.apply(BookUpdate('LINK-USDT', True, 0, 0, -1, 0, [(26.9, 1.)], [(27.1, 1.)]))
        for frame in frames:
            for update in codec.public(frame): book.apply(update)
            book.row(out[0], 0, 0)
    yield {'json.loads alone': (parse, n), 'decode, apply, row': (ours, n)}, 'µs/frame', 1e6, 'json.loads alone', 9


@contextmanager
def backtest():
    "Events through the whole kernel with fills, latency and inventory; the baseline is one numpy pass over the same bytes."
    from arbwork.research.backtest import backtest as run
    from arbwork.settings import Params
    from arbwork.sim.scenarios import load_scenario
    world = load_scenario('stress', seed=7, hours=24.0)
    tape = world.tape()
    how = dict(inventory=world.universe.empty_inventory() + 1e6, latency_ns=50_000_000, seed=7)

    def stream(): np.add.reduce(tape.view('f8'))
    yield {'one numpy pass': (stream, len(tape)), 'backtest, trading': (lambda: run('cross', tape, world.universe, Params(min_edge_bps=2), **how), len(tape)),
           'backtest, nothing to trade': (lambda: run('cross', tape, world.universe, Params(min_edge_bps=500), **how), len(tape))}, 'ns/event', 1e9, 'one numpy pass', 9


BENCHES = {'board': board, 'journal': journal, 'decode': decode, 'backtest': backtest}
