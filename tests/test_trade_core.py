"The core against a venue that loses, delays, repeats and reorders what it says, with the process killed at any moment: many seeds."
import heapq
import itertools
import random
import time
from collections import namedtuple
from decimal import Decimal

import msgspec
import numpy as np
import pytest

from arbwork.clock import NS
from arbwork.decide.contract import Universe
from arbwork.feed.events import BOOK, VALID
from arbwork.market import DataError, Listing
from arbwork.settings import make_params
from arbwork.trade.core import (GIVEN, MADE, STEP, Balances, Command, Core, Fetched, Restart, Sent, SessionStart, Silence, Stop, Timer, VenueFill,
                                VenueOrder, replay)
from arbwork.trade.order import FINAL, INTENT, ORDER_EVENTS, ORDER_STATES, ORDER_TABLE, TRADE_TABLE, Ask, Cancel, Fetch, Place, order_step

LINK_AT = {v: Listing(v, 'LINK-USDT', 'LINKUSDT', Decimal('0.001'), lot, Decimal('0.01'), Decimal('5')) for v, lot in (('binance', Decimal('0.01')), ('bybit', Decimal('0.001')))}
UNIVERSE = Universe(list(LINK_AT.values()), {'binance': (10, 10), 'bybit': (10, 10)})
FUNDS = {v: {'LINK': Decimal(500), 'USDT': Decimal(20_000)} for v in LINK_AT}
T0, MS = 1_629_417_600*NS, 1_000_000
Entry = namedtuple('Entry', 'offset kind ts_ns body durable')


def a_row(slot, bid, ts_ns, qty=200.):
    row = np.zeros(1, BOOK)[0]
    row['ts_recv_ns'], row['slot'], row['state'] = ts_ns, slot, VALID
    for i in range(5):
        row['bid_px'][i], row['ask_px'][i] = bid - i*0.01, bid + 0.01 + i*0.01
        row['bid_qty'][i] = row['ask_qty'][i] = qty
    return row


class World:
    "Two venues, a wire that cannot be trusted, a journal, and a process that may die."
    def __init__(self, seed, policy='reverse', harm=1., **params):
        self.rng, self.now, self.heap, self.count, self.harm = random.Random(seed), T0, [], itertools.count(), harm
        self.funds = {v: dict(a) for v, a in FUNDS.items()}
        self.px, self.orders, self.fills, self.arrived = [26.69, 26.69], {}, {v: [] for v in LINK_AT}, []
        wishes = dict(max_notional=1_000, cooldown_s=1, deadline_s=4, max_age_s=600, single_leg=policy, max_exposure=1e6, max_loss_day=1e6, max_drawdown=1., stop_bps=500)
        start = SessionStart('s', 'sim', 'cross', make_params(wishes | params), UNIVERSE, FUNDS, T0)
        self.entries, self.core, self.life = [], Core(start), 0
        self.write('start', msgspec.msgpack.encode(start), True)

    def at(self, delay_ms, what, *args): heapq.heappush(self.heap, (self.now + int(delay_ms*MS), next(self.count), what, args))
    def mine(self, delay_ms, what, *args):
        "Something that happens in the process: not if it has died meanwhile."
        life = self.life
        self.at(delay_ms, lambda *a: what(*a) if self.life == life else None, *args)
    def chance(self, p): return self.rng.random() < p*self.harm

    def write(self, kind, body, durable=False): self.entries.append(Entry(len(self.entries) + 1, kind, self.now, body, durable))

    def do(self, actions):
        for a in actions:
            if type(a) in MADE: self.write(MADE[type(a)], msgspec.msgpack.encode(a), type(a) is Place)
        for a in actions:
            if type(a) is Place: self.mine(self.rng.uniform(0.1, 4), self.send, a, len(self.entries))
            elif type(a) is Ask: self.mine(self.rng.uniform(1, 60), self.asked, a)
            elif type(a) is Cancel: self.mine(self.rng.uniform(1, 60), self.cancelled, a)
            elif type(a) is Fetch: self.mine(self.rng.uniform(1, 100), self.fetched, a)

    def give(self, kind, body):
        self.write(kind, msgspec.msgpack.encode(body))
        self.do(self.core.give(kind, self.now, body))

    def row(self, slot):
        row = a_row(slot, self.px[slot], self.now, 100. + self.rng.randrange(50))
        code, intents = self.core.row(self.now, row)
        step = np.zeros(1, STEP)
        step['now_ns'], step['row'], step['code'], step['n'] = self.now, row, code, len(intents)
        self.write('steps', step.tobytes())
        self.do(self.core.take())

    # the process: what a worker does
    def send(self, place, durable_at):
        if self.core.orders[place.order.client_id].state != INTENT: return
        self.durable = max(getattr(self, 'durable', 0), durable_at)
        self.give('sent', Sent(place.order.client_id))
        travel = self.rng.uniform(1, 40) if not self.chance(0.15) else self.rng.uniform(500, 4_900)
        if not self.chance(0.1): self.at(travel, self.arrive, place, self.life)
        self.mine(5_000 if self.chance(0.5) else 1_000, self.timed_out, place.order.client_id)

    def timed_out(self, name):
        if self.core.orders[name].state in ('SENT',): self.give('silence', Silence(name, 'place', 'unknown_outcome'))

    def asked(self, a):
        if self.chance(0.3): return self.give('silence', Silence(a.client_id, 'ask', 'venue_down'))
        self.give('answer', self.word(a.venue, a.client_id) or VenueOrder(a.client_id, '', a.instrument, 0, 'unknown_order', Decimal(0), Decimal(0), 0, venue=a.venue))

    def cancelled(self, a):
        word = self.word(a.venue, a.client_id)
        if self.chance(0.3) or word is None: return self.give('silence', Silence(a.client_id, 'cancel', 'unknown_outcome'))
        self.give('order', word)

    def fetched(self, a):
        if self.chance(0.3): return self.give('fetched', Fetched(a.venue, False))
        for f in list(self.fills[a.venue]): self.give('fill', f)
        self.give('fetched', Fetched(a.venue))

    # the venue
    def word(self, venue, name):
        o = self.orders.get(name)
        if o is None: return None
        place, status, filled = o
        return VenueOrder(name, 'v', place.order.instrument, place.order.side, status, place.order.qty, filled, self.now, venue=venue)

    def arrive(self, place, life):
        o, v = place.order, place.venue
        assert o.client_id not in self.orders, f'doubled order {o.client_id}'
        self.arrived.append(o.client_id)
        base, _, quote = o.instrument.partition('-')
        need = (quote, o.qty*o.px) if o.side > 0 else (base, o.qty)
        touch = Decimal(str(round(self.px[place.slot] + (0.01 if o.side > 0 else 0), 4)))
        if self.chance(0.15) or self.funds[v][need[0]] < need[1]: return self.told(place, 'rejected', Decimal(0), [])
        share = Decimal(1) if not self.chance(0.25) else Decimal(self.rng.choice(['0', '0.3', '0.5', '0.9']))
        lot = LINK_AT[v].lot
        qty = (o.qty*share/lot).to_integral_value()*lot if o.side*(o.px - touch) >= 0 else Decimal(0)
        fills, left = [], qty
        while left > 0:
            q = min(left, max(lot, (qty*Decimal('0.6')/lot).to_integral_value()*lot))
            fee = q*Decimal('0.001') if o.side > 0 else q*touch*Decimal('0.001')
            f = VenueFill(o.client_id, 'v', f'{len(self.fills[v])}', o.instrument, o.side, touch, q, fee, base if o.side > 0 else quote, False, self.now, venue=v)
            self.fills[v].append(f); fills.append(f)
            for asset, x in ((base, o.side*q), (quote, -o.side*q*touch), (f.fee_asset, -fee)): self.funds[v][asset] += x
            left -= q
        self.told(place, 'filled' if qty == o.qty else 'cancelled', qty, fills)

    def told(self, place, status, qty, fills):
        self.orders[place.order.client_id] = (place, status, qty)
        says = [('fill', f) for f in fills] + [('order', self.word(place.venue, place.order.client_id))]
        if status != 'rejected' and self.rng.random() < 0.5:
            says.append(('order', msgspec.structs.replace(says[-1][1], status='acked', filled_qty=Decimal(0))))
        for kind, what in says:
            for _ in range(2 if self.chance(0.2) else 1):
                if not self.chance(0.2): self.mine(self.rng.uniform(1, 60) if not self.chance(0.1) else self.rng.uniform(500, 6_000), self.give, kind, what)

    # time
    def die(self):
        "Kill the process; what was not synced may be gone."
        self.life += 1
        keep = self.rng.randint(min(getattr(self, 'durable', 0), len(self.entries)), len(self.entries))
        self.entries = self.entries[:max(1, keep)]
        past = replay(self.entries)
        assert not past.first, past.first
        self.core = past.core
        self.core.take()
        self.give('restart', Restart('killed'))

    def run(self, seconds, deaths=0):
        end = self.now + seconds*NS
        for k in range(seconds*2): self.at(k*500 + 1, self.prices, k)
        for _ in range(deaths): self.at(self.rng.uniform(0, seconds*1_000), self.die)
        self.until(end)
        self.harm = 0.
        self.give('command', Command('end', 'stop'))
        self.until(self.now + 120*NS)

    def prices(self, k):
        self.px[1] = round(26.69*(1.004 if k % 8 >= 4 else 1.), 3) if k < 10**6 else self.px[1]
        for slot in (0, 1): self.mine(slot, self.row, slot)

    def until(self, end):
        while self.now < end:
            due = self.core.next_ns or end
            if self.heap and self.heap[0][0] <= max(due, self.now):
                if self.heap[0][0] >= end: self.now = end; break
                at, _, what, args = heapq.heappop(self.heap)
                self.now = max(self.now, at)
                what(*args)
            elif due < end:
                self.now = max(self.now, due)
                before = self.core.next_ns
                self.give('timer', Timer())
                if self.core.next_ns and self.core.next_ns <= before: self.now += MS
            else: self.now = end


def check(w):
    "No naked leg, no lost fill, no doubled order, and the replay decides the same."
    for v in LINK_AT: w.give('reconcile', Balances(v, w.funds[v]))
    core = w.core
    assert not core.mismatches
    assert not core.open, [(t.id, t.state, [(o.name, o.state, o.filled, o.booked) for o in t.orders]) for t in core.open.values()]
    assert len(w.arrived) == len(set(w.arrived))
    for v, fills in w.fills.items():
        assert {f.fill_id for f in fills} == {i for venue, i in core.ledger.seen if venue == v}, f'{v}: lost fill'
        assert core.ledger.wallet[v] == w.funds[v]
    for t in core.all_trades.values():
        left = abs(t.total(1) - t.total(-1))
        assert left*27 < 6, (t.id, left, t.why, [(o.name, o.place.order.side, o.state, o.filled) for o in t.orders])
    assert not any(e.kind == 'alert' and b'impossible' in e.body for e in w.entries)
    again = replay(w.entries)
    assert (again.first, again.identical) == ('', again.total)
    assert again.core.ledger.wallet == core.ledger.wallet
    return len(core.all_trades)


@pytest.mark.parametrize('policy', ['reverse', 'proceed'])
def test_nothing_is_lost_whatever_the_venue_does(policy):
    World(0, policy).run(20) # compiles
    began, trades, seeds = time.monotonic(), 0, 0
    for seed in range(400):
        w = World(seed, policy)
        w.run(20)
        trades, seeds = trades + check(w), seeds + 1
        if time.monotonic() - began > 5: break
    assert seeds > 20 and trades > 2*seeds


def test_nothing_is_lost_when_the_process_dies():
    began, seeds = time.monotonic(), 0
    for seed in range(400):
        w = World(seed)
        w.run(15, deaths=3)
        check(w)
        seeds += 1
        if time.monotonic() - began > 6: break
    assert seeds > 10


def test_a_quiet_world_is_two_orders_a_trade():
    w = World(1, harm=0.)
    w.run(30)
    assert check(w) >= 4 and all(len(t.orders) == 2 and t.why == '' for t in w.core.all_trades.values())


def test_every_pair_is_in_the_table_or_raises():
    for state in ORDER_STATES:
        for event in ORDER_EVENTS:
            if (state, event) in ORDER_TABLE: assert order_step(state, event) in ORDER_STATES
            else:
                with pytest.raises(DataError): order_step(state, event)
    assert all((s, 'filled') in ORDER_TABLE for s in ORDER_STATES if s not in ('INTENT', 'REJECTED'))
    assert {s for s, _ in TRADE_TABLE} | {s for s, _ in TRADE_TABLE.values()} == {'QUOTING', 'WORKING', 'HEDGING', 'UNWINDING', 'STRANDED', 'DONE'}


def test_what_cannot_be_halts_and_is_told():
    w = World(1, harm=0.)
    w.row(0); w.px[1] = 26.80; w.row(1)
    place = next(iter(w.core.orders.values())).place
    w.give('order', VenueOrder(place.order.client_id, '', 'LINK-USDT', 1, 'rejected', place.order.qty, Decimal(0), 0, venue=place.venue))
    f = VenueFill(place.order.client_id, 'v', 'f9', 'LINK-USDT', 1, Decimal('26.7'), Decimal(1), Decimal(0), 'USDT', False, 0, venue=place.venue)
    w.give('fill', f)
    assert w.core.status(w.now).state == 'halted' and any(b'impossible' in e.body for e in w.entries)
    assert replay(w.entries).first == ''


@pytest.mark.parametrize('limit', [dict(max_loss_day=0.5), dict(max_drawdown=1e-5)])
def test_loss_and_drawdown_halt(limit):
    w = World(3, harm=0., **limit)
    w.row(0); w.px[1] = 26.80; w.row(1)
    a, b = w.core.orders.values()
    for o, px in ((a, '26.70'), (b, '26.60')):
        w.give('sent', Sent(o.name))
        w.give('fill', VenueFill(o.name, 'v', o.name, 'LINK-USDT', o.side, Decimal(px), o.place.order.qty, Decimal(0), 'USDT', False, 0, venue=o.place.venue))
    s = w.core.status(w.now)
    assert s.state == 'halted' and s.why in ('loss of the day', 'drawdown') and s.pnl_day < -0.5
    w.now += 100*NS
    w.row(1)
    assert w.core.trade_count == 1
    w.give('command', Command('r', 'release'))
    assert w.core.status(w.now).state == 'active'


def test_exposure_over_its_limit_begins_nothing():
    w = World(3, harm=0., max_exposure=100.)
    w.row(0); w.px[1] = 26.80; w.row(1)
    assert w.core.trade_count == 0 and w.core.status(w.now).reasons['limit'] == 1


def test_a_row_costs_tens_of_microseconds():
    w = World(1, harm=0.)
    rows = [a_row(k % 2, 26.69 + 0.001*(k % 5), T0 + k*MS) for k in range(2_000)]
    core = w.core
    for r in rows[:100]: core.row(T0, r)
    began = time.perf_counter()
    for k, r in enumerate(rows): core.row(T0 + k*MS, r)
    assert (time.perf_counter() - began)/len(rows) < 100e-6


def test_a_fill_after_the_end_is_hedged_too():
    w = World(3, harm=0.)
    w.row(0); w.px[1] = 26.80; w.row(1)
    a, b = list(w.core.orders.values())
    def fill(o, qty, i): w.give('fill', VenueFill(o.name, 'v', i, 'LINK-USDT', o.side, Decimal('26.75'), Decimal(qty), Decimal(0), 'USDT', False, 0, venue=o.place.venue))
    def says(o, status): w.give('order', VenueOrder(o.name, 'v', 'LINK-USDT', o.side, status, o.place.order.qty, Decimal(0), 0, venue=o.place.venue))
    for o in (a, b):
        w.give('sent', Sent(o.name))
        says(o, 'cancelled')
    t = w.core.all_trades[1]
    assert t.state == 'DONE' and not w.core.open
    fill(a, '10', 'late')
    assert t.state == 'UNWINDING' and t.orders[-1].place.order.qty == 10 and t.orders[-1].side == -a.side
    w.give('sent', Sent(t.orders[-1].name))
    fill(t.orders[-1], '10', 'undone')
    assert t.state == 'DONE' and not w.core.open and t.total(1) == t.total(-1) and replay(w.entries).first == ''


def test_the_policy_cancel_keeps_what_was_filled_and_says_so():
    w = World(3, 'cancel', harm=0.)
    w.row(0); w.px[1] = 26.80; w.row(1)
    a, b = list(w.core.orders.values())
    for o in (a, b): w.give('sent', Sent(o.name))
    w.give('fill', VenueFill(a.name, 'v', 'f', 'LINK-USDT', a.side, Decimal('26.70'), a.place.order.qty, Decimal(0), 'USDT', False, 0, venue=a.place.venue))
    w.give('order', VenueOrder(b.name, 'v', 'LINK-USDT', b.side, 'rejected', b.place.order.qty, Decimal(0), 0, venue=b.place.venue))
    assert not w.core.open and len(w.core.orders) == 2 and any(b'lone_leg' in e.body for e in w.entries if e.kind == 'alert')
    w.core._mark(w.now)
    assert w.core.status(w.now).exposure > 400
    w.give('command', Command('less', 'set_params', {'max_exposure': 100}))
    w.now += 2*NS
    w.row(1)
    s = w.core.status(w.now)
    assert s.state == 'halted' and s.why.startswith('exposure') and replay(w.entries).first == ''
