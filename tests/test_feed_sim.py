"The wire against the simulated venues: every row of a recording over real sockets, orders on both venues, and faults by order."
import asyncio
import contextlib
import time
from decimal import Decimal

import aiohttp
import msgspec
import numpy as np
import pytest

from arbwork.clock import NS, ScaledClock
from arbwork.feed.codec import Keys
from arbwork.feed.events import INVALID, VALID, Balance, Fill, NewOrder, OrderUpdate
from arbwork.feed.wire import CODECS, Addresses, MarketFeed, TradeLink, fetch_listings, fetch_time_ns
from arbwork.market import BUY, SELL, VenueError, round_px, round_qty
from arbwork.sim.scenarios import load_scenario
from arbwork.sim.server import World

KEYS = Keys('sim-key', 'sim-secret')
VENUES = ['binance', 'bybit']
PAIR = 'LINK-USDT'


@pytest.fixture(scope='module')
def recording(): return load_scenario('link-2021-08-20')


def first_rows(scenario, n): return msgspec.structs.replace(scenario, rows={v: r[:n] for v, r in scenario.rows.items()})


@contextlib.asynccontextmanager
async def world(scenario, speed, lead_s=0.3):
    w = World(VENUES, scenario, 0, speed, KEYS, None, lead_s)
    await w.start()
    try: yield w, {v: Addresses.local(p) for v, p in w.ports.items()}
    finally: await w.stop()


async def until(true, seconds=8):
    async with asyncio.timeout(seconds):
        while not true(): await asyncio.sleep(0.005)  # noqa: ASYNC110


def run(coroutine, seconds=20): return asyncio.run(asyncio.wait_for(coroutine, seconds))


def test_every_recorded_row_arrives_once_as_it_was(recording):
    async def main():
        part = first_rows(recording, 500)
        async with world(part, 300) as (w, addresses):
            clock = ScaledClock(await fetch_time_ns(CODECS['binance'](), addresses['binance']), 300)
            got, feeds, tasks, problems = {}, {}, [], []
            for slot, v in enumerate(VENUES):
                got[v] = []
                feeds[v] = MarketFeed(CODECS[v](), addresses[v], {PAIR: slot}, clock, got[v].append, on_problem=lambda *x: problems.append(x))
                tasks.append(asyncio.create_task(feeds[v].run()))
            await until(lambda: all(d.venue.ended for d in w.doors.values()))
            ends = {v: int(part.rows[v]['ts_venue_ns'][-1]) for v in VENUES}
            with contextlib.suppress(TimeoutError): await until(lambda: all(got[v][-1]['ts_venue_ns'] == ends[v] for v in VENUES), 2)
            for t in tasks: t.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for slot, v in enumerate(VENUES):
                assert (feeds[v].stats['gaps'], feeds[v].stats['duplicates'], feeds[v].stats['reconnects']) == (0, 0, 0), problems
                rows, truth = np.array(got[v][:-1] if got[v][-1]['state'] == INVALID else got[v]), part.rows[v]
                assert set(rows['slot']) == {slot} and set(rows['state']) == {VALID}
                assert (np.diff(rows['ts_recv_ns']) >= 0).all() and (np.diff(rows['seq']) > 0).all()
                by_time = {int(t): i for i, t in enumerate(truth['ts_venue_ns'])}
                told = [by_time[int(t)] for t in rows['ts_venue_ns'] if int(t) in by_time]
                changed = 1 + np.flatnonzero([any((truth[k][i] != truth[k][i + 1]).any() for k in ('bid_px', 'bid_qty', 'ask_px', 'ask_qty')) for i in range(len(truth) - 1)])
                assert set(changed) <= set(told), 'rows missing'
                for r in rows:
                    i = by_time.get(int(r['ts_venue_ns']))
                    if i is None: continue
                    for k in ('bid_px', 'ask_px'): assert (r[k] == truth[i][k]).all(), f'{v} {k} row {i}'
                    # venues write eight digits, the recording has more
                    for k in ('bid_qty', 'ask_qty'): np.testing.assert_allclose(r[k], truth[i][k], rtol=0, atol=5.1e-9, err_msg=f'{v} {k} row {i}')
    run(main())


@contextlib.asynccontextmanager
async def trading(venue, scenario, speed=20., timeout_s=2.):
    async with world(first_rows(scenario, 600), speed) as (w, addresses):
        a = addresses[venue]
        codec = CODECS[venue](keys=KEYS)
        listing = (await fetch_listings(codec, a, [PAIR]))[PAIR]
        clock = ScaledClock(await fetch_time_ns(codec, a), speed)
        events, problems = [], []
        link = TradeLink(codec, a, clock, events.append, on_problem=lambda *x: problems.append(x), timeout_s=timeout_s)
        await link.start()
        try: yield link, listing, w.doors[venue].venue, a, events, problems
        finally: await link.close()


def limit(listing, venue, side, cross_bps, qty, client_id, tif='IOC'):
    bids, asks = venue.sides(PAIR, 5)
    px = Decimal(str((asks if side == BUY else bids)[0][0]))*(1 + side*Decimal(cross_bps)/10_000)
    return NewOrder(client_id, PAIR, side, round_qty(Decimal(qty), listing.lot), round_px(px, listing.tick, side), tif)


async def moved(link, before):
    after = {b.asset: b.free + b.held for b in await link.balances()}
    return {a: after.get(a, 0) - before.get(a, 0) for a in set(after) | set(before) if after.get(a, 0) != before.get(a, 0)}


def booked(fills):
    out = {'LINK': Decimal(0), 'USDT': Decimal(0)}
    for f in fills:
        out['LINK'] += f.side*f.qty
        out['USDT'] -= f.side*f.qty*f.px
        out[f.fee_asset] = out.get(f.fee_asset, Decimal(0)) - f.fee
    return {k: v for k, v in out.items() if v}


@pytest.mark.parametrize('venue', VENUES)
def test_an_ioc_order_fills_and_the_balances_follow_to_the_last_digit(venue, recording):
    async def main():
        async with trading(venue, recording) as (link, listing, sim, a, events, problems):
            before = {b.asset: b.free + b.held for b in await link.balances()}
            since = link.venue_ns() - 60*NS
            began = time.perf_counter()
            for n, side in enumerate((BUY, SELL)):
                first = await link.place(limit(listing, sim, side, 30, '4', f's1-{n}-0-0'))
                assert first.status in ('acked', 'partly_filled', 'filled')
                await until(lambda n=n: [e for e in events if isinstance(e, OrderUpdate) and e.client_id == f's1-{n}-0-0' and e.status == 'filled'])
            assert time.perf_counter() - began < 2
            told = [e for e in events if isinstance(e, Fill)]
            assert {f.client_id for f in told} == {'s1-0-0-0', 's1-1-0-0'} and all(f.fee > 0 for f in told)
            assert sum(f.qty for f in told if f.side == BUY) == sum(f.qty for f in told if f.side == SELL) == 4
            asked = await link.fills(PAIR, since)
            assert {(f.fill_id, f.client_id, f.px, f.qty, f.fee, f.fee_asset, f.side) for f in asked} == {(f.fill_id, f.client_id, f.px, f.qty, f.fee, f.fee_asset, f.side) for f in told}
            assert await moved(link, before) == booked(told)
            assert [e for e in events if isinstance(e, Balance)]
            u = await link.order(PAIR, 's1-0-0-0')
            assert (u.status, u.filled_qty, u.side) == ('filled', 4, BUY)
            assert (await link.order(PAIR, 'never-sent')).status == 'unknown_order'
            assert not problems
    run(main())


@pytest.mark.parametrize('venue', VENUES)
def test_refusals_rest_and_cancel(venue, recording):
    async def main():
        async with trading(venue, recording) as (link, listing, sim, a, events, problems):
            for n, (change, code) in enumerate([(dict(qty=Decimal('9000000')), 'insufficient_funds'), (dict(px=Decimal('26.12345678')), 'tick_or_lot'),
                                                (dict(qty=listing.lot), 'below_minimum')]):
                u = await link.place(msgspec.structs.replace(limit(listing, sim, BUY, 0, '4', f'bad-{n}'), **change))
                assert (u.status, u.code) == ('rejected', code), u
            rests = limit(listing, sim, BUY, -300, '4', 'rests', 'GTC')
            assert (await link.place(rests)).status == 'acked'
            assert [(o.client_id, o.status) for o in await link.open_orders(PAIR)] == [('rests', 'acked')]
            held = {b.asset: b.held for b in await link.balances()}
            assert held['USDT'] == rests.px*rests.qty
            with pytest.raises(VenueError) as e: await link.place(rests)
            assert e.value.code == 'duplicate_id'
            assert (await link.cancel(PAIR, 'rests')).status == 'cancelled'
            assert await link.open_orders() == [] and (await link.cancel(PAIR, 'rests')).status == 'unknown_order'
            await link.place(limit(listing, sim, BUY, -300, '4', 'ioc-away'))
            await until(lambda: [e for e in events if isinstance(e, OrderUpdate) and e.client_id == 'ioc-away' and e.status == 'cancelled'])
            maker = await link.place(limit(listing, sim, BUY, 50, '4', 'post', 'POST_ONLY'))
            assert (maker.status, maker.code) in {('rejected', 'would_cross'), ('acked', '')}, maker
    run(main())


@pytest.mark.parametrize('venue', VENUES)
def test_a_lost_answer_is_unknown_until_asked(venue, recording):
    async def main():
        async with trading(venue, recording, timeout_s=0.5) as (link, listing, sim, a, events, problems):
            async with aiohttp.ClientSession() as http:
                async with http.post(a.rest + '/_sim/faults', json=[dict(kind='drop_ack'), dict(kind='lose_private')]) as r: assert r.status == 200
            lost = limit(listing, sim, SELL, 30, '2', 'lost')
            try: first = await link.place(lost)
            except VenueError as e: assert e.code == 'unknown_outcome'
            else: assert first.status in ('acked', 'filled')
            await asyncio.sleep(0.1)
            assert (await link.order(PAIR, 'lost')).status == 'filled'
            assert sum(f.qty for f in await link.fills(PAIR, link.venue_ns() - 60*NS)) == 2
    run(main())


@pytest.mark.parametrize('venue', VENUES)
def test_a_cut_line_and_a_lost_frame_heal(venue, recording):
    async def main():
        async with trading(venue, recording) as (link, listing, sim, a, events, problems):
            rows, told = [], []
            feed = MarketFeed(CODECS[venue](), a, {PAIR: 0}, link.clock, rows.append, on_problem=lambda *x: told.append(x))
            task = asyncio.create_task(feed.run())
            await until(lambda: len(rows) > 3)
            async with aiohttp.ClientSession() as http:
                await (await http.post(a.rest + '/_sim/faults', json=dict(kind='gap'))).read()
                await until(lambda: feed.stats['gaps'] == 1 and rows[-1]['state'] == VALID)
                await (await http.post(a.rest + '/_sim/faults', json=dict(kind='disconnect'))).read()
                await until(lambda: feed.stats['reconnects'] == 1 and rows[-1]['state'] == VALID and link.live and 'reconnected' in [k for k, _ in problems])
            assert [r['state'] for r in rows].count(INVALID) == 2 and [k for k, _ in told] == ['gap', 'lost']
            assert (await link.place(limit(listing, sim, BUY, 30, '1', 'after'))).status in ('acked', 'partly_filled', 'filled')
            task.cancel()
    run(main())


@pytest.mark.parametrize('venue', VENUES)
def test_orders_at_three_hundred_times_the_speed_of_the_wall(venue, recording):
    async def main():
        async with trading(venue, recording, speed=300.) as (link, listing, sim, a, events, problems):
            for n in range(10):
                side = BUY if n % 2 else SELL
                u = await link.place(limit(listing, sim, side, 100, '1', f'fast-{n}'))
                assert u.status in ('acked', 'partly_filled', 'filled'), u
            assert not problems
    run(main())
