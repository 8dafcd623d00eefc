"""Frames of Binance spot beside ccxt.pro: from bytes in memory, and through a socket of this machine, each receiver in its own process.

`python -m bench.feed receive WHO KIND PORT COUNT` is such a receiver: it says as JSON how many seconds of processor time it took from
opening the socket until the last frame was in its book. All of ccxt.pro's and of ours is in it: the kernel's part, frames, JSON, book.

2026-11-26, on two quiet cores (AMD EPYC of the first generation, 2 GHz), ccxt 4.5.90, processor time over that of ccxt.pro, through a socket: a best bid and ask 0.078
with picows (6.6 µs; wanted 1/12) and 0.22 with websockets, a depth difference of 40 and 40 levels, book applied, 0.178 (51.8 µs; wanted 1/5) and 0.23.
A burst of 60,000 differences, none lost: from the first to the last 32.6 µs a frame on the wall and as much of the processor with picows (18.3 from memory), so
no frame waited for anything but its turn; websockets 45.8, ccxt.pro 70.3.
"""

import asyncio
import gc
import hashlib
import json
import os
import subprocess
import sys
import threading
import time
from base64 import b64encode
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path

import numpy as np

from arbwork.feed.events import BOOK, VALID

FIRST = 1_000   # the number of the snapshot
SETTLE_S = 0.2 # from the snapshot to the first difference


def frames(n: int) -> tuple[bytes, list[bytes], list[bytes]]:
    "A snapshot of 1,000 levels a side, best bid and ask, and depth differences of 40 and 40 levels, of which one in eight goes, in Binance's words."
    rng = np.random.default_rng(7)

    def text(x): return json.dumps(x, separators=(',', ':')).encode()

    def levels(side, ticks, gone=0.):
        qty = rng.lognormal(3, 1, len(ticks))*(rng.random(len(ticks)) >= gone)
        return [[f'{27 + side*t*1e-3:.8f}', f'{q:.8f}'] for t, q in zip(ticks, qty.round(2))]

    near = [np.sort(rng.choice(400, 40, replace=False)) + 1 for _ in range(2*n)] # best first, as the venue sends them
    snapshot = text({'lastUpdateId': FIRST, 'bids': levels(-1, range(1, 1_001)), 'asks': levels(1, range(1, 1_001))})
    quotes = [text({'stream': 'linkusdt@bookTicker', 'data': {'u': FIRST + i, 's': 'LINKUSDT', 'b': f'{27 - 1e-3*(i % 7 + 1):.8f}', 'B': '12.50000000',
                                                              'a': f'{27 + 1e-3*(i % 5 + 1):.8f}', 'A': '30.11000000'}}) for i in range(1, n + 1)]
    depth = [text({'stream': 'linkusdt@depth@100ms', 'data': {'e': 'depthUpdate', 'E': 1_700_000_000_000 + i, 's': 'LINKUSDT', 'U': FIRST + i, 'u': FIRST + i,
                                                               'b': levels(-1, near[2*i - 2], .125), 'a': levels(1, near[2*i - 1], .125)}}) for i in range(1, n + 1)]
    return snapshot, quotes, depth


def our_codec():
    from arbwork.feed.binance import Binance
    from arbwork.market import Listing
    return Binance({'LINK-USDT': Listing('binance', 'LINK-USDT', 'LINKUSDT', Decimal('0.001'), Decimal('0.01'), Decimal('0.01'), Decimal('5'))}, None)


def ccxt_binance():
    import ccxt.pro
    ex = ccxt.pro.binance()
    ex.set_markets([ex.safe_market_structure(dict(
        id='LINKUSDT', lowercaseId='linkusdt', symbol='LINK/USDT', base='LINK', quote='USDT', baseId='LINK', quoteId='USDT', type='spot', spot=True, margin=False, swap=False, future=False,
        option=False, contract=False, active=True, precision=dict(price=0.001, amount=0.01)))])
    return ex


# ---- in memory

class CcxtPro:
    "ccxt.pro's own handling of frames, without a network: what a stock loop spends on each message."

    def __init__(self, snapshot: bytes):
        self.loop = asyncio.new_event_loop()
        self.loop.run_until_complete(self.open(json.loads(snapshot)))

    async def open(self, snapshot):
        self.ex = ccxt_binance()
        self.client = self.ex.client('wss://127.0.0.1/stream')
        self.client.subscriptions['linkusdt@depth'] = {'id': 1}
        self.snapshot = dict(symbol='LINK/USDT', nonce=FIRST, **{side: [[float(p), float(q)] for p, q in snapshot[side]] for side in ('bids', 'asks')})

    def take(self, some, book=False):
        async def run():
            if book:
                self.ex.orderbooks['LINK/USDT'] = self.ex.order_book({}, 5_000)
                self.ex.orderbooks['LINK/USDT'].reset(self.snapshot)
            for frame in some: self.ex.handle_message(self.client, json.loads(frame))
        self.loop.run_until_complete(run())
        assert not book or self.ex.orderbooks['LINK/USDT']['nonce'] == FIRST + len(some)

    def close(self):
        self.loop.run_until_complete(self.ex.close())
        self.loop.close()


@contextmanager
def quote():
    "A Binance best bid and ask, from bytes to a value, without a socket; the baseline is ccxt.pro's handler fed by json.loads."
    snapshot, quotes, _ = frames(2_000)
    peer, codec = CcxtPro(snapshot), our_codec()

    def ours():
        for frame in quotes: codec.public(frame)
    yield {'ccxt.pro': (lambda: peer.take(quotes), len(quotes)), 'arbwork': (ours, len(quotes))}, 'µs/frame', 1e6, 'ccxt.pro', 9
    peer.close()


@contextmanager
def depth():
    "A Binance depth difference of 40 and 40 levels, from bytes to an applied book and its row, without a socket; the baseline is ccxt.pro's handler."
    from arbwork.feed.book import Book
    snapshot, _, some = frames(2_000)
    peer, codec = CcxtPro(snapshot), our_codec()

    def ours():
        book = Book('binance', 'LINK-USDT', codec.follows, codec.cut_at)
        book.apply(codec.snapshot_reply('LINK-USDT', 200, snapshot))
        for frame in some:
            for update in codec.public(frame): book.apply(update)
            np.frombuffer(book.packed(0, 0), BOOK)
        assert book.state == VALID and book.seq == FIRST + len(some)
    yield {'ccxt.pro': (lambda: peer.take(some, book=True), len(some)), 'arbwork': (ours, len(some))}, 'µs/frame', 1e6, 'ccxt.pro', 9
    peer.close()


# ---- through a socket

class Venue:
    "A port that answers what both receivers ask of it, and sends its frames as fast as they are taken, once the snapshot was fetched."

    def __init__(self, snapshot: bytes, sent: list[bytes]):
        self.snapshot = snapshot
        self.stream = b''.join((b'\x81' + (bytes([len(f)]) if len(f) < 126 else b'\x7e' + len(f).to_bytes(2, 'big')) + f) for f in sent)
        self.loop, self.ready = asyncio.new_event_loop(), threading.Event()
        threading.Thread(target=self.loop.run_forever, daemon=True).start()
        self.server = asyncio.run_coroutine_threadsafe(asyncio.start_server(self.client, '127.0.0.1', 0), self.loop).result()
        self.port = self.server.sockets[0].getsockname()[1]

    async def client(self, reader, writer):
        try:
            head = await reader.readuntil(b'\r\n\r\n')
            lines = dict(line.split(': ', 1) for line in head.decode().split('\r\n')[1:] if ': ' in line)
            key = next((v for k, v in lines.items() if k.lower() == 'sec-websocket-key'), None)
            if key is None: return await self.rest(writer)
            accept = b64encode(hashlib.sha1(f'{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11'.encode()).digest()).decode()
            writer.write(f'HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {accept}\r\n\r\n'.encode())
            asked = json.loads(await self.text(reader))
            reply = json.dumps({'result': None, 'id': asked['id']}).encode()
            writer.write(b'\x81' + bytes([len(reply)]) + reply)
            if any('depth' in x for x in asked['params']):
                await asyncio.to_thread(self.ready.wait)
                await asyncio.sleep(SETTLE_S)
            for i in range(0, len(self.stream), 1 << 18):
                writer.write(self.stream[i:i + (1 << 18)])
                await writer.drain()
            while await reader.read(1 << 12): pass
        except (ConnectionError, asyncio.IncompleteReadError): pass
        finally: writer.close()

    async def text(self, reader):
        "One short frame of a client, which is masked."
        _, n = await reader.readexactly(2)
        n = int.from_bytes(await reader.readexactly(2), 'big') if n & 127 == 126 else n & 127
        mask, body = await reader.readexactly(4), await reader.readexactly(n)
        return bytes(c ^ mask[i % 4] for i, c in enumerate(body))

    async def rest(self, writer):
        writer.write(b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\nConnection: close\r\n\r\n' % len(self.snapshot) + self.snapshot)
        await writer.drain()
        self.ready.set()

    def close(self):
        async def stop():
            self.server.close()
            for task in asyncio.all_tasks() - {asyncio.current_task()}: task.cancel()
        asyncio.run_coroutine_threadsafe(stop(), self.loop).result()
        self.loop.call_soon_threadsafe(self.loop.stop)


async def receive_arbwork(kind: str, port: int, n: int, connect) -> dict:
    import aiohttp  # noqa: F401, as a bot has it imported long before

    from arbwork.clock import WallClock
    from arbwork.feed.wire import Addresses, MarketFeed
    done, rows, events, joined = asyncio.Event(), [], [], []

    def on_row(row):
        rows.append(int(row['seq']))
        if not joined: joined.append(time.perf_counter() - began[1])
        if rows[-1] == FIRST + n: done.set()

    def on_event(event):
        events.append(event.seq)
        if event.seq == FIRST + n: done.set()
    feed = MarketFeed(our_codec(), Addresses.local(port), {'LINK-USDT': 0}, WallClock(), on_row, on_event if kind == 'quote' else None, **({'connect': connect} if connect else {}))
    began = time.process_time(), time.perf_counter()
    task = asyncio.create_task(feed.run())
    await done.wait()
    took = time.process_time() - began[0], time.perf_counter() - began[1]
    task.cancel()
    seen = events if kind == 'quote' else [x for x in rows if x > FIRST]
    assert seen == list(range(FIRST + 1, FIRST + n + 1)), f'found {len(seen)} of {n}'
    assert not feed.stats['gaps'] and not feed.stats['problems'] and not feed.stats['reconnects'], feed.stats
    return dict(cpu_s=took[0], wall_s=took[1], joined_s=joined[0] + SETTLE_S, taken=len(seen))


async def receive_ccxt(kind: str, port: int, n: int) -> dict:
    ex = ccxt_binance()
    ex.urls['api'].update(public=f'http://127.0.0.1:{port}/api/v3')
    ex.urls['api']['ws']['spot'] = f'ws://127.0.0.1:{port}/stream'
    began, taken, joined = (time.process_time(), time.perf_counter()), 0, 0.
    while True:
        if kind == 'depth': at = (await ex.watch_order_book('LINK/USDT'))['nonce']
        else: at = int((await ex.watch_bids_asks(['LINK/USDT']))['LINK/USDT']['info']['u'])
        taken += 1
        joined = joined or time.perf_counter() - began[1]
        if at == FIRST + n: break
    took = time.process_time() - began[0], time.perf_counter() - began[1]
    await ex.close()
    return dict(cpu_s=took[0], wall_s=took[1], joined_s=joined, taken=taken)


def receive(who: str, kind: str, port: int, n: int) -> dict:
    import uvloop
    if who.startswith('ccxt'): return (uvloop if who == 'ccxt-uvloop' else asyncio).run(receive_ccxt(kind, port, n))

    from arbwork.feed.book import warm
    warm()
    gc.collect()
    gc.freeze()
    from arbwork.feed.sockets import client
    return uvloop.run(receive_arbwork(kind, port, n, client(who.partition('-')[2])))


def receiver(who: str, kind: str, venue: Venue, n: int) -> dict:
    "What a receiver in a process of its own says."
    venue.ready.clear()
    done = subprocess.run([sys.executable, '-X', 'faulthandler', '-m', 'bench.feed', 'receive', who, kind, str(venue.port), str(n)], capture_output=True,
                          text=True, timeout=600, cwd=Path(__file__).parents[1])
    if done.returncode: raise RuntimeError(f'{who} of {kind}: ended with {done.returncode}{", by that signal" if done.returncode < 0 else ""}; {done.stderr[-2_000:]}')
    return json.loads(done.stdout)


RECEIVERS = {'ccxt.pro': 'ccxt', 'ccxt.pro on uvloop': 'ccxt-uvloop', 'arbwork on websockets': 'arbwork-websockets', 'arbwork on picows': 'arbwork-picows'}


@contextmanager
def wire(kind: str, n: int):
    snapshot, quotes, depths = frames(n)
    venue = Venue(snapshot, quotes if kind == 'quote' else depths)
    lanes = {name: (lambda who=who: receiver(who, kind, venue, n)['cpu_s'], n) for name, who in RECEIVERS.items()}
    yield lanes, 'µs cpu/frame', 1e6, 'ccxt.pro', 5
    venue.close()


def quote_wire():
    "A Binance best bid and ask, from the socket to a value: processor time of a process that receives 20,000; the baseline is ccxt.pro."
    return wire('quote', 20_000)


def depth_wire():
    "A Binance depth difference of 40 and 40 levels, from the socket to an applied book: processor time of a process that receives 5,000; the baseline is ccxt.pro."
    return wire('depth', 5_000)


@contextmanager
def burst():
    """60,000 small differences at once through a socket, none lost: processor and wall time a frame; the baseline is the same frames from memory.
    Where the wall's time is no more than the processor's, nothing ever waited for anything but its turn to be decoded, and the last frame
    was as late as it takes to decode all. Ours see each number once and in order; ccxt.pro hands on the book as it is when somebody looks."""
    from arbwork.feed.book import Book
    n, codec = 600 if os.environ.get('BENCH_QUICK') else 60_000, our_codec()
    snapshot, _, _ = frames(1)
    some = [json.dumps({'stream': 'linkusdt@depth@100ms', 'data': {'e': 'depthUpdate', 'E': 1_700_000_000_000 + i, 's': 'LINKUSDT', 'U': FIRST + i, 'u': FIRST + i,
            'b': [[f'{27 - 1e-3*(i % 9 + 1):.8f}', f'{i % 100 + 1}.00000000']], 'a': [[f'{27 + 1e-3*(i % 7 + 1):.8f}', f'{i % 50 + 1}.00000000']]}},
            separators=(',', ':')).encode() for i in range(1, n + 1)]
    venue, walls = Venue(snapshot, some), {}

    def memory():
        book = Book('binance', 'LINK-USDT', codec.follows, codec.cut_at)
        book.apply(codec.snapshot_reply('LINK-USDT', 200, snapshot))
        start = time.process_time()
        for frame in some:
            for update in codec.public(frame): book.apply(update)
            np.frombuffer(book.packed(0, 0), BOOK)
        return time.process_time() - start

    def socket(who):
        found = receiver(who, 'depth', venue, n)
        walls[who] = found['wall_s'] - found['joined_s']
        return found['cpu_s']

    lanes = {'from memory, processor': (memory, n)}
    for who, name in (('arbwork-picows', 'picows'), ('arbwork-websockets', 'websockets'), ('ccxt', 'ccxt.pro')):
        lanes |= {f'{name}, processor': (lambda who=who: socket(who), n), f'{name}, first to last, wall': (lambda who=who: walls[who], n)}
    yield lanes, 'µs/frame', 1e6, 'from memory, processor', 3
    venue.close()


if __name__ == '__main__':
    _, who, kind, port, count = sys.argv[1:]
    print(json.dumps(receive(who, kind, int(port), int(count))))
