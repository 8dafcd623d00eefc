"""One contract for every connector, native and through ccxt: the same books, trades, orders, answers and fills, whoever speaks the wire.

One process holds simulated venues and the connectors under test, which are open one at a time. What a connector cannot do, or does in its
venue's own way, stands in `CONNECTORS`; the tests hold each to its line, so that a line that is too modest fails as well."""

import asyncio
import base64
import random
import threading
from decimal import Decimal

import msgspec
import pytest

from arbwork.clock import NS, ScaledClock
from arbwork.feed.codec import Keys
from arbwork.feed.connect import market_feed, trade_link, venue_listings, venue_time_ns
from arbwork.feed.events import INVALID, VALID, Balance, Fill, NewOrder, OrderUpdate, Quote, Trade
from arbwork.market import BUY, SELL, VenueError, round_px, round_qty
from arbwork.settings import VenueSettings
from arbwork.sim.coinbase import pem_of
from arbwork.sim.scenarios import load_scenario
from arbwork.sim.server import VENUES, World
from arbwork.sim.wire import Fault

PAIR, SPEED = 'LINK-USDT', 20.


class Line(msgspec.Struct, frozen=True):
    "What one connector does where connectors may differ."
    gap_at_once: bool = True          # a lost frame makes the book INVALID with the next frame; otherwise only the comparison by REST finds it
    post_only: str = 'rejected'       # what becomes of a post-only order that would cross: 'rejected' with a code, or 'cancelled' after it was taken in
    twice: str = 'duplicate_id'       # the answer to an id that rests already: this error, or 'acked' where a venue gives back the first order
    quotes: bool = True               # best bid and ask are told as events
    held: str = '1'                   # of the notional of a resting buy: some venues hold the fee as well


CONNECTORS = {
    'binance': Line(),
    'bybit': Line(),
    'okx': Line(post_only='cancelled'),
    'kraken': Line(),
    'ccxt:binance': Line(),
    'ccxt:bybit': Line(),
    'ccxt:okx': Line(post_only='cancelled'),
    'ccxt:kraken': Line(),
    'ccxt:coinbase': Line(twice='acked', held='1.012'),
}
CONNECTORS |= {f'{name} on websockets': line for name, line in CONNECTORS.items() if not name.startswith('ccxt:')}
KEYS = {name: Keys('sim-key', base64.b64encode(b'sim-secret').decode(), 'sim words') for name in VENUES} | {'coinbase': Keys('organizations/1/apiKeys/2', pem_of('sim-secret'))}


class Rig:
    "A connector, its simulated venue, and everything that it said."
    def __init__(self, name, world):
        self.line, (self.name, _, sockets) = CONNECTORS[name], name.partition(' on ')
        venue, self.first = self.name.removeprefix('ccxt:'), 'x' if 'ccxt' in name else 'w' if sockets else 'n' # an id is used once in the life of an account
        self.door, self.keys, at = world.doors[venue], KEYS[venue], f'127.0.0.1:{world.ports[venue]}'
        self.at = VenueSettings(self.name, f'http://{at}', *(f'ws://{at}',)*3, 10, 10, 50, **({'sockets': sockets} if sockets else {}))
        self.sim = self.door.venue
        self.rows, self.told, self.problems, self.heard, self.lost, self.count = [], [], [], [], [], 0

    async def open(self):
        self.listings = await venue_listings(self.at, [PAIR])
        self.listing = self.listings[PAIR]
        self.clock = ScaledClock(await venue_time_ns(self.at), SPEED)
        self.feed = market_feed(self.at, self.listings, {PAIR: 3}, self.clock, self.rows.append, self.told.append, lambda *x: self.problems.append(x), random.Random(1))
        self.link, self.book = await self.another(self.heard), self.feed.books[PAIR]
        self.task = asyncio.create_task(self.feed.run())

    async def ask(self, question, *args, spent=lambda e: e.code == 'rate'):
        "An answer; where the account's budget is spent, as soon as there is room."
        for wait in (.2, .5, 1., 2., None):
            try: return await question(*args)
            except VenueError as e:
                if wait is None or not spent(e): raise
            await asyncio.sleep(wait)

    async def begun(self, heard):
        link = trade_link(self.at, self.listings, self.clock, heard.append, self.keys, lambda *x: self.lost.append(x), random.Random(2), timeout_s=3.)
        try: await link.start()
        except VenueError: await link.close(); raise
        return link

    async def another(self, heard): return await self.ask(self.begun, heard)

    async def place(self, order, link=None):
        "Send an order; one that its link keeps back to stay within the venue's budget is sent when there is room."
        return await self.ask((link or self.link).place, order, spent=lambda e: e.code == 'rate' and 'not sent' in str(e))

    async def close(self):
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)
        await self.link.close()

    async def until(self, true, seconds=60.):
        try:
            async with asyncio.timeout(seconds):
                while not true():
                    assert not self.task.done(), self.task.exception()
                    await asyncio.sleep(.005)  # noqa: ASYNC110
        except TimeoutError: raise AssertionError(f'{self.name}: not within {seconds} s; {self.heard[-5:]} {self.problems} {self.lost}') from None

    def id(self):
        self.count += 1
        return f'{self.first}{self.sim.name}-{self.count}-0-0'

    def shown(self):
        "The levels that the venue publishes, best first."
        tick = self.listing.tick
        return [[(float(p*tick), q/1e8) for p, q in list(side.visible().items())[:10]] for side in self.sim.engine.books[PAIR]]

    def limit(self, side, cross_bps, qty='4', tif='IOC', id=None):
        bids, asks = self.shown()
        px = Decimal(str((asks if side == BUY else bids)[0][0]))*(1 + side*Decimal(cross_bps)/10_000)
        return NewOrder(id or self.id(), PAIR, side, round_qty(Decimal(qty), self.listing.lot), round_px(px, self.listing.tick, side), tif)

    def market(self, side, qty='2'): return NewOrder(self.id(), PAIR, side, Decimal(qty), None, 'IOC')
    def updates(self, id): return [e for e in self.heard if isinstance(e, OrderUpdate) and e.client_id == id]
    def fills(self, id): return [e for e in self.heard if isinstance(e, Fill) and e.client_id == id]
    def ended(self, id): return next((u for u in reversed(self.updates(id)) if u.status in ('filled', 'cancelled', 'rejected')), None)

    async def whole(self, order):
        "The order's end, when each of its fills has been told."
        await self.until(lambda: (u := self.ended(order.client_id)) and sum(f.qty for f in self.fills(order.client_id)) == u.filled_qty)
        return self.ended(order.client_id)

    async def holdings(self): return {b.asset: b.free + b.held for b in await self.ask(self.link.balances)}


def sums(fills):
    "What fills did to an account."
    out = {'LINK': Decimal(0), 'USDT': Decimal(0)}
    for f in fills:
        out['LINK'] += f.side*f.qty
        out['USDT'] -= f.side*f.qty*f.px
        out[f.fee_asset] -= f.fee
    return out


def money(fills): return sorted((f.side, f.px, f.qty, f.fee, f.fee_asset, f.maker) for f in fills)


@pytest.fixture(scope='module')
def loop():
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    yield lambda work, seconds=60: asyncio.run_coroutine_threadsafe(asyncio.wait_for(work, seconds), loop).result(seconds + 5)
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


@pytest.fixture(scope='module')
def world(loop):
    names = sorted({name.partition(' ')[0].removeprefix('ccxt:') for name in CONNECTORS})
    async def begin():
        w = World(names, load_scenario('link-2021-08-20', venues=tuple(names)), 0, SPEED, KEYS, None, 0.)
        await w.start()
        return w
    w = loop(begin())
    yield w
    loop(w.stop())


@pytest.fixture(scope='module', params=CONNECTORS)
def rig(request, world, loop):
    r = Rig(request.param, world)
    loop(r.open())
    yield r
    loop(r.close())


def contract(check):
    "A test whose body runs beside the venues."
    def test(rig, loop): loop(check(rig))
    test.__name__, test.__doc__ = check.__name__, check.__doc__
    return test


@contract
async def test_books_are_valid_and_equal_to_the_venue_s(r):
    seen = set()
    while len(seen) < 3:
        await r.until(lambda: r.book.state == VALID and r.book.seq not in seen and [r.book.bids[:10], r.book.asks[:10]] == r.shown())
        seen.add(r.book.seq)
    row = r.rows[-1]
    assert row['slot'] == 3 and [(p, q) for p, q in zip(row['bid_px'], row['bid_qty'])] == r.shown()[0]
    assert all(a['ts_recv_ns'] <= b['ts_recv_ns'] for a, b in zip(r.rows, r.rows[1:])) and not [p for p in r.problems if 'watch_trades' not in p[1]]


@contract
async def test_quotes_and_trades_are_told(r):
    await r.until(lambda: r.book.state == VALID)
    order = r.limit(BUY, 30)
    await r.place(order)
    await r.whole(order)
    want = [(f.px, f.qty) for f in r.fills(order.client_id)]
    await r.until(lambda: len(want) == len([t for t in r.told if isinstance(t, Trade) and t.side == BUY and (Decimal(str(t.px)), Decimal(str(t.qty))) in want]))
    assert bool([q for q in r.told if isinstance(q, Quote) and 0 < q.bid_px < q.ask_px and q.bid_qty > 0]) == r.line.quotes


@contract
async def test_an_order_fills_once_with_its_fee_and_the_balances_follow(r):
    before, known, since = await r.holdings(), len(r.sim.engine.fills), r.link.venue_ns() - 30*NS
    orders = [r.limit(BUY, 30), r.limit(SELL, 30), r.market(BUY), r.market(SELL)]
    for o in orders:
        first = await r.place(o)
        assert first.status in ('acked', 'partly_filled', 'filled') and first.client_id == o.client_id, first
        end = await r.whole(o)
        assert (end.status, end.qty, end.filled_qty, end.side) == ('filled', o.qty, o.qty, o.side)
    told = [f for o in orders for f in r.fills(o.client_id)]
    assert money(told) == money(r.sim.engine.fills[known:]) and all(f.fee > 0 and f.instrument == PAIR for f in told)
    assert len({f.fill_id for f in told}) == len(told)
    after = await r.holdings()
    assert {a: after[a] - before[a] for a in ('LINK', 'USDT')} == sums(told)
    asked = [f for f in await r.ask(r.link.fills, PAIR, since) if f.client_id in {o.client_id for o in orders}]
    assert {(f.fill_id, f.client_id, f.px, f.qty, f.fee_asset) for f in asked} == {(f.fill_id, f.client_id, f.px, f.qty, f.fee_asset) for f in told}
    assert sums(asked) == pytest.approx(sums(told), abs=Decimal('1e-8'))
    assert [e for e in r.heard if isinstance(e, Balance)]


@contract
async def test_each_kind_of_order_ends_as_it_should(r):
    best = r.shown()[0][0][1]
    away, too_much = r.limit(BUY, -300), r.limit(SELL, 0, str(best + 1_500), 'FOK')
    for o in (away, too_much):
        first = await r.place(o)
        assert first.status in ('acked', 'cancelled') or (o is too_much and first.status == 'rejected'), first
        end = await r.whole(o)
        assert (end.status in ('cancelled', 'rejected'), end.filled_qty) == (True, 0), end
    whole = r.limit(BUY, 50, '1', 'FOK')
    await r.place(whole)
    assert (await r.whole(whole)).status == 'filled'
    cross = r.limit(BUY, 50, tif='POST_ONLY')
    first = await r.place(cross)
    end = await r.whole(cross)
    assert end.status == r.line.post_only and end.filled_qty == 0 and (end.status != 'rejected' or end.code == 'would_cross'), (first, end)


@contract
async def test_an_order_rests_is_found_and_is_taken_back(r):
    before = {b.asset: b.held for b in await r.ask(r.link.balances)}
    o = r.limit(BUY, -200, tif='GTC')
    assert (await r.place(o)).status == 'acked'
    for asked in (await r.ask(r.link.open_orders, PAIR), await r.ask(r.link.open_orders)):
        assert [(u.client_id, u.status, u.qty, u.filled_qty, u.side) for u in asked if u.client_id == o.client_id] == [(o.client_id, 'acked', o.qty, 0, BUY)]
    held = {b.asset: b.held for b in await r.ask(r.link.balances)}
    assert held['USDT'] - before.get('USDT', 0) == o.px*o.qty*Decimal(r.line.held)
    assert (await r.ask(r.link.order, PAIR, o.client_id)).status == 'acked'
    assert (await r.ask(r.link.cancel, PAIR, o.client_id)).status == 'cancelled'
    assert (await r.ask(r.link.cancel, PAIR, o.client_id)).status == 'unknown_order'
    assert (await r.ask(r.link.order, PAIR, o.client_id)).status == 'cancelled' and (await r.ask(r.link.open_orders, PAIR)) == []
    assert (await r.ask(r.link.order, PAIR, r.id())).status == 'unknown_order' and (await r.ask(r.link.cancel, PAIR, r.id())).status == 'unknown_order'
    assert {b.asset: b.held for b in await r.ask(r.link.balances)} == before


@contract
async def test_what_breaks_a_rule_is_rejected_with_its_code(r):
    sent, good = len(r.sim.engine.orders), r.limit(BUY, 0)
    for change, code in ((dict(qty=Decimal('9000000')), 'insufficient_funds'), (dict(px=Decimal('26.12345678')), 'tick_or_lot'), (dict(qty=r.listing.lot), 'below_minimum')):
        o = msgspec.structs.replace(good, client_id=r.id(), **change)
        u = await r.place(o)
        assert (u.status, u.code, u.client_id) == ('rejected', code, o.client_id) and u.reason, u
    assert len(r.sim.engine.orders) == sent


@contract
async def test_what_the_venue_refuses_comes_back_as_our_code(r):
    other = await r.another([]) # for it will send nothing more once it has heard 'rate'
    try:
        for code in ('insufficient_funds', 'below_minimum', 'tick_or_lot', 'would_cross', 'duplicate_id', 'venue_down', 'unknown_outcome', 'rate'):
            r.sim.faults.append(Fault('reject', code=code))
            try:
                u = await r.place(r.limit(BUY, 10), other)
                found = u.code or u.status
            except VenueError as e: found = e.code
            if code == 'would_cross' and r.line.post_only == 'cancelled': assert found == 'acked' # taken in, then cancelled
            elif code == 'venue_down': assert found in ('venue_down', 'unknown_outcome') # the venue's words, and who is asked, decide
            else: assert found == code, (code, found)
    finally:
        r.sim.faults.clear()
        await other.close()


@contract
async def test_an_id_is_used_once(r):
    o, heard = r.limit(BUY, -200, tif='GTC'), []
    await r.place(o)
    again = await r.another(heard)
    try:
        if r.line.twice == 'duplicate_id':
            for link in (again, r.link):
                with pytest.raises(VenueError) as e: await r.place(o, link)
                assert e.value.code == 'duplicate_id', e.value
        else:
            assert (await r.place(o, again)).status == r.line.twice
            with pytest.raises(VenueError, match='was sent before'): await r.place(o)
        assert [u.client_id for u in await r.ask(again.open_orders, PAIR)] == [o.client_id]
        assert (await r.ask(again.cancel, PAIR, o.client_id)).status == 'cancelled'
    finally: await again.close()
    await r.until(lambda: r.ended(o.client_id))
    assert r.ended(o.client_id).status == 'cancelled'


@contract
async def test_a_restart_finds_what_rests_and_what_was_filled(r):
    heard, since = [], r.link.venue_ns() - 30*NS
    first = await r.another(heard)
    rests, fills = r.limit(BUY, -200, tif='GTC'), r.limit(SELL, 30)
    try:
        await r.place(rests, first)
        await r.place(fills, first)
        await r.until(lambda: sum(e.qty for e in heard if isinstance(e, Fill)) == fills.qty)
    finally: await first.close()
    second = await r.another(later := [])
    try:
        assert [(u.client_id, u.status) for u in await r.ask(second.open_orders)] == [(rests.client_id, 'acked')]
        assert (await r.ask(second.order, PAIR, fills.client_id)).status == 'filled'
        found = [f for f in await r.ask(second.fills, PAIR, since) if f.client_id == fills.client_id]
        assert {f.fill_id for f in found} == {e.fill_id for e in heard if isinstance(e, Fill)}
        assert (await r.ask(second.cancel, PAIR, rests.client_id)).status == 'cancelled'
        await r.until(lambda: [e for e in later if isinstance(e, OrderUpdate) and (e.client_id, e.status) == (rests.client_id, 'cancelled')])
    finally: await second.close()


@contract
async def test_a_lost_answer_is_unknown_and_the_order_is_found_by_asking(r):
    known, o, since, patience = len(r.sim.engine.fills), r.limit(SELL, 30, '2'), r.link.venue_ns() - 5*NS, r.link.timeout_s
    r.sim.faults += [Fault('drop_ack'), Fault('lose_private', n=20)]
    r.link.timeout_s = .5
    try: pytest.fail(f'{r.name}: found {await r.place(o)}, wanted no answer')
    except VenueError as e: assert e.code == 'unknown_outcome', e
    finally: r.link.timeout_s = patience
    u = await r.ask(r.link.order, PAIR, o.client_id)
    r.sim.faults.clear()
    assert (u.status, u.filled_qty) == ('filled', 2)
    assert money(f for f in await r.ask(r.link.fills, PAIR, since) if f.client_id == o.client_id) == money(r.sim.engine.fills[known:])


@contract
async def test_a_lost_frame_is_never_believed(r):
    await r.until(lambda: r.book.state == VALID)
    n, gaps = len(r.rows), r.feed.stats['gaps']
    r.sim.faults.append(Fault('gap'))
    if r.line.gap_at_once:
        await r.until(lambda: r.feed.stats['gaps'] == gaps + 1)
        assert [int(x['state']) for x in r.rows[n:] if x['state'] != VALID] == [INVALID] and 'gap' in [k for k, _ in r.problems]
    await r.until(lambda: len(r.rows) > n + 3 and r.rows[-1]['state'] == VALID and [r.book.bids[:10], r.book.asks[:10]] == r.shown())


@contract
async def test_a_cut_line_invalidates_and_everything_comes_back(r):
    await r.until(lambda: r.book.state == VALID)
    n, lost = len(r.rows), len(r.lost)
    await asyncio.gather(*(r.door.drop(s) for s in list(r.door.sockets)))
    await r.until(lambda: r.rows[n:] and INVALID in [x['state'] for x in r.rows[n:]])
    assert [int(x['state']) for x in r.rows[n:] if x['state'] != VALID] == [INVALID]
    await r.until(lambda: not r.link.live or 'lost' in [k for k, _ in r.lost[lost:]])
    await r.until(lambda: r.rows[-1]['state'] == VALID and r.link.live and 'reconnected' in [k for k, _ in r.lost[lost:]])
    o = r.limit(BUY, 30, '1')
    await r.place(o)
    assert (await r.whole(o)).status == 'filled' and len(r.fills(o.client_id)) == len({f.fill_id for f in r.fills(o.client_id)})
