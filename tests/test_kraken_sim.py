"The simulated Kraken against unmodified ccxt and ccxt.pro, and against arbwork's own feed and link over real sockets."
import asyncio
import base64
import contextlib
import hashlib
import hmac
import time
from decimal import Decimal
from urllib.parse import urlencode

import aiohttp
import ccxt.pro as ccxtpro
import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arbwork.clock import NS, ScaledClock
from arbwork.feed.codec import Keys
from arbwork.feed.events import INVALID, VALID, Balance, Fill, NewOrder, OrderUpdate, Quote
from arbwork.feed.kraken import Kraken
from arbwork.feed.wire import Addresses, MarketFeed, TradeLink, fetch_listings, fetch_time_ns
from arbwork.market import BUY, SELL, ConfigError, VenueError, round_px, round_qty
from arbwork.sim.engine import Engine, whole
from arbwork.sim.kraken import KrakenVenue
from arbwork.sim.scenarios import load_scenario
from arbwork.sim.server import World

KEYS = Keys('sim-key', base64.b64encode(b'sim-secret').decode())
PAIR = 'LINK-USDT'


def scenario(minutes=5): return load_scenario('link-2021-08-20', minutes=minutes, venues=('kraken', 'bybit'))


def kraken(at):
    ex = ccxtpro.kraken({'apiKey': KEYS.key, 'secret': KEYS.secret, 'enableRateLimit': False})
    api = ex.urls['api']
    for name in ('public', 'private'): api[name] = at['rest']
    api['ws']['public'] = api['ws']['private'] = at['public_ws']
    api['ws']['publicV2'] = api['ws']['privateV2'] = at['public_ws'] + '/v2'
    return ex


async def session(use, shown=None):
    "A running venue and an unmodified client of it."
    world = World(['kraken'], shown or scenario(2), port=0, speed=1., keys=KEYS, lead_s=0., start_ns=time.time_ns())
    ready = await world.start()
    ex = kraken(ready['venues']['kraken'])
    try: return await asyncio.wait_for(use(ex, world.doors['kraken'].venue), 25)
    finally:
        await ex.close()
        await world.stop()


def test_ccxt_books_orders_and_balances_by_rest():
    async def use(ex, sim):
        await ex.load_markets()
        market = ex.market('LINK/USDT')
        assert market['active'] and market['precision']['price'] == float(sim.engine.listings[PAIR].tick) and market['limits']['amount']['min'] == .2
        book = await ex.fetch_order_book('LINK/USDT', 20)
        assert len(book['bids']) == len(book['asks']) == 10 and book['bids'][0][0] < book['asks'][0][0]
        assert (await ex.fetch_ticker('LINK/USDT'))['bid'] < book['asks'][-1][0] and abs(await ex.fetch_time() - time.time()*1e3) < 5_000
        before = await ex.fetch_balance()
        ask = book['asks'][0][0]
        bought = await ex.create_order('LINK/USDT', 'limit', 'buy', 1, round(ask*1.001, 3), {'timeInForce': 'IOC', 'clientOrderId': 't1-buy-0'})
        asked = await ex.fetch_order(bought['id'], 'LINK/USDT')
        trades, after = await ex.fetch_my_trades('LINK/USDT'), await ex.fetch_balance()
        assert asked['status'] == 'closed' and asked['filled'] == 1 and asked['clientOrderId'] == 't1-buy-0' and asked['side'] == 'buy'
        assert trades[-1]['order'] == bought['id'] and trades[-1]['fee']['cost'] == pytest.approx(.004*trades[-1]['cost'])
        assert after['LINK']['total'] - before['LINK']['total'] == pytest.approx(.996)
        assert before['USDT']['total'] - after['USDT']['total'] == pytest.approx(asked['cost'])
        rests = await ex.create_order('LINK/USDT', 'limit', 'sell', 1, round(ask*1.05, 3))
        assert [o['id'] for o in await ex.fetch_open_orders('LINK/USDT')] == [rests['id']]
        assert (await ex.fetch_balance())['LINK']['used'] == 1
        await ex.cancel_order(rests['id'], 'LINK/USDT')
        assert await ex.fetch_open_orders('LINK/USDT') == [] and len(await ex.fetch_closed_orders('LINK/USDT')) == 2
        await ex.create_order('LINK/USDT', 'market', 'sell', 1)
        assert (await ex.fetch_trades('LINK/USDT'))[-1]['side'] == 'sell'
        return True
    assert asyncio.run(session(use))


def test_ccxt_finds_its_way_through_the_old_names():
    async def use(ex, sim):
        await ex.load_markets()
        assert ex.market('BTC/USDT')['id'] == 'XBTUSDT' and (await ex.fetch_balance())['BTC']['total'] == 10
        book = await ex.watch_order_book('BTC/USDT')
        await ex.create_order('BTC/USDT', 'limit', 'sell', .01, book['bids'][0][0]*.99, {'timeInForce': 'IOC'})
        assert (await ex.fetch_my_trades('BTC/USDT'))[-1]['symbol'] == 'BTC/USDT' and (await ex.fetch_balance())['BTC']['total'] == pytest.approx(9.99)
        return True
    assert asyncio.run(session(use, load_scenario('stress', seed=3, hours=.1, venues=('kraken', 'bybit'))))


def test_refusals_become_ccxt_errors():
    async def use(ex, sim):
        await ex.load_markets()
        with pytest.raises(ccxtpro.InsufficientFunds): await ex.create_order('LINK/USDT', 'limit', 'buy', 100_000, 20.)
        with pytest.raises(ccxtpro.InvalidOrder): await ex.create_order('LINK/USDT', 'limit', 'buy', .1, 20.)
        with pytest.raises(ccxtpro.OrderNotFound): await ex.cancel_order('OAAAAA-BBBBB-CCCCCC', 'LINK/USDT')
        secret, ex.secret = ex.secret, base64.b64encode(b'wrong').decode()
        with pytest.raises(ccxtpro.ExchangeError, match='EAPI:Invalid signature'): await ex.fetch_balance()
        ex.secret, ex.apiKey = secret, 'other'
        with pytest.raises(ccxtpro.AuthenticationError): await ex.fetch_balance()
        return True
    assert asyncio.run(session(use))


def test_ccxt_pro_streams_and_orders_by_socket():
    async def use(ex, sim):
        await ex.load_markets()
        book = await ex.watch_order_book('LINK/USDT')
        assert (await ex.watch_balance())['LINK']['total'] == 2000
        orders, mine, balance = (asyncio.ensure_future(f()) for f in (ex.watch_orders, ex.watch_my_trades, ex.watch_balance))
        while 'executions' not in sim.listeners: await asyncio.sleep(.02) # noqa: ASYNC110
        await asyncio.sleep(.1)
        ask = book['asks'][0][0]
        placed = await ex.create_order_ws('LINK/USDT', 'limit', 'buy', 1, round(ask*1.001, 3), {'timeInForce': 'IOC', 'clientOrderId': 't2-buy-0'})
        assert (await asyncio.wait_for(orders, 5))[-1]['id'] == placed['id']
        assert (await asyncio.wait_for(mine, 5))[-1]['order'] == placed['id']
        assert (await asyncio.wait_for(balance, 5))['LINK']['total'] == pytest.approx(2000.996)
        rests = await ex.create_order_ws('LINK/USDT', 'limit', 'sell', 1, round(ask*1.05, 3))
        await ex.cancel_order_ws(rests['id'])
        with pytest.raises(ccxtpro.OrderNotFound): await ex.cancel_order_ws(rests['id'])
        with pytest.raises(ccxtpro.InsufficientFunds): await ex.create_order_ws('LINK/USDT', 'limit', 'buy', 100_000, 20.)
        for _ in range(3): book = await ex.watch_order_book('LINK/USDT')
        shown = sim.engine.books[PAIR]
        assert [p for p, _ in book['bids'][:5]] == [pytest.approx(p*float(sim.engine.listings[PAIR].tick)) for p in list(shown[0].visible())[:5]]
        best = await ex.watch_bids_asks(['LINK/USDT'])
        assert best['LINK/USDT']['bid'] < best['LINK/USDT']['ask']
        return True
    assert asyncio.run(session(use))


@contextlib.asynccontextmanager
async def trading(speed=20., timeout_s=2., rows=600):
    part = scenario()
    part = msgspec.structs.replace(part, rows={v: r[:rows] for v, r in part.rows.items()})
    w = World(['kraken'], part, 0, speed, KEYS, None, .3)
    await w.start()
    a = Addresses.local(w.ports['kraken'])
    codec = Kraken(keys=KEYS)
    listing = (await fetch_listings(codec, a, [PAIR]))[PAIR]
    clock = ScaledClock(await fetch_time_ns(codec, a), speed)
    events, problems = [], []
    link = TradeLink(codec, a, clock, events.append, on_problem=lambda *x: problems.append(x), timeout_s=timeout_s)
    try:
        await link.start()
        yield link, listing, w.doors['kraken'].venue, a, events, problems
    finally:
        await link.close()
        await w.stop()


async def until(true, seconds=8):
    async with asyncio.timeout(seconds):
        while not true(): await asyncio.sleep(0.005)  # noqa: ASYNC110


def run(coroutine, seconds=20): return asyncio.run(asyncio.wait_for(coroutine, seconds))


def limit(listing, venue, side, cross_bps, qty, client_id, tif='IOC'):
    bids, asks = venue.sides(PAIR, 5)
    px = Decimal((asks if side == BUY else bids)[0][0])*(1 + side*Decimal(cross_bps)/10_000)
    return NewOrder(client_id, PAIR, side, round_qty(Decimal(qty), listing.lot), round_px(px, listing.tick, side), tif)


def booked(fills):
    out = {'LINK': Decimal(0), 'USDT': Decimal(0)}
    for f in fills:
        out['LINK'] += f.side*f.qty
        out['USDT'] -= f.side*f.qty*f.px
        out[f.fee_asset] -= f.fee
    return {k: v for k, v in out.items() if v}


def test_every_recorded_row_arrives_as_it_was_with_its_checksum():
    async def main():
        part = scenario()
        w = World(['kraken'], part, 0, 300., KEYS, None, 3.) # time enough to connect on a slow machine
        await w.start()
        a, got, said, problems = Addresses.local(w.ports['kraken']), [], [], []
        feed = MarketFeed(Kraken(), a, {PAIR: 0}, ScaledClock(await fetch_time_ns(Kraken(), a), 300.), got.append, said.append, on_problem=lambda *x: problems.append(x))
        task = asyncio.create_task(feed.run())
        truth = part.rows['kraken']
        await until(lambda: got and got[-1]['ts_venue_ns'] == truth['ts_venue_ns'][-1])
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await w.stop()
        rows = np.array(got)
        assert set(rows['state'][:-1]) == {VALID} and feed.stats['gaps'] == feed.stats['reconnects'] == 0 and not problems
        assert (np.diff(rows['seq']) > 0).all() and any(isinstance(x, Quote) for x in said)
        by_time = {int(t): i for i, t in enumerate(truth['ts_venue_ns'])}
        changed = 1 + np.flatnonzero([any((truth[k][i] != truth[k][i + 1]).any() for k in ('bid_px', 'bid_qty', 'ask_px', 'ask_qty')) for i in range(len(truth) - 1)])
        told = [by_time[int(t)] for t in rows['ts_venue_ns'] if int(t) in by_time]
        assert set(changed) <= set(told)
        for r in rows:
            i = by_time.get(int(r['ts_venue_ns']))
            if i is None: continue
            for k in ('bid_px', 'ask_px'): assert (r[k] == truth[i][k]).all(), (k, i)
            for k in ('bid_qty', 'ask_qty'): np.testing.assert_allclose(r[k], truth[i][k], rtol=0, atol=5.1e-9)
    run(main())


def test_orders_fill_and_the_balances_follow_to_the_last_digit():
    async def main():
        async with trading() as (link, listing, sim, a, events, problems):
            before, since = {b.asset: b.free + b.held for b in await link.balances()}, link.venue_ns() - 60*NS
            names = ['s1-0-0-0', '20210820-0000-ab-17-1-0'] # the second is too long for Kraken and goes out as a UUID
            for name, side in zip(names, (BUY, SELL)):
                first = await link.place(limit(listing, sim, side, 30, '4', name))
                assert first.status in ('acked', 'partly_filled', 'filled') and first.client_id == name
                await until(lambda n=name: [e for e in events if isinstance(e, OrderUpdate) and e.client_id == n and e.status == 'filled'])
            told = [e for e in events if isinstance(e, Fill)]
            assert {f.client_id for f in told} == set(names) and all(f.fee > 0 for f in told) and {f.fee_asset for f in told} == {'LINK', 'USDT'}
            asked = await link.fills(PAIR, since)
            assert set(asked) == set(told)
            after = {b.asset: b.free + b.held for b in await link.balances()}
            assert {x: after[x] - before[x] for x in after if after[x] != before[x]} == booked(told)
            await until(lambda: [e for e in events if isinstance(e, Balance) and e.asset == 'USDT'][-1].free == after['USDT'])
            for name in names: assert [(u.status, u.filled_qty, u.client_id) for u in [await link.order(PAIR, name)]] == [('filled', 4, name)]
            assert (await link.order(PAIR, 'never-sent')).status == 'unknown_order' and not problems
            stranger = TradeLink(Kraken(keys=KEYS), a, link.clock, lambda e: None)
            found = await stranger.fills(PAIR, since)
            assert {f.client_id for f in found} == set(names)
            assert {(f.fill_id, f.fee) for f in found} == {(f.fill_id, f.fee) for f in told}
            await stranger.close()
    run(main())


def test_refusals_rest_and_cancel():
    async def main():
        async with trading() as (link, listing, sim, a, events, problems):
            for n, (change, code) in enumerate([(dict(qty=Decimal('9000000')), 'insufficient_funds'), (dict(px=Decimal('26.12345678')), 'tick_or_lot'), (dict(qty=Decimal('0.1')), 'below_minimum')]):
                u = await link.place(msgspec.structs.replace(limit(listing, sim, BUY, 0, '4', f'bad-{n}'), **change))
                assert (u.status, u.code) == ('rejected', code), u
            rests = limit(listing, sim, BUY, -300, '4', 'rests', 'GTC')
            assert (await link.place(rests)).status == 'acked'
            assert [(o.client_id, o.status) for o in await link.open_orders(PAIR)] == [('rests', 'acked')] and await link.open_orders('BTC-USD') == []
            assert {b.asset: b.held for b in await link.balances()}['USDT'] == rests.px*rests.qty
            with pytest.raises(VenueError) as e: await link.place(rests)
            assert e.value.code == 'duplicate_id'
            assert (await link.cancel(PAIR, 'rests')).status == 'cancelled'
            assert await link.open_orders() == [] and (await link.cancel(PAIR, 'rests')).status == 'unknown_order'
            await link.place(limit(listing, sim, BUY, -300, '4', 'ioc-away'))
            await until(lambda: [e for e in events if isinstance(e, OrderUpdate) and e.client_id == 'ioc-away' and e.status == 'cancelled'])
            maker = await link.place(limit(listing, sim, BUY, 50, '4', 'post', 'POST_ONLY'))
            assert (maker.status, maker.code) == ('rejected', 'would_cross')
            with pytest.raises(ConfigError): await fetch_listings(Kraken(), a, ['DOGE-USDT'])
    run(main())


def test_a_lost_answer_is_unknown_until_asked_and_a_partial_fill_is_told():
    async def main():
        async with trading(timeout_s=.5) as (link, listing, sim, a, events, problems):
            async with aiohttp.ClientSession() as http:
                async with http.post(a.rest + '/_sim/faults', json=[dict(kind='drop_ack'), dict(kind='lose_private', n=5)]) as r: assert r.status == 200
                with pytest.raises(VenueError) as e: await link.place(limit(listing, sim, SELL, 30, '2', 'lost'))
                assert e.value.code == 'unknown_outcome'
                assert (await link.order(PAIR, 'lost')).status == 'filled'
                assert sum(f.qty for f in await link.fills(PAIR, link.venue_ns() - 60*NS)) == 2
                sim.faults.clear()
                await (await http.post(a.rest + '/_sim/faults', json=dict(kind='partial', value=.5))).read()
            await link.place(limit(listing, sim, SELL, 30, '2', 'half'))
            await until(lambda: [e for e in events if isinstance(e, OrderUpdate) and e.client_id == 'half' and e.status == 'cancelled' and e.filled_qty == 1])
            assert sum(e.qty for e in events if isinstance(e, Fill) and e.client_id == 'half') == 1
    run(main())


def test_a_lost_frame_and_a_cut_line_heal():
    async def main():
        async with trading() as (link, listing, sim, a, events, problems):
            rows, told = [], []
            feed = MarketFeed(Kraken(), a, {PAIR: 0}, link.clock, rows.append, on_problem=lambda *x: told.append(x))
            task = asyncio.create_task(feed.run())
            await until(lambda: len(rows) > 3)
            async with aiohttp.ClientSession() as http:
                await (await http.post(a.rest + '/_sim/faults', json=dict(kind='gap'))).read()
                await until(lambda: feed.stats['gaps'] >= 1 and rows[-1]['state'] == VALID)
                assert feed.stats['resyncs'] == 1 and feed.stats['reconnects'] == 0
                await (await http.post(a.rest + '/_sim/faults', json=dict(kind='disconnect'))).read()
                await until(lambda: feed.stats['reconnects'] == 1 and rows[-1]['state'] == VALID and link.live and 'reconnected' in [k for k, _ in problems])
            assert [k for k, _ in told] == ['gap', 'lost'] and 'found checksum' in told[0][1]
            assert [r['state'] for r in rows].count(INVALID) == 2
            assert (await link.place(limit(listing, sim, BUY, 30, '1', 'after'))).status in ('acked', 'partly_filled', 'filled')
            task.cancel()
    run(main())


def test_a_wrong_key_is_refused_at_the_door_and_a_nonce_is_used_once():
    async def main():
        async with trading() as (link, listing, sim, a, events, problems):
            other = TradeLink(Kraken(keys=Keys('sim-key', 'wrong')), a, link.clock, lambda e: None)
            with pytest.raises(VenueError) as e: await other.start()
            assert e.value.code == 'signature'
            behind = TradeLink(Kraken(keys=KEYS), a, link.clock, lambda e: None)
            link.codec._nonce += 10**9
            await link.balances()
            with pytest.raises(VenueError) as e: await behind.balances()
            assert e.value.code == 'clock'
            await behind.close()
    run(main())


def test_a_signature_fits_the_path_the_nonce_and_the_body():
    part = scenario(1)
    rows = part.rows['kraken'][:3]
    venue = KrakenVenue(Engine('kraken', [part.listings['kraken']], balances=part.balances['kraken']), {PAIR: (rows['ts_venue_ns'].tolist(), whole(rows, part.listings['kraken']))}, KEYS)
    def ask(nonce, path='/0/private/BalanceEx', secret=b'sim-secret', key='sim-key', signed=None):
        body = urlencode({'nonce': nonce})
        sign = hmac.digest(secret, (signed or path).encode() + hashlib.sha256(f'{nonce}{body}'.encode()).digest(), 'sha512')
        reply = venue.rest('POST', path, '', body, {'API-Key': key, 'API-Sign': base64.b64encode(sign).decode()}, part.start_ns)
        return msgspec.json.decode(reply.body)['error']
    said = [ask(5), ask(5), ask(4), ask(6, secret=b'x'), ask(6, key='x'), ask(6, signed='/0/private/AddOrder'), ask('x'), ask(6)]
    assert said == [[], ['EAPI:Invalid nonce'], ['EAPI:Invalid nonce'], ['EAPI:Invalid signature'], ['EAPI:Invalid key'], ['EAPI:Invalid signature'], ['EAPI:Invalid nonce'], []]


WORDS = ['buy', 'sell', 'limit', 'market', 'LINKUSDT', 'LINK/USDT', 'NaN', '1e999', '-1', '0', '', 'gtc', 'IOC', 'post', 'viqc', 'true', 'a-1', 'O00000-00000-00LFLS', '27.0', '3', '1e-30']
LEAF = st.none() | st.booleans() | st.integers(-10**20, 10**20) | st.floats(allow_nan=False, allow_infinity=False) | st.sampled_from(WORDS)
NAMES = ['pair', 'type', 'ordertype', 'volume', 'price', 'timeinforce', 'oflags', 'cl_ord_id', 'txid', 'start', 'end', 'ofs', 'symbol', 'side', 'order_type', 'order_qty', 'limit_price',
         'time_in_force', 'post_only', 'order_id', 'deadline', 'cash_order_qty', 'channel', 'depth']


def a_venue():
    part = scenario(1)
    rows, listing = part.rows['kraken'][:3], part.listings['kraken']
    return part, KrakenVenue(Engine('kraken', [listing], balances=part.balances['kraken']), {PAIR: (rows['ts_venue_ns'].tolist(), whole(rows, listing))}, KEYS)


PART, VENUE = a_venue()


@settings(max_examples=200, deadline=None)
@given(path=st.sampled_from(sorted(p for m, p in KrakenVenue.routes if m == 'POST')), p=st.dictionaries(st.sampled_from(NAMES), LEAF, max_size=8), json=st.booleans())
def test_any_signed_request_gets_an_answer(path, p, json):
    nonce = str(VENUE.nonce + 1)
    body = msgspec.json.encode({'nonce': nonce, **p}).decode() if json else urlencode({'nonce': nonce, **p})
    sign = hmac.digest(b'sim-secret', path.encode() + hashlib.sha256(f'{nonce}{body}'.encode()).digest(), 'sha512')
    headers = {'API-Key': 'sim-key', 'API-Sign': base64.b64encode(sign).decode(), 'Content-Type': 'application/json' if json else ''}
    said = msgspec.json.decode(VENUE.rest('POST', path, '', body, headers, PART.start_ns).body)
    assert said['error'] or 'result' in said
    assert all(b.free >= 0 and b.held >= 0 for b in VENUE.engine.balances())


@settings(max_examples=300, deadline=None)
@given(method=st.sampled_from(['add_order', 'cancel_order', 'cancel_all', 'subscribe', 'unsubscribe', 'ping']), p=st.dictionaries(st.sampled_from(NAMES), LEAF | st.lists(LEAF, max_size=2), max_size=8))
def test_any_frame_with_a_token_gets_an_answer(method, p):
    s = VENUE.open('/v2', '')
    token = VENUE.token({}, PART.start_ns)['token']
    for frame in VENUE.receive(s, msgspec.json.encode({'method': method, 'params': {**p, 'token': token}}), PART.start_ns): msgspec.json.decode(frame)
    VENUE.leave(s)
    assert all(b.free >= 0 and b.held >= 0 for b in VENUE.engine.balances())


def test_an_order_with_a_word_that_is_not_known_is_refused():
    part, venue = a_venue()
    s, token = venue.open('/v2', ''), venue.token({}, part.start_ns)['token']
    order = dict(symbol='LINK/USDT', side='buy', order_type='market', order_qty=1, token=token)
    for more in ({'validate': True}, {'leverage': 2}, {'triggers': {}}): assert msgspec.json.decode(venue.receive(s, msgspec.json.encode(dict(method='add_order', params=order | more)), part.start_ns)[0])['success'] is False
    assert not venue.engine.orders
    old = venue.open('/v2', '')
    late = part.start_ns + 901*NS
    for who, now, good in ((old, late, False), (s, late, True)):
        assert msgspec.json.decode(venue.receive(who, msgspec.json.encode(dict(method='add_order', params=order)), now)[0])['success'] is good
