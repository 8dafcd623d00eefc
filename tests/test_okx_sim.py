"The simulated OKX: unmodified ccxt and ccxt.pro trade there, and so do arbwork's own feed and order link, by REST and by socket."
import asyncio
import contextlib
import signal
import time
from decimal import Decimal

import aiohttp
import ccxt.pro as ccxtpro
import msgspec
import numpy as np
import pytest

from arbwork.clock import NS, ScaledClock
from arbwork.feed.codec import Keys
from arbwork.feed.events import INVALID, VALID, Balance, Fill, NewOrder, OrderUpdate, Quote, Trade
from arbwork.feed.wire import CODECS, Addresses, Http, MarketFeed, TradeLink, fetch_listings, fetch_time_ns
from arbwork.market import BUY, SELL, VenueError, round_px, round_qty
from arbwork.sim.engine import Engine, whole
from arbwork.sim.okx import OkxVenue
from arbwork.sim.scenarios import load_scenario
from arbwork.sim.server import VENUES, World
from arbwork.sim.wire import Fault

KEYS = Keys('sim-key', 'sim-secret', 'sim words')
PAIR = 'LINK-USDT'


@pytest.fixture(scope='module')
def recording(): return load_scenario('link-2021-08-20', minutes=10, venues=('okx', 'binance'))


@contextlib.asynccontextmanager
async def world(scenario, speed, lead_s=0.3, **options):
    w = World(['okx'], scenario, 0, speed, KEYS, None, lead_s, **options)
    await w.start()
    try: yield w.doors['okx'].venue, Addresses.local(w.ports['okx'])
    finally: await w.stop()


async def until(true, seconds=8):
    async with asyncio.timeout(seconds):
        while not true(): await asyncio.sleep(0.005)  # noqa: ASYNC110


def run(coroutine, seconds=20): return asyncio.run(asyncio.wait_for(coroutine, seconds))


def client(at):
    ex = ccxtpro.okx({'apiKey': KEYS.key, 'secret': KEYS.secret, 'password': KEYS.passphrase, 'enableRateLimit': False, 'options': {'fetchMarkets': {'types': ['spot']}}})
    ex.urls['api']['rest'], ex.urls['api']['ws'] = at.rest, at.public_ws + '/ws/v5'
    return ex


def by_ccxt(use, scenario, lead_s=0.):
    "An unmodified client in a running world whose time is the wall's."
    async def main():
        async with world(scenario, 1., lead_s, start_ns=time.time_ns()) as (sim, at):
            ex = client(at)
            try: await use(ex, sim)
            finally: await ex.close()
    run(main(), 25)


def test_ccxt_books_orders_and_balances_by_rest(recording):
    async def use(ex, sim):
        await ex.load_markets()
        market = ex.market('LINK/USDT')
        assert market['active'] and market['precision']['price'] == .001 and market['limits']['amount']['min'] == .1
        book = await ex.fetch_order_book('LINK/USDT', 20)
        assert len(book['bids']) == len(book['asks']) == 10 and book['bids'][0][0] < book['asks'][0][0]
        before, ask = await ex.fetch_balance(), book['asks'][0][0]
        assert (await ex.fetch_ticker('LINK/USDT'))['ask'] == ask and abs(await ex.fetch_time() - ex.milliseconds()) < 2_000
        bought = await ex.create_order('LINK/USDT', 'limit', 'buy', 1, round(ask*1.001, 3), {'timeInForce': 'IOC', 'clientOrderId': 't1buy0'})
        asked = await ex.fetch_order(bought['id'], 'LINK/USDT')
        trades, after = await ex.fetch_my_trades('LINK/USDT'), await ex.fetch_balance()
        assert asked['status'] == 'closed' and asked['filled'] == 1 and asked['clientOrderId'] == 't1buy0' and asked['timeInForce'] == 'IOC'
        assert trades[-1]['fee']['currency'] == 'LINK' and trades[-1]['fee']['cost'] == pytest.approx(.001*trades[-1]['amount']) and trades[-1]['takerOrMaker'] == 'taker'
        assert after['LINK']['total'] - before['LINK']['total'] == pytest.approx(.999)
        assert before['USDT']['total'] - after['USDT']['total'] == pytest.approx(asked['cost'])
        rests = await ex.create_order('LINK/USDT', 'limit', 'sell', 1, round(ask*1.05, 3))
        assert [o['id'] for o in await ex.fetch_open_orders('LINK/USDT')] == [rests['id']]
        assert (await ex.fetch_balance())['LINK']['used'] == 1
        await ex.cancel_order(rests['id'], 'LINK/USDT')
        assert await ex.fetch_open_orders('LINK/USDT') == []
        assert (await ex.fetch_order(rests['id'], 'LINK/USDT'))['status'] == 'canceled'
        sold = await ex.create_order('LINK/USDT', 'market', 'sell', 1)
        bought = await ex.create_order('LINK/USDT', 'market', 'buy', 1)
        assert [(await ex.fetch_order(o['id'], 'LINK/USDT'))['filled'] for o in (sold, bought)] == [1, 1]
        post = await ex.create_order('LINK/USDT', 'limit', 'buy', 1, round(ask*1.01, 3), {'postOnly': True})
        assert (await ex.fetch_order(post['id'], 'LINK/USDT'))['status'] == 'canceled'
        assert len(await ex.fetch_trades('LINK/USDT')) == 3
    by_ccxt(use, recording)


def test_ccxt_raises_its_errors(recording):
    async def use(ex, sim):
        await ex.load_markets()
        with pytest.raises(ccxtpro.InsufficientFunds): await ex.create_order('LINK/USDT', 'limit', 'buy', 100_000, 20.)
        with pytest.raises(ccxtpro.InvalidOrder): await ex.create_order('LINK/USDT', 'limit', 'buy', .01, 20.)
        with pytest.raises(ccxtpro.BadRequest): await ex.create_order('LINK/USDT', 'limit', 'buy', 1, 20., {'clientOrderId': 'with-a-hyphen'})
        with pytest.raises(ccxtpro.OrderNotFound): await ex.cancel_order('424242', 'LINK/USDT')
        with pytest.raises(ccxtpro.OrderNotFound): await ex.fetch_order('424242', 'LINK/USDT')
        await ex.create_order('LINK/USDT', 'limit', 'buy', 1, 20., {'clientOrderId': 'once'})
        with pytest.raises(ccxtpro.InvalidOrder): await ex.create_order('LINK/USDT', 'limit', 'buy', 1, 20., {'clientOrderId': 'once'})
        ex.password = 'wrong'
        with pytest.raises(ccxtpro.AuthenticationError): await ex.fetch_balance()
        ex.password, ex.secret = KEYS.passphrase, 'wrong'
        with pytest.raises(ccxtpro.AuthenticationError): await ex.fetch_balance()
    by_ccxt(use, recording)


def test_ccxt_streams_and_orders_by_socket(recording):
    async def use(ex, sim):
        await ex.load_markets()
        book = await ex.watch_order_book('LINK/USDT')
        orders, balance = asyncio.ensure_future(ex.watch_orders('LINK/USDT')), asyncio.ensure_future(ex.watch_balance())
        await until(lambda: sim.heard('orders|SPOT|LINK-USDT|') and sim.heard('account|||'))
        await asyncio.wait_for(balance, 5)
        balance, mine, public = (asyncio.ensure_future(x) for x in (ex.watch_balance(), ex.watch_my_trades('LINK/USDT'), ex.watch_trades('LINK/USDT')))
        await until(lambda: sim.heard('trades||LINK-USDT|'))
        ask = book['asks'][0][0]
        await ex.create_order_ws('LINK/USDT', 'limit', 'buy', 1, round(ask*1.001, 3), {'timeInForce': 'IOC', 'clientOrderId': 't2buy0'})
        assert (await asyncio.wait_for(orders, 5))[-1]['clientOrderId'] == 't2buy0'
        assert (await asyncio.wait_for(balance, 5))['LINK']['total'] == pytest.approx(2000.999)
        assert (await asyncio.wait_for(mine, 5))[-1]['amount'] == (await asyncio.wait_for(public, 5))[-1]['amount']
        rests = await ex.create_order_ws('LINK/USDT', 'limit', 'buy', 1, round(ask*.9, 3))
        await ex.cancel_order_ws(rests['id'], 'LINK/USDT')
        assert sim.open_orders() == []
        for _ in range(3): book = await ex.watch_order_book('LINK/USDT')
        shown = sim.engine.books['LINK-USDT']
        assert [p for p, _ in book['bids'][:5]] == [pytest.approx(p*.001) for p in list(shown[0].visible())[:5]]
        best = await ex.watch_bids_asks(['LINK/USDT'])
        assert best['LINK/USDT']['bid'] < best['LINK/USDT']['ask']
        assert (await ex.watch_ticker('LINK/USDT'))['bid'] < ask*1.1
    by_ccxt(use, recording)


def test_ccxt_notices_a_lost_frame(recording):
    async def use(ex, sim):
        await ex.load_markets()
        await ex.watch_order_book('LINK/USDT')
        sim.faults.append(Fault('gap'))
        with pytest.raises(ccxtpro.InvalidNonce):
            for _ in range(10): await asyncio.wait_for(ex.watch_order_book('LINK/USDT'), 5)
        assert (await asyncio.wait_for(ex.watch_order_book('LINK/USDT'), 5))['bids']
    by_ccxt(use, recording)


@pytest.mark.parametrize('first_snapshot', [True, False], ids=['with a snapshot by socket', 'without'])
def test_every_recorded_row_arrives_once_as_it_was(recording, first_snapshot, monkeypatch):
    monkeypatch.setattr(OkxVenue, 'first_snapshot', first_snapshot)
    async def main():
        part = msgspec.structs.replace(recording, rows={v: r[:300] for v, r in recording.rows.items()})
        async with world(part, 150) as (sim, at):
            clock, got, heard, problems = ScaledClock(await fetch_time_ns(CODECS['okx'](), at), 150), [], [], []
            feed = MarketFeed(CODECS['okx'](), at, {PAIR: 0}, clock, got.append, heard.append, on_problem=lambda *x: problems.append(x))
            task = asyncio.create_task(feed.run())
            truth = part.rows['okx']
            await until(lambda: sim.ended)
            with contextlib.suppress(TimeoutError): await until(lambda: got[-1]['ts_venue_ns'] == truth['ts_venue_ns'][-1], 2)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            assert (feed.stats['gaps'], feed.stats['duplicates'], feed.stats['reconnects'], problems) == (0, 0, 0, [])
            rows = np.array([r for r in got if r['state'] == VALID])
            assert len(rows) > 250 and (np.diff(rows['ts_recv_ns']) >= 0).all()
            by_time = {int(t): i for i, t in enumerate(truth['ts_venue_ns'])}
            told = [by_time[int(t)] for t in rows['ts_venue_ns'] if int(t) in by_time]
            changed = 1 + np.flatnonzero([any((truth[k][i] != truth[k][i + 1]).any() for k in ('bid_px', 'bid_qty', 'ask_px', 'ask_qty')) for i in range(len(truth) - 1)])
            assert set(changed) <= set(told), 'rows missing'
            for r in rows:
                i = by_time.get(int(r['ts_venue_ns']))
                if i is None: continue
                for k in ('bid_px', 'ask_px'): assert (r[k] == truth[i][k]).all(), f'{k} row {i}'
                for k in ('bid_qty', 'ask_qty'): np.testing.assert_allclose(r[k], truth[i][k], rtol=0, atol=5.1e-9)
            assert any(type(e) is Quote for e in heard)
    run(main())


@contextlib.asynccontextmanager
async def trading(scenario, speed=20., timeout_s=2.):
    "A link whose codec was given the listing and has never read it, as in a live session."
    async with world(scenario, speed) as (sim, a):
        listing = (await fetch_listings(CODECS['okx'](), a, [PAIR]))[PAIR]
        clock = ScaledClock(await fetch_time_ns(CODECS['okx'](), a), speed)
        events, problems = [], []
        link = TradeLink(CODECS['okx']({PAIR: listing}, KEYS), a, clock, events.append, on_problem=lambda *x: problems.append(x), timeout_s=timeout_s)
        await link.start()
        try: yield link, listing, sim, a, events, problems
        finally: await link.close()


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
    return out


async def holdings(link): return {b.asset: b.free + b.held for b in await link.balances()}


def test_orders_fill_and_the_balances_follow_to_the_last_digit(recording):
    async def main():
        async with trading(recording) as (link, listing, sim, a, events, problems):
            before, since = await holdings(link), link.venue_ns() - 60*NS
            market = NewOrder('s1-2-0-0', PAIR, SELL, Decimal(2), None)
            for order in (limit(listing, sim, BUY, 30, '4', 's1-0-0-0'), limit(listing, sim, SELL, 30, '4', 's1-1-0-0'), market):
                first = await link.place(order)
                assert first.status in ('acked', 'partly_filled', 'filled') and first.client_id == order.client_id
                await until(lambda id=order.client_id: [e for e in events if isinstance(e, OrderUpdate) and e.client_id == id and e.status == 'filled'])
            told = [e for e in events if isinstance(e, Fill)]
            assert {f.client_id for f in told} == {'s1-0-0-0', 's1-1-0-0', 's1-2-0-0'} and all(f.fee > 0 and not f.maker for f in told)
            for id in ('s1-0-0-0', 's1-1-0-0'):
                kinds = [(type(e), getattr(e, 'status', '')) for e in events if getattr(e, 'client_id', '') == id]
                assert kinds.index((Fill, '')) < kinds.index((OrderUpdate, 'filled')), 'the fill comes before the word that the order is filled'
            asked = await link.fills(PAIR, since)
            assert asked == sorted(told, key=lambda f: (f.ts_venue_ns, f.fill_id))
            after = await holdings(link)
            assert {x: after[x] - before[x] for x in after} == booked(told)
            assert [e for e in events if isinstance(e, Balance)]
            u = await link.order(PAIR, 's1-0-0-0')
            assert (u.status, u.filled_qty, u.side, u.client_id) == ('filled', 4, BUY, 's1-0-0-0')
            assert (await link.order(PAIR, 'never-sent')).status == 'unknown_order'
            assert not problems
    run(main())


def test_refusals_rest_and_cancel(recording):
    async def main():
        async with trading(recording) as (link, listing, sim, a, events, problems):
            for n, (change, code) in enumerate([(dict(qty=Decimal('9000000')), 'insufficient_funds'), (dict(px=Decimal('26.12345678')), 'tick_or_lot'),
                                                (dict(qty=Decimal('4.0001')), 'tick_or_lot'), (dict(qty=listing.lot), 'below_minimum')]):
                u = await link.place(msgspec.structs.replace(limit(listing, sim, BUY, 0, '4', f'bad-{n}'), **change))
                assert (u.status, u.code, u.client_id) == ('rejected', code, f'bad-{n}'), u
            rests = limit(listing, sim, BUY, -300, '4', 'rests-Z-Y', 'GTC')
            assert (await link.place(rests)).status == 'acked'
            assert [(o.client_id, o.status) for o in await link.open_orders(PAIR)] == [('rests-Z-Y', 'acked')]
            assert {b.asset: b.held for b in await link.balances()}['USDT'] == rests.px*rests.qty
            with pytest.raises(VenueError) as e: await link.place(rests)
            assert e.value.code == 'duplicate_id'
            assert (await link.cancel(PAIR, 'rests-Z-Y')).status == 'cancelled'
            assert await link.open_orders() == [] and (await link.cancel(PAIR, 'rests-Z-Y')).status == 'unknown_order'
            for id, tif, cross in (('ioc-away', 'IOC', -300), ('fok-much', 'FOK', 30), ('post', 'POST_ONLY', 50)):
                assert (await link.place(limit(listing, sim, BUY, cross, '1000' if tif == 'FOK' else '4', id, tif))).status == 'acked'
                await until(lambda id=id: [e for e in events if isinstance(e, OrderUpdate) and e.client_id == id and e.status == 'cancelled' and e.reason])
            assert (await link.order(PAIR, 'post')).status == 'cancelled' and not [e for e in events if isinstance(e, Fill)]
    run(main())


def test_orders_by_rest(recording):
    "What the codec can do beside the socket."
    async def main():
        async with trading(recording) as (link, listing, sim, a, events, problems):
            c, http = link.codec, Http(a.rest)
            try:
                order = limit(listing, sim, BUY, -300, '4', 'by-rest', 'GTC')
                assert c.place_reply(*await http(c.place_request(order, link.venue_ns())), order).status == 'acked'
                assert c.order_reply(*await http(c.order_request(PAIR, 'by-rest', link.venue_ns()))).status == 'acked'
                assert c.cancel_reply(*await http(c.cancel_request(PAIR, 'by-rest', link.venue_ns())), PAIR, 'by-rest').client_id == 'by-rest'
                assert c.cancel_reply(*await http(c.cancel_request(PAIR, 'by-rest', link.venue_ns())), PAIR, 'by-rest').status == 'unknown_order'
                late = c.place_request(msgspec.structs.replace(order, client_id='late'), link.venue_ns() - 10**9*int(c.recv_window_ms/1e3 + 5))
                with pytest.raises(VenueError): c.place_reply(*await http(late))
                with pytest.raises(VenueError) as e: c.balances_reply(*await http(c.balances_request(link.venue_ns() - 3_600*NS)))
                assert e.value.code == 'clock'
            finally: await http.close()
    run(main())


def test_a_lost_answer_is_unknown_until_asked(recording):
    async def main():
        async with trading(recording, timeout_s=0.5) as (link, listing, sim, a, events, problems):
            async with aiohttp.ClientSession() as http:
                async with http.post(a.rest + '/_sim/faults', json=[dict(kind='drop_ack'), dict(kind='lose_private', n=9)]) as r: assert r.status == 200
            with pytest.raises(VenueError) as e: await link.place(limit(listing, sim, SELL, 30, '2', 'lost'))
            assert e.value.code == 'unknown_outcome'
            assert (await link.order(PAIR, 'lost')).status == 'filled'
            assert sum(f.qty for f in await link.fills(PAIR, link.venue_ns() - 60*NS)) == 2
    run(main())


@pytest.mark.parametrize('first_snapshot', [True, False], ids=['with a snapshot by socket', 'without'])
def test_a_cut_line_and_a_lost_frame_heal(recording, first_snapshot, monkeypatch):
    monkeypatch.setattr(OkxVenue, 'first_snapshot', first_snapshot)
    async def main():
        async with trading(recording) as (link, listing, sim, a, events, problems):
            rows, told, heard = [], [], []
            feed = MarketFeed(CODECS['okx'](), a, {PAIR: 0}, link.clock, rows.append, heard.append, on_problem=lambda *x: told.append(x))
            task = asyncio.create_task(feed.run())
            await until(lambda: len(rows) > 3 and rows[-1]['state'] == VALID)
            async with aiohttp.ClientSession() as http:
                await (await http.post(a.rest + '/_sim/faults', json=dict(kind='gap'))).read()
                await until(lambda: feed.stats['gaps'] == 1 and rows[-1]['state'] == VALID)
                await (await http.post(a.rest + '/_sim/faults', json=dict(kind='disconnect'))).read()
                await until(lambda: feed.stats['reconnects'] == 1 and rows[-1]['state'] == VALID and link.live and 'reconnected' in [k for k, _ in problems])
            assert [r['state'] for r in rows].count(INVALID) == 2 and [k for k, _ in told] == ['gap', 'lost']
            assert (await link.place(limit(listing, sim, BUY, 30, '1', 'after'))).status in ('acked', 'partly_filled', 'filled')
            await until(lambda: any(type(e) is Trade for e in heard))
            task.cancel()
    run(main())


def test_heartbeats_are_answered_and_are_no_news(recording, monkeypatch):
    monkeypatch.setattr(CODECS['okx'], 'heartbeat_s', .05)
    async def main():
        async with trading(recording, speed=1.) as (link, listing, sim, a, events, problems):
            sent, rows, told = [], [], []
            monkeypatch.setattr(CODECS['okx'], 'heartbeat', lambda self: sent.append(1) or b'ping')
            feed = MarketFeed(CODECS['okx'](), a, {PAIR: 0}, link.clock, rows.append, on_problem=lambda *x: told.append(x))
            task = asyncio.create_task(feed.run())
            await until(lambda: len(sent) > 8 and feed.stats['frames'] > 8)
            assert link.live and not problems and not told and rows[-1]['state'] == VALID
            task.cancel()
    run(main())


@pytest.mark.parametrize('keys', [Keys('sim-key', 'sim-secret'), Keys('sim-key', 'wrong', 'sim words'), Keys('stranger', 'sim-secret', 'sim words')], ids=['passphrase', 'secret', 'key'])
def test_wrong_keys_are_refused_at_the_door(recording, keys):
    async def main():
        async with world(recording, 20.) as (sim, a):
            clock = ScaledClock(await fetch_time_ns(CODECS['okx'](), a), 20.)
            with pytest.raises(VenueError) as e: await TradeLink(CODECS['okx'](None, keys), a, clock, print).start()
            assert e.value.code in ('permission', 'signature') and 'sim-secret' not in str(e.value)
    run(main())


def test_orders_at_three_hundred_times_the_speed_of_the_wall(recording):
    async def main():
        async with trading(recording, speed=300.) as (link, listing, sim, a, events, problems):
            for n in range(10):
                u = await link.place(limit(listing, sim, BUY if n % 2 else SELL, 100, '1', f'fast-{n}'))
                assert u.status in ('acked', 'partly_filled', 'filled'), u
            assert not problems
    run(main())


def test_any_request_and_any_frame_is_answered(recording):
    "Whatever is sent: an answer in the venue's form, never an exception."
    listing, rows = recording.listings['okx'], recording.rows['okx'][:5]
    sim = VENUES['okx'](Engine('okx', [listing]), {PAIR: (rows['ts_venue_ns'].tolist(), whole(rows, listing))}, KEYS)
    now = int(rows['ts_venue_ns'][0])
    for method, path in [*sim.routes, ('GET', 'nowhere'), ('DELETE', 'trade/order')]:
        for query, body in (('', ''), ('instId=LINK-USDT&sz=x', '[1]'), ('instType=SWAP', 'null'), ('instId=DOGE-USDT&limit=-1', '{"instId":["a"]}'), ('after=9&begin=zz', '{')):
            r = sim.rest(method, f'/api/v5/{path}', query, body, {}, now)
            assert msgspec.json.decode(r.body)['code'] and r.status in (200, 400, 401, 404)
    public, private = sim.open('/ws/v5/public', ''), sim.open('/ws/v5/private', '')
    assert sim.open('/elsewhere', '') is None
    private.user = True
    for s in (public, private):
        for raw in ('', 'x', '1', '[]', '{}', '{"op":"login"}', '{"op":"login","args":[{}]}', '{"op":"subscribe","args":[1]}', '{"op":"subscribe","args":[{"channel":["books"]}]}',
                    '{"op":"subscribe","args":[{"channel":"books","instId":"DOGE-USDT"}]}', '{"op":"order","id":1,"args":[{}]}', '{"op":"order","id":"1","args":[{"instIdCode":true}]}',
                    '{"op":"order","id":"1","args":[{"instIdCode":10427,"sz":{}}]}', '{"op":"order","id":"1","args":[{"instIdCode":10427,"side":"buy","ordType":"limit","tdMode":"cash","sz":"1e999","px":"NaN"}]}',
                    '{"op":"cancel-order","args":[{"instIdCode":10427}]}', '{"op":"order","args":[{"instIdCode":10427}],"expTime":"soon"}', '{"op":"order","args":[{"instIdCode":"²"}]}'):
            assert all(msgspec.json.decode(x) for x in sim.receive(s, raw, now))
    assert sim.receive(public, 'ping', now) == [b'pong'] and not sim.engine.orders


def test_the_bot_trades_between_okx_and_bybit(tmp_path, monkeypatch):
    "The live process with OKX as one of its legs, and a session's name that needs the escapes of the id."
    import test_trade_live as kit
    monkeypatch.setattr(kit, 'VENUES', ['okx', 'bybit'])
    monkeypatch.setattr(kit, 'load_scenario', lambda name: load_scenario(name, venues=('okx', 'bybit')))
    async def main():
        async with kit.world(tmp_path) as (w, settings, journal):
            with kit.Bot(settings, '--session', 'Yacht-Z') as bot:
                await kit.until(lambda: bot.process.poll() is not None or ((s := kit.said(journal)) and s.trades >= 2))
                bot.process.send_signal(signal.SIGTERM)
                code, summary, words = await bot.ended()
            assert code == 0 and summary['trades'] >= 2, words
            assert summary['reconciled'] and summary['residual_exposure'] == 0 and (summary['gaps'], summary['duplicates']) == (0, 0)
            again = kit.replay(kit.session_entries(journal, 'Yacht-Z'))
            assert again.first == '' and again.identical == again.total > 0 and not again.core.open
            for v, sim in w.venues.items():
                ours = sum(o.booked for o in again.core.orders.values() if o.place.venue == v)
                assert ours == sum(f.qty for f in sim.engine.fills) > 0
                found = kit.balances(w)[v]
                assert again.core.ledger.wallet[v] == {a: found.get(a, 0) for a in again.core.ledger.wallet[v]}
            assert {o.client_id[:8] for o in w.venues['okx'].engine.orders.values()} == {'YYachtZY'}
    run(main(), 45)
