"The wire over real sockets: small venues on ports of their own that lose, repeat, cut and drop what they send."
import asyncio
import contextlib
import http
import random
import time
from decimal import Decimal

import msgspec
import pytest
import websockets
from websockets.datastructures import Headers
from websockets.http11 import Response

from arbwork.clock import NS, ScaledClock, WallClock
from arbwork.feed.binance import Binance
from arbwork.feed.bybit import Bybit
from arbwork.feed.codec import Keys
from arbwork.feed.events import CROSSED, INVALID, VALID, Balance, Fill, NewOrder, OrderUpdate, Quote
from arbwork.feed.wire import Addresses, MarketFeed, TradeLink, fetch_listings, fetch_time_ns
from arbwork.market import BUY, ConfigError, DataError, VenueError

T0 = 1_629_417_600_000


def run(coroutine, seconds=10):
    return asyncio.run(asyncio.wait_for(coroutine, seconds))


async def until(true, seconds=4):
    async with asyncio.timeout(seconds):
        while not true(): await asyncio.sleep(0.005)  # noqa: ASYNC110


class Venue:
    "A port with sockets and REST; a test says what they answer."
    def __init__(self): self.sockets, self.heard, self.connections, self.rest, self.on_message = [], [], 0, {}, None

    async def handler(self, ws):
        self.connections += 1
        self.sockets.append(ws)
        with contextlib.suppress(websockets.ConnectionClosed):
            async for raw in ws:
                message = msgspec.json.decode(raw)
                self.heard.append(message)
                for reply in await self.on_message(self, message, ws) or (): await ws.send(reply)
        self.sockets.remove(ws)

    async def request(self, connection, request):
        path = request.path.partition('?')[0]
        if path not in self.rest: return None
        status, body = self.rest[path]() if callable(self.rest[path]) else (200, self.rest[path])
        return Response(status, http.HTTPStatus(status).phrase, Headers([('Content-Length', str(len(body)))]), body)

    @contextlib.asynccontextmanager
    async def open(self):
        async with websockets.serve(self.handler, '127.0.0.1', 0, process_request=self.request) as server:
            self.addresses = Addresses.local(server.sockets[0].getsockname()[1])
            yield self

    async def send(self, *frames):
        for f in frames:
            for ws in list(self.sockets): await ws.send(f)


@contextlib.asynccontextmanager
async def feeding(codec, venue, instruments=('LINK-USDT',), **more):
    rows, problems = [], []
    feed = MarketFeed(codec, venue.addresses, {x: i for i, x in enumerate(instruments)}, WallClock(), rows.append,
                      on_problem=lambda *x: problems.append(x), rng=random.Random(1), **more)
    task = asyncio.create_task(feed.run())
    try: yield feed, rows, problems
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def bybit_book(kind, u, b, a, symbol='LINKUSDT'):
    return msgspec.json.encode(dict(topic=f'orderbook.50.{symbol}', type=kind, ts=T0 + u, cts=T0 + u, data=dict(s=symbol, b=b, a=a, u=u, seq=u))).decode()


class BybitVenue(Venue):
    "Answers each subscription with a snapshot of its own number."
    def __init__(self, crossed=0):
        super().__init__()
        self.u, self.crossed = 100, crossed
        async def on_message(self, m, ws):
            replies = []
            if m['op'] == 'subscribe':
                replies.append(msgspec.json.encode(dict(success=True, ret_msg='', op='subscribe', req_id=m['req_id'])).decode())
                for topic in m['args']:
                    if topic.startswith('orderbook.50.'): replies.append(self.snapshot(topic.removeprefix('orderbook.50.')))
            return replies
        self.on_message = on_message

    def snapshot(self, symbol='LINKUSDT'):
        self.u += 100
        bid, self.crossed = ('27.00' if self.crossed else '26.82'), max(0, self.crossed - 1)
        return bybit_book('snapshot', self.u, [[bid, '75'], ['26.81', '40']], [['26.84', '30'], ['26.86', '90']], symbol)

    def delta(self, b=(), a=(), skip=0, symbol='LINKUSDT'):
        self.u += 1 + skip
        return bybit_book('delta', self.u, list(b), list(a), symbol)


def states(rows): return [int(r['state']) for r in rows]


def test_a_gap_mends_one_book_and_leaves_the_other_alone():
    async def main():
        async with BybitVenue().open() as venue, feeding(Bybit(), venue, ('LINK-USDT', 'BTC-USDT')) as (feed, rows, problems):
            await until(lambda: [b.state for b in feed.books.values()] == [VALID, VALID])
            link = feed.books['LINK-USDT']
            u = venue.u = link.seq
            first = venue.delta([['26.83', '5']])
            await venue.send(first, first, venue.delta([['26.83', '0']], skip=1))
            await until(lambda: link.state == VALID and link.seq > u + 50)
            mine = [r for r in rows if r['slot'] == 0]
            assert states(mine) == [VALID, VALID, INVALID, VALID]
            assert mine[1]['bid_px'][0] == 26.83 and mine[3]['bid_px'][0] == 26.82
            assert states([r for r in rows if r['slot'] == 1]) == [VALID]
            assert {k: feed.stats[k] for k in ('gaps', 'duplicates', 'resyncs', 'reconnects')} == dict(gaps=1, duplicates=1, resyncs=1, reconnects=0)
            assert [k for k, _ in problems] == ['gap'] and 'bybit LINK-USDT' in problems[0][1]
            assert [m['op'] for m in venue.heard][-2:] == ['unsubscribe', 'subscribe']
            assert all(r['ts_recv_ns'] <= s['ts_recv_ns'] for r, s in zip(rows, rows[1:]))
    run(main())


def test_half_a_frame_drops_every_book_and_the_connection():
    async def main():
        async with BybitVenue().open() as venue, feeding(Bybit(), venue, ('LINK-USDT', 'BTC-USDT')) as (feed, rows, problems):
            await until(lambda: len(rows) == 2)
            await venue.send(venue.delta([['26.83', '5']])[:70])
            await until(lambda: venue.connections == 2 and len(rows) == 6)
            assert states(rows) == [VALID, VALID, INVALID, INVALID, VALID, VALID]
            assert [k for k, _ in problems] == ['frame'] and feed.stats['reconnects'] == 1
    run(main())


def test_a_lost_connection_invalidates_and_comes_back():
    async def main():
        async with BybitVenue().open() as venue, feeding(Bybit(), venue) as (feed, rows, problems):
            for n in (1, 2):
                await until(lambda n=n: states(rows)[-1:] == [VALID] and venue.connections == n)
                await venue.sockets[0].close(1012, 'service restart')
                await until(lambda: states(rows)[-1] == INVALID)
            assert [k for k, _ in problems] == ['lost', 'lost'] and 'service restart' in problems[0][1]
    run(main())


def test_silence_is_noticed():
    async def main():
        async with BybitVenue().open() as venue, feeding(Bybit(), venue, silence_s=0.2) as (feed, rows, problems):
            await until(lambda: venue.connections == 2)
            assert problems[0][0] == 'silent' and states(rows)[:2] == [VALID, INVALID]
    run(main())


def test_nothing_listening_is_a_problem_and_not_an_end():
    async def main():
        venue = BybitVenue()
        async with venue.open(): pass
        async with feeding(Bybit(), venue) as (feed, rows, problems):
            await until(lambda: len(problems) >= 2)
            assert {k for k, _ in problems} == {'lost'} and not rows
    run(main())


def test_a_crossed_book_is_told_and_fetched_again():
    async def main():
        async with BybitVenue(crossed=1).open() as venue, feeding(Bybit(), venue) as (feed, rows, problems):
            await until(lambda: states(rows)[-1:] == [VALID])
            assert states(rows) == [CROSSED, VALID] and problems[0][0] == 'crossed' and 'bid 27.0 >= ask 26.84' in problems[0][1]
    run(main())


def test_what_listens_may_fail_and_is_heard():
    "An error of whoever takes the rows ends the feed; it is not mistaken for a bad frame."
    async def main():
        def full(row): raise DataError('/var/journal.db: disk full')
        async with BybitVenue().open() as venue:
            feed = MarketFeed(Bybit(), venue.addresses, {'LINK-USDT': 0}, WallClock(), full)
            with pytest.raises(DataError, match='disk full'): await feed.run()
        async with BinanceVenue().open() as venue:
            feed = MarketFeed(Binance(), venue.addresses, {'LINK-USDT': 0}, WallClock(), full)
            with pytest.raises(DataError, match='disk full'): await feed.run()
    run(main())


def test_quotes_and_trades_come_when_asked_for():
    async def main():
        events = []
        async with BybitVenue().open() as venue, feeding(Bybit(), venue, on_event=events.append) as (feed, rows, problems):
            await until(lambda: rows)
            assert venue.heard[0]['args'] == ['orderbook.50.LINKUSDT', 'orderbook.1.LINKUSDT', 'publicTrade.LINKUSDT']
            await venue.send(bybit_book('snapshot', 7, [['26.82', '75']], [['26.84', '30']]).replace('orderbook.50', 'orderbook.1'))
            await until(lambda: events)
            assert events == [Quote('LINK-USDT', 26.82, 75., 26.84, 30., 7, (T0 + 7)*10**6)]
    run(main())


def test_a_burst_arrives_whole():
    async def main():
        async with BybitVenue().open() as venue, feeding(Bybit(), venue) as (feed, rows, problems):
            await until(lambda: rows)
            for _ in range(20): await venue.send(*[venue.delta([['26.82', str(70 + i % 7)]]) for i in range(1_000)])
            await until(lambda: len(rows) == 20_001, 15)
            assert feed.stats['gaps'] == feed.stats['duplicates'] == 0 and not problems
    run(main(), 30)


def binance_depth(U, u, b, a): return msgspec.json.encode({'stream': 'linkusdt@depth@100ms', 'data': dict(e='depthUpdate', E=T0 + u, s='LINKUSDT', U=U, u=u, b=b, a=a)}).decode()


class BinanceVenue(Venue):
    "Sends differences from the moment of subscription; its first snapshots may be too old."
    def __init__(self, old=0, levels=2):
        super().__init__()
        self.seq, self.old, self.asked, self.levels, self.top = 500, old, 0, levels, Decimal('26.82')
        async def on_message(self, m, ws):
            if m['method'] == 'SUBSCRIBE': return [msgspec.json.encode({'result': None, 'id': m['id']}).decode(), self.next(), self.next()]
        self.on_message, self.rest = on_message, {'/api/v3/depth': self.depth}

    def depth(self):
        self.asked += 1
        self.old -= 1
        return 200, msgspec.json.encode(dict(lastUpdateId=self.seq - (400 if self.old >= 0 else 0),
            bids=[[str(self.top - i*Decimal('0.01')), '75'] for i in range(self.levels)], asks=[[str(self.top + (i + 2)*Decimal('0.01')), '30'] for i in range(self.levels)]))

    def next(self, b=(), a=(), skip=0):
        self.seq += skip
        U, self.seq = self.seq + 1, self.seq + 5
        return binance_depth(U, self.seq, list(b), list(a))


def test_binance_joins_stream_and_snapshot_and_mends_by_another():
    async def main():
        async with BinanceVenue(old=1).open() as venue, feeding(Binance(), venue) as (feed, rows, problems):
            book = feed.books['LINK-USDT']
            await until(lambda: book.state == VALID)
            assert venue.asked == 2, 'the first snapshot was older than the stream'
            await venue.send(venue.next([['26.83', '5']]), venue.next([['26.83', '0']], skip=3), venue.next())
            await until(lambda: book.state == VALID and feed.stats['gaps'] == 1)
            assert states(rows)[-3:] == [VALID, INVALID, VALID] and book.seq >= venue.seq - 5
            last = venue.next([['26.83', '8']])
            await venue.send(last, last)
            await until(lambda: feed.stats['duplicates'] == 1)
            assert rows[-1]['bid_px'][0] == 26.83 and rows[-1]['seq'] == venue.seq
            assert [k for k, _ in problems] == ['gap'] and venue.connections == 1
    run(main())


def test_a_snapshot_that_wears_thin_is_renewed_while_the_book_stays_valid():
    async def main():
        codec = Binance()
        codec.cut_at = 80
        async with BinanceVenue(levels=80).open() as venue, feeding(codec, venue) as (feed, rows, problems):
            book = feed.books['LINK-USDT']
            await until(lambda: book.state == VALID)
            for _ in range(90):
                await venue.send(venue.next([[str(venue.top), '0']]))
                venue.top -= Decimal('0.01')
                await asyncio.sleep(0.002)
            await until(lambda: len(book.bids) > 20 and book.seq == venue.seq)
            assert feed.stats['renewals'] >= 1 and set(states(rows)) == {VALID} and not problems
            assert rows[-1]['bid_px'][0] == float(venue.top)
    run(main())


def test_time_and_listings_by_rest():
    async def main():
        async with Venue().open() as venue:
            venue.rest = {'/api/v3/time': b'{"serverTime":1629417600123}', '/api/v3/exchangeInfo': b'{"symbols":[]}', '/v5/market/time': lambda: (503, b'')}
            assert await fetch_time_ns(Binance(), venue.addresses) == 1_629_417_600_123_000_000
            with pytest.raises(ConfigError, match='LINK-USDT is not open for trading'): await fetch_listings(Binance(), venue.addresses, ['LINK-USDT'])
            with pytest.raises(VenueError): await fetch_time_ns(Bybit(), venue.addresses)
        with pytest.raises(VenueError) as e: await fetch_time_ns(Binance(), venue.addresses)
        assert e.value.code == 'venue_down' and '/api/v3/time' in str(e.value)
    run(main())


KEYS = Keys('public-half', 'private-half')
ORDER = NewOrder('s1-7-1-0', 'LINK-USDT', BUY, Decimal('3.5'), Decimal('26.84'))


class BybitAccount(Venue):
    "Logs in whoever has the key; takes orders as a test's script says."
    def __init__(self, script=None):
        super().__init__()
        self.rest = {'/v5/market/time': lambda: (200, msgspec.json.encode(dict(retCode=0, result=dict(timeNano=str(time.time_ns())))))}
        self.script = script or {}
        async def on_message(self, m, ws):
            if m['op'] == 'auth':
                good = m['args'][0] == KEYS.key
                return [msgspec.json.encode(dict(success=good, retCode=0 if good else 10003, retMsg='OK' if good else 'Invalid apikey', op='auth', reqId=m['reqId'])).decode()]
            if m['op'] == 'subscribe': return [msgspec.json.encode(dict(success=True, op='subscribe', req_id=m['req_id'])).decode()]
            if m['op'] in self.script: return await self.script[m['op']](m, ws)
        self.on_message = on_message

    @contextlib.asynccontextmanager
    async def link(self, codec=None, keys=KEYS, **more):
        events, problems = [], []
        async with self.open():
            link = TradeLink(codec or Bybit(), self.addresses, WallClock(), events.append, keys, on_problem=lambda *x: problems.append(x), timeout_s=0.5, **more)
            try: yield link, events, problems
            finally: await link.close()


def topic(name, **row): return msgspec.json.encode(dict(topic=name, data=[dict(category='spot', symbol='LINKUSDT', orderId='o1', side='Buy', orderLinkId='s1-7-1-0', **row)])).decode()
FILLED = topic('order', orderStatus='Filled', qty='3.5', cumExecQty='3.5', updatedTime=str(T0))
EXECUTION = topic('execution', execId='e1', execPrice='26.83', execQty='3.5', execFee='0.0035', feeCurrency='LINK', execTime=str(T0), isMaker=False, execType='Trade')
def taken(m): return msgspec.json.encode(dict(reqId=m['reqId'], retCode=0, retMsg='OK', op=m['op'], data=dict(orderId='o1', orderLinkId='s1-7-1-0'))).decode()


def test_a_refused_login_is_an_error_of_start():
    async def main():
        async with BybitAccount().link(keys=Keys('wrong', 'x')) as (link, events, problems):
            with pytest.raises(VenueError, match='Invalid apikey') as e: await link.start()
            assert e.value.code == 'permission'
    run(main())


def test_an_end_that_overtakes_the_reply_is_not_taken_back_and_a_fill_comes_once():
    async def main():
        async def create(m, ws):
            await venue.send(EXECUTION, EXECUTION, FILLED)
            await asyncio.sleep(0.05)
            return [taken(m)]
        venue = BybitAccount({'order.create': create})
        async with venue.link() as (link, events, problems):
            await link.start()
            first = await link.place(ORDER)
            await asyncio.sleep(0.1)
            assert first.status == 'filled'
            assert [type(x) for x in events] == [Fill, OrderUpdate] and events[0].fee_asset == 'LINK'
            header = venue.heard[-1]['header']
            assert abs(int(header['X-BAPI-TIMESTAMP']) - time.time()*1_000) < 500 and header['X-BAPI-RECV-WINDOW'] == '5000'
    run(main())


def test_a_refusal_is_an_answer_and_a_duplicate_id_is_none():
    async def main():
        codes = [170131, 170141, 170146]
        async def create(m, ws): return [msgspec.json.encode(dict(reqId=m['reqId'], retCode=codes.pop(0), retMsg='no', op='order.create', data={})).decode()]
        async with BybitAccount({'order.create': create}).link() as (link, events, problems):
            await link.start()
            refused = await link.place(ORDER)
            assert (refused.status, refused.code) == ('rejected', 'insufficient_funds') and events == [refused]
            for code in ('duplicate_id', 'unknown_outcome'):
                with pytest.raises(VenueError) as e: await link.place(ORDER)
                assert e.value.code == code
            assert events == [refused]
    run(main())


def test_silence_and_a_lost_connection_leave_the_outcome_unknown():
    async def main():
        async def create(m, ws):
            if m['reqId'] == 's1-8-1-0': await ws.close()
        venue = BybitAccount({'order.create': create})
        async with venue.link() as (link, events, problems):
            await link.start()
            with pytest.raises(VenueError, match='no word after 0.5 s') as e: await link.place(ORDER)
            assert e.value.code == 'unknown_outcome'
            began = time.monotonic()
            with pytest.raises(VenueError) as e: await link.place(msgspec.structs.replace(ORDER, client_id='s1-8-1-0'))
            assert e.value.code == 'unknown_outcome' and time.monotonic() - began < 0.4
            await until(lambda: [k for k, _ in problems] == ['lost', 'reconnected'] and link.live)
        with pytest.raises(VenueError, match='not sent') as e: await link.place(ORDER)
        assert e.value.code == 'venue_down'
    run(main())


def test_a_cancel_waits_for_the_end_of_the_order():
    async def main():
        async def cancel(m, ws):
            if m['args'][0]['orderLinkId'] == 'gone': return [msgspec.json.encode(dict(reqId=m['reqId'], retCode=170213, retMsg='Order does not exist.', op='order.cancel', data={})).decode()]
            await venue.send(taken(m))
            await asyncio.sleep(0.05)
            await venue.send(EXECUTION, topic('order', orderStatus='PartiallyFilledCanceled', qty='5', cumExecQty='3.5', updatedTime=str(T0)))
        venue = BybitAccount({'order.cancel': cancel})
        async with venue.link() as (link, events, problems):
            await link.start()
            end = await link.cancel('LINK-USDT', 's1-7-1-0')
            assert (end.status, end.filled_qty) == ('cancelled', Decimal('3.5'))
            assert [type(x) for x in events] == [Fill, OrderUpdate]
            assert (await link.cancel('LINK-USDT', 'gone')).status == 'unknown_order'
    run(main())


def test_an_unreadable_account_frame_makes_the_connection_anew():
    async def main():
        venue = BybitAccount()
        async with venue.link() as (link, events, problems):
            await link.start()
            await venue.sockets[0].send(EXECUTION[:60])
            await until(lambda: [k for k, _ in problems] == ['frame', 'reconnected'])
    run(main())


def test_a_failing_listener_stops_orders():
    "When what the venue says can no longer be recorded, nothing more may be sent."
    async def main():
        venue = BybitAccount()
        async with venue.link() as (link, events, problems):
            def full(event): raise DataError('disk full')
            link.on_event = full
            await link.start()
            await venue.send(EXECUTION)
            await until(lambda: link._failure is not None)
            with pytest.raises(VenueError, match='disk full'): await link.place(ORDER)
    run(main())


def test_a_fast_clock_gets_a_longer_window_and_is_never_ahead():
    async def main():
        async with BybitAccount().link() as (_, events, problems): pass
        codec, venue = Bybit(), BybitAccount()
        clock = ScaledClock(T0*10**6, 300)
        venue.rest = {'/v5/market/time': lambda: (200, msgspec.json.encode(dict(retCode=0, result=dict(timeNano=str(clock.now_ns() + 7*NS)))))}
        async with venue.open():
            link = TradeLink(codec, venue.addresses, clock, events.append, KEYS)
            await link.sync_clock()
            assert codec.recv_window_ms == 60_000
            assert 0 <= clock.now_ns() + 7*NS - link.venue_ns() < 0.05*300*NS
            await link.close()
    run(main())


def test_fills_after_a_restart_are_named_by_the_list_of_orders():
    async def main():
        async with Venue().open() as venue:
            trade = dict(symbol='LINKUSDT', id=9, orderId=125, price='26.83', qty='3.5', commission='0.0035', commissionAsset='LINK', time=T0, isBuyer=True, isMaker=False)
            order = dict(symbol='LINKUSDT', orderId=125, clientOrderId='s1-7-0-0', side='BUY', status='FILLED', origQty='3.5', executedQty='3.5')
            answers = {'myTrades': [trade], 'allOrders': [order], 'order': order, 'account': dict(balances=[dict(asset='LINK', free='3.4965', locked='0')])}
            venue.rest = {f'/api/v3/{k}': msgspec.json.encode(v) for k, v in answers.items()}
            link = TradeLink(Binance(), venue.addresses, WallClock(), print, KEYS)
            [fill] = await link.fills('LINK-USDT', 0)
            assert fill.client_id == 's1-7-0-0' and fill.side == BUY
            assert (await link.order('LINK-USDT', 's1-7-0-0')).status == 'filled'
            assert await link.balances() == [Balance('LINK', Decimal('3.4965'), Decimal(0))]
            venue.rest['/api/v3/order'] = lambda: (400, b'{"code":-2013,"msg":"Order does not exist."}')
            assert (await link.order('LINK-USDT', 'x')).status == 'unknown_order'
            await link.close()
    run(main())
