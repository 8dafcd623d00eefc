"""Our own clients at the simulated venues over real sockets: every row arrives, orders settle to the last digit, faults stay narrow."""

import asyncio
import socket
from decimal import Decimal as D

import aiohttp
import numpy as np
import pytest

from arbwork.feed.book import warm
from arbwork.feed.budget import Budget
from arbwork.feed.codec import Keys
from arbwork.feed.events import VALID, Balance, Fill, NewOrder, OrderUpdate
from arbwork.feed.wire import CODECS, Addresses, MarketFeed, TradeLink, fetch_listings, fetch_time_ns
from arbwork.market import BUY, SELL, ConfigError, VenueError
from arbwork.sim.scenarios import load_scenario
from arbwork.sim.server import World, serve

KEYS, NAME = Keys('sim-key', 'sim-secret'), 'LINK-USDT'
VENUES = ['binance', 'bybit']


@pytest.fixture(scope='module', autouse=True)
def warmed():
    "Books are compiled before a world's clock starts: loading them may take as long as its first minute."
    warm()


def run(use, venues=VENUES, minutes=1, **options):
    "A world on free ports for as long as `use` takes."
    async def go():
        world = World(venues, load_scenario('link-2021-08-20', minutes=minutes), port=0, **({'keys': KEYS, 'lead_s': .4, 'speed': 60.} | options))
        ready = await world.start()
        places = {v: Addresses(**at) for v, at in ready['venues'].items()}
        try: return await asyncio.wait_for(use(world, places), 20)
        finally: await world.stop()
    return asyncio.run(go())


async def until(true):
    while not true(): await asyncio.sleep(.02) # noqa: ASYNC110


async def fault(at, *faults):
    async with aiohttp.ClientSession() as http:
        async with http.post(at.rest + '/_sim/faults', json=list(faults)) as r: assert r.status == 200, await r.text()


def test_every_row_arrives_as_it_was_recorded():
    async def use(world, places):
        got, feeds = {v: [] for v in VENUES}, {}
        for i, v in enumerate(VENUES): feeds[v] = MarketFeed(CODECS[v](None, None), places[v], {NAME: i}, world.clock, got[v].append)
        tasks = [asyncio.ensure_future(f.run()) for f in feeds.values()]
        await until(lambda: all(v.ended for v in world.venues.values()))
        await asyncio.sleep(.2)
        for t in tasks: t.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for v, feed in feeds.items():
            wanted, rows = world.scenario.rows[v], np.array(got[v])
            assert feed.stats['gaps'] == feed.stats['duplicates'] == feed.stats['problems'] == 0
            last = {int(r['ts_venue_ns']): r for r in rows}
            for w in wanted[1:]:
                mine = last.get(int(w['ts_venue_ns']))
                if mine is None: continue # a second in which this venue's book did not change
                for name in ('bid_px', 'bid_qty', 'ask_px', 'ask_qty'): np.testing.assert_array_equal(mine[name], w[name])
            assert len(rows) >= 55
    run(use)


@pytest.mark.parametrize('venue', VENUES)
def test_both_legs_settle_to_the_last_digit(venue):
    async def use(world, places):
        heard, sim = [], world.venues[venue]
        codec = CODECS[venue](None, None)
        listing = (await fetch_listings(codec, places[venue], [NAME]))[NAME]
        assert (listing.tick, listing.lot, listing.min_notional) == tuple(getattr(world.scenario.listings[venue], x) for x in ('tick', 'lot', 'min_notional'))
        assert abs(await fetch_time_ns(codec, places[venue]) - world.clock.now_ns()) < 60*1e9
        link = TradeLink(codec, places[venue], world.clock, heard.append, KEYS)
        await link.start()
        before = {b.asset: b.free for b in await link.balances()}
        px = D('27.2') if venue == 'binance' else D('27.2000')
        first = await link.place(NewOrder('s-1-0-0', NAME, BUY, D(30), px))
        assert first.status != 'rejected'
        refused = await link.place(NewOrder('s-1-1-0', NAME, SELL, D(10**6), D('27.2')))
        assert (refused.status, refused.code) == ('rejected', 'insufficient_funds')
        with pytest.raises(VenueError) as twice: await link.place(NewOrder('s-1-0-0', NAME, BUY, D(30), px))
        assert twice.value.code == 'duplicate_id' and len(sim.engine.orders) == 1
        resting = await link.place(NewOrder('s-2-0-0', NAME, SELL, D(2), D('29'), 'GTC'))
        assert resting.status == 'acked' and [o.client_id for o in await link.open_orders(NAME)] == ['s-2-0-0']
        assert (await link.cancel(NAME, 's-2-0-0')).status == 'cancelled'
        assert (await link.order(NAME, 'nobody')).status == 'unknown_order'
        asked = await link.order(NAME, 's-1-0-0')
        assert (asked.status, asked.filled_qty) == ('filled', D(30))
        await asyncio.sleep(.1)
        fills = await link.fills(NAME, world.scenario.start_ns - 10**12)
        assert {f.fill_id for f in fills} == {f.fill_id for f in heard if isinstance(f, Fill)} and sum(f.qty for f in fills) == 30
        after = {b.asset: b.free for b in await link.balances()}
        assert after['LINK'] - before['LINK'] == 30 - sum(f.fee for f in fills if f.fee_asset == 'LINK') == 30*(1 - D('0.001'))
        assert before['USDT'] - after['USDT'] == sum(f.px*f.qty for f in fills)
        assert {b.asset: b.free for b in heard if isinstance(b, Balance)} == after
        assert [u.status for u in heard if isinstance(u, OrderUpdate) and u.client_id == 's-1-0-0'][-1] == 'filled'
        await link.close()
    run(use, [venue], speed=1., lead_s=5.)


@pytest.mark.parametrize('venue', VENUES)
def test_what_we_take_is_gone_from_the_book_until_the_venue_says_so(venue):
    async def use(world, places):
        rows, feed_at = [], places[venue]
        feed = MarketFeed(CODECS[venue](None, None), feed_at, {NAME: 0}, world.clock, rows.append)
        task = asyncio.ensure_future(feed.run())
        link = TradeLink(CODECS[venue](None, None), feed_at, world.clock, lambda e: None, KEYS)
        await link.start()
        await until(lambda: rows)
        first, tick = rows[-1], world.scenario.listings[venue].tick
        best, qty = D(str(first['ask_px'][0])), D(str(first['ask_qty'][0]))
        await link.place(NewOrder('t', NAME, BUY, qty, best.quantize(tick)))
        await asyncio.sleep(.2)
        assert rows[-1]['ask_px'][0] == first['ask_px'][1] and rows[-1]['bid_px'][0] == first['bid_px'][0]
        assert feed.stats['gaps'] == 0
        task.cancel()
        await link.close()
    run(use, [venue], speed=1., lead_s=5.)


@pytest.mark.parametrize('venue', VENUES)
def test_faults_of_orders_happen_once_and_to_the_next_order(venue):
    async def use(world, places):
        at, sim = places[venue], world.venues[venue]
        link = TradeLink(CODECS[venue](None, None), at, world.clock, lambda e: None, KEYS, timeout_s=.5)
        await link.start()
        def order(n): return NewOrder(f'f-{n}', NAME, BUY, D(10), D('27.5'))
        await fault(at, {'kind': 'reject', 'code': 'insufficient_funds'})
        assert (await link.place(order(1))).code == 'insufficient_funds'
        await fault(at, {'kind': 'partial', 'value': .4})
        await link.place(order(2))
        assert (await link.order(NAME, 'f-2')).filled_qty == 4
        await fault(at, {'kind': 'drop_ack'}, {'kind': 'lose_private', 'n': 20})
        with pytest.raises(VenueError) as e: await link.place(order(3))
        assert e.value.code == 'unknown_outcome' and (await link.order(NAME, 'f-3')).status == 'filled'
        await fault(at)
        assert sim.faults == []
        await fault(at, {'kind': 'delay', 'value': .2})
        began = asyncio.get_running_loop().time()
        await link.place(order(4))
        assert asyncio.get_running_loop().time() - began >= .2
        began = asyncio.get_running_loop().time()
        await link.place(order(5))
        assert asyncio.get_running_loop().time() - began < .15
        async with aiohttp.ClientSession() as http:
            async with http.post(at.rest + '/_sim/faults', json={'kind': 'meteor'}) as r: assert r.status == 400 and 'wanted one of delay' in await r.text()
        await link.close()
    run(use, [venue], speed=1., lead_s=5.)


@pytest.mark.parametrize('venue', VENUES)
def test_a_gap_and_a_lost_line_are_noticed_and_mended(venue):
    async def use(world, places):
        at, rows, problems = places[venue], [], []
        feed = MarketFeed(CODECS[venue](None, None), at, {NAME: 0}, world.clock, rows.append, on_problem=lambda *p: problems.append(p), resync_s=.3)
        task = asyncio.ensure_future(feed.run())
        await until(lambda: len(rows) >= 5)
        await fault(at, {'kind': 'gap', 'n': 2})
        await until(lambda: feed.stats['gaps'] >= 1 and rows[-1]['state'] == VALID)
        assert feed.stats['resyncs'] >= 1
        n = feed.stats['reconnects']
        await fault(at, {'kind': 'disconnect'})
        await until(lambda: feed.stats['reconnects'] > n and rows[-1]['state'] == VALID)
        task.cancel()
    run(use, [venue], minutes=10)


def test_a_port_in_use_names_port_and_venue_and_gives_the_others_back():
    async def go():
        for _ in range(20): # until the port below is free as well
            world = World(['bybit'], load_scenario('link-2021-08-20', minutes=1), port=0)
            await world.start()
            taken = world.ports['bybit']
            with socket.socket() as s:
                if s.connect_ex(('127.0.0.1', taken - 1)): break
            await world.stop()
        with pytest.raises(ConfigError, match=f'binance: port {taken} on 127.0.0.1 is in use'): await serve(['binance'], 'link-2021-08-20', port=taken)
        with pytest.raises(ConfigError, match=f'bybit: port {taken} '): await serve(['binance', 'bybit'], world.scenario, port=taken - 1)
        free = World(['binance'], world.scenario, port=taken - 1)
        await free.start()
        await free.stop()
        await world.stop()
    asyncio.run(go())


def test_unknown_venues_scenarios_and_speeds_are_refused():
    s = load_scenario('link-2021-08-20', minutes=1)
    for venues, options, words in ((['huobi'], {}, "found 'huobi', wanted one of binance, bybit"), ([], {}, 'one or more'), (['bybit', 'bybit'], {}, 'different'),
                                   (['bybit'], {'speed': 0}, 'speed 0'), (['bybit'], {'lead_s': -1}, 'at least 0')):
        with pytest.raises(ConfigError, match=words): World(venues, s, **options)


def test_a_clock_on_call_stands_until_somebody_asks():
    async def use(world, places):
        await asyncio.sleep(.3) # at this speed more than the lead
        assert not any(v.rows_shown for v in world.venues.values())
        async with aiohttp.ClientSession() as http, http.get(places['bybit'].rest + '/_sim/status') as r: assert r.status == 200
        assert not world.begun.is_set()
        asked = await fetch_time_ns(CODECS['bybit'](None, None), places['bybit'])
        assert world.begun.is_set() and asked < world.first_ns
        await until(lambda: all(v.ended for v in world.venues.values()))
    run(use, speed=600., lead_s=.2, on_call=True)
    with pytest.raises(ConfigError, match='wanted one of the two'): World(['bybit'], load_scenario('link-2021-08-20', minutes=1), wall=True, on_call=True)


def test_requests_without_keys_are_refused():
    async def use(world, places):
        for v in VENUES:
            link = TradeLink(CODECS[v](None, None), places[v], world.clock, lambda e: None, Keys('other', 'x'), timeout_s=2)
            with pytest.raises(VenueError) as e: await link.start()
            assert e.value.code in ('permission', 'signature')
    run(use)


def test_a_venue_takes_no_more_orders_than_its_limit():
    async def use(world, places):
        sim = world.venues['bybit']
        link = TradeLink(CODECS['bybit'](None, None), places['bybit'], world.clock, lambda e: None, KEYS, budget=Budget(), timeout_s=2)
        await link.start()
        answers = [await link.place(NewOrder(f'r-{i}', NAME, BUY, D(1), D('20.0'))) for i in range(sim.most_orders + 2)]
        assert [a.code for a in answers if a.status == 'rejected'][:1] == ['rate'] and len(sim.engine.orders) == sim.most_orders
        await link.close()
    run(use, ['bybit'], speed=.2, lead_s=9.)


def test_a_failed_loop_ends_the_server():
    async def go():
        def spoil(ready): broken.advance = None
        world = World(['binance'], load_scenario('link-2021-08-20', minutes=1), port=0, speed=60., lead_s=.1)
        broken = world.venues['binance']
        spoil(await world.start())
        try:
            with pytest.raises(TypeError): await asyncio.wait_for(world.over(), 5)
        finally: await world.stop()
    asyncio.run(go())


def test_the_server_stops_when_told_and_frees_its_ports():
    async def go():
        stop, seen = asyncio.Event(), []
        def ready(r):
            seen.append(r)
            asyncio.get_running_loop().call_later(.1, stop.set)
        for _ in range(2):
            stop.clear()
            await asyncio.wait_for(serve(VENUES, 'stress', 19_461, 600., 3, None, {'binance': {'BTC': '2'}}, .1, hours=.2, on_ready=ready, stop=stop), 10)
        assert seen[0] == seen[1] and seen[0]['venues']['bybit']['rest'] == 'http://127.0.0.1:19462' and seen[0]['seed'] == 3
    asyncio.run(go())


def test_it_may_be_dated_now_for_clients_with_a_clock_of_their_own():
    async def use(world, places):
        assert abs(await fetch_time_ns(CODECS['binance'](None, None), places['binance']) - NOW) < 5e9
    NOW = 1_800_000_000*10**9
    run(use, ['binance'], speed=1., lead_s=0., start_ns=NOW)
