"""Unmodified ccxt and ccxt.pro trade at the simulated venues; only the addresses are theirs to know."""

import asyncio
import time

import ccxt.pro as ccxtpro
import pytest

from arbwork.feed.codec import Keys
from arbwork.sim.scenarios import load_scenario
from arbwork.sim.server import World

KEYS = Keys('sim-key', 'sim-secret')


def binance(at):
    ex = ccxtpro.binance({'apiKey': KEYS.key, 'secret': KEYS.secret, 'enableRateLimit': False,
                          'options': {'fetchMarkets': {'types': ['spot']}, 'fetchCurrencies': False}})
    api = ex.urls['api']
    for name in ('public', 'private'): api[name] = at['rest'] + '/api/v3'
    api['v1'], api['sapi'] = at['rest'] + '/api/v1', at['rest'] + '/sapi/v1'
    api['ws']['spot'], api['ws']['ws-api']['spot'] = at['public_ws'] + '/stream', at['private_ws'] + '/ws-api/v3'
    return ex


def bybit(at):
    ex = ccxtpro.bybit({'apiKey': KEYS.key, 'secret': KEYS.secret, 'enableRateLimit': False,
                        'options': {'fetchMarkets': {'types': ['spot']}, 'defaultType': 'spot', 'enableUnifiedAccount': True, 'enableUnifiedMargin': False}})
    api = ex.urls['api']
    for name in ('spot', 'futures', 'v2', 'public', 'private'): api[name] = at['rest']
    ws = api['ws']
    ws['public']['spot'] = at['public_ws'] + '/v5/public/spot'
    ws['private']['spot']['unified'] = ws['private']['contract'] = at['private_ws'] + '/v5/private'
    ws['private']['trade'] = at['trade_ws'] + '/v5/trade'
    return ex


MAKE = {'binance': binance, 'bybit': bybit}


async def session(venue, use, lead_s=0.):
    "A running world and an unmodified client of one of its venues."
    world = World([venue], load_scenario('link-2021-08-20', minutes=2), port=0, speed=1., keys=KEYS, lead_s=lead_s, start_ns=time.time_ns())
    ready = await world.start()
    ex = MAKE[venue](ready['venues'][venue])
    try: return await asyncio.wait_for(use(ex, world.doors[venue]), 25)
    finally:
        await ex.close()
        await world.stop()


@pytest.mark.parametrize('venue', MAKE)
def test_books_orders_and_balances_by_rest(venue):
    async def use(ex, door):
        sim = door.venue
        await ex.load_markets()
        market = ex.market('LINK/USDT')
        assert market['active'] and market['precision']['price'] == float(sim.engine.listings['LINK-USDT'].tick)
        book = await ex.fetch_order_book('LINK/USDT', 20)
        assert len(book['bids']) == len(book['asks']) == 10 and book['bids'][0][0] < book['asks'][0][0]
        before = await ex.fetch_balance()
        ask = book['asks'][0][0]
        bought = await ex.create_order('LINK/USDT', 'limit', 'buy', 1, round(ask*1.001, 3), {'timeInForce': 'IOC', 'clientOrderId': 't1-buy-0'})
        asked = await ex.fetch_order(bought['id'], 'LINK/USDT', {'acknowledged': True} if venue == 'bybit' else {})
        trades = await ex.fetch_my_trades('LINK/USDT')
        after = await ex.fetch_balance()
        assert asked['status'] == 'closed' and asked['filled'] == 1 and asked['clientOrderId'] == 't1-buy-0'
        assert trades[-1]['fee']['currency'] == 'LINK' and trades[-1]['fee']['cost'] == pytest.approx(.001*trades[-1]['amount'])
        assert after['LINK']['total'] - before['LINK']['total'] == pytest.approx(.999)
        assert before['USDT']['total'] - after['USDT']['total'] == pytest.approx(asked['cost'])
        rests = await ex.create_order('LINK/USDT', 'limit', 'sell', 1, round(ask*1.05, 3))
        assert [o['id'] for o in await ex.fetch_open_orders('LINK/USDT')] == [rests['id']]
        held = await ex.fetch_balance()
        assert held['LINK']['used'] == 1
        await ex.cancel_order(rests['id'], 'LINK/USDT')
        assert await ex.fetch_open_orders('LINK/USDT') == []
        await ex.create_order('LINK/USDT', 'market', 'sell', 1)
        return True
    assert asyncio.run(session(venue, use))


@pytest.mark.parametrize('venue', MAKE)
def test_refusals_become_ccxt_errors(venue):
    async def use(ex, door):
        await ex.load_markets()
        with pytest.raises(ccxtpro.InsufficientFunds): await ex.create_order('LINK/USDT', 'limit', 'buy', 100_000, 20.)
        with pytest.raises((ccxtpro.InvalidOrder, ccxtpro.BadRequest)): await ex.create_order('LINK/USDT', 'limit', 'buy', .01, 20.)
        with pytest.raises(ccxtpro.OrderNotFound): await ex.cancel_order('424242', 'LINK/USDT')
        ex.secret = 'wrong'
        with pytest.raises(ccxtpro.AuthenticationError): await ex.fetch_balance()
        return True
    assert asyncio.run(session(venue, use))


@pytest.mark.parametrize('venue', MAKE)
def test_streams_and_orders_by_socket(venue):
    async def use(ex, door):
        sim = door.venue
        await ex.load_markets()
        book = await ex.watch_order_book('LINK/USDT')
        orders = asyncio.ensure_future(ex.watch_orders('LINK/USDT'))
        balance = asyncio.ensure_future(ex.watch_balance())
        while not any(s.user for topic in sim.listeners.values() for s in topic): await asyncio.sleep(.02) # noqa: ASYNC110
        await asyncio.sleep(.1)
        ask = book['asks'][0][0]
        await ex.create_order_ws('LINK/USDT', 'limit', 'buy', 1, round(ask*1.001, 3), {'timeInForce': 'IOC', 'clientOrderId': 't2-buy-0'})
        told = (await asyncio.wait_for(orders, 5))[-1]
        assert told['clientOrderId'] == 't2-buy-0'
        assert (await asyncio.wait_for(balance, 5))['LINK']['total'] == pytest.approx(2000.999)
        for _ in range(3): book = await ex.watch_order_book('LINK/USDT')
        shown = sim.engine.books['LINK-USDT']
        assert [p for p, _ in book['bids'][:5]] == [pytest.approx(p*float(sim.engine.listings['LINK-USDT'].tick)) for p in list(shown[0].visible())[:5]]
        # last, because ccxt keeps Bybit's best prices in the very book that it keeps the depth in
        best = await ex.watch_bids_asks(['LINK/USDT'])
        assert best['LINK/USDT']['bid'] < best['LINK/USDT']['ask']
        return True
    assert asyncio.run(session(venue, use))


def test_a_burst_of_60_000_frames_does_not_stop_the_stream():
    "Some pairs of ccxt and aiohttp fall silent after some 2,000 frames at once, without an error; the pinned pair must not."
    async def use(ex, door):
        await ex.load_markets()
        first = asyncio.ensure_future(ex.watch_bids_asks(['LINK/USDT']))
        while not door.venue.listeners: await asyncio.sleep(.02) # noqa: ASYNC110
        topic = next(iter(door.venue.listeners))
        for i in range(60_000):
            frame = b'{"u":%d,"s":"LINKUSDT","b":"27.0","B":"1","a":"27.1","A":"%d"}' % (10**6 + i, i + 1)
            door.venue.send(topic, b'{"stream":"linkusdt@bookTicker","data":%b}' % frame if topic.startswith('combined') else frame)
        door.wake()
        await first
        while (await ex.watch_bids_asks(['LINK/USDT']))['LINK/USDT']['askVolume'] != 60_000: pass
        return True
    assert asyncio.run(session('binance', use, lead_s=60.))
