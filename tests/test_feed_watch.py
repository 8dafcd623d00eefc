"Dead lines, late clocks, books that fit together and are wrong, and connections that a venue ends: what the wire notices by itself."
import asyncio
import contextlib
import random
from decimal import Decimal

import msgspec
import numpy as np
import pytest
import websockets
from test_feed_wire import KEYS, T0, BinanceVenue, BybitAccount, BybitVenue, Venue, binance_depth, feeding, run, states, until

from websockets.utils import accept_key

from arbwork.clock import ScaledClock, WallClock
from arbwork.feed import sockets as transports
from arbwork.feed import wire
from arbwork.feed.binance import Binance
from arbwork.feed.budget import NS, Budget
from arbwork.feed.bybit import Bybit
from arbwork.feed.events import BOOK, CROSSED, INVALID, VALID, BookUpdate, NewOrder, OrderUpdate
from arbwork.feed.sockets import CLIENTS, Ear, Offset, Probe, client, measure, open_socket
from arbwork.feed.wire import CODECS, Addresses, MarketFeed, TradeLink, difference, fetch_listings, fetch_time_ns, opinion
from arbwork.market import BUY, ConfigError, VenueError
from arbwork.sim.scenarios import load_scenario
from arbwork.sim.server import World

VENUES = ['binance', 'bybit', 'okx', 'kraken']
PAIR = 'LINK-USDT'
client_names = pytest.mark.parametrize('name', CLIENTS)


class Line:
    "A TCP line between a client and a port, which can go dead in both directions without a word."
    def __init__(self, port): self.port, self.dead, self.writers, self.tasks, self.opened = port, False, [], [], 0

    async def carry(self, reader, writer):
        with contextlib.suppress(OSError):
            while data := await reader.read(65_536):
                if not self.dead: writer.write(data)
            if not self.dead: writer.close()

    async def accept(self, reader, writer):
        if self.dead: return self.writers.append(writer) # taken in by the kernel, answered by nobody
        self.opened += 1
        there = await asyncio.open_connection('127.0.0.1', self.port)
        self.writers += [writer, there[1]]
        self.tasks += [asyncio.create_task(self.carry(reader, there[1])), asyncio.create_task(self.carry(there[0], writer))]

    @contextlib.asynccontextmanager
    async def open(self):
        server = await asyncio.start_server(self.accept, '127.0.0.1', 0)
        try: yield server.sockets[0].getsockname()[1]
        finally:
            server.close()
            for t in self.tasks: t.cancel()
            for w in self.writers: w.close()


def quick(codec):
    "As the venue's own patience, twenty times as impatient."
    codec.idle_s, codec.patience_s = codec.idle_s/20, codec.patience_s/20
    return codec


@contextlib.asynccontextmanager
async def world(venue, rows=600, speed=20.):
    scenario = load_scenario('link-2021-08-20', venues=(venue, 'bybit' if venue != 'bybit' else 'binance'), minutes=20)
    scenario = msgspec.structs.replace(scenario, rows={v: r[:rows] for v, r in scenario.rows.items()})
    w = World([venue], scenario, 0, speed, KEYS, None, .2)
    await w.start()
    try: yield w, w.ports[venue], ScaledClock(await fetch_time_ns(CODECS[venue](None, None), Addresses.local(w.ports[venue])), speed)
    finally: await w.stop()


# half-open

@pytest.mark.parametrize('venue', VENUES)
def test_a_dead_line_is_noticed_on_the_market_feed_and_on_the_account(venue):
    async def main():
        async with world(venue) as (w, port, clock):
            market, account = Line(port), Line(port)
            async with market.open() as at, account.open() as account_at:
                rows, told, problems = [], [], []
                feed = MarketFeed(quick(CODECS[venue](None, None)), Addresses(f'http://127.0.0.1:{port}', *[f'ws://127.0.0.1:{at}']*3), {PAIR: 0}, clock, rows.append,
                                  on_problem=lambda *x: told.append(x), rng=random.Random(1))
                codec = quick(CODECS[venue](None, KEYS))
                places = Addresses(f'http://127.0.0.1:{port}', *[f'ws://127.0.0.1:{account_at}']*3)
                await fetch_listings(codec, places, [PAIR])
                link = TradeLink(codec, places, clock, lambda e: None, on_problem=lambda *x: problems.append(x), timeout_s=2.)
                await link.start()
                task = asyncio.create_task(feed.run())
                await until(lambda: len(rows) > 3 and link.live)
                market.dead = account.dead = True
                seen = len(rows)
                await until(lambda: 'silent' in [k for k, _ in told] and [k for k, _ in problems].count('silent') >= len({link.private, link.trade}))
                assert rows[-1]['state'] == INVALID and len(rows) <= seen + 1 + 2, 'at once, and nothing is believed meanwhile'
                assert not link.live and 'nothing heard for' in told[0][1]
                with pytest.raises(VenueError) as e: await link.place(NewOrder('s1-7-0-0', PAIR, BUY, Decimal('3.5'), Decimal('26.84')))
                assert e.value.code == 'venue_down'
                market.dead = account.dead = False
                await until(lambda: rows[-1]['state'] == VALID and link.live and 'reconnected' in [k for k, _ in problems], 12)
                task.cancel()
                await link.close()
    run(main(), 40)


@pytest.mark.parametrize('venue', VENUES)
def test_a_quiet_socket_that_answers_is_left_alone(venue):
    "Nothing moves at the venue; the questions of the watch are answered, and nobody is troubled."
    async def main():
        async with world(venue, rows=2, speed=1.) as (w, port, clock):
            rows, told, problems = [], [], []
            feed = MarketFeed(quick(CODECS[venue](None, None)), Addresses.local(port), {PAIR: 0}, clock, rows.append, on_problem=lambda *x: told.append(x))
            codec = quick(CODECS[venue](None, KEYS))
            await fetch_listings(codec, Addresses.local(port), [PAIR])
            link = TradeLink(codec, Addresses.local(port), clock, lambda e: None, on_problem=lambda *x: problems.append(x), timeout_s=2.)
            await link.start()
            task = asyncio.create_task(feed.run())
            await until(lambda: rows)
            await asyncio.sleep(6*(codec.idle_s + codec.patience_s))
            assert told == problems == [] and link.live and rows[-1]['state'] == VALID
            task.cancel()
            await link.close()
    run(main())


def test_an_order_under_way_on_a_dead_line_is_unknown_as_soon_as_that_is_noticed():
    async def main():
        venue = BybitAccount({'order.create': lambda m, ws: asyncio.sleep(0)})
        async with venue.open():
            line = Line(int(venue.addresses.rest.rpartition(':')[2]))
            async with line.open() as at:
                link = TradeLink(quick(Bybit()), Addresses(venue.addresses.rest, *[f'ws://127.0.0.1:{at}']*3), WallClock(), print, KEYS, on_problem=lambda *x: None, timeout_s=30.)
                await link.start()
                line.dead = True
                with pytest.raises(VenueError) as e: await asyncio.wait_for(link.place(NewOrder('s1-7-1-0', PAIR, BUY, Decimal('3.5'), Decimal('26.84'))), 8)
                assert e.value.code == 'unknown_outcome' and 'connection lost' in str(e.value)
                await link.close()
    run(main())


def test_an_ear_judges_only_what_it_could_have_heard():
    for seed in range(200):
        rng = random.Random(seed)
        ear, now, count, since, said = Ear(3., 2., 20., 0.), 0., 0, 0., []
        for _ in range(400):
            slept = ear.step_s*rng.choice((1, 1, 1, 1.2, 20, 60) if seed % 2 else (1, 1.1))
            now += slept
            if rng.random() < 0.1: count, since = count + 1, now
            what = ear.look(count, now)
            said.append(what)
            if what == 'dead':
                assert 'ask' in said[-400:] and now - since >= 5
                break
        if not seed % 2: assert said.count('ask') <= 40


# the two clients

@client_names
def test_the_contract_of_a_socket(name):
    async def main():
        heard, closed = [], []
        async def serve(ws):
            with contextlib.suppress(websockets.ConnectionClosed):
                async for raw in ws:
                    heard.append(raw)
                    if raw == 'pieces': await ws.send(['a', 'b', 'c'])
                    elif raw == 'large': await ws.send('x'*300_000)
                    elif raw == 'binary': await ws.send(b'\x00\xff')
                    elif raw == 'ping': await (await ws.ping()); await ws.send('answered')
                    elif raw == 'bye': await ws.close(1012, 'service restart')
                    elif raw == 'own': await ws.close(4_001, 'a code of its own')
                    elif raw == 'cut': ws.transport.abort()
                    elif raw == 'huge': await ws.send('y'*(2**24 + 1))
                    else: await ws.send(raw)
            closed.append(ws.close_code)
        async with websockets.serve(serve, '127.0.0.1', 0, max_size=2**25) as server:
            at = f'ws://127.0.0.1:{server.sockets[0].getsockname()[1]}'
            async with open_socket(client(name), at) as ws:
                for said, back in ((b'{"op":1}', b'{"op":1}'), (b'pieces', b'abc'), (b'large', b'x'*300_000), (b'binary', b'\x00\xff'), (b'ping', b'answered')):
                    await ws.send(said, text=True)
                    assert await ws.recv(decode=False) == back
                await (await ws.ping())
                assert all(isinstance(x, str) for x in heard), 'text goes out as text'
            await until(lambda: closed)
            assert closed == [1000], 'a goodbye is said and waited for'
            for word, code in (('bye', '1012 (service restart) service restart'), ('own', 'a code of its own'), ('cut', 'no close frame'), *[('huge', '1009')]*8):
                async with open_socket(client(name), at) as ws:
                    await ws.send(word.encode(), text=True)
                    with pytest.raises(websockets.ConnectionClosed) as e: await ws.recv(decode=False)
                    assert code in str(e.value), (word, str(e.value))
                    with pytest.raises(websockets.ConnectionClosed): await ws.recv(decode=False)
                    with pytest.raises(websockets.ConnectionClosed): await ws.send(b'late', text=True)
        with pytest.raises(OSError):
            async with open_socket(client(name), at): pass
    run(main(), 20)


def framed(first, body, mask=b''): return bytes([first, (128 if mask else 0) | (len(body) if len(body) < 126 else 126)]) + (b'' if len(body) < 126 else len(body).to_bytes(2, 'big')) + mask + body


@client_names
def test_frames_that_no_server_may_send_end_the_connection(name):
    "And those that it may are read: a ping inside a message in parts, a message of three long parts."
    bad = dict(compressed=framed(0xC1, b'{"u":1}'), compressed_and_long=framed(0xC1, b'x'*500), part_of_nothing=framed(0x80, b'{"u":1}'), message_in_a_message=framed(0x01, b'{') + framed(0x81, b'}'),
               masked=framed(0x81, bytes(8), b'abcd'), long_ping=framed(0x89, b'p'*126), ping_in_parts=framed(0x09, b'p'), no_such_kind=framed(0x83, b'x'))
    good = framed(0x01, b'x'*200) + framed(0x89, b'p') + framed(0x00, b'y'*300) + framed(0x80, b'z'*400)
    now, pongs = [b''], []
    async def serve(reader, writer):
        head = (await reader.readuntil(b'\r\n\r\n')).decode()
        key = next(line.split(': ', 1)[1] for line in head.split('\r\n') if line.lower().startswith('sec-websocket-key'))
        writer.write(f'HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {accept_key(key)}\r\n\r\n'.encode() + good + now[0])
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while (kind := (await reader.readexactly(7))[0]) == 0x8A: pongs.append(kind) # its answer to our ping, until it says goodbye
        writer.close()
    async def main():
        server = await asyncio.start_server(serve, '127.0.0.1', 0)
        async with server:
            for what, now[0] in bad.items():
                got = []
                async with open_socket(client(name), f'ws://127.0.0.1:{server.sockets[0].getsockname()[1]}') as ws:
                    with pytest.raises(websockets.ConnectionClosed, match='1002'): await asyncio.wait_for(transports.read_from(ws, got.append), 10)
                assert [bytes(x) for x in got] == [b'x'*200 + b'y'*300 + b'z'*400], what
            await until(lambda: pongs.count(0x8A) == len(bad))
    run(main(), 60)


@client_names
def test_a_refused_upgrade_and_a_wrong_address(name):
    async def main():
        async with Venue().open() as venue:
            venue.rest = {'/nothing': lambda: (404, b'nothing here')}
            with pytest.raises((websockets.WebSocketException, OSError)):
                async with open_socket(client(name), venue.addresses.public_ws + '/nothing'): pass
    run(main())
    with pytest.raises(ConfigError, match="found 'soup', wanted one of picows, websockets"): client('soup')


@client_names
def test_a_failing_listener_ends_the_connection_with_its_own_error(name):
    async def main():
        async with BybitVenue().open() as venue:
            def full(row): raise OSError(28, 'No space left on device')
            feed = MarketFeed(Bybit(), venue.addresses, {PAIR: 0}, WallClock(), full, connect=client(name))
            with pytest.raises(OSError, match='No space left'): await asyncio.wait_for(feed.run(), 5)
    run(main())


@client_names
def test_sixty_thousand_frames_at_once(name):
    "None lost, none doubled, in order, whichever client reads them."
    async def main():
        async with BybitVenue().open() as venue, feeding(Bybit(), venue, connect=client(name)) as (feed, rows, problems):
            await until(lambda: rows)
            frames = [venue.delta([['26.82', str(70 + i % 7)]]) for i in range(60_000)]
            async def burst():
                for f in frames: await venue.sockets[0].send(f)
            sending = asyncio.create_task(burst())
            await until(lambda: len(rows) == 60_001, 60)
            await sending
            assert feed.stats['gaps'] == feed.stats['duplicates'] == feed.stats['reconnects'] == 0 and not problems
            assert [int(r['seq']) for r in rows[1:]] == list(range(int(rows[0]['seq']) + 1, int(rows[0]['seq']) + 60_001))
            assert all(r['bid_qty'][0] == 70 + i % 7 for i, r in enumerate(rows[1:]))
    run(main(), 90)


def test_a_proxy_in_the_environment_is_for_the_client_that_knows_proxies(monkeypatch):
    async def main():
        monkeypatch.setenv('https_proxy', 'http://127.0.0.1:9')
        assert transports.picows_connect('wss://ws.kraken.com/v2').other is not None
        assert transports.picows_connect('wss://127.0.0.1:1/v2', proxy=None).other is None, 'loopback never goes through one'
        monkeypatch.setenv('no_proxy', 'kraken.com')
        assert transports.picows_connect('wss://ws.kraken.com/v2').other is None
    run(main())


# a second opinion

class Forgetful(BinanceVenue):
    "A venue whose numbers always fit and whose feed may leave out a level."
    def __init__(self):
        super().__init__(levels=20)
        self.changed, self.stale, self.ahead = {}, 0, 0

    def depth(self):
        status, body = super().depth()
        d = msgspec.json.decode(body)
        for px, qty in self.changed.items(): d['bids'] = [[p, qty if p == px else q] for p, q in d['bids']]
        d['lastUpdateId'] += self.ahead - self.stale
        return status, msgspec.json.encode(d)


@contextlib.asynccontextmanager
async def checked(venue, check_s=0.1, **more):
    async with venue.open(), feeding(Binance(), venue, check_s=check_s, **more) as (feed, rows, problems):
        await until(lambda: states(rows)[-1:] == [VALID])
        yield feed, rows, problems


def test_a_level_that_was_never_told_is_found_and_that_book_alone_is_mended():
    async def main():
        venue = Forgetful()
        async with checked(venue) as (feed, rows, problems):
            await until(lambda: feed.stats['checks'] >= 3)
            assert feed.stats['disagreements'] == 0 and not problems
            venue.changed['26.80'] = '9.25' # at the venue, and in no frame
            await until(lambda: feed.stats['disagreements'] == 1 and states(rows)[-1] == VALID)
            assert [k for k, _ in problems] == ['check'] and 'bid 3: found 26.8 x 75.0, wanted 26.8 x 9.25 as by REST' in problems[0][1]
            assert INVALID in states(rows) and rows[-1]['bid_qty'][2] == 9.25 and venue.connections == 1 and feed.stats['reconnects'] == 0
            checks = feed.stats['checks']
            await until(lambda: feed.stats['checks'] >= checks + 2)
            assert feed.stats['disagreements'] == 1
    run(main())


def test_a_moving_book_is_compared_at_one_instant():
    async def main():
        venue = Forgetful()
        async with checked(venue, check_s=0.03) as (feed, rows, problems):
            rng, stop = random.Random(3), asyncio.Event()
            async def move():
                while not stop.is_set():
                    px, qty = f'{26.82 - rng.randrange(8)/100:.2f}', str(rng.randrange(1, 90))
                    venue.changed[px] = qty
                    await venue.send(venue.next([[px, qty]]))
                    await asyncio.sleep(rng.random()/300)
            moving = asyncio.create_task(move())
            await until(lambda: feed.stats['checks'] >= 25, 15)
            stop.set()
            await moving
            assert feed.stats['disagreements'] == 0 and not problems and feed.stats['rows'] > 100
    run(main(), 25)


def test_what_an_old_snapshot_says_is_nothing_and_a_stream_that_stopped_is_found():
    async def main():
        venue = Forgetful()
        async with checked(venue) as (feed, rows, problems):
            await until(lambda: feed.stats['checks'] >= 1)
            venue.stale = 400
            venue.changed['26.80'] = '9.25'
            before = feed.stats['unaligned']
            await until(lambda: feed.stats['unaligned'] >= before + 3)
            assert not problems, 'a cache between us and the venue'
            venue.stale, venue.ahead = 0, 50 # the venue went on and its feed did not
            await until(lambda: 'check' in [k for k, _ in problems], 12)
    run(main(), 25)


def test_bybit_is_compared_by_the_engines_time():
    async def main():
        venue = BybitVenue()
        wrong = []
        def book():
            t = T0 + venue.u
            return 200, msgspec.json.encode(dict(retCode=0, retMsg='OK', result=dict(s='LINKUSDT', b=[['26.82', '99' if wrong else '75'], ['26.81', '40']], a=[['26.84', '30'], ['26.86', '90']], u=5, seq=7, ts=t + 3, cts=t), time=t))
        venue.rest = {'/v5/market/orderbook': book}
        async with venue.open(), feeding(Bybit(), venue, check_s=0.1) as (feed, rows, problems):
            await until(lambda: feed.stats['checks'] >= 3)
            assert not problems
            wrong.append(1)
            await until(lambda: [k for k, _ in problems][:1] == ['check'])
            assert 'bid 1: found 26.82 x 75.0, wanted 26.82 x 99.0' in problems[0][1]
            await until(lambda: [m['op'] for m in venue.heard][-2:] == ['unsubscribe', 'subscribe'])
    run(main())


@pytest.mark.parametrize('venue', ['binance', 'bybit', 'okx'])
def test_a_right_book_is_never_disbelieved(venue):
    "Recorded books at twenty times their speed, compared many times a second."
    async def main():
        async with world(venue, rows=400, speed=40.) as (w, port, clock):
            rows, told = [], []
            feed = MarketFeed(CODECS[venue](None, None), Addresses.local(port), {PAIR: 0}, clock, rows.append, on_problem=lambda *x: told.append(x), check_s=0.05, budget=Budget())
            task = asyncio.create_task(feed.run())
            await until(lambda: feed.stats['checks'] >= 20, 15)
            task.cancel()
            assert feed.stats['disagreements'] == 0 and not told, told
    run(main(), 30)


def test_opinions_follow_the_differences_exactly():
    "A snapshot of any instant between question and answer, with every difference since the question, is the book as it is."
    for seed in range(300):
        rng = random.Random(seed)
        bids, asks = {26.8 - i/10: rng.randrange(1, 9)*1. for i in range(15)}, {26.9 + i/10: rng.randrange(1, 9)*1. for i in range(15)}
        tape, cut = [], rng.randrange(0, 12)
        for i in range(12):
            if i == cut: u = BookUpdate(PAIR, True, i, i, -1, 0, list(bids.items()), list(asks.items()))
            side, px = rng.choice([(bids, 26.8 - rng.randrange(15)/10), (asks, 26.9 + rng.randrange(15)/10)])
            side[px] = rng.choice((0., 2.5, 7.))
            tape.append(BookUpdate(PAIR, False, i + 1, i + 1, i, 0, *(([(px, side[px])], []) if side is bids else ([], [(px, side[px])]))))
            if not side[px]: del side[px]
        row = np.zeros(1, BOOK)[0]
        for name, side, sign in (('bid', bids, -1), ('ask', asks, 1)):
            best = sorted(side.items(), key=lambda x: sign*x[0])[:10]
            row[f'{name}_px'][:len(best)], row[f'{name}_qty'][:len(best)] = [p for p, _ in best], [q for _, q in best]
        assert difference(row, *opinion(u, tape)) == ''
        row['bid_qty'][0] += 1
        assert difference(row, *opinion(u, tape)).startswith('bid 1')


# clocks

def test_the_offset_is_within_its_bounds_and_a_jump_is_told():
    for seed in range(60):
        rng = random.Random(seed)
        step, truth, t = rng.choice((1_000_000, NS)), rng.randrange(-3*NS, 3*NS), 1_629_417_600*NS
        o = Offset(step)
        for i in range(40):
            probes = []
            for _ in range(3):
                t += rng.randrange(NS//10, 5*NS)
                there, back = rng.randrange(1, 60)*1_000_000, rng.randrange(1, 60)*1_000_000
                probes.append(Probe(t, (t + there + truth)//step*step, t + there + back))
                t += there + back
            if i == 30: truth += 2*step + 400_000_000; probes = [Probe(t, (t + 5_000_000 + truth)//step*step, t + 10_000_000)]
            jumped = o.take(probes)
            assert bool(jumped) == (i == 30), (seed, i, jumped)
            assert o.low <= truth <= o.high and o.safe_ns <= truth, 'never ahead of the venue'
            assert o.error_ns <= step//2 + 60_000_000


def test_a_jump_of_the_venues_clock_is_a_problem_of_its_own_and_stats_say_where_it_stands():
    async def main():
        venue, ahead = BybitAccount(), [3*NS]
        venue.rest = {'/v5/market/time': lambda: (200, msgspec.json.encode(dict(retCode=0, result=dict(timeNano=str(WallClock().now_ns() + ahead[0])))))}
        async with venue.link(clock_s=0.05) as (link, events, problems):
            await link.start()
            assert 2_900 < link.health['clock_offset_ms'] < 3_100 and link.offset_ns < 3.1*NS
            ahead[0] = 9*NS
            await until(lambda: 'clock' in [k for k, _ in problems])
            assert 'wanted 300' in problems[0][1] or 'wanted 299' in problems[0][1]
            assert 8.9*NS < link.offset_ns < 9.1*NS
        told = []
        async with venue.open():
            feed = MarketFeed(Bybit(), venue.addresses, {PAIR: 0}, WallClock(), lambda row: None, on_problem=lambda *x: told.append(x), clock_s=0.05)
            assert feed.stats['clock_offset_ms'] is None
            task = asyncio.create_task(feed.run())
            await until(lambda: feed.stats['clock_offset_ms'])
            ahead[0] = -2*NS
            await until(lambda: 'clock' in [k for k, _ in told])
            assert -2_100 < feed.stats['clock_offset_ms'] < -1_900 and feed.stats['clock_error_ms'] < 100
            task.cancel()
    run(main())


# connections that a venue ends

def test_a_connection_that_the_venue_will_end_is_left_before_it_does():
    async def main():
        venue = BinanceVenue()
        async with venue.open(), feeding(Binance(), venue) as (feed, rows, problems):
            await until(lambda: states(rows)[-1:] == [VALID])
            await venue.send('{"stream":"!serverShutdown","data":{"e":"serverShutdown","E":1770123456789}}')
            await until(lambda: venue.connections == 2 and states(rows)[-1] == VALID)
            assert [k for k, _ in problems] == ['shutdown'] and INVALID in states(rows)
        codec = Binance()
        codec.connection_s = 0.4
        async with BinanceVenue().open() as venue, feeding(codec, venue) as (feed, rows, problems):
            await until(lambda: venue.connections >= 3, 8)
            assert not problems, 'no fault of anybody'
    run(main(), 20)


def test_orders_under_way_are_answered_before_a_socket_is_left():
    async def main():
        seen = []
        async def create(m, ws):
            seen.append(m['reqId'])
            if m['reqId'] == 'first':
                await ws.send(msgspec.json.encode(dict(reqId='other', retCode=10019, retMsg='ws trade service is restarting', op='order.create', data={})).decode())
                await asyncio.sleep(0.2)
            return [msgspec.json.encode(dict(reqId=m['reqId'], retCode=0, op='order.create', data=dict(orderId='o', orderLinkId=m['reqId']))).decode()]
        async with BybitAccount({'order.create': create}).link() as (link, events, problems):
            await link.start()
            order = NewOrder('first', PAIR, BUY, Decimal('3.5'), Decimal('26.84'))
            placing = asyncio.create_task(link.place(order))
            await until(lambda: link.trade.ws is None)
            with pytest.raises(VenueError) as e: await link.place(msgspec.structs.replace(order, client_id='second'))
            assert e.value.code == 'venue_down' and (await placing).status == 'acked'
            await until(lambda: link.live and 'reconnected' in [k for k, _ in problems])
            assert (await link.place(msgspec.structs.replace(order, client_id='third'))).status == 'acked' and seen == ['first', 'third']
    run(main())


# the first moments of a connection

def test_a_gap_right_after_connecting_is_mended_at_once_and_a_lost_snapshot_is_not_waited_for():
    async def main():
        async with BybitVenue().open() as venue, feeding(Bybit(), venue, resync_s=60.) as (feed, rows, problems):
            await until(lambda: states(rows) == [VALID])
            assert feed._tries[PAIR] == 0, 'what a connection brings by itself is no attempt, so the first one is made at once'
            await venue.send(venue.delta([['26.83', '0']], skip=1))
            await until(lambda: states(rows) == [VALID, INVALID, VALID])
            assert feed.stats['resyncs'] == 1 and feed._tries[PAIR] == 1
        class Mute(BybitVenue):
            "Its first snapshot is lost on the way."
            def snapshot(self, symbol='LINKUSDT'):
                whole = super().snapshot(symbol)
                return self.delta([['26.83', '5']]) if self.connections == 1 and self.u < 250 else whole
        async with Mute().open() as venue, feeding(Bybit(), venue, resync_s=60.) as (feed, rows, problems):
            await until(lambda: states(rows)[-1:] == [VALID])
            assert states(rows) == [INVALID, VALID] and [k for k, _ in problems] == ['gap'] and 'wanted a snapshot before it' in problems[0][1]
            assert venue.connections == 1 and feed.stats['gaps'] == 1
    run(main(), 15)
