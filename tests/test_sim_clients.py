"""cryptofeed and python-binance at the simulated venues: what others wrote, pointed there by address alone.

cryptofeed 2.4.1 speaks today's public protocols of Binance, Bybit, OKX and Kraken (version 1 of its socket) and half of Coinbase's; what it speaks that is
dead at the venues is dead here as well, and is tested to be. It asks REST with `requests`, so the worlds run in a thread of their own, and takes no socket
without TLS, so each has a certificate of a throw-away authority."""

import asyncio
import os
import threading
import time
from decimal import Decimal as D

import aiohttp
import msgspec
import pytest
import requests
from binance import AsyncClient, BinanceSocketManager
from binance.exceptions import BinanceAPIException
from binance.ws.reconnecting_websocket import ReconnectingWebsocket
from cryptofeed.connection import RestEndpoint, Routes, WebsocketEndpoint
from cryptofeed.defines import BUY, FILLS, GOOD_TIL_CANCELED, L2_BOOK, LIMIT, ORDER_INFO, SELL, TICKER, TRADES
from cryptofeed.exceptions import BadChecksum
from cryptofeed.exchanges import OKX, Binance, Bybit, Coinbase, Kraken
from cryptofeed.symbols import Symbols
from test_sim_tls import papers # noqa: F401 (a fixture)

from arbwork.feed.codec import Keys
from arbwork.sim.scenarios import load_scenario
from arbwork.sim.server import VENUES, NamedWorld, World
from arbwork.sim.wire import Fault

KEYS, NAME = Keys('simkey', 'sim-secret', 'words'), 'LINK-USDT'


def quick(venue):
    "The recording at ten rows a second."
    scenario = load_scenario('link-2021-08-20', minutes=60, venues=(venue, 'bybit' if venue != 'bybit' else 'binance'))
    rows = {v: r.copy() for v, r in scenario.rows.items()}
    for r in rows.values(): r['ts_venue_ns'] = r['ts_recv_ns'] = scenario.start_ns + (r['ts_venue_ns'] - scenario.start_ns)//10
    return msgspec.structs.replace(scenario, rows=rows)


class Backstage:
    "Worlds of one venue each, in a thread with a loop of its own."
    def __init__(self, papers): # noqa: F811
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()
        files, options = (papers/'sim.pem', papers/'sim.key'), dict(keys=KEYS, lead_s=0., start_ns=time.time_ns(), wall=True)
        self.named = {v: NamedWorld([v], quick(v), 0, tls=files, **options) for v in VENUES}
        self.plain = World(['binance'], quick('binance'), 0, **options)
        for world in (*self.named.values(), self.plain): self.do(world.start())

    def do(self, coroutine): return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(20)
    def port(self, venue): return self.named[venue].ports[venue]
    def door(self, venue): return self.named[venue].doors[venue]

    def tell(self, venue, what):
        "Do something with a venue in the thread it lives in."
        async def go():
            door = self.door(venue)
            out = what(door.venue, door.clock.now_ns())
            door.wake()
            return out
        return self.do(go())

    def trade(self, venue):
        "A sale of one LINK by somebody."
        return self.tell(venue, lambda v, now: v.submit(now, NAME, -1, D(1), None, 'IOC', f'm{now}')[-1].fill or v.engine.fills[-1])

    def nudge(self, venue):
        "An order that comes to the best bid and goes: two changes of one side alone, in which Kraken's checksum is where cryptofeed looks for it."
        def go(v, now):
            px = next(iter(v.engine.books[NAME][0].visible()))*v.engine.listings[NAME].tick
            o = v.submit(now, NAME, 1, D(1), px, 'POST_ONLY', f'n{now}')[0].order
            if o.status != 'rejected': v.withdraw(v.engine.orders[o.venue_id], now, 'user')
        self.tell(venue, go)

    def close(self):
        for world in (*self.named.values(), self.plain): self.do(world.stop())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(10)
        self.loop.close()


@pytest.fixture(scope='module')
def backstage(papers): # noqa: F811
    "Clients trust the throw-away authority as they would any: by the environment, and aiohttp by the context that it made when it was imported."
    kept = {name: os.environ.get(name) for name in ('SSL_CERT_FILE', 'REQUESTS_CA_BUNDLE')}
    os.environ.update(SSL_CERT_FILE=str(papers/'ca.pem'), REQUESTS_CA_BUNDLE=str(papers/'ca.pem'))
    aiohttp.connector._SSL_CONTEXT_VERIFIED.load_verify_locations(papers/'ca.pem')
    b = Backstage(papers)
    try: yield b
    finally:
        b.close()
        for name, value in kept.items(): os.environ.pop(name) if value is None else os.environ.update({name: value})


def there(backstage, cls, routes=None, path=None):
    "The class with the addresses of its venue; nothing else of it is changed."
    port = backstage.port(cls.__name__.lower())
    def moved(address): return f'{address.partition("//")[0]}//localhost:{port}' + ''.join(address.partition('//')[2].partition('/')[1:])
    Symbols.data.pop(cls.id, None)
    old = cls.rest_endpoints[0]
    sockets = [WebsocketEndpoint(moved(e.address), instrument_filter=e.instrument_filter, channel_filter=e.channel_filter, limit=e.limit, options=e.options, authentication=e.authentication)
               for e in cls.websocket_endpoints]
    api = {'api': moved(cls.api)} if isinstance(getattr(cls, 'api', None), str) else {}
    return type(cls.__name__, (cls,), {'rest_endpoints': [RestEndpoint(moved(old.address) if path is None else moved('https://x' + path), routes=routes or old.routes)], 'websocket_endpoints': sockets, **api})


async def follow(backstage, cls, channels, enough, **options):
    "Run a feed until what it hands over is enough."
    got, feed = {c: [] for c in channels}, None
    def keep(channel):
        async def take(x, ts):
            if channel == L2_BOOK: x = ([(p, x.book.bids[p]) for p in x.book.bids.keys()[:5]], [(p, x.book.asks[p]) for p in x.book.asks.keys()[:5]], x.sequence_number, x.checksum)
            got[channel].append(x)
        return take
    feed = await asyncio.to_thread(lambda: cls(symbols=[NAME], channels=list(channels), callbacks={c: keep(c) for c in channels}, **options))
    feed.start(asyncio.get_running_loop())
    try:
        async with asyncio.timeout(20):
            while not await enough(got): await asyncio.sleep(.05) # noqa: ASYNC110
    finally:
        feed.stop()
        await feed.shutdown()
    return got, feed


def shown_by(backstage, venue):
    "The best five levels of every row of the scenario, as a client would have to see them."
    rows = backstage.named[venue].scenario.rows[venue]
    return {(tuple(f'{x:.4f}' for x in r['bid_px'][:5]), tuple(f'{x:.4f}' for x in r['ask_px'][:5])) for r in rows}


def ours(got, fill, side):
    "Our own trade among those of the market."
    return [t for t in got[TRADES] if (t.side, t.amount, t.price) == (side, fill.qty, fill.px)]


def as_shown(books): return [(tuple(f'{p:.4f}' for p, _ in b[0]), tuple(f'{p:.4f}' for p, _ in b[1])) for b in books]


PUBLIC = {Binance: (L2_BOOK, TRADES, TICKER), Bybit: (L2_BOOK, TRADES), OKX: (L2_BOOK, TRADES, TICKER), Kraken: (L2_BOOK, TRADES, TICKER)}


@pytest.mark.parametrize('cls', PUBLIC, ids=lambda c: c.__name__)
def test_cryptofeed_follows_books_trades_and_quotes(backstage, cls, caplog):
    venue, channels = cls.__name__.lower(), PUBLIC[cls]
    sold = []
    async def enough(got):
        if cls is Kraken: await asyncio.to_thread(backstage.nudge, venue)
        if len(set(as_shown(got[L2_BOOK]))) >= 5 and not sold: sold.extend((len(got[L2_BOOK]), await asyncio.to_thread(backstage.trade, venue)))
        return len(sold) == 2 and ours(got, sold[1], SELL) and all(len(got[c]) >= 2 for c in channels if c != TRADES)
    got, _ = asyncio.run(follow(backstage, there(backstage, cls), channels, enough, **({'checksum_validation': True, 'max_depth': 10} if cls is Kraken else {})))
    before, fill = sold
    assert set(as_shown(got[L2_BOOK][:before])) <= shown_by(backstage, venue) and len(set(as_shown(got[L2_BOOK][:before]))) > 3
    if cls is Kraken: assert sum(b[3] is not None for b in got[L2_BOOK]) >= 4 and 'Checksum' not in caplog.text
    if cls is Binance: assert [b[2] for b in got[L2_BOOK]] == sorted(b[2] for b in got[L2_BOOK])
    assert ours(got, fill, SELL)
    if TICKER in channels: assert all(0 < x.bid < x.ask for x in got[TICKER])


@pytest.mark.parametrize('cls', [Binance, Kraken], ids=lambda c: c.__name__)
def test_cryptofeed_notices_a_lost_frame_by_sequence_or_checksum(backstage, cls, caplog):
    "And mends it by beginning anew, as it would at the venue."
    venue, spoiled = cls.__name__.lower(), []
    async def enough(got):
        if cls is Kraken: await asyncio.to_thread(backstage.nudge, venue)
        if len(got[L2_BOOK]) >= 3 and not spoiled:
            await asyncio.to_thread(backstage.tell, venue, lambda v, now: v.faults.append(Fault('gap', 3)))
            spoiled.append(len(got[L2_BOOK]))
        heard = 'resetting book' in caplog.text if cls is Binance else 'Checksum validation' in caplog.text
        return spoiled and heard and len(got[L2_BOOK]) > spoiled[0] + 4
    got, _ = asyncio.run(follow(backstage, there(backstage, cls), (L2_BOOK,), enough, **({'checksum_validation': True, 'max_depth': 10} if cls is Kraken else {})))
    assert as_shown(got[L2_BOOK][-1:])[0] in shown_by(backstage, venue) or backstage.tell(venue, lambda v, now: len(v.engine.fills))


def test_cryptofeeds_checksum_of_okx_is_dead_as_it_is_at_the_venue(backstage, caplog):
    "The checksum is 0 since 23 June 2026: with validation no book gets through, without it all do."
    async def enough(got): return 'BadChecksum' in caplog.text
    got, _ = asyncio.run(follow(backstage, there(backstage, OKX), (L2_BOOK,), enough, checksum_validation=True, exceptions=[BadChecksum]))
    assert got[L2_BOOK] == []


def test_cryptofeed_has_no_book_of_okx_without_the_first_snapshot_that_is_being_taken_away(backstage, caplog, monkeypatch):
    monkeypatch.setattr(backstage.door('okx').venue, 'first_snapshot', False)
    async def enough(got): return "KeyError: 'LINK-USDT'" in caplog.text
    got, _ = asyncio.run(follow(backstage, there(backstage, OKX), (L2_BOOK,), enough))
    assert got[L2_BOOK] == []


def test_cryptofeeds_listen_key_of_binance_is_dead_as_it_is_at_the_venue(backstage):
    "The spot listenKey ended on 20 February 2026."
    config = {'binance': {'key_id': KEYS.key, 'key_secret': KEYS.secret}}
    feed = there(backstage, Binance)(symbols=[NAME], channels=[ORDER_INFO], callbacks={}, config=config)
    with pytest.raises(requests.HTTPError, match='404'): feed.connect()


def test_cryptofeed_places_and_cancels_orders_at_binance(backstage):
    async def go():
        feed = await asyncio.to_thread(lambda: there(backstage, Binance)(config={'binance': {'key_id': KEYS.key, 'key_secret': KEYS.secret}}))
        try:
            placed = await feed.place_order(NAME, SELL, LIMIT, D('1'), D('40.000'), time_in_force=GOOD_TIL_CANCELED)
            resting = await feed.orders(NAME)
            await feed.cancel_order(placed['orderId'], symbol=NAME)
            return placed, resting, await feed.balances()
        finally: await feed.http_conn.close()
    placed, resting, balances = asyncio.run(asyncio.wait_for(go(), 20))
    assert [o['orderId'] for o in resting] == [placed['orderId']] and 'LINK' in str(balances)


def test_cryptofeed_has_half_of_coinbase(backstage, caplog):
    """It signs with the HMAC keys that ended in February 2025, so that its list of products is refused; at the address of the public list it works, and so do
    bids and trades, which want no key. Of a snapshot it takes the asks for a side that the venue calls otherwise, so that it has those alone which changed since.
    Its heartbeat is a channel that the venue does not have."""
    config = {'coinbase': {'key_id': 'k'*16, 'key_secret': 's'*32}}
    with pytest.raises(requests.HTTPError, match='401'): there(backstage, Coinbase)(symbols=[NAME], channels=[L2_BOOK], callbacks={}, config=config)
    with pytest.raises(requests.HTTPError, match='401'): there(backstage, Coinbase).symbols(config)
    sold = []
    async def enough(got):
        if len(set(as_shown(got[L2_BOOK]))) >= 5 and not sold: sold.extend((len(got[L2_BOOK]), await asyncio.to_thread(backstage.trade, 'coinbase')))
        return len(sold) == 2 and ours(got, sold[1], BUY)
    public = there(backstage, Coinbase, path='/api/v3/brokerage/market', routes=Routes('/products'))
    got, _ = asyncio.run(follow(backstage, public, (L2_BOOK, TRADES), enough, config=config))
    before, fill = sold
    bids = {b for b, _ in as_shown(got[L2_BOOK][:before])}
    assert bids <= {b for b, _ in shown_by(backstage, 'coinbase')} and len(bids) > 3 and not got[L2_BOOK][0][1]
    assert ours(got, fill, BUY) # the maker's side, handed on as it is


def test_cryptofeed_cannot_follow_bybits_account(backstage):
    "Its private socket is /realtime_private of an API before v5, which is gone."
    feed = there(backstage, Bybit)(symbols=[NAME], channels=[FILLS], callbacks={}, config={'bybit': {'key_id': KEYS.key, 'key_secret': KEYS.secret}})
    addresses = [conn.address for conn, *_ in feed.connect()]
    assert addresses and all('realtime_private' in x for x in addresses)
    async def go():
        async with aiohttp.ClientSession() as http:
            with pytest.raises(aiohttp.WSServerHandshakeError, match='404'): await http.ws_connect(addresses[0])
    asyncio.run(go())


@pytest.fixture
def pointed(backstage, monkeypatch):
    "python-binance's own classes with other addresses."
    monkeypatch.setattr(ReconnectingWebsocket, 'TIMEOUT', 1) # s, which it takes to close a socket that is quiet
    port = backstage.plain.ports['binance']
    client = type('Client', (AsyncClient,), {'API_URL': f'http://127.0.0.1:{port}/api', 'MARGIN_API_URL': f'http://127.0.0.1:{port}/sapi', 'WS_API_URL': f'ws://127.0.0.1:{port}/ws-api/v3'})
    sockets = type('Sockets', (BinanceSocketManager,), {'STREAM_URL': f'ws://127.0.0.1:{port}/'})
    def run(use):
        async def go():
            c = await client.create(KEYS.key, KEYS.secret)
            try: return await use(c, sockets(c))
            finally: await c.close_connection()
        return asyncio.run(asyncio.wait_for(go(), 25))
    return run


def test_python_binance_by_rest(pointed):
    async def use(c, sockets):
        info = await c.get_symbol_info('LINKUSDT')
        assert info['status'] == 'TRADING' and {f['filterType'] for f in info['filters']} >= {'PRICE_FILTER', 'LOT_SIZE', 'NOTIONAL'}
        book, best = await c.get_order_book(symbol='LINKUSDT', limit=10), await c.get_orderbook_ticker(symbol='LINKUSDT')
        assert len(book['bids']) == 10 and float(best['bidPrice']) < float(best['askPrice'])
        assert abs((await c.get_server_time())['serverTime'] - time.time()*1e3) < 5_000
        before, ask = await c.get_asset_balance('LINK'), float(best['askPrice'])
        bought = await c.order_limit_buy(symbol='LINKUSDT', quantity='1', price=f'{ask*1.002:.3f}', timeInForce='IOC')
        assert bought['status'] == 'FILLED' and sum(D(f['qty']) for f in bought['fills']) == 1 and {f['commissionAsset'] for f in bought['fills']} == {'LINK'}
        assert D((await c.get_asset_balance('LINK'))['free']) - D(before['free']) == D('0.999')
        assert (await c.order_market_sell(symbol='LINKUSDT', quantity='1'))['status'] == 'FILLED'
        assert (await c.order_market_buy(symbol='LINKUSDT', quoteOrderQty='50'))['status'] == 'FILLED'
        rests = await c.create_order(symbol='LINKUSDT', side='BUY', type='LIMIT_MAKER', quantity='1', price='20')
        assert [o['orderId'] for o in await c.get_open_orders(symbol='LINKUSDT')] == [rests['orderId']]
        assert (await c.cancel_order(symbol='LINKUSDT', orderId=rests['orderId']))['status'] == 'CANCELED'
        assert (await c.get_order(symbol='LINKUSDT', orderId=rests['orderId']))['status'] == 'CANCELED'
        assert (await c.get_my_trades(symbol='LINKUSDT'))[0]['orderId'] == bought['orderId']
        for order, code in ((dict(type='LIMIT_MAKER', quantity='1', price=f'{ask*1.01:.3f}'), -2010), (dict(type='LIMIT', timeInForce='GTC', quantity='90000', price='20'), -2010),
                            (dict(type='LIMIT', timeInForce='GTC', quantity='0.01', price='20'), -1013), (dict(type='LIMIT', timeInForce='GTC', quantity='1', price='20.00001'), -1013)):
            with pytest.raises(BinanceAPIException) as e: await c.create_order(symbol='LINKUSDT', side='BUY', **order)
            assert e.value.code == code
    pointed(use)


def test_python_binance_by_sockets(pointed):
    async def use(c, sockets):
        async with sockets.depth_socket('LINKUSDT') as depth:
            seen = [await depth.recv() for _ in range(4)]
        assert all(y['U'] == x['u'] + 1 for x, y in zip(seen, seen[1:]))
        async with sockets.depth_socket('LINKUSDT', depth='5') as top: assert len((await top.recv())['bids']) == 5
        async with sockets.multiplex_socket(['linkusdt@bookTicker', 'linkusdt@miniTicker', 'linkusdt@ticker']) as many:
            heard = {}
            while len(heard) < 3: heard |= {(m := await many.recv())['stream']: m['data']}
        assert float(heard['linkusdt@bookTicker']['b']) < float(heard['linkusdt@bookTicker']['a']) and heard['linkusdt@ticker']['e'] == '24hrTicker' and heard['linkusdt@miniTicker']['e'] == '24hrMiniTicker'
        async with sockets.trade_socket('LINKUSDT') as trades:
            await asyncio.sleep(.2)
            sold = await c.order_market_sell(symbol='LINKUSDT', quantity='1')
            told = None
            while told is None or told['t'] != sold['fills'][0]['tradeId']: told = await asyncio.wait_for(trades.recv(), 8) # among those of the market
        assert (told['e'], told['p'], told['m']) == ('trade', sold['fills'][0]['price'], True)
    pointed(use)


def test_python_binance_keeps_a_book_from_snapshot_and_differences(pointed, backstage):
    from binance import DepthCacheManager
    rows = backstage.plain.scenario.rows['binance']
    shown = {tuple(f'{x:.3f}' for x in (*r['bid_px'][1:4], *r['ask_px'][1:4])) for r in rows}
    async def use(c, sockets):
        manager = DepthCacheManager(c, 'LINKUSDT', refresh_interval=0)
        manager._bm = sockets # it makes a manager of its own, at an address of its own
        seen = set()
        async with manager as m:
            while len(seen) < 4:
                cache = await m.recv()
                if cache: seen.add(tuple(f'{p:.3f}' for p, _ in (*cache.get_bids()[1:4], *cache.get_asks()[1:4])))
        return seen
    assert len(pointed(use) & shown) >= 3


def test_python_binance_by_the_websocket_api_and_the_accounts_stream(pointed):
    async def use(c, sockets):
        assert (await c.ws_get_order_book(symbol='LINKUSDT'))['bids']
        ask = float((await c.get_orderbook_ticker(symbol='LINKUSDT'))['askPrice'])
        async with sockets.user_socket() as user:
            placed = await c.ws_create_order(symbol='LINKUSDT', side='BUY', type='LIMIT', timeInForce='IOC', quantity='1', price=f'{ask*1.002:.3f}', newClientOrderId='ws-1')
            told = []
            while not any(m['e'] == 'outboundAccountPosition' for m in told): told.append(await asyncio.wait_for(user.recv(), 8))
            assert placed['status'] == 'FILLED' and [(m['x'], m['c']) for m in told if m['e'] == 'executionReport'][0] == ('NEW', 'ws-1')
            assert told[-2]['X'] == 'FILLED' and {b['a'] for b in told[-1]['B']} == {'LINK', 'USDT'}
            rests = await c.ws_create_order(symbol='LINKUSDT', side='SELL', type='LIMIT', timeInForce='GTC', quantity='1', price='40')
            assert (await c.ws_cancel_order(symbol='LINKUSDT', orderId=rests['orderId']))['status'] == 'CANCELED'
        assert {b['asset'] for b in (await c.ws_get_account())['balances']} >= {'LINK', 'USDT'}
        with pytest.raises(BinanceAPIException): await c.ws_create_order(symbol='LINKUSDT', side='SELL', type='LIMIT', timeInForce='GTC', quantity='90000', price='40')
    pointed(use)
