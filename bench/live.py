"""Tick to order of the whole product, beside a stock ccxt.pro loop, in one interleaved run; what holds the loop; what a start costs.

`arbwork.live` runs as a process with everything on: signed manifest, risk checks, journal, intents durable before their bytes leave. Two venues in Binance's words write a
frame that opens an edge and note when; they note again when the bytes of the first order have been read. The ccxt.pro loop is what its examples show: `watch_bids_asks` on two
venues, a comparison, `create_order_ws` on both. The venues are in this process; each receiver is in a process of its own; their ticks take turns. A second bot has its journal
in memory, which shows what of the time is the disk's; and a bare sync of as many bytes on that disk takes its turn with them.
"""

import asyncio
import hashlib
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from base64 import b64encode
from contextlib import contextmanager, nullcontext
from decimal import Decimal
from pathlib import Path

import msgspec

TICKS, PAUSE_S = 200, 0.04
VENUES = 'binance', 'twin'
MEMORY, SYNC, SYNCED = Path('/dev/shm'), 'a bare sync of the disk', 12*1024
SPINNING, STORED = ', spinning', ', journal in memory'
BARE = 'a bare loop with a bare sync', 'a bare loop'
DEAR, CHEAP = Decimal('27.10'), Decimal('27.00')


def text(x) -> bytes: return json.dumps(x, separators=(',', ':')).encode()


def frame(body: bytes) -> bytes:
    n = len(body)
    return b'\x81' + (bytes([n]) if n < 126 else b'\x7e' + n.to_bytes(2, 'big')) + body


class Venue:
    "One venue in Binance's words: as much as a trading client asks, and no more."

    def __init__(self, name: str):
        self.name, self.seq, self.deep, self.px, self.streams, self.heard, self.orders, self.at = name, 1_000, 1_000, CHEAP, [], asyncio.Event(), 0, 0
        self.held = {'LINK': Decimal(10**8), 'USDT': Decimal(10**10)}

    async def open(self):
        self.server = await asyncio.get_running_loop().create_server(lambda: Client(self), '127.0.0.1', 0)
        self.port = self.server.sockets[0].getsockname()[1]
        return self

    def sides(self) -> tuple[list, list]:
        return ([[f'{self.px - Decimal("0.01")*(i + 1)}', '500.00'] for i in range(20)], [[f'{self.px + Decimal("0.01")*i}', '500.00'] for i in range(20)])

    def move(self, px: Decimal) -> int:  # when, steady clock
        "A new price for everybody who listens: best bid and ask, and the difference of the depth."
        gone = [[x[0], '0.00'] for x in self.sides()[0]], [[x[0], '0.00'] for x in self.sides()[1]]
        self.px = px
        bids, asks = self.sides()
        self.seq += 1
        new = {x[0] for x in bids}, {x[0] for x in asks}
        depth = {'e': 'depthUpdate', 'E': time.time_ns()//10**6, 's': 'LINKUSDT', 'U': self.deep + 1, 'u': self.seq, 'b': bids + [x for x in gone[0] if x[0] not in new[0]],
                 'a': asks + [x for x in gone[1] if x[0] not in new[1]]}
        self.deep = self.seq
        quote = {'u': self.seq, 's': 'LINKUSDT', 'b': bids[0][0], 'B': '500.00', 'a': asks[0][0], 'A': '500.00'}
        sent = {'depth': frame(text({'stream': 'linkusdt@depth@100ms', 'data': depth})), 'quote': frame(text({'stream': 'linkusdt@bookTicker', 'data': quote}))}
        began = time.perf_counter_ns()
        for kind, writer in self.streams: writer.write(sent[kind])
        return began

    def rest(self, target: str):
        path, now = target.partition('?')[0], time.time_ns()//10**6
        if path.endswith('/time'): return {'serverTime': now}
        if path.endswith('/exchangeInfo'):
            filters = [{'filterType': 'PRICE_FILTER', 'tickSize': '0.01', 'minPrice': '0.01', 'maxPrice': '1000'}, {'filterType': 'LOT_SIZE', 'stepSize': '0.01', 'minQty': '0.01', 'maxQty': '100000'},
                       {'filterType': 'NOTIONAL', 'minNotional': '5'}]
            return {'timezone': 'UTC', 'serverTime': now, 'rateLimits': [], 'symbols': [{'symbol': 'LINKUSDT', 'status': 'TRADING', 'baseAsset': 'LINK', 'quoteAsset': 'USDT', 'filters': filters,
                    'baseAssetPrecision': 8, 'quotePrecision': 8, 'isSpotTradingAllowed': True, 'permissions': ['SPOT'], 'orderTypes': ['LIMIT'], 'permissionSets': [['SPOT']]}]}
        if path.endswith('/depth'):
            bids, asks = self.sides()
            return {'lastUpdateId': self.seq, 'bids': bids, 'asks': asks}
        if path.endswith('/account'): return {'balances': [{'asset': a, 'free': str(x), 'locked': '0'} for a, x in self.held.items()]}
        if path.endswith('/apiRestrictions'): return {'enableSpotAndMarginTrading': True, 'enableWithdrawals': False}
        return []

    def answer(self, asked: dict) -> dict:
        if asked['method'] in ('SUBSCRIBE', 'UNSUBSCRIBE'): return {'result': None, 'id': asked['id']}
        if asked['method'] != 'order.place': return {'id': asked['id'], 'status': 200, 'result': {'subscriptionId': 0}}
        p, now = asked['params'], time.time_ns()//10**6
        self.orders += 1
        buy, qty = p['side'] == 'BUY', Decimal(p['quantity'])
        px = self.px if buy else self.px - Decimal('0.01')
        self.held['LINK'] += qty if buy else -qty
        self.held['USDT'] -= qty*px if buy else -qty*px
        fill = {'price': str(px), 'qty': str(qty), 'commission': '0', 'commissionAsset': 'USDT', 'tradeId': self.orders}
        return {'id': asked['id'], 'status': 200, 'result': {'symbol': 'LINKUSDT', 'orderId': self.orders, 'orderListId': -1, 'clientOrderId': p['newClientOrderId'], 'transactTime': now, 'price': p['price'],
                'origQty': str(qty), 'executedQty': str(qty), 'cummulativeQuoteQty': str(qty*px), 'status': 'FILLED', 'timeInForce': 'IOC', 'type': 'LIMIT', 'side': p['side'], 'fills': [fill]}}


class Client(asyncio.Protocol):
    "One connection to a venue: it notes when bytes came before it looks at them, and what it writes leaves at once."

    def __init__(self, venue: Venue): self.venue, self.buffer, self.socket, self.mine = venue, b'', False, []

    def connection_made(self, transport): self.transport = transport

    def connection_lost(self, error): self.venue.streams = [x for x in self.venue.streams if x not in self.mine]

    def data_received(self, raw: bytes):
        at = time.perf_counter_ns()
        self.buffer += raw
        while (n := self.frame(at) if self.socket else self.request()): self.buffer = self.buffer[n:]

    def request(self) -> int:  # bytes that it took, 0 while it is not whole
        head, end, _ = self.buffer.partition(b'\r\n\r\n')
        lines = {k.lower(): v for line in head.decode().split('\r\n')[1:] if ': ' in line for k, v in [line.split(': ', 1)]}
        size = len(head) + 4 + int(lines.get('content-length', 0))
        if not end or len(self.buffer) < size: return 0
        if key := lines.get('sec-websocket-key'):
            accept = b64encode(hashlib.sha1(f'{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11'.encode()).digest()).decode()
            self.transport.write(f'HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {accept}\r\n\r\n'.encode())
            self.socket = True
            return size
        body = text(self.venue.rest(head.decode().split(' ', 2)[1]))
        self.transport.write(b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n' % len(body) + body)
        return size

    def frame(self, at: int) -> int:
        if len(self.buffer) < 8: return 0
        v, code, n, start = self.venue, self.buffer[0] & 15, self.buffer[1] & 127, 2
        if n == 126: n, start = int.from_bytes(self.buffer[2:4], 'big'), 4
        if len(self.buffer) < start + 4 + n: return 0
        mask, body = self.buffer[start:start + 4], self.buffer[start + 4:start + 4 + n]
        raw = bytes(c ^ mask[i % 4] for i, c in enumerate(body))
        if code == 8: self.transport.close()
        if code == 9: self.transport.write(b'\x8a' + bytes([n]) + raw)
        if code != 1: return start + 4 + n
        asked = json.loads(raw)
        if asked['method'] == 'order.place' and not v.heard.is_set(): v.at = at; v.heard.set()
        self.transport.write(frame(text(v.answer(asked))))
        if asked['method'] == 'SUBSCRIBE':
            self.mine += [('depth' if 'depth' in x else 'quote', self.transport) for x in asked['params']]
            v.streams += self.mine[-len(asked['params']):]
        return start + 4 + n


# ---- the receivers

def live(folder: str, seconds: str, *more: str) -> None:
    "The bot itself; `twin` is a second venue that speaks Binance."
    twin()
    from arbwork.live import main
    raise SystemExit(main(['--mode', 'sim', '--settings', f'{folder}/settings.ini', '--seconds', seconds, '--json', *more]))


def twin():
    from arbwork.feed.binance import Binance
    from arbwork.feed.wire import CODECS

    class Twin(Binance):
        venue = 'twin'
        def listings_reply(self, status, body):
            found = {name: msgspec.structs.replace(x, venue='twin') for name, x in super().listings_reply(status, body).items()}
            self.listings |= found
            return found
    CODECS['twin'] = Twin


async def ccxt_loop(ports: list[int]) -> None:
    "Two venues, a comparison, an order at each."
    import ccxt.pro
    best, names, busy = {}, dict(zip(VENUES, ports)), []

    def one(port):
        ex = ccxt.pro.binance({'apiKey': 'k', 'secret': 's', 'enableRateLimit': False, 'options': {'fetchMarkets': {'types': ['spot']}, 'fetchCurrencies': False}})
        ex.urls['api'].update(public=f'http://127.0.0.1:{port}/api/v3', private=f'http://127.0.0.1:{port}/api/v3', v1=f'http://127.0.0.1:{port}/api/v1', sapi=f'http://127.0.0.1:{port}/sapi/v1')
        ex.urls['api']['ws']['spot'], ex.urls['api']['ws']['ws-api']['spot'] = f'ws://127.0.0.1:{port}/stream', f'ws://127.0.0.1:{port}/ws-api/v3'
        return ex
    clients = {name: one(port) for name, port in names.items()}
    for ex in clients.values(): await ex.load_markets()

    async def order(name, side, qty, px):
        await clients[name].create_order_ws('LINK/USDT', 'limit', side, qty, px, {'timeInForce': 'IOC', 'newOrderRespType': 'FULL'})

    async def follow(name):
        while True:
            best[name] = (await clients[name].watch_bids_asks(['LINK/USDT']))['LINK/USDT']
            if len(best) < 2 or busy: continue
            for buy, sell in (VENUES, VENUES[::-1]):
                ask, bid = best[buy]['ask'], best[sell]['bid']
                if bid > ask*1.0022:
                    busy.append(1)
                    qty = min(10., best[buy]['askVolume'], best[sell]['bidVolume'])
                    await asyncio.gather(order(buy, 'buy', qty, ask), order(sell, 'sell', qty, bid))
                    busy.clear()
    await asyncio.gather(*map(follow, VENUES))


@contextmanager
def awake():
    "Have the running loop ask for news again and again instead of sleeping."
    loop, on = asyncio.get_running_loop(), [True]
    def again():
        if on: loop.call_soon(again)
    again()
    try: yield
    finally: on.clear()


async def bare_loop(path: str, spins: bool, ports: list[int]) -> None:
    "`bare_bot`, on a loop that sleeps or does not."
    with awake() if spins else nullcontext(): await bare_bot(path, ports)


async def bare_bot(path: str, ports: list[int]) -> None:
    "What no bot can do without: a frame is read, its best price found, an intent as large as ours synced (unless there is no path), and an order written that was ready before."
    from picows import WSListener, WSMsgType, ws_connect
    disk, lines, ks = os.open(path, os.O_RDWR) if path else 0, {}, [0]

    def order(side: str) -> bytes:
        ks[0] += 1
        params = {'symbol': 'LINKUSDT', 'side': side, 'type': 'LIMIT', 'timeInForce': 'IOC', 'quantity': '9.96', 'price': '27.00', 'newClientOrderId': f'bare-{ks[0]}', 'newOrderRespType': 'FULL',
                  'timestamp': time.time_ns()//10**6, 'apiKey': 'k', 'signature': '0'*64}
        return text({'id': f'bare-{ks[0]}', 'method': 'order.place', 'params': params})

    class Line(WSListener):
        def __init__(self, name): self.name, self.was = name, ''
        def on_ws_connected(self, transport): self.transport = transport
        def on_ws_frame(self, transport, frame):
            raw = frame.get_payload_as_bytes()
            if not raw.startswith(b'{"stream":"linkusdt@bookTicker"'): return
            bid = json.loads(raw)['data']['b']
            rose, self.was = bool(self.was) and bid > self.was, bid
            if not rose or self.name != VENUES[1]: return
            if disk:
                os.pwrite(disk, bytes([ks[0] & 255])*SYNCED, ks[0]%64*SYNCED)
                os.fdatasync(disk)
            for line in lines.values(): line.transport.send(WSMsgType.TEXT, line.ready)
            for name, line in lines.items(): line.ready = order('BUY' if name == VENUES[0] else 'SELL')

    for name, port in zip(VENUES, ports):
        feed, line = Line(name), Line('')
        await ws_connect(lambda line=line: line, f'ws://127.0.0.1:{port}/ws-api/v3')
        line.ready, lines[name] = order('BUY'), line
        await ws_connect(lambda feed=feed: feed, f'ws://127.0.0.1:{port}/stream')
        feed.transport.send(WSMsgType.TEXT, text({'method': 'SUBSCRIBE', 'params': ['linkusdt@bookTicker'], 'id': 1}))
    await asyncio.Event().wait()


# ---- the run

def furnish(folder: Path, ports: list[int]) -> dict:
    "Settings, keys and a manifest; the environment of the bot."
    from arbwork.decide.contract import Universe
    from arbwork.market import Listing
    from arbwork.serve import drill
    from arbwork.feed.codec import Keys
    secret = 'bench passphrase'
    listings = [Listing(v, 'LINK-USDT', 'LINKUSDT', Decimal('0.01'), Decimal('0.01'), Decimal('0.01'), Decimal('5')) for v in VENUES]
    world = msgspec.defstruct('World', [('universe', Universe)])(Universe(listings, dict.fromkeys(VENUES, (10., 10.))))
    wishes, drill.WISHES = drill.WISHES, msgspec.structs.replace(drill.WISHES, cooldown_s=0., trades_per_hour=1e6, max_notional=270., max_exposure=1e6, max_loss_day=1e8, max_drawdown=1.)
    try: drill.furnish(folder, dict(zip(VENUES, ports)), world, Keys('k', 's'), secret)
    finally: drill.WISHES = wishes
    return {**os.environ, 'ARBWORK_VAULT_PASSPHRASE': secret}


class Race:
    """All receivers at work, each with two venues; ticks take turns. The venues have one core and the receivers another, so that nobody waits for a venue that does not sleep; a
    receiver that spins is stopped while it is not its turn."""

    def __init__(self, seconds: float = 900.):
        self.loop, self.folders, self.cores = asyncio.new_event_loop(), {}, os.sched_getaffinity(0)
        for spins in ('', SPINNING):
            self.folders['arbwork' + spins] = tempfile.TemporaryDirectory(prefix='bench-live-')
            if MEMORY.is_dir(): self.folders['arbwork' + spins + STORED] = tempfile.TemporaryDirectory(prefix='bench-live-', dir=MEMORY)
        threading.Thread(target=self.loop.run_forever, daemon=True).start()
        bare = [x + spins for spins in ('', SPINNING) for x in BARE]
        self.missed = dict.fromkeys(('ccxt.pro', *self.folders, *bare), 0)
        self.venues = {who: [self.call(Venue(name).open()) for name in VENUES] for who in self.missed}
        ports, self.root, here = {who: [v.port for v in some] for who, some in self.venues.items()}, Path(__file__).parents[1], Path(self.folders['arbwork'].name)
        self.log, self.disk, self.children = open(here/'log', 'wb'), self.sheet(here/'synced'), {}
        for who, x in self.folders.items():
            self.start(who, 'live', x.name, str(seconds), *['--spin']*(SPINNING in who), env=furnish(Path(x.name), ports[who]))
        self.start('ccxt.pro', 'ccxt', *map(str, ports['ccxt.pro']))
        for k, who in enumerate(bare):
            path = here/f'synced{k}' if BARE[0] in who else ''
            if path: os.close(self.sheet(path))
            self.start(who, 'bare', str(path), 'spin' if SPINNING in who else 'sleep', *map(str, ports[who]))

    def start(self, who: str, *args: str, env=None):
        self.children[who] = subprocess.Popen([sys.executable, '-m', 'bench.live', *args], env=env, cwd=self.root, stdout=self.log, stderr=self.log)

    def sheet(self, path: Path) -> int:
        "An open file that a sync need not lengthen."
        fd = os.open(path, os.O_RDWR | os.O_CREAT)
        os.pwrite(fd, bytes(64*SYNCED), 0)
        os.fsync(fd)
        return fd

    def part(self):
        "Once all run: a bot that is to spin would refuse to start with one core."
        cores = sorted(self.cores)[:2]
        if len(cores) < 2: return
        for core, pid in [(cores[0], os.getpid()), *((cores[1], c.pid) for c in self.children.values())]:
            for task in Path(f'/proc/{pid}/task').iterdir(): os.sched_setaffinity(int(task.name), {core})

    def turn(self, who: str):
        "Of those that spin only `who` goes on; '' for all of them."
        for name, child in self.children.items():
            if SPINNING in name: child.send_signal(signal.SIGCONT if who in ('', name) else signal.SIGSTOP)

    def words(self) -> str:
        with open(self.log.name, errors='replace') as f: return f.read()[-2_000:]

    def call(self, coroutine): return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(900)

    async def ready(self, seconds=180):
        async with asyncio.timeout(seconds):
            while not all(v.streams for some in self.venues.values() for v in some):
                if any(c.poll() is not None for c in self.children.values()): raise RuntimeError(self.words())
                await asyncio.sleep(0.1)
        await asyncio.sleep(2)
        self.part()
        for some in self.venues.values():
            for v in some: v.move(CHEAP)

    async def tick(self, who: str) -> float:  # seconds from the frame to the first order
        "A tick that is missed, since the trade before it is not over yet, is made again; five in a row are an error."
        a, b = self.venues[who]
        self.turn(who)
        for k in range(5):
            for v in (a, b): v.heard.clear()
            b.move(CHEAP)
            a.move(CHEAP)
            await asyncio.sleep(PAUSE_S/2)
            with awake():
                began = b.move(DEAR)
                try:
                    async with asyncio.timeout(2): await asyncio.gather(a.heard.wait(), b.heard.wait())
                    break
                except TimeoutError: self.missed[who] += 1
        else: raise RuntimeError(f'{who}: no order at {[v.name for v in (a, b) if not v.heard.is_set()]}: {self.words()}')
        took = (min(a.at, b.at) - began)/1e9
        await asyncio.sleep(PAUSE_S/2)
        b.move(CHEAP)
        await asyncio.sleep(PAUSE_S/2)
        return took

    async def take(self, n: int) -> dict[str, list[float]]:
        out = {who: [] for who in (*self.venues, SYNC)}
        for k in range(n + 5):
            for who in out:
                took = await (self.tick(who) if who in self.venues else asyncio.to_thread(self.sync, k))
                if k >= 5: out[who].append(took)
        return out

    def sync(self, k: int) -> float:  # seconds
        began = time.perf_counter()
        os.pwrite(self.disk, bytes([k & 255])*SYNCED, k%64*SYNCED)
        os.fdatasync(self.disk)
        return time.perf_counter() - began

    def close(self):
        for task in Path('/proc/self/task').iterdir(): os.sched_setaffinity(int(task.name), self.cores)
        self.turn('')
        for c in self.children.values(): c.terminate()
        for c in self.children.values(): c.wait()
        self.log.close()
        self.loop.call_soon_threadsafe(self.loop.stop)
        os.close(self.disk)
        for x in self.folders.values(): x.cleanup()


@contextmanager
def tick_to_order():
    "From a frame that opens an edge to the bytes of the first order: the whole product with durable intents, on disk and in memory, and a stock ccxt.pro loop; the baseline is that loop."
    race, n = Race(), 20 if os.environ.get('BENCH_QUICK') else TICKS
    try:
        race.call(race.ready())
        found = {}

        def lane(who):
            if who == 'ccxt.pro': found.update(race.call(race.take(n//5)))
            return statistics.median(found[who])
        yield {who: (lambda who=who: lane(who), 1) for who in (*race.venues, SYNC)}, 'ms', 1e3, 'ccxt.pro', 5
        if any(race.missed.values()): print(f'ticks made again: {race.missed}', file=sys.stderr)
    finally: race.close()


BENCHES = {'tick_to_order': tick_to_order}

if __name__ == '__main__':
    if sys.argv[1] == 'live': live(*sys.argv[2:])
    if sys.argv[1] == 'ccxt': asyncio.run(ccxt_loop([int(x) for x in sys.argv[2:]]))
    import uvloop
    uvloop.run(bare_loop(sys.argv[2], sys.argv[3] == 'spin', [int(x) for x in sys.argv[4:]]))
