"A session whose orders rest, against a venue that loses, delays, repeats and reorders what it says, with the process killed at any moment."
from decimal import Decimal

import msgspec
import numpy as np
import pytest

from arbwork.clock import NS
from arbwork.decide.contract import Universe
from arbwork.feed.events import BOOK, INVALID, VALID
from arbwork.market import Listing
from arbwork.settings import Limits, make_params
from arbwork.trade.core import STEP, Balances, Command, Core, Restart, SessionStart, VenueFill, VenueOrder, replay
from arbwork.trade.order import FINAL
from test_trade_core import MS, World, T0

LINK_AT = {v: Listing(v, 'LINK-USDT', 'LINKUSDT', Decimal('0.001'), lot, Decimal('0.01'), Decimal('5')) for v, lot in (('binance', Decimal('0.01')), ('bybit', Decimal('0.001')))}
UNIVERSE = Universe(list(LINK_AT.values()), {'binance': (1, 10), 'bybit': (30, 5)})
FUNDS = {v: {'LINK': Decimal(5_000), 'USDT': Decimal(200_000)} for v in LINK_AT}
WISHES = dict(max_notional=1_000, cooldown_s=0.5, trades_per_hour=36_000, deadline_s=4, max_age_s=2, max_skew_s=5, max_exposure=1e6, max_loss_day=1e6, max_drawdown=1., stop_bps=500, min_edge_bps=0.,
              min_profit_quote=0.)


class Quotes(World):
    "The world of `test_trade_core`, where one venue's book is wide and orders may rest in it."
    def __init__(self, seed, policy='reverse', harm=1., limits=Limits(), **params):
        super().__init__(seed, policy, harm)
        self.funds, self.px, self.resting = {v: dict(a) for v, a in FUNDS.items()}, [26.70, 26.70], {}
        self.entries = []
        start = SessionStart('s', 'sim', 'maker', make_params(WISHES | dict(single_leg=policy) | params), UNIVERSE, FUNDS, T0, limits=limits)
        self.core = Core(start)
        self.write('start', msgspec.msgpack.encode(start), True)

    def a_book(self, slot):
        row = np.zeros(1, BOOK)[0]
        half = (.03, .001)[slot]
        row['ts_recv_ns'], row['slot'], row['state'] = self.now, slot, VALID
        row['bid_px'][:5], row['ask_px'][:5] = self.px[slot] - half - .001*np.arange(5), self.px[slot] + half + .001*np.arange(5)
        row['bid_qty'][:5] = row['ask_qty'][:5] = 100. + self.rng.randrange(50)
        return row

    def row(self, slot, state=VALID):
        row = self.a_book(slot)
        row['state'] = state
        code, intents = self.core.row(self.now, row)
        step = np.zeros(1, STEP)
        step['now_ns'], step['row'], step['code'], step['n'] = self.now, row, code, len(intents)
        self.write('steps', step.tobytes())
        self.do(self.core.take())

    def prices(self, k):
        self.px[0] = self.px[1] = round(26.70*(1 + self.rng.uniform(-3, 3)/1e4), 3)
        for slot in (0, 1): self.mine(slot, self.row, slot)
        for name in list(self.resting):
            if self.rng.random() < 0.3: self.trade_with(name)

    # the venue
    def arrive(self, place, life):
        if place.order.tif != 'POST_ONLY': return super().arrive(place, life)
        o = place.order
        assert o.client_id not in self.orders, f'doubled order {o.client_id}'
        self.arrived.append(o.client_id)
        if self.chance(0.15): return self.told(place, 'rejected', Decimal(0), [])
        assert not any(p.trade == place.trade for p in self.resting.values()), f'two orders of trade {place.trade} rest at once'
        self.resting[o.client_id] = place
        self.told(place, 'acked', Decimal(0), [])

    def trade_with(self, name):
        "Somebody takes a part of what rests, or all."
        place = self.resting[name]
        o, done, lot = place.order, self.orders[name][2], LINK_AT[place.venue].lot
        q = min(o.qty - done, max(lot, (o.qty*Decimal(self.rng.choice(['0.2', '0.5', '1']))/lot).to_integral_value()*lot))
        base, _, quote = o.instrument.partition('-')
        fee = q*Decimal('0.0001') if o.side > 0 else q*o.px*Decimal('0.0001')
        f = VenueFill(name, 'v', f'{len(self.fills[place.venue])}', o.instrument, o.side, o.px, q, fee, base if o.side > 0 else quote, True, self.now, venue=place.venue)
        self.fills[place.venue].append(f)
        for asset, x in ((base, o.side*q), (quote, -o.side*q*o.px), (f.fee_asset, -fee)): self.funds[place.venue][asset] += x
        if done + q == o.qty: self.resting.pop(name)
        self.told(place, 'filled' if done + q == o.qty else 'partly_filled', done + q, [f])

    def cancelled(self, a):
        if a.client_id in self.resting and not self.chance(0.2): # it reaches the venue; the answer may not reach us
            place = self.resting.pop(a.client_id)
            self.orders[a.client_id] = (place, 'cancelled', self.orders[a.client_id][2])
        super().cancelled(a)


def check(w):
    "Nothing rests, nothing is lone, nothing is lost, and the replay decides the same."
    for v in LINK_AT: w.give('reconcile', Balances(v, w.funds[v]))
    core = w.core
    assert not core.mismatches and not w.resting
    assert not core.open, [(t.id, t.state, t.leaving, [(o.name, o.state, o.filled, o.booked) for o in t.orders]) for t in core.open.values()]
    assert len(w.arrived) == len(set(w.arrived))
    for v, fills in w.fills.items():
        assert {f.fill_id for f in fills} == {i for venue, i in core.ledger.seen if venue == v}, f'{v}: lost fill'
        assert core.ledger.wallet[v] == w.funds[v]
    for t in core.all_trades.values():
        assert all(o.state in FINAL for o in t.orders)
        left = abs(t.total(1) - t.total(-1))
        assert left*27 < 6, (t.id, left, t.why, [(o.name, o.place.why, o.side, o.state, o.filled) for o in t.orders])
    assert not any(e.kind == 'alert' and b'impossible' in e.body for e in w.entries)
    again = replay(w.entries)
    assert (again.first, again.identical) == ('', again.total)
    assert again.core.ledger.wallet == core.ledger.wallet
    return [t for t in core.all_trades.values() if t.took]


def test_what_rests_is_moved_filled_hedged_and_ends():
    w = Quotes(3, harm=0.)
    w.run(60)
    took = check(w)
    assert len(took) > 10 and any(t.quotes > 1 for t in w.core.all_trades.values())
    for t in took:
        rested, hedged = [o for o in t.orders if o.rests], [o for o in t.orders if not o.rests]
        assert hedged and all(o.place.why == 'hedge' and o.side == -rested[0].side and o.place.slot != rested[0].place.slot for o in hedged) and not t.why
    assert any(len([o for o in t.orders if not o.rests]) > 1 for t in took), 'parts are hedged as they come'
    assert w.core.status(w.now).trades == len(took) == sum(e.kind == 'trade' for e in w.entries)


@pytest.mark.parametrize('policy', ['reverse', 'proceed'])
@pytest.mark.parametrize('deaths', [0, 3])
def test_nothing_is_lost_and_nothing_rests_on_whatever_the_venue_does(policy, deaths):
    took = 0
    for seed in range(15):
        w = Quotes(seed, policy)
        w.run(20, deaths=deaths)
        took += len(check(w))
    assert took > 15


def one_quote(policy='reverse', **more):
    "A world without harm in which one order rests, and the order."
    w = Quotes(1, policy, harm=0., **more)
    for slot in (0, 1): w.row(slot)
    w.until(w.now + NS//2)
    (name, place), = w.resting.items()
    assert w.core.orders[name].state == 'ACKED' and w.core.open[1].state == 'QUOTING'
    return w, w.core.open[1], place


def books(w, *slots):
    for slot in slots: w.row(slot)


def ended(w, t, took=False):
    assert not w.core.open and not w.resting and t.state == 'DONE' and t.took == took
    assert replay(w.entries).first == ''


@pytest.mark.parametrize('what', ['pause', 'halt', 'stop', 'silence', 'invalid', 'restart', 'blocked'])
def test_an_order_does_not_rest_where_it_must_not(what):
    w, t, place = one_quote()
    if what in ('pause', 'halt', 'stop'): w.give('command', Command('x', what))
    elif what == 'invalid': w.row(1, INVALID)
    elif what == 'restart': w.give('restart', Restart('killed'))
    elif what == 'blocked': w.give('reconcile', Balances('bybit', {'LINK': Decimal(1)}))
    w.until(w.now + 6*NS) # of silence; of the last kind nothing but the time is heard
    ended(w, t)
    assert w.core.status(w.now).trades == 0 and not any(e.kind == 'trade' for e in w.entries)


def test_a_part_is_hedged_while_the_rest_stays_and_a_hedge_that_fails_ends_it():
    w, t, place = one_quote()
    w.trade_with = lambda *_: None
    o = w.core.orders[place.order.client_id]
    def fill(qty, id): w.give('fill', VenueFill(o.name, 'v', id, 'LINK-USDT', o.side, o.place.order.px, Decimal(qty), Decimal(0), 'USDT', True, w.now, venue=o.place.venue))
    fill(10, 'a')
    hedge, = [x for x in t.orders if not x.rests]
    assert hedge.place.order.qty == 10 and hedge.place.order.tif == 'IOC' and hedge.place.slot != o.place.slot and o.live and not t.leaving
    w.until(w.now + NS//4)
    assert t.state == 'QUOTING' and t.waits and hedge.state == 'FILLED' and o.name in w.resting
    w.arrive = lambda place, life: (w.arrived.append(place.order.client_id), w.told(place, 'rejected', Decimal(0), []))
    fill(5, 'b')
    w.until(w.now + 2*NS + NS//4)
    assert t.leaving and o.state == 'CANCELLED' and not w.resting
    del w.arrive
    w.until(w.now + 3*NS)
    assert t.state == 'DONE' and not w.core.open and t.total(1) == t.total(-1) and t.why in ('deadline', 'lone_reverse')
    assert replay(w.entries).first == ''


def test_a_cancel_that_loses_its_race_is_hedged_and_nothing_is_moved():
    w, t, place = one_quote()
    w.px[0] = w.px[1] = 26.9
    books(w, 1, 0) # the price runs away from a bid, or through an offer: moved or withdrawn
    assert t.leaving
    w.trade_with(next(iter(w.resting)))
    w.until(w.now + 2*NS)
    ended(w, t, took=True)
    assert t.total(1) == t.total(-1) > 0


def test_a_move_past_a_limit_is_a_withdrawal():
    w, t, place = one_quote()
    w.give('command', Command('x', 'set_limits', dict(order_notional=10.)))
    shift = .01*place.order.side
    for k in range(20):
        w.px[0] += shift; w.px[1] += shift
        w.now += 100*MS
        books(w, 1, 0)
        if t.leaving: break
    assert t.leaving and t.want_px == 0.
    w.until(w.now + NS)
    ended(w, t)


def test_an_order_that_is_gone_without_a_word_is_found():
    w, t, place = one_quote()
    w.resting.pop(place.order.client_id)
    w.orders[place.order.client_id] = (place, 'cancelled', Decimal(0))
    for k in range(80): # books keep coming, so that nothing but the look can find it
        w.now += NS//4
        books(w, 0, 1) if k % 2 else books(w, 1, 0)
        w.until(w.now + NS//8)
        if t.state == 'DONE': break
    assert t.state == 'DONE' and not t.took


def test_a_quote_that_is_moved_all_day_stays_small_and_a_fill_of_what_was_forgotten_is_hedged():
    w, t, place = one_quote()
    w.trade_with, first = lambda *_: None, w.core.orders[place.order.client_id]
    w.give('command', Command('r', 'set_params', dict(reach_bps=100., reprice_bps=.5)))
    for k in range(240):
        w.px[0] = w.px[1] = 26.70 + .05*(k % 2)
        w.now += NS//2
        books(w, 1, 0)
        w.until(w.now + NS//4)
    assert w.core.open == {t.id: t} and t.quotes > 100
    assert len(t.orders) < 4 and len(w.core.orders) < 200 and first.name not in w.core.orders
    w.give('order', VenueOrder(first.name, 'v', 'LINK-USDT', first.side, 'cancelled', first.place.order.qty, Decimal(0), w.now, venue=first.place.venue))
    w.give('fill', VenueFill(first.name, 'v', 'late', 'LINK-USDT', first.side, first.place.order.px, Decimal(7), Decimal(0), 'USDT', True, w.now, venue=first.place.venue))
    assert t.orders[-1].place.why == 'hedge' and t.orders[-1].place.order.qty == 7
    w.until(w.now + NS)
    assert t.total(1) == t.total(-1) == 7 and not any(b'stranger' in e.body for e in w.entries if e.kind == 'alert')
    w.give('command', Command('x', 'stop'))
    w.until(w.now + 6*NS)
    ended(w, t, took=True)
