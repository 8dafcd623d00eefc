"""Every kind of fault at every simulated venue, proven by what a client sees: raw frames, raw requests, and our codecs that read them.

The venues stand still: a row is due in two hours, so that nothing leaves but what a test has caused."""

import asyncio
import threading
from contextlib import asynccontextmanager
from decimal import Decimal as D

import aiohttp
import msgspec
import pytest

from arbwork.clock import NS
from arbwork.feed.book import Book
from arbwork.feed.codec import Keys, Request
from arbwork.feed.events import INVALID, VALID, BookUpdate, Fill, NewOrder, OrderUpdate
from arbwork.feed.okx import to_wire
from arbwork.feed.wire import CODECS
from arbwork.market import BUY, ConfigError, DataError, VenueError
from arbwork.sim.coinbase import order_uuid, token_for
from arbwork.sim.faults import FAULTS, MIXES, Fault, draw_faults
from arbwork.sim.inproc import VENUES, Driver, open_venues
from arbwork.sim.scenarios import load_scenario
from arbwork.sim.server import World

KEYS, NAME = Keys('sim-key', 'c2ltLXNlY3JldC1vZi1zaXh0ZWVu', 'sim-pass'), 'LINK-USDT'
SCENARIO = load_scenario('link-2021-08-20', minutes=2, venues=tuple(VENUES))
ALL, V3, PATIENCE_S = list(VENUES), '/api/v3/brokerage/', 60.
BOOKS = {'binance': b'"depthUpdate"', 'bybit': b'"orderbook.', 'okx': b'"books"', 'kraken': b'"channel":"book","type"', 'coinbase': b'"l2_data"'}


class Town:
    "All venues on a loop of their own, for the whole module."
    def __init__(self):
        self.loop = asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever, daemon=True).start()
        self.count = 0
        self.do(self.open())

    def do(self, coroutine): return asyncio.run_coroutine_threadsafe(asyncio.wait_for(coroutine, PATIENCE_S), self.loop).result()

    async def open(self):
        self.http = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(30))
        self.world = World(ALL, SCENARIO, port=0, keys=KEYS, lead_s=7_200., limits=False)
        await self.world.start()

    async def close(self):
        await self.http.close()
        await self.world.stop()


@pytest.fixture(scope='module')
def town():
    t = Town()
    yield t
    t.do(t.close())
    t.loop.call_soon_threadsafe(t.loop.stop)


class Line:
    "A raw socket: every frame that came, and how it ended."
    def __init__(self, ws):
        self.ws, self.frames, self.closed, self.news = ws, [], None, asyncio.Event()
        self.task = asyncio.ensure_future(self.read())

    async def read(self):
        async for m in self.ws:
            self.frames.append(m.data.encode())
            self.news.set()
        self.closed = self.ws.close_code
        self.news.set()

    async def until(self, true):
        "Wait for what must come."
        while (found := true()) in (None, False, []):
            self.news.clear()
            await self.news.wait()
        return found

    async def over(self):
        await self.until(lambda: self.closed is not None)
        return self.closed


class Native:
    "One venue as our own codec speaks to it, over a raw client."
    def __init__(self, town, name):
        self.name, self.world, self.http, self.door = name, town.world, town.http, town.world.doors[name]
        self.sim, self.port, self.town = self.door.venue, town.world.ports[name], town
        self.codec = CODECS[name]({NAME: SCENARIO.listings[name]}, KEYS) if name in CODECS else None

    def now(self): return self.world.clock.now_ns()

    def fresh(self):
        self.town.count += 1
        return f's-{self.town.count}-0-0'

    def wired(self, cid): return {'okx': to_wire, 'kraken': getattr(self.codec, 'wire_id', None)}.get(self.name, str)(cid)

    async def ask(self, r):
        async with self.http.request(r.method, f'http://127.0.0.1:{self.port}{r.path_with_query}', headers=r.headers, data=r.body or None) as answer:
            return answer.status, await answer.read()

    async def arm(self, *faults, status=200):
        s, body = await self.ask(Request('POST', '/_sim/faults', {}, msgspec.json.encode(list(faults))))
        assert s == status, body
        return msgspec.json.decode(body)

    async def socket(self, path): return Line(await self.http.ws_connect(f'ws://127.0.0.1:{self.port}{path}', autoping=True))

    async def book(self):
        line = await self.socket(self.codec.public_path([NAME]))
        for raw in self.codec.subscribe([NAME]): await line.ws.send_str(raw.decode())
        await line.until(lambda: len(line.frames) >= (1 if self.name in ('binance', 'bybit') else 2))
        await line.until(lambda: self.name == 'binance' or self.frames(line))
        return line

    def frames(self, line): return [x for x in line.frames if BOOKS[self.name] in x]

    async def account(self):
        line = await self.socket(self.codec.private_path())
        if self.codec.token_request: self.codec.token_reply(*await self.ask(self.codec.token_request(self.now())))
        for raw in self.codec.login(self.now()):
            n = len(line.frames)
            await line.ws.send_str(raw.decode())
            await line.until(lambda n=n: len(line.frames) > n)
        await self.quiet(line)
        return line

    async def quiet(self, line):
        "Until a question that was sent now is answered: what comes later was caused later."
        await self.ask(self.time())
        await asyncio.sleep(.02)

    def time(self): return self.codec.time_request()
    def told(self, line): return [e for x in line.frames for e in self.codec.private(x)]
    async def place(self, o): return self.codec.place_reply(*await self.ask(self.codec.place_request(o, self.now())), *([o] if self.name != 'binance' else []))
    async def place_raw(self, o): return await self.ask(self.codec.place_request(o, self.now()))
    def said_no(self, status, body, o): # code of a refusal, '' when it was none
        try: u = self.codec.place_reply(status, body, *([o] if self.name != 'binance' else []))
        except VenueError as e: return 'venue_down' if e.code == 'unknown_outcome' else e.code # either is asked about
        except DataError: return 'venue_down' # no answer is no word
        return u.code
    async def cancel(self, cid): return await self.ask(self.codec.cancel_request(NAME, cid, self.now()))
    async def status(self, cid):
        u = self.codec.order_reply(*await self.ask(self.codec.order_request(NAME, cid, self.now())), NAME, cid)
        if u.status == 'unknown_order' and (r := self.codec.history_request(NAME, cid, self.now())): u = self.codec.order_reply(*await self.ask(r), NAME, cid)
        return u.status, u.filled_qty

    async def time_ns(self): return self.codec.time_reply(*await self.ask(self.time()))

    def px(self, text): return D('27.095') + D(text[-1])/1_000 if self.name == 'kraken' else D(text) # whose subscribers hear of ten levels only

    def nudge(self, px):
        "A bid of our own, far below the market where that is heard: the book changes."
        self.sim.submit(self.now(), NAME, BUY, D(2), self.px(px), 'GTC', self.wired(cid := self.fresh()))
        self.door.wake()
        return cid

    def reads(self, raw): return self.codec.public(raw)

    @asynccontextmanager
    async def follower(self):
        "A book kept by our codec, joined as this venue says."
        line, codec = await self.book(), self.codec
        book = Book(codec.venue, NAME, codec.follows, codec.cut_at, codec.depth, codec.checksum)
        if codec.joins_by_rest: book.apply(codec.snapshot_reply(NAME, *await self.ask(codec.snapshot_request(NAME))))
        at = 0
        async def catch_up(n):
            nonlocal at
            await line.until(lambda: len(self.frames(line)) >= n)
            for raw in self.frames(line)[at:]:
                for u in codec.public(raw):
                    if type(u) is BookUpdate: book.apply(u)
            at = len(self.frames(line))
            return book.state
        yield line, catch_up


class Coinbase(Native):
    "The same where no codec of ours speaks: requests with tokens, one numbered socket."
    def request(self, method, path, query='', **p):
        token = token_for(KEYS, self.now(), f'{method} 127.0.0.1:{self.port}{V3}{path}')
        return Request(method, V3 + path + query, {'Authorization': f'Bearer {token}', 'Content-Type': 'application/json'}, msgspec.json.encode(p) if p else b'')

    async def subscribed(self, **m):
        line = await self.socket('/')
        await line.ws.send_str(msgspec.json.encode({'type': 'subscribe', **m}).decode())
        return line

    async def book(self):
        line = await self.subscribed(channel='level2', product_ids=[NAME])
        await line.until(lambda: self.frames(line) and len(line.frames) >= 2)
        return line

    async def account(self):
        line = await self.subscribed(channel='user', jwt=token_for(KEYS, self.now()))
        await line.until(lambda: len(line.frames) >= 2)
        return line

    def time(self): return Request('GET', V3 + 'time')
    async def time_ns(self): return int(msgspec.json.decode((await self.ask(self.time()))[1])['epochMillis'])*10**6

    def told(self, line):
        out = []
        for x in line.frames:
            m = msgspec.json.decode(x)
            for o in (o for e in m['events'] if e.get('type') == 'update' for o in e.get('orders', ())):
                out.append(OrderUpdate(o['client_order_id'], o['order_id'], NAME, BUY, o['status'], D(0), D(o['cumulative_quantity']), 0))
        return out

    def order(self, o):
        kind = {'IOC': 'sor_limit_ioc', 'GTC': 'limit_limit_gtc'}[o.tif]
        return self.request('POST', 'orders', client_order_id=o.client_id, product_id=NAME, side='BUY', order_configuration={kind: {'base_size': str(o.qty), 'limit_price': str(o.px)}})

    async def place_raw(self, o): return await self.ask(self.order(o))
    async def place(self, o):
        status, body = await self.place_raw(o)
        if code := self.said_no(status, body, o): raise VenueError(body.decode(), code)

    def said_no(self, status, body, o):
        if status >= 500: return 'venue_down'
        m = msgspec.json.decode(body)
        if m.get('success'): return ''
        return {'INSUFFICIENT_FUND': 'insufficient_funds', 'VENUE_DOWN': 'venue_down'}.get(m.get('error_response', m)['error'], 'other')

    async def cancel(self, cid): return await self.ask(self.request('POST', 'orders/batch_cancel', order_ids=[order_uuid(self.sim.engine.by_client[cid].venue_id)]))
    async def status(self, cid):
        found = msgspec.json.decode((await self.ask(self.request('GET', 'orders/historical/batch', f'?product_ids={NAME}')))[1])['orders']
        o = next((x for x in found if x['client_order_id'] == cid), None)
        return ('unknown_order', D(0)) if o is None else (o['status'].lower(), D(o['filled_size']))

    def reads(self, raw):
        try: m = msgspec.json.decode(raw)
        except msgspec.DecodeError as e: raise DataError(str(e)) from e
        for u in m['events'][0]['updates']:
            if not D(u['price_level']).is_finite(): raise DataError('price')
        return m['events'][0]['updates']

    @asynccontextmanager
    async def follower(self):
        line = await self.book()
        async def catch_up(n):
            await line.until(lambda: len(self.frames(line)) >= n)
            for raw in self.frames(line): self.reads(raw)
            numbers = [msgspec.json.decode(x)['sequence_num'] for x in line.frames]
            return VALID if numbers == list(range(len(numbers))) else INVALID
        yield line, catch_up


@pytest.fixture(params=ALL)
def at(request, town):
    v = (Coinbase if request.param == 'coinbase' else Native)(town, request.param)
    yield v
    async def tidy():
        await v.arm()
        v.sim.held_up.clear()
        for o in v.sim.open_orders(): v.sim.withdraw(o, v.now())
        for ws, _ in list(v.door.sockets.values()): await ws.close(drain=False)
        for s in list(v.sim.lines): v.sim.leave(s)
    town.do(tidy())


def levels(at, raw):
    "Prices and quantities in a frame of a book, whoever wrote it."
    m = msgspec.json.decode(raw)
    if at.name == 'binance': data, keys = m.get('data', m), ('b', 'a')
    elif at.name == 'coinbase': return [(u['price_level'], u['new_quantity']) for u in m['events'][0]['updates']]
    else: data, keys = (m['data'] if isinstance(m['data'], dict) else m['data'][0]), (('b', 'a') if at.name == 'bybit' else ('bids', 'asks'))
    return [(str(x['price']), str(x['qty'])) if isinstance(x, dict) else (x[0], x[1]) for k in keys for x in data[k]]


def prices(at, raw): return [D(px) for px, _ in levels(at, raw)]


# ---- frames of a book

def test_a_book_of_our_codec_follows_what_nothing_has_spoiled(at):
    async def go():
        async with at.follower() as (line, catch_up):
            n = len(at.frames(line))
            at.nudge('20.1')
            at.nudge('20.2')
            assert await catch_up(n + 2) == VALID and at.px('20.1') in prices(at, at.frames(line)[n]) and at.px('20.2') in prices(at, at.frames(line)[n + 1])
    at.town.do(go())


@pytest.mark.parametrize('fault', [dict(kind='gap'), dict(kind='lose', where='book'), dict(kind='gap', n=2)], ids=str)
def test_a_lost_frame_of_a_book_is_missed(at, fault):
    async def go():
        async with at.follower() as (line, catch_up):
            n = len(at.frames(line))
            await at.arm(fault)
            for k in range(fault.get('n', 1)): at.nudge(f'20.{k + 1}')
            at.nudge('20.5')
            state = await catch_up(n + 1)
            assert len(at.frames(line)) == n + 1 and prices(at, at.frames(line)[n]) == [at.px('20.5')]
            assert state == INVALID, 'whoever follows this venue by its own rule notices'
    at.town.do(go())


def test_a_frame_of_a_book_comes_twice(at):
    async def go():
        line = await at.book()
        n = len(at.frames(line))
        await at.arm(dict(kind='repeat', where='book'))
        at.nudge('20.1')
        at.nudge('20.2')
        await line.until(lambda: len(at.frames(line)) >= n + 3)
        a, b, c = at.frames(line)[n:]
        assert a == b and prices(at, a) == [at.px('20.1')] and prices(at, c) == [at.px('20.2')]
    at.town.do(go())


def test_a_frame_of_a_book_comes_after_the_next(at):
    async def go():
        async with at.follower() as (line, catch_up):
            n = len(at.frames(line))
            await at.arm(dict(kind='swap', where='book'))
            at.nudge('20.1')
            at.nudge('20.2')
            at.nudge('20.3')
            state = await catch_up(n + 3)
            assert [prices(at, x) for x in at.frames(line)[n:]] == [[at.px('20.2')], [at.px('20.1')], [at.px('20.3')]] and state == INVALID
    at.town.do(go())


def test_a_frame_of_a_book_is_cut_off(at):
    async def go():
        line = await at.book()
        n = len(at.frames(line))
        await at.arm(dict(kind='truncate', where='book'))
        at.nudge('20.1')
        await line.until(lambda: len(at.frames(line)) > n)
        with pytest.raises(msgspec.DecodeError): msgspec.json.decode(at.frames(line)[n])
        with pytest.raises(DataError): at.reads(at.frames(line)[n])
    at.town.do(go())


@pytest.mark.parametrize('kind', ['nan', 'zero', 'cross', 'corrupt'])
def test_a_figure_of_a_book_is_wrong_and_nothing_else(at, kind):
    async def go():
        async with at.follower() as (line, catch_up):
            n = len(at.frames(line))
            await at.arm(dict(kind=kind))
            at.nudge('20.5')
            await line.until(lambda: len(at.frames(line)) > n)
            raw = at.frames(line)[n]
            if kind == 'nan':
                assert raw.count(b'NaN') == 1
                with pytest.raises(DataError): await catch_up(n + 1)
                return
            (px, qty), = levels(at, raw)
            if kind == 'corrupt': assert (D(px), D(qty)) == (at.px('20.5'), D(3)), 'it was 2'
            else: assert D(qty) == 2 and (D(px) == 0 if kind == 'zero' else D(px) > 900)
            if at.name == 'kraken' and kind == 'corrupt': assert await catch_up(n + 1) == INVALID, 'the checksum tells'
    at.town.do(go())


def test_a_checksum_is_wrong_where_there_is_one(at):
    async def go():
        if not at.sim.checksums: return await at.arm(dict(kind='checksum'), status=400)
        async with at.follower() as (line, catch_up):
            n = len(at.frames(line))
            await at.arm(dict(kind='checksum'))
            at.nudge('20.1')
            state = await catch_up(n + 1)
            if at.name == 'kraken': assert state == INVALID
            else: assert b'"checksum":1' in at.frames(line)[n], 'it is 0 since June 2026'
    at.town.do(go())


# ---- frames of the account

def changes(at, line, cid): return [e for e in at.told(line) if isinstance(e, OrderUpdate) and e.client_id == cid]


@pytest.mark.parametrize('kind', ['lose', 'lose_private'])
def test_a_frame_of_the_account_is_lost(at, kind):
    async def go():
        line = await at.account()
        await at.arm(dict(kind=kind, where='private', n=20))
        lost = at.nudge('20.1')
        await at.quiet(line)
        await at.arm()
        there = at.nudge('20.2')
        await line.until(lambda: changes(at, line, there))
        assert not changes(at, line, lost) and (await at.status(lost))[0] in ('acked', 'open')
    at.town.do(go())


def test_a_frame_of_the_account_comes_twice(at):
    async def go():
        line = await at.account()
        once = at.nudge('20.1')
        await line.until(lambda: changes(at, line, once))
        n = len(line.frames)
        await at.arm(dict(kind='repeat', where='private'))
        at.nudge('20.2')
        await line.until(lambda: len(line.frames) > n + 1)
        assert line.frames[n] == line.frames[n + 1]
    at.town.do(go())


def test_a_frame_of_the_account_comes_after_the_next(at):
    async def go():
        line = await at.account()
        cid = at.nudge('20.1')
        await line.until(lambda: changes(at, line, cid))
        await at.quiet(line)
        n = len(line.frames)
        await at.arm(dict(kind='swap', where='private'))
        first, second = at.nudge('20.2'), None
        await at.quiet(line)
        if len(line.frames) == n: second = at.nudge('20.3')
        await line.until(lambda: changes(at, line, first) and (second is None or changes(at, line, second)))
        told = [e.client_id for e in at.told(line) if isinstance(e, OrderUpdate)]
        if second: assert told.index(second) < told.index(first)
        elif at.name == 'kraken': assert [msgspec.json.decode(x)['sequence'] for x in line.frames[n:n + 2]] == sorted((msgspec.json.decode(x)['sequence'] for x in line.frames[n:n + 2]), reverse=True)
        else: assert not changes_in(at, line.frames[n], first) and changes_in(at, line.frames[n + 1], first), 'the balance went before the order'
    def changes_in(at, raw, cid): return at.wired(cid).encode() in raw
    at.town.do(go())


def test_a_frame_of_the_account_is_cut_off(at):
    async def go():
        line = await at.account()
        n = len(line.frames)
        await at.arm(dict(kind='truncate', where='private'))
        at.nudge('20.1')
        await line.until(lambda: len(line.frames) > n)
        with pytest.raises(msgspec.DecodeError): msgspec.json.decode(line.frames[n])
    at.town.do(go())


# ---- trades and answers

def test_a_trade_is_lost(at):
    async def go():
        if at.name == 'coinbase': line = await at.subscribed(channel='market_trades', product_ids=[NAME])
        else:
            line = await at.socket(at.codec.public_path([NAME]))
            for raw in at.codec.subscribe([NAME], ('trade',)): await line.ws.send_str(raw.decode())
        await line.until(lambda: line.frames)
        await at.quiet(line)
        n = len(line.frames)
        await at.arm(dict(kind='lose', where='trades'))
        for _ in range(2): at.sim.submit(at.now(), NAME, BUY, D(1), D(40), 'IOC', at.fresh())
        at.door.wake()
        await line.until(lambda: len(line.frames) > n)
        await at.quiet(line)
        ids = [f.fill_id for f in at.sim.engine.fills[-2:]]
        got = b''.join(line.frames[n:])
        assert [x.encode() in got for x in ids] == [False, True]
    at.town.do(go())


@pytest.mark.parametrize('kind', ['lose', 'repeat', 'truncate', 'delay', 'swap'])
def test_an_answer_on_a_socket(at, kind):
    async def go():
        def question(id):
            if at.name == 'coinbase': return msgspec.json.encode({'type': 'subscribe', 'channel': 'ticker_batch', 'product_ids': ['NONE']}).decode() # answered with an error
            return {'binance': f'{{"method":"LIST_SUBSCRIPTIONS","params":[],"id":{id}}}', 'bybit': f'{{"op":"ping","req_id":"{id}"}}', 'okx': 'ping', 'kraken': f'{{"method":"ping","req_id":{id}}}'}[at.name]
        line = await at.socket('/' if at.name == 'coinbase' else at.codec.public_path([NAME]))
        await at.quiet(line)
        n = len(line.frames)
        await at.arm(dict(kind=kind, where='answer', value=.3 if kind == 'delay' else 0.))
        began = at.town.loop.time()
        for id in (7, 8): await line.ws.send_str(question(id))
        await line.until(lambda: len(line.frames) >= n + {'lose': 1, 'repeat': 3}.get(kind, 2))
        got = line.frames[n:]
        if kind == 'delay': assert at.town.loop.time() - began >= .25
        if kind == 'repeat': assert got[0] == got[1] and len(got) == 3
        if kind == 'truncate': assert len(got[0]) < len(got[1])
        if kind == 'lose': assert len(got) == 1
        if kind in ('swap', 'lose') and at.name in ('binance', 'bybit', 'kraken'): assert b'8' in got[0] and (kind == 'lose' or b'7' in got[1])
    at.town.do(go())


# ---- what is late

@pytest.mark.parametrize('where', ['book', 'private', 'rest', 'order'])
def test_what_is_late_comes_so_much_later(at, where):
    async def go():
        line = await (at.account() if where == 'private' else at.book())
        n = len(line.frames)
        await at.arm(dict(kind='delay', where=where, value=.3))
        began = at.town.loop.time()
        if where == 'rest': await at.ask(at.time())
        elif where == 'order': await at.place(NewOrder(at.fresh(), NAME, BUY, D(2), D('20.1'), 'GTC'))
        else:
            first = at.nudge('20.1')
            at.nudge('20.2')
            await line.until(lambda: len(line.frames) >= n + 2)
            if where == 'book': assert [prices(at, x) for x in at.frames(line)[-2:]] == [[at.px('20.1')], [at.px('20.2')]], 'what is behind it waits too'
            else: assert at.wired(first).encode() in line.frames[n]
        assert at.town.loop.time() - began >= .25
    at.town.do(go())


# ---- orders

def take(at): return NewOrder(at.fresh(), NAME, BUY, D(10), D('40'), 'IOC')


def test_an_order_is_taken_in_and_nobody_is_told(at):
    async def go():
        o = take(at)
        await at.arm(dict(kind='drop_ack'))
        with pytest.raises(aiohttp.ClientError): await at.place(o)
        assert await at.status(o.client_id) == ('filled', 10)
        if at.codec is None: return # it takes no orders by socket
        o, line = take(at), await at.trading()
        await at.arm(dict(kind='drop_ack'))
        await line.ws.send_str(at.codec.place(o, o.client_id, at.now()).decode())
        while at.sim.faults: await asyncio.sleep(.01) # noqa: ASYNC110
        await at.quiet(line)
        told = [e for x in line.frames if at.name != 'okx' or b'"op":"order"' in x for e in at.codec.private(x)] # OKX tells of orders on the same socket
        assert not [e for e in told if isinstance(e, OrderUpdate) and e.status in ('acked', 'rejected')] and await at.status(o.client_id) == ('filled', 10)
    async def trading():
        line = await at.socket(at.codec.trade_path())
        if wanted := at.codec.unlisted(): at.codec.listings_reply(*await at.ask(at.codec.listings_request(wanted)))
        if at.codec.token_request: at.codec.token_reply(*await at.ask(at.codec.token_request(at.now())))
        for raw in at.codec.trade_login(at.now()): await line.ws.send_str(raw.decode())
        await at.quiet(line)
        return line
    at.trading = trading
    at.town.do(go())


def test_an_order_is_refused_with_a_code(at):
    async def go():
        for code in ('insufficient_funds', 'venue_down'):
            o = take(at)
            await at.arm(dict(kind='reject', code=code))
            assert at.said_no(*await at.place_raw(o), o) == code and (await at.status(o.client_id))[0] == 'unknown_order'
        assert at.said_no(*await at.place_raw(o := take(at)), o) == '' and (await at.status(o.client_id))[0] == 'filled'
    at.town.do(go())


def test_an_order_gets_a_share(at):
    async def go():
        o = take(at)
        await at.arm(dict(kind='partial', value=.4))
        await at.place(o)
        assert await at.status(o.client_id) == ('cancelled', 4)
    at.town.do(go())


@pytest.mark.parametrize('value', [500, 200])
def test_a_status_lies(at, value):
    async def go():
        o = take(at)
        await at.arm(dict(kind='lie', value=value))
        status, body = await at.place_raw(o)
        assert status == value and at.said_no(status, body, o) == 'venue_down'
        assert (await at.status(o.client_id))[0] == ('filled' if value == 500 else 'unknown_order')
    at.town.do(go())


@pytest.mark.parametrize('value', [0., .5])
def test_a_fill_comes_after_the_cancel_was_confirmed(at, value):
    async def go():
        line, cid = await at.account(), at.fresh()
        await at.place(NewOrder(cid, NAME, BUY, D(4), D('20.1'), 'GTC'))
        await at.arm(dict(kind='late_fill', value=value, seconds=.1))
        assert (await at.cancel(cid))[0] == 200
        assert (await at.status(cid))[0] == 'cancelled'
        got = 2 if value else 4
        def heard():
            told = at.told(line)
            return [e for e in told if (isinstance(e, Fill) and e.client_id == cid and e.qty == got) or (at.codec is None and e.client_id == cid and e.filled_qty == got)]
        await line.until(heard)
        assert (await at.status(cid)) == (('cancelled', 2) if value else ('filled', 4))
        assert all(b.held == 0 for b in at.sim.engine.balances()), 'nothing stays held'
    at.town.do(go())


# ---- the house

@pytest.mark.parametrize('value', [429, 418, 403, 503])
def test_a_request_is_answered_with_a_status_and_not_carried_out(at, value):
    async def go():
        o = take(at)
        await at.arm(dict(kind='status', value=value))
        status, body = await at.place_raw(o)
        if value >= 500: assert (status, body[:6]) == (value, b'<html>'), 'a gateway speaks'
        else: assert status == value
        await at.arm()
        assert (await at.status(o.client_id))[0] == 'unknown_order'
    at.town.do(go())


def test_the_house_is_closed_for_a_while(at):
    async def go():
        public, private = await at.book(), await at.account()
        await at.arm(dict(kind='maintenance', value=.6))
        assert await public.over() == await private.over() == 1012
        with pytest.raises(aiohttp.WSServerHandshakeError) as no: await at.socket('/' if at.codec is None else at.codec.public_path([NAME]))
        assert no.value.status == 503
        o = take(at)
        assert at.said_no(*await at.place_raw(o), o) == 'venue_down'
        while (await at.arm(dict(kind='skew', value=0)))['shut']: await asyncio.sleep(.05) # noqa: ASYNC110
        assert at.said_no(*await at.place_raw(o), o) == '' and (await at.status(o.client_id))[0] == 'filled'
        await at.book()
    at.town.do(go())


def test_a_clock_is_wrong(at):
    async def go():
        await at.arm(dict(kind='skew', value=30))
        assert 28*NS < await at.time_ns() - at.now() < 31*NS
        o = take(at)
        if at.name in ('binance', 'bybit', 'okx'): # those that want to know when a request was signed
            status, body = await at.place_raw(o)
            assert at.said_no(status, body, o) == 'clock'
        await at.arm(dict(kind='skew', value=-30))
        assert -31*NS < await at.time_ns() - at.now() < -28*NS
    at.town.do(go())


# ---- lines

@pytest.mark.parametrize('kind', ['disconnect', 'reset', 'half_open'])
@pytest.mark.parametrize('where', ['', 'public', 'private'])
def test_a_line_ends_or_goes_deaf_and_no_other(at, kind, where):
    async def go():
        lines = {'public': await at.book(), 'private': await at.account()}
        struck = [x for name, x in lines.items() if where in ('', name)]
        spared = [x for x in lines.values() if x not in struck]
        counts = {x: len(x.frames) for x in lines.values()}
        await at.arm(dict(kind=kind, where=where))
        if kind != 'half_open':
            for x in struck: assert await x.over() == (1001 if kind == 'disconnect' else 1006)
        else: at.nudge('20.1')
        if kind != 'half_open': at.nudge('20.1')
        for x in spared: await x.until(lambda x=x: len(x.frames) > counts[x])
        if kind == 'half_open':
            other = await at.book()
            m = len(other.frames)
            at.nudge('20.2')
            await other.until(lambda: len(other.frames) > m) # by now it would have been heard
            for x in struck: assert x.closed is None and len(x.frames) == counts[x]
    at.town.do(go())


def test_a_new_line_is_refused_or_deaf(at):
    async def go():
        path = '/' if at.codec is None else at.codec.public_path([NAME])
        await at.arm(dict(kind='refuse', n=2))
        for _ in range(2):
            with pytest.raises(aiohttp.WSServerHandshakeError): await at.socket(path)
        await at.arm(dict(kind='half_open', where='new'))
        deaf = await at.socket(path)
        for raw in at.codec.subscribe([NAME]) if at.codec else [b'{"type":"subscribe","channel":"heartbeats"}']: await deaf.ws.send_str(raw.decode())
        await at.book() # that one hears
        assert deaf.closed is None and not deaf.frames
    at.town.do(go())


def test_a_request_is_cut_off_cut_short_or_never_answered(at):
    async def go():
        whole = await at.ask(at.time())
        await at.arm(dict(kind='truncate', where='rest'))
        assert len((await at.ask(at.time()))[1]) == len(whole[1])*2//3
        o = take(at)
        await at.arm(dict(kind='reset', where='rest'))
        with pytest.raises(aiohttp.ClientError): await at.place_raw(o)
        assert (await at.status(o.client_id))[0] == 'unknown_order', 'it was not carried out'
        await at.arm(dict(kind='half_open', where='rest'))
        silent = asyncio.ensure_future(at.place_raw(o))
        while at.sim.faults: await asyncio.sleep(.01) # noqa: ASYNC110
        for _ in range(3): await at.ask(at.time())
        assert not silent.done() and (await at.status(o.client_id))[0] == 'unknown_order'
        silent.cancel()
    at.town.do(go())


def test_what_cannot_go_wrong_is_refused_by_name(at):
    async def go():
        assert 'meteor' in (await at.arm(dict(kind='meteor'), status=400))['error']
        await at.arm(dict(kind='gap', where='order'), status=400)
        told = await at.arm(dict(kind='gap', n=3), dict(kind='lie', value=500))
        assert [f['kind'] for f in told['faults']] == ['gap', 'lie']
        assert (await at.arm())['faults'] == []
    at.town.do(go())


# ---- drawn from a seed

def drawn(name, text, seconds):
    "Everything a book's and an account's socket were sent while faults were drawn, and what happened."
    start = SCENARIO.start_ns - NS
    d = Driver(open_venues(SCENARIO, [name], KEYS, limits=False)[name], start)
    d.venue.haunt(text, start)
    seen, lines = [], []
    for k in range(seconds*4):
        if k % 20 == 0:
            try: s = d.open('/' if name == 'coinbase' else CODECS[name](None, None).public_path([NAME]))
            except ConfigError: continue
            lines.append(s)
            if name == 'coinbase': d.receive(s, b'{"type":"subscribe","channel":"level2","product_ids":["LINK-USDT"]}')
            else: [d.receive(s, x) for x in CODECS[name](None, None).subscribe([NAME])]
        if k % 6 == 0: d.venue.submit(d.now_ns, NAME, BUY, D(2), D('20') + k % 97/D(10), 'GTC', f'd-{k}') if not _lied(d, k) else None
        d.advance(.25)
        for s in lines: seen += [(s.id, x if isinstance(x, bytes) else (x.how, x.code)) for x in d.frames(s)]
    return seen, [(t, kind, where) for t, kind, where in d.venue.happened]


def _lied(d, k):
    "Take the next lie out of the way of orders that are given behind the scenes."
    return any(f.kind == 'lie' for f in (*d.venue.faults, *(f for _, f in d.venue.drawn)))


@pytest.mark.parametrize('name', ALL)
def test_a_seed_draws_the_same_faults_with_the_same_effects(name):
    one, two, other = (drawn(name, text, 60) for text in ('all:7', 'all:7', 'all:8'))
    assert one == two and one[1] and one[1] != other[1] and one[0] != other[0]
    assert drawn(name, 'none', 10)[1] == []


def test_every_kind_is_drawn_by_some_mix():
    found = set()
    for mix in MIXES:
        plan = draw_faults(f'{mix}:3', 'kraken')
        found |= {f.kind for _, (_, f) in zip(range(600), plan)}
    assert set(FAULTS) - found == {'gap', 'lose_private', 'zero'}, 'which are lost frames and prices of another name'
    with pytest.raises(ConfigError): Fault('gap', n=0).checked()
