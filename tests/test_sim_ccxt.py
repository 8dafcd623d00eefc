"""Unmodified ccxt and ccxt.pro trade at every simulated venue; only the addresses are theirs to know."""

import asyncio
import base64
import time

import ccxt.pro as ccxtpro
import msgspec
import pytest

from arbwork.feed.codec import Keys
from arbwork.sim.coinbase import pem_of
from arbwork.sim.scenarios import load_scenario
from arbwork.sim.server import VENUES, World

KEYS = {'binance': Keys('sim-key', 'sim-secret'), 'bybit': Keys('sim-key', 'sim-secret'), 'okx': Keys('sim-key', 'sim-secret', 'sim words'),
        'kraken': Keys('sim-key', base64.b64encode(b'sim-secret').decode()), 'coinbase': Keys('organizations/1/apiKeys/2', pem_of('sim-secret'))}
PAIR, NAME = 'LINK/USDT', 'LINK-USDT'


def client(venue, at, keys=None):
    "A ccxt.pro client that is told where the venue is and nothing else."
    keys = keys or KEYS[venue]
    common = {'apiKey': keys.key, 'secret': keys.secret, 'password': keys.passphrase, 'enableRateLimit': False}
    options = {'binance': {'fetchMarkets': {'types': ['spot']}, 'fetchCurrencies': False},
               'bybit': {'fetchMarkets': {'types': ['spot']}, 'defaultType': 'spot', 'enableUnifiedAccount': True, 'enableUnifiedMargin': False},
               'okx': {'fetchMarkets': {'types': ['spot']}}}
    ex = getattr(ccxtpro, venue)({**common, 'options': options.get(venue, {})})
    api = ex.urls['api']
    if venue == 'binance':
        for name in ('public', 'private'): api[name] = at['rest'] + '/api/v3'
        api['v1'], api['sapi'] = at['rest'] + '/api/v1', at['rest'] + '/sapi/v1'
        api['ws']['spot'], api['ws']['ws-api']['spot'] = at['public_ws'] + '/stream', at['private_ws'] + '/ws-api/v3'
    elif venue == 'bybit':
        for name in ('spot', 'futures', 'v2', 'public', 'private'): api[name] = at['rest']
        ws = api['ws']
        ws['public']['spot'] = at['public_ws'] + '/v5/public/spot'
        ws['private']['spot']['unified'] = ws['private']['contract'] = at['private_ws'] + '/v5/private'
        ws['private']['trade'] = at['trade_ws'] + '/v5/trade'
    elif venue == 'okx': api['rest'], api['ws'] = at['rest'], at['public_ws'] + '/ws/v5'
    elif venue == 'kraken':
        for name in ('public', 'private'): api[name] = at['rest']
        api['ws']['public'] = api['ws']['private'] = at['public_ws']
        api['ws']['publicV2'] = api['ws']['privateV2'] = at['public_ws'] + '/v2'
    else: api['rest'], api['ws'] = at['rest'], at['public_ws']
    return ex


class Stage:
    "One running world for the whole module, with a client at each venue; its loop runs only while a test does."
    def __init__(self):
        scenario = load_scenario('link-2021-08-20', minutes=60, venues=tuple(VENUES))
        start = scenario.start_ns
        rows = {venue: r.copy() for venue, r in scenario.rows.items()}
        for r in rows.values(): r['ts_venue_ns'] = r['ts_recv_ns'] = start + (r['ts_venue_ns'] - start)//10 # ten rows a second, so that nobody waits
        self.runner, self.clients = asyncio.Runner(), {}
        self.world = World(list(VENUES), msgspec.structs.replace(scenario, rows=rows), 0, 1., KEYS, None, 0., start_ns=time.time_ns(), wall=True)
        self.ready = self.runner.run(self.world.start())

    def run(self, venue, use, seconds=20):
        async def go():
            if venue not in self.clients:
                self.clients[venue] = client(venue, self.ready['venues'][venue])
                await self.clients[venue].load_markets()
            await asyncio.wait_for(use(self.clients[venue], self.world.doors[venue].venue), seconds)
        self.runner.run(go())

    def close(self):
        async def go():
            await asyncio.gather(*(ex.close() for ex in self.clients.values()))
            await self.world.stop()
        self.runner.run(go())
        self.runner.close()


@pytest.fixture(scope='module')
def stage():
    s = Stage()
    try: yield s
    finally: s.close()


async def until(true, seconds=8):
    async with asyncio.timeout(seconds):
        while not true(): await asyncio.sleep(.005) # noqa: ASYNC110


def named(venue, text): return text.replace('-', '') if venue == 'okx' else text # no hyphens there
def called(venue, cid): return {('client_order_id' if venue == 'coinbase' else 'clientOrderId'): cid} # ccxt drops its own word at Coinbase
def plain(venue): return {'acknowledged': True} if venue == 'bybit' else {} # ccxt asks back at Bybit before it looks for an order
def v3(venue): return {'v3': True} if venue == 'coinbase' else {} # otherwise ccxt asks for totals alone
def fee_of(sim): return float(sim.engine.taker)


@pytest.mark.parametrize('venue', VENUES)
def test_markets_books_trades_and_quotes_by_rest(stage, venue):
    async def use(ex, sim):
        listing, market = sim.engine.listings[NAME], ex.market(PAIR)
        assert market['active'] and market['spot'] and market['precision']['price'] == float(listing.tick) and market['precision']['amount'] == float(listing.lot)
        assert market['limits']['amount']['min'] == float(listing.min_qty)
        assert abs(await ex.fetch_time() - time.time()*1e3) < 5_000
        book = await ex.fetch_order_book(PAIR, 20)
        shown = [[round(p*float(listing.tick), 6) for p in side.visible()] for side in sim.engine.books[NAME]]
        assert len(book['bids']) == len(book['asks']) == 10 and book['bids'][0][0] < book['asks'][0][0]
        assert [[round(x[0], 6) for x in book[side]] for side in ('bids', 'asks')] == shown
        ticker = await ex.fetch_ticker(PAIR)
        assert 0 < ticker['bid'] < ticker['ask'] < ticker['bid']*1.01
        if ex.has['fetchBidsAsks'] and venue in ('binance', 'coinbase'):
            best = (await ex.fetch_bids_asks([PAIR]))[PAIR]
            assert 0 < best['bid'] < best['ask'] and best['bidVolume'] and best['askVolume']
        sold = await ex.create_order(PAIR, 'limit', 'sell', 1, round(book['bids'][0][0]*.99, 3), {'timeInForce': 'IOC'})
        fill, side = sim.engine.fills[-1], 'buy' if venue == 'coinbase' else 'sell' # Coinbase publishes the maker's side, which ccxt hands on
        assert str(sold['id']) and (float(fill.px), float(fill.qty), side) in [(t['price'], t['amount'], t['side']) for t in await ex.fetch_trades(PAIR)]
    stage.run(venue, use)


@pytest.mark.parametrize('venue', VENUES)
def test_orders_balances_and_fills_by_rest(stage, venue):
    async def use(ex, sim):
        book, before = await ex.fetch_order_book(PAIR, 20), await ex.fetch_balance(v3(venue))
        ask, cid = book['asks'][0][0], named(venue, 't1-buy-0')
        bought = await ex.create_order(PAIR, 'limit', 'buy', 1, round(ask*1.002, 3), {'timeInForce': 'IOC', **called(venue, cid)})
        asked = await ex.fetch_order(bought['id'], PAIR, plain(venue))
        mine, after = (await ex.fetch_my_trades(PAIR))[-1], await ex.fetch_balance(v3(venue))
        assert asked['status'] == 'closed' and asked['filled'] == 1 and asked['side'] == 'buy' and asked['clientOrderId'] == cid
        assert mine['order'] == bought['id'] and mine['side'] == 'buy'
        fees = sum(float(f.fee) for f in sim.engine.fills if f.client_id == cid)
        cost = sum(float(f.px*f.qty) for f in sim.engine.fills if f.client_id == cid)
        in_quote = venue == 'coinbase'
        assert fees == pytest.approx(fee_of(sim)*(cost if in_quote else 1)) and asked['cost'] == pytest.approx(cost)
        assert mine['fee']['currency'] == ('USDT' if venue in ('coinbase', 'kraken') else 'LINK') # Kraken's REST states all fees in quote currency
        assert after['LINK']['total'] - before['LINK']['total'] == pytest.approx(1 - (0 if in_quote else fees))
        assert before['USDT']['total'] - after['USDT']['total'] == pytest.approx(cost + (fees if in_quote else 0))
        rests = await ex.create_order(PAIR, 'limit', 'sell', 1, round(ask*1.05, 3))
        assert [o['id'] for o in await ex.fetch_open_orders(PAIR)] == [rests['id']]
        assert (await ex.fetch_balance(v3(venue)))['LINK']['used'] == 1
        await ex.cancel_order(rests['id'], PAIR)
        assert await ex.fetch_open_orders(PAIR) == [] and sim.open_orders() == []
        assert (await ex.fetch_order(rests['id'], PAIR, plain(venue)))['status'] == 'canceled'
    stage.run(venue, use)


@pytest.mark.parametrize('venue', VENUES)
def test_market_and_post_only_orders_by_rest(stage, venue):
    async def use(ex, sim):
        ask = (await ex.fetch_order_book(PAIR, 20))['asks'][0][0]
        sold = await ex.create_order(PAIR, 'market', 'sell', 1)
        assert (await ex.fetch_order(sold['id'], PAIR, plain(venue)))['filled'] == 1
        await ex.create_order(PAIR, 'market', 'buy', 1, ask)
        paid = sim.engine.fills[-1]
        assert paid.side == 1 and abs(float(sum(f.qty for f in sim.engine.fills if f.venue_id == paid.venue_id)) - 1) < .02 # some venues take the cost, not the quantity
        rests = await ex.create_order(PAIR, 'limit', 'buy', 1, round(ask*.95, 3), {'postOnly': True})
        assert [o['id'] for o in await ex.fetch_open_orders(PAIR)] == [rests['id']] and sim.open_orders()[0].tif == 'POST_ONLY'
        await ex.cancel_order(rests['id'], PAIR)
        fills = len(sim.engine.fills)
        crossing = ex.create_order(PAIR, 'limit', 'buy', 1, round(ask*1.02, 3), {'postOnly': True})
        if venue in ('okx', 'bybit'): # taken in, and cancelled at once
            try: crossed = await crossing
            except ccxtpro.BaseError: crossed = None
            if crossed: assert (await ex.fetch_order(crossed['id'], PAIR, plain(venue)))['status'] in ('canceled', 'rejected')
        else:
            with pytest.raises(ccxtpro.BaseError): await crossing
        assert len(sim.engine.fills) == fills and sim.open_orders() == []
    stage.run(venue, use)


@pytest.mark.parametrize('venue', VENUES)
def test_refusals_become_ccxt_errors(stage, venue):
    unknown = {'kraken': 'OAAAAA-BBBBB-CCCCCC', 'coinbase': '00000000-0000-4000-8000-000000000000'}.get(venue, '424242')
    gone = ccxtpro.BadRequest if venue == 'coinbase' else ccxtpro.OrderNotFound # there ccxt has one word for every cancel that failed
    small = (ccxtpro.InvalidOrder, ccxtpro.BadRequest) + ((ccxtpro.ExchangeError,) if venue == 'coinbase' else ())
    async def use(ex, sim):
        with pytest.raises(ccxtpro.InsufficientFunds): await ex.create_order(PAIR, 'limit', 'buy', 100_000, 20.)
        with pytest.raises(small): await ex.create_order(PAIR, 'limit', 'buy', .012, 20.)
        with pytest.raises(gone): await ex.cancel_order(unknown, PAIR)
        wrong = client(venue, stage.ready['venues'][venue], Keys(KEYS[venue].key, {'kraken': base64.b64encode(b'other').decode(), 'coinbase': pem_of('other')}.get(venue, 'other'), KEYS[venue].passphrase))
        wrong.set_markets(ex.markets)
        try:
            with pytest.raises(ccxtpro.ExchangeError if venue == 'kraken' else ccxtpro.AuthenticationError): await wrong.fetch_balance()
        finally: await wrong.close()
        assert sim.open_orders() == []
    stage.run(venue, use)


@pytest.mark.parametrize('venue', VENUES)
def test_books_and_quotes_by_socket(stage, venue):
    async def use(ex, sim):
        tick = float(sim.engine.listings[NAME].tick)
        book = await ex.watch_order_book(PAIR)
        async with asyncio.timeout(10):
            seen = 0
            while seen < 5: # the book followed by differences is the venue's, time and again
                book = await ex.watch_order_book(PAIR)
                shown = [[round(p*tick, 6) for p in list(side.visible())[:5]] for side in sim.engine.books[NAME]]
                seen += [[round(x[0], 6) for x in book[side][:5]] for side in ('bids', 'asks')] == shown
        if ex.has['watchBidsAsks']: # later than the book, because ccxt keeps Bybit's best prices in the very book that it keeps the depth in
            best = (await ex.watch_bids_asks([PAIR]))[PAIR]
            assert 0 < best['bid'] < best['ask']
        ticker = await ex.watch_ticker(PAIR)
        if venue in ('binance', 'bybit'): assert ticker['last'] > 0 # whose tickers have no best prices by socket; watch_bids_asks has
        else: assert 0 < ticker['bid'] < ticker['ask']
    stage.run(venue, use)


@pytest.mark.parametrize('venue', VENUES)
def test_orders_fills_balances_and_trades_by_socket(stage, venue):
    async def use(ex, sim):
        link, ask = float(sim.engine.free['LINK'] + sim.engine.held['LINK']), (await ex.fetch_order_book(PAIR, 20))['asks'][0][0]
        cid = named(venue, 't2-buy-0')
        heard, tasks = {}, []
        def follow(name, watch, *args):
            async def go():
                while True:
                    got = await watch(*args)
                    heard.setdefault(name, []).extend(dict(x) for x in ([got] if isinstance(got, dict) else got)) # copies: ccxt alters its orders later
            tasks.append(asyncio.ensure_future(go()))
        follow('orders', ex.watch_orders, *([] if venue == 'kraken' else [PAIR])) # there the end of an order does not name its pair, so that ccxt finds it under no pair
        follow('trades', ex.watch_trades, PAIR)
        if ex.has['watchMyTrades']: follow('mine', ex.watch_my_trades, PAIR)
        if ex.has['watchBalance']: follow('balance', ex.watch_balance)
        topics = {'binance': 1, 'coinbase': 2}.get(venue, 3) # of the account
        await until(lambda: sum(any(s.user for s in who) for who in sim.listeners.values()) >= topics and any('rade' in t for t in sim.listeners))
        await asyncio.sleep(.1)
        place = ex.create_order_ws if ex.has['createOrderWs'] else ex.create_order
        placed = await place(PAIR, 'limit', 'buy', 1, round(ask*1.002, 3), {'timeInForce': 'IOC', **called(venue, cid)})
        await until(lambda: {'orders', 'trades'} <= set(heard))
        await until(lambda: any(o['id'] == placed['id'] and o['status'] in ('closed', 'canceled') for o in heard['orders']))
        if ex.has['watchMyTrades']: await until(lambda: any(t['order'] == placed['id'] and t['fee'] for t in heard.get('mine', [])))
        if ex.has['watchBalance']: await until(lambda: any(abs(b['LINK']['total'] - link - 1) < .01 for b in heard.get('balance', []) if 'LINK' in b))
        assert any(cid in (o['clientOrderId'], o['info'].get('cl_ord_id')) for o in heard['orders']) and any(t['amount'] <= 1 for t in heard['trades'])
        rests = await place(PAIR, 'limit', 'sell', 1, round(ask*1.05, 3))
        assert len(sim.open_orders()) == 1
        gone = ex.cancel_order_ws if ex.has['cancelOrderWs'] else ex.cancel_order
        await gone(rests['id'], *([] if venue == 'kraken' else [PAIR])) # ccxt refuses a symbol there
        assert sim.open_orders() == []
        await until(lambda: any(o['id'] == rests['id'] and o['status'] == 'canceled' for o in heard['orders']))
        for t in tasks: t.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if ex.has['createOrderWs']:
            with pytest.raises(ccxtpro.InsufficientFunds): await ex.create_order_ws(PAIR, 'limit', 'buy', 100_000, 20.)
    stage.run(venue, use)


def test_a_burst_of_60_000_frames_does_not_stop_the_stream():
    "Some pairs of ccxt and aiohttp fall silent after some 2,000 frames at once, without an error; the pinned pair must not."
    async def go():
        world = World(['binance'], load_scenario('link-2021-08-20', minutes=1), 0, 1., KEYS, lead_s=60., start_ns=time.time_ns() + 60*10**9, wall=True)
        ex, door = client('binance', (await world.start())['venues']['binance']), world.doors['binance']
        try:
            await ex.load_markets()
            first = asyncio.ensure_future(ex.watch_bids_asks([PAIR]))
            await until(lambda: door.venue.listeners)
            topic = next(iter(door.venue.listeners))
            for i in range(60_000):
                frame = b'{"u":%d,"s":"LINKUSDT","b":"27.0","B":"1","a":"27.1","A":"%d"}' % (10**6 + i, i + 1)
                door.venue.send(topic, b'{"stream":"linkusdt@bookTicker","data":%b}' % frame if topic.startswith('combined') else frame)
            door.wake()
            await first
            while (await ex.watch_bids_asks([PAIR]))[PAIR]['askVolume'] != 60_000: pass
        finally:
            await ex.close()
            await world.stop()
    asyncio.run(asyncio.wait_for(go(), 180)) # generous: it takes seconds, but for a machine that is shared
