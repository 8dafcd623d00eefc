"The kernel and its backtest: what a notebook page would be dull to read through."
import heapq
from decimal import Decimal
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arbwork.clock import NS
from arbwork.decide.contract import INTENT, MAX_INTENTS, MAX_TRADES, MEMORY, OPEN_TRADE, REASONS, Params, Universe, params_array
from arbwork.decide.contract import SINGLE_LEG
from arbwork.decide.cross import decide, step
from arbwork.decide.edge import cross_size, net_edge_bps, walk
from arbwork.decide.fill import CONSUMED, book, hold, refresh, take, unhold, view
from arbwork.decide.risk import BY_LOSS, HALTED, mark, new_risk
from arbwork.decide.step import commit, kernel_hash, mend, tokens
from arbwork.feed.events import BOOK, INVALID, LEVELS, VALID
from arbwork.market import BUY, SELL, ConfigError, DataError, Listing
from arbwork.research.backtest import backtest, inventory_of, peeks, prepare
from arbwork.research.sweep import sweep

T0 = 1_629_417_600*NS
RECORDED = Path(__file__).parents[1]/'data'/'books'


def universe_of(fee_bps=5., ticks=('0.001', '0.0001')):
    return Universe([Listing(v, 'LINK-USDT', 'LINKUSDT', Decimal(t), Decimal('0.01'), Decimal('0.01'), Decimal('5'))
                     for v, t in zip(('binance', 'bybit'), ticks)], {'binance': (fee_bps, fee_bps), 'bybit': (fee_bps, fee_bps)})


def rich(universe, link=400, usdt=10_000): return inventory_of(universe, {v: {'LINK': link, 'USDT': usdt} for v in universe.venues})


def market(seed, rows=600, gap_bps=12., feed_ns=20_000_000, gaps=0., repeat=0.3):
    "Two venues drifting apart; some books repeat their quantities, some rows are not to be believed."
    rng, out = np.random.default_rng(seed), np.zeros(rows, BOOK)
    gap, mid = 0., 27.
    for i in range(rows):
        s, r = int(rng.integers(2)), out[i]
        gap, mid = 0.97*gap + rng.normal(0, gap_bps/4), mid*(1 + rng.normal(0, 5e-5))
        px = mid*(1 + (s - 0.5)*gap/1e4)
        r['ts_venue_ns'] = T0 + i*NS//4 + int(rng.integers(100_000_000))
        r['slot'], r['seq'], r['state'] = s, i, INVALID if rng.random() < gaps else VALID
        before = out[:i][out[:i]['slot'] == s]
        if len(before) and rng.random() < repeat:
            for name in ('bid_px', 'bid_qty', 'ask_px', 'ask_qty'): r[name] = before[-1][name]
            continue
        r['bid_px'], r['ask_px'] = np.floor(px*1000 - np.arange(LEVELS)*2)/1000, np.ceil(px*1000 + 1 + np.arange(LEVELS)*2)/1000
        r['bid_qty'], r['ask_qty'] = rng.integers(10, 3000, LEVELS)/100, rng.integers(10, 3000, LEVELS)/100
    out['ts_venue_ns'] = np.maximum.accumulate(out['ts_venue_ns'])
    out['ts_recv_ns'] = out['ts_venue_ns'] + feed_ns
    return out


@pytest.fixture(scope='module')
def link():
    if not list(RECORDED.glob('link-usdt_*')): pytest.skip('the recorded books are not in data/books')
    from arbwork.sim.scenarios import recorded
    tape = recorded().tape
    tape = (tape() if callable(tape) else tape).copy()
    tape['ts_recv_ns'] = tape['ts_venue_ns']
    return tape


class Stepped:
    "The backtest again, written for reading: plain Python around the same `step`."
    def __init__(self, tape, universe, params, inventory, latency_ns, fee_in=0):
        self.tape, self.specs, self.p, self.lat, self.fee_in = tape, universe.specs(), params, latency_ns, fee_in
        self.start, self.inventory, self.board = inventory.copy(), inventory.copy(), universe.empty_board()
        self.trades, self.params = np.zeros(MAX_TRADES, OPEN_TRADE), params_array(params)
        self.memory, self.marks, self.risk = np.zeros(MEMORY), np.zeros(len(universe.assets)), new_risk()
        self.out, self.consumed = np.zeros(MAX_INTENTS, INTENT), np.zeros(len(self.specs), CONSUMED)
        self.standing, self.received, self.of_slot = {}, {}, [np.flatnonzero(tape['slot'] == s) for s in range(len(self.specs))]
        self.due, self.count, self.fills, self.closed, self.work, self.funnel = [], 0, [], [], {}, dict.fromkeys(REASONS, 0)

    def at(self, ns, what, *args):
        self.count += 1
        heapq.heappush(self.due, (ns, self.count, what, args))

    def send(self, t, slot, side, qty, limit, now, hedge):
        hold(self.inventory, self.specs, slot, side, qty, limit, self.params)
        t['pending'] += 1
        self.at(now + self.lat[self.specs[slot]['venue']], self.arrive, t, slot, side, qty, limit, hedge)

    def stand(self, s, i):
        for j in self.of_slot[s]:
            if self.standing.get(s, -1) < j <= i:
                refresh(self.tape, j, self.consumed, s)
                self.standing[s] = j

    def arrive(self, now, t, slot, side, qty, limit, hedge):
        later = [j for j in self.of_slot[slot] if min(self.tape[j]['ts_venue_ns'], self.tape[j]['ts_recv_ns']) <= now]
        self.stand(slot, later[-1])
        filled, notional = take(self.tape, self.standing[slot], self.consumed, slot, side, qty, limit)
        self.at(now + self.lat[self.specs[slot]['venue']], self.known, t, slot, side, qty, limit, hedge, filled, notional)

    def known(self, now, t, slot, side, qty, limit, hedge, filled, notional):
        unhold(self.inventory, self.specs, slot, side, qty, limit, self.params)
        if filled > 0:
            book(self.inventory, self.specs, slot, side, filled, notional, self.specs[slot]['taker_bps']*self.p.fee_mult, self.fee_in)
            if slot == t['buy']: t['bought'] += side*filled
            else: t['sold'] -= side*filled
            if not hedge: t['buy_px' if side == BUY else 'sell_px'] = notional/filled
            self.fills.append((t['id'], slot, side, now, filled, notional))
            view(self.tape, self.received[slot], self.consumed, slot, self.board, slot)
        t['pending'] -= 1
        self.mark(now)
        if not t['pending']: self.mend(now, t, not hedge or filled > 0)

    def mark(self, now): mark(now, self.board, self.specs, self.start, self.inventory, self.marks, self.params, self.risk)

    def mend(self, now, t, at_once):
        n = mend(2, np.array([t['buy'], t['sell']]), np.array([BUY, SELL]), np.full(2, t['qty']), np.array([t['bought'], t['sold']]), np.array([t['buy_px'], t['sell_px']]),
                 self.specs, SINGLE_LEG.index(self.p.single_leg), self.p.stop_bps, self.out)
        t.setdefault('lone', now)
        t['waits'] = None
        if not n or now > t['lone'] + int(self.p.deadline_s*1e9):
            self.trades['id'][t['place']] = 0
            self.closed.append(t['id'])
            del self.work[t['id']]
            return
        x = self.out[0].copy()
        if at_once: self.send(t, int(x['slot']), int(x['side']), x['qty'], x['limit_px'], now, True)
        else:
            t['waits'] = int(x['slot'])
            self.at(t['lone'] + int(self.p.deadline_s*1e9) + 1, self.give_up, t)

    def give_up(self, now, t):
        if t['id'] in self.work and t['waits'] is not None: self.mend(now, t, False)

    def settle(self, until):
        while self.due and self.due[0][0] <= until:
            now, _, what, args = heapq.heappop(self.due)
            what(now, *args)

    def run(self, ends_ns):
        ends, seen = list(ends_ns), np.zeros(1, BOOK)
        for i in range(len(self.tape)):
            now, s = int(self.tape[i]['ts_recv_ns']), int(self.tape[i]['slot'])
            while ends and now > ends[0]:
                self.settle(ends[0])
                self.mark(ends.pop(0))
            self.settle(now)
            self.stand(s, i)
            self.received[s] = i
            view(self.tape, i, self.consumed, s, seen, 0)
            for t in [*self.work.values()]:
                if t['waits'] == s: self.mend(now, t, True)
            code = step(now, seen, 0, self.board, self.specs, self.start, self.inventory, self.trades, self.params, self.params, self.memory, self.marks,
                        self.risk, self.out)
            if code <= 0:
                self.funnel[REASONS[-code]] += 1
                continue
            buy, sell, place = self.out[0].copy(), self.out[1].copy(), int(np.flatnonzero(self.trades['id'] == 0)[0])
            t = dict(id=len(self.work) + len(self.closed) + 1, place=place, buy=int(buy['slot']), sell=int(sell['slot']), qty=buy['qty'], bought=0., sold=0.,
                     buy_px=buy['ref_px'], sell_px=sell['ref_px'], pending=0, waits=None)
            self.work[t['id']] = t
            self.trades['id'][place] = t['id']
            for x in (buy, sell): self.send(t, int(x['slot']), int(x['side']), x['qty'], x['limit_px'], now, False)
        self.settle(4*10**18)
        for end in ends: self.mark(end)
        return self


def same(seed, params, latency, fee_in='quote', **how):
    tape, universe = market(seed, **how), universe_of(1.)
    r = backtest('cross', tape, universe, params, inventory=rich(universe), latency_ns=latency, fee_in=fee_in)
    plain = backtest('cross', tape, universe, params, inventory=rich(universe), latency_ns=latency, fee_in=fee_in, skip=False)
    s = Stepped(tape, universe, params, rich(universe), latency, {'quote': 0, 'received': 1}[fee_in]).run(prepare(tape, universe).ends_ns)
    assert r.funnel == plain.funnel and (r.fills == plain.fills).all() and (r.equity == plain.equity).all() and (r.trades == plain.trades).all()
    assert s.fills == [(f['trade'], f['slot'], f['side'], f['booked_ns'], f['qty'], f['notional']) for f in r.fills]
    assert s.closed == r.trades['id'].tolist()
    assert {**s.funnel, 'trade': len(s.closed)} == r.funnel and sum(r.funnel.values()) == len(tape)
    np.testing.assert_array_equal(s.inventory, r.inventory)
    assert s.risk['pnl'][0] == r.pnl_quote
    return r


@pytest.mark.parametrize('seed,latency', [(1, (0, 0)), (2, (50_000_000, 120_000_000)), (3, (400_000_000, 90_000_000)), (4, (2*NS, 3*NS))])
def test_stepping_in_python_equals_the_jitted_loop_and_passing_over_rows(seed, latency):
    r = same(seed, Params(cooldown_s=0.5, min_edge_bps=1.), latency, gaps=0.02)
    assert len(r.trades) > 5 and (seed < 3 or (r.trades['hedges'] > 0).any())


def test_they_are_equal_with_several_trades_open_and_a_deadline_that_runs_out():
    r = same(5, Params(cooldown_s=0., max_open_trades=4, stop_bps=0., deadline_s=0.6, single_leg='proceed', trades_per_hour=1e6), (300_000_000, 700_000_000), 'received')
    assert (abs(r.trades['done'][:, 0] - r.trades['done'][:, 1]) > 0.01).any()


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000), edge=st.floats(-5, 10), tolerance=st.floats(0.01, 1), latency=st.integers(0, 2*NS), slip=st.floats(0, 20),
       policy=st.sampled_from(['cancel', 'reverse', 'proceed']), fee_in=st.sampled_from(['quote', 'received']), opens=st.integers(1, 16))
def test_money_is_conserved(seed, edge, tolerance, latency, slip, policy, fee_in, opens):
    tape, universe = market(seed, rows=300, gaps=0.05), universe_of(2.)
    p = Params(min_edge_bps=edge, risk_tolerance=tolerance, slippage_bps=slip, single_leg=policy, max_open_trades=opens, cooldown_s=0.)
    how = dict(inventory=rich(universe), latency_ns=latency, fee_in=fee_in)
    r, plain = backtest('cross', tape, universe, p, **how), backtest('cross', tape, universe, p, skip=False, **how)
    assert r.funnel == plain.funnel and (r.fills == plain.fills).all() and (r.equity == plain.equity).all()
    f, specs = r.fills, universe.specs()
    for v in range(2):
        mine = specs['venue'][f['slot']] == v
        np.testing.assert_allclose((r.inventory - how['inventory'])[v].sum(axis=1), [f['base_change'][mine].sum(), f['quote_change'][mine].sum()], atol=1e-6)
    np.testing.assert_allclose(r.inventory[:, :, 1], 0, atol=1e-6)
    assert (r.inventory[:, :, 0] > -1e-6).all()
    assert (f['qty'] <= f['wanted'] + 1e-9).all()
    np.testing.assert_allclose(f['fee'], f['notional']*2e-4, rtol=1e-9)
    np.testing.assert_allclose([r.residuals().get(a, 0.) for a in universe.assets], [f['base_change'].sum(), f['quote_change'].sum()], atol=1e-6)
    assert sum(r.funnel.values()) == len(tape)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), fee=st.floats(0, 20), edge=st.floats(-10, 20), cap=st.floats(0.1, 1e4))
def test_every_slice_of_a_sized_trade_earns_the_minimum(seed, fee, edge, cap):
    rng = np.random.default_rng(seed)
    ask, bid = 27 + np.cumsum(rng.random(LEVELS))/100, 27.06 - np.cumsum(rng.random(LEVELS))/100
    qa, qb = rng.random(LEVELS)*50, rng.random(LEVELS)*50
    qty, paid, got, worst_ask, worst_bid = cross_size(ask, qa, bid, qb, fee, fee, edge, np.inf, cap)
    assert paid <= cap*(1 + 1e-9)
    if not qty: return
    assert net_edge_bps(worst_bid, worst_ask, fee, fee) >= edge
    np.testing.assert_allclose(walk(ask, qa, qty, np.inf, BUY)[1], paid, rtol=1e-9)
    np.testing.assert_allclose(walk(bid, qb, qty, 0., SELL)[1], got, rtol=1e-9)
    assert ask[0] <= paid/qty*(1 + 1e-12) and paid/qty <= worst_ask*(1 + 1e-12)
    if paid < cap*(1 - 1e-6):
        a, b = np.searchsorted(np.cumsum(qa), qty*(1 + 1e-9)), np.searchsorted(np.cumsum(qb), qty*(1 + 1e-9))
        assert a == LEVELS or b == LEVELS or net_edge_bps(bid[b], ask[a], fee, fee) < edge


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), orders=st.lists(st.tuples(st.sampled_from([BUY, SELL]), st.floats(0.01, 60)), max_size=12))
def test_a_level_gives_no_more_than_it_showed(seed, orders):
    rows = market(seed, rows=2)
    rows['slot'], rows['state'] = 0, VALID
    consumed, seen, total = np.zeros(1, CONSUMED), np.zeros(1, BOOK), {BUY: 0., SELL: 0.}
    for side, qty in orders: total[side] += take(rows, 0, consumed, 0, side, qty, 1e9 if side == BUY else 0.)[0]
    assert total[BUY] <= rows[0]['ask_qty'].sum() + 1e-9 and total[SELL] <= rows[0]['bid_qty'].sum() + 1e-9
    view(rows, 0, consumed, 0, seen, 0)
    np.testing.assert_allclose(seen[0]['ask_qty'].sum(), rows[0]['ask_qty'].sum() - total[BUY], atol=1e-9)
    np.testing.assert_allclose(seen[0]['bid_qty'].sum(), rows[0]['bid_qty'].sum() - total[SELL], atol=1e-9)
    rows[1] = rows[0]
    refresh(rows, 1, consumed, 0)
    assert take(rows, 1, consumed, 0, BUY, 1e9, 1e9)[0] <= rows[0]['ask_qty'].sum() - total[BUY] + 1e-9
    rows[1]['ask_qty'] += 1
    rows[1]['bid_qty'] += 1
    refresh(rows, 1, consumed, 0)
    assert not consumed['n'].any()


SAMPLED = dict(max_skew_s=0.5, cooldown_s=0., trades_per_hour=1e6, max_exposure=1e8, max_loss_day=1e8)

@pytest.mark.parametrize('fee_bps', [7.5, 10., 20.])
def test_the_recording_has_nothing_to_earn_at_ordinary_fees(link, fee_bps):
    universe = universe_of(fee_bps)
    r = backtest('cross', link, universe, Params(min_edge_bps=0., **SAMPLED), inventory=rich(universe, 1e5, 1e6))
    assert r.funnel['trade'] == 0 and r.pnl_quote == 0
    assert r.funnel['none'] + r.funnel['fee'] + r.funnel['stale'] == len(link) == 14_400


def test_without_fees_and_delay_it_trades_in_no_more_seconds_than_show_an_edge(link):
    universe = universe_of(0.)
    r = backtest('cross', link, universe, Params(min_edge_bps=1e-6, risk_tolerance=1., **SAMPLED), inventory=rich(universe, 1e5, 1e6))
    seconds = np.unique(link['ts_recv_ns'][r.trades['row']])
    assert 0.10 < len(seconds)/7_200 <= 0.186
    for bps, share in (2, 0.013), (5, 0.0006): # rounded as the recording's own figures are
        assert round(len(np.unique(link['ts_recv_ns'][r.trades['row'][r.trades['edge_bps'] > bps]]))/7_200, 4) <= share + 5e-4, bps
    assert r.pnl_quote > 0 and not (r.trades['hedges'] > 0).any() and (r.trades['edge_bps'] < 8.1).all()


def test_twins_earn_less(link):
    universe = universe_of(1.)
    run = lambda latency=0, **p: backtest('cross', link, universe, Params(min_edge_bps=0.5, **SAMPLED, **p), inventory=rich(universe), latency_ns=latency)
    base, dear, slow = run(), run(fee_mult=2.), run(latency=3*NS)
    assert base.pnl_quote > 0 and dear.pnl_quote < base.pnl_quote and slow.pnl_quote < base.pnl_quote
    assert (slow.trades['hedges'] > 0).any() and len(dear.trades) < len(base.trades)


def test_halted_by_its_loss_it_trades_no_more():
    tape, universe = market(3, rows=1_500), universe_of(1.)
    p = Params(min_edge_bps=0.1, cooldown_s=0., slippage_bps=0., max_skew_s=10., max_loss_day=0.05)
    r = backtest('cross', tape, universe, p, inventory=rich(universe), latency_ns=20*NS)
    free = backtest('cross', tape, universe, Params(min_edge_bps=0.1, cooldown_s=0., slippage_bps=0., max_skew_s=10.), inventory=rich(universe), latency_ns=20*NS)
    assert (r.risk['state'][0], r.risk['cause'][0]) == (HALTED, BY_LOSS)
    assert r.funnel['risk'] > 0 and len(r.trades) < len(free.trades) and r.pnl_quote < -0.05


def test_no_more_trades_an_hour_than_wished():
    for per_hour in (1., 2., 6., 30., 600.):
        memory, out, times, p = np.zeros(MEMORY), np.zeros(MAX_INTENTS, INTENT), [], params_array(Params(trades_per_hour=per_hour))
        for t in range(T0, T0 + 5*3600*NS, 2*NS):
            if tokens(memory, t, per_hour) >= 1 - 1e-9:
                commit(memory, t, out, 2, p)
                times.append(t)
        times = np.array(times)
        busiest = max(np.searchsorted(times, t + 3600*NS) - i for i, t in enumerate(times))
        assert 0.4*per_hour <= busiest <= per_hour


def test_a_strategy_that_knows_the_future_is_found():
    tape, universe = market(11, rows=400), universe_of(1.)

    def make(tape):
        last = float(tape['bid_px'][-1, 0])
        return lambda now_ns, board, *rest: 0 if board['bid_px'][0, 0] > last else decide(now_ns, board, *rest)

    assert peeks(lambda tape: decide, tape, universe, Params(cooldown_s=0.), inventory=rich(universe)) == []
    assert peeks(make, tape, universe, Params(cooldown_s=0., min_edge_bps=0.), inventory=rich(universe), cuts=(0.8,))


class OneWay(Params, frozen=True, forbid_unknown_fields=True):
    ranges:ClassVar[dict] = dict(way=(0, 2))
    way:float = 0. # the slot to buy at; 2: either


def test_a_kernel_of_ones_own_with_wishes_of_its_own_runs_in_the_same_loop():
    from numba import njit

    from arbwork.decide.strategies import Strategy
    tape, universe = market(11, rows=400), universe_of(1.)

    @njit
    def one_way(now_ns, board, specs, inventory, trades, params, memory, out):
        copied, order = np.zeros(2, np.int64), np.array([0, 1]) # arrays of its own
        for k in range(2): copied[k] = order[k]
        n = decide(now_ns, board[copied], specs, inventory, trades, params, memory, out)
        return n if n <= 0 or params[0].way == 2 or out[0].slot == params[0].way else 0

    p, mine = Params(cooldown_s=0., min_edge_bps=0.5), Strategy('one_way', one_way, OneWay)
    there, back, either = (backtest(mine, tape, universe, mine.wishes(p, way=way), inventory=rich(universe)) for way in (0., 1., 2.))
    both = backtest('cross', tape, universe, p, inventory=rich(universe))
    assert (there.trades['slot'][:, 0] == 0).all() and (back.trades['slot'][:, 0] == 1).all() and 0 < len(there.trades) < len(both.trades) > len(back.trades) > 0
    assert either.funnel == both.funnel and either.fills.tobytes() == both.fills.tobytes() and sum(there.funnel.values()) == len(tape)
    with pytest.raises(ConfigError, match='way: found 3'): mine.wishes(p, way=3.)


def test_a_lean_asks_more_of_one_direction_and_less_of_the_other():
    tape, universe, p = market(11, rows=400), universe_of(1.), Params(cooldown_s=0., min_edge_bps=1.)
    run = lambda lean, **how: backtest('cross', tape, universe, p, inventory=rich(universe), lean_bps=lean, **how)
    plain, none, leaning, every = run(None), run([0., 0.]), run([0., 2.]), run([0., 2.], skip=False)
    assert plain.funnel == none.funnel and (plain.fills == none.fills).all() and (plain.equity == none.equity).all()
    assert leaning.funnel == every.funnel and (leaning.fills == every.fills).all()
    away = leaning.trades['slot'][:, 0] == 0
    assert away.any() and (~away).any() and (leaning.trades['edge_bps'][away] >= 3 - 1e-9).all() and leaning.trades['edge_bps'][~away].min() < 1
    assert (plain.trades['edge_bps'][plain.trades['slot'][:, 0] == 0] < 3).any()
    with pytest.raises(ConfigError, match='one a slot'): run([1.])


def test_a_tape_that_cannot_be_right_is_refused():
    universe, tape = universe_of(), market(1, rows=20)
    def refused(change, words):
        bad = tape.copy()
        change(bad)
        with pytest.raises(DataError, match=words): backtest('cross', bad, universe, Params(), inventory=rich(universe))
    refused(lambda t: t['bid_px'].__setitem__((5, 3), np.nan), 'tape row 5')
    refused(lambda t: t['ask_qty'].__setitem__((6, 0), -1), 'tape row 6')
    refused(lambda t: t['ts_recv_ns'].__setitem__(7, 0), 'tape row 7')
    refused(lambda t: t['slot'].__setitem__(8, 2), 'tape row 8')
    with pytest.raises(DataError, match='no rows'): backtest('cross', tape[:0], universe, Params(), inventory=rich(universe))
    with pytest.raises(ConfigError, match='kraken'): inventory_of(universe, {'kraken': {'USDT': 1}})


def test_two_quote_currencies_are_two_currencies():
    listings = [Listing(v, i, 'X', Decimal('0.001'), Decimal('0.01'), Decimal('0.01'), Decimal('5')) for v, i in (('binance', 'LINK-USDT'), ('bybit', 'LINK-USDC'))]
    universe = Universe(listings, {'binance': (0., 0.), 'bybit': (0., 0.)})
    inventory = inventory_of(universe, {v: {'LINK': 400, 'USDT': 1e4, 'USDC': 1e4} for v in universe.venues})
    r = backtest('cross', market(2), universe, Params(), inventory=inventory)
    assert r.funnel['trade'] == 0 and r.funnel['currency'] > 0


def test_the_hash_is_of_the_code_reached():
    assert kernel_hash(decide) == kernel_hash(decide) and len(kernel_hash(decide)) == 64
    assert kernel_hash(decide) != kernel_hash(step)


def test_vectorbt_agrees_with_every_equity_curve():
    tape, universe = market(9, rows=1_000), universe_of(1.)
    s = sweep('cross', tape, universe, {'min_edge_bps': [0.5, 3.], 'fee_mult': [1., 2.], 'single_leg': ['reverse', 'cancel']}, base=Params(cooldown_s=1.),
              inventory=rich(universe), latency_ns=300_000_000, fee_in='received', bucket_s=10.)
    equity = np.stack([r.equity['equity'] for r in s.results], axis=1)
    np.testing.assert_allclose(s.portfolio.value().to_numpy(), equity, rtol=1e-9)
    np.testing.assert_allclose(s.portfolio.total_profit().to_numpy(), s.frame['pnl'], atol=1e-6)
    assert s.frame['trades'].min() > 0 and s.returns.shape == equity.shape
    alone = backtest('cross', tape, universe, s.results[3].params, inventory=rich(universe), latency_ns=300_000_000, fee_in='received', bucket_s=10.)
    assert (alone.fills == s.results[3].fills).all()


def test_compiled_code_is_dropped_when_a_function_it_calls_changes(tmp_path):
    import os
    import shutil
    import subprocess
    import sys

    import arbwork
    shutil.copytree(Path(arbwork.__file__).parent, tmp_path/'arbwork', ignore=shutil.ignore_patterns('__pycache__'))
    edge = tmp_path/'arbwork'/'decide'/'edge.py'
    asks = ('import numpy as np; from arbwork.decide.cross import touch; from arbwork.feed.events import BOOK; b = np.zeros(2, BOOK); '
            'b["state"] = 1; b["ask_px"], b["bid_px"] = 100., 101.; print(round(touch(b[0], b[1], 10., 10., 0.)[0], 3))')
    env = {**os.environ, 'PYTHONPATH': str(tmp_path)}
    run = lambda: float(subprocess.run([sys.executable, '-c', asks], env=env, cwd=tmp_path, capture_output=True, text=True, check=True).stdout)
    first = run()
    assert first == run()
    text = edge.read_text()
    assert text.count('(got - paid)/ask_px*1e4') == 1
    edge.write_text(text.replace('(got - paid)/ask_px*1e4', '(got - paid)/ask_px*2e4'))
    assert run() == pytest.approx(2*first, abs=1e-2)


def swings(seconds, seed=4, fee_bps=.2):
    "Two venues whose gap stands at 3 bps, is pushed to 30 for a minute in its middle, and comes back."
    u, rng = universe_of(fee_bps), np.random.default_rng(seed)
    rows = np.zeros(2*seconds, BOOK)
    for k in range(seconds):
        gap = 3 + rng.standard_normal() + 27*(seconds//2 <= k < seconds//2 + 60)
        for slot, px in enumerate((27., 27*np.exp(gap/1e4))):
            r = rows[2*k + slot]
            r['slot'], r['state'], r['ts_recv_ns'], r['ts_venue_ns'] = slot, VALID, 1_700_000_000*NS + k*NS, 1_700_000_000*NS + k*NS
            r['bid_px'], r['ask_px'] = px - .0005 - .001*np.arange(LEVELS), px + .0005 + .001*np.arange(LEVELS)
            r['bid_qty'] = r['ask_qty'] = 60.
    return u, rows


@pytest.mark.parametrize('even', [0., 1.])
def test_a_position_of_basis_outlives_its_session_where_an_even_split_is_the_rule(even):
    from arbwork.decide.basis import BasisParams
    from arbwork.trade.core import Core, SessionStart
    u, rows = swings(1_600)
    p = BasisParams(max_position=1_500., halflife_s=200., warm_s=200., max_age_s=5., max_skew_s=1., cooldown_s=0., trades_per_hour=1e5, risk_tolerance=1., max_notional=5e3, min_edge_bps=10., stop_z=1e3,
                    step_z=0., max_exposure=1e8, tranches=1, even=even)
    began, cut = rich(u), int(np.searchsorted(rows['ts_recv_ns'], rows['ts_recv_ns'][0] + 830*NS))
    first = backtest('basis', rows[:cut], u, p, inventory=began)
    on = float((first.inventory - began)[0, 0].sum())
    assert abs(on) > 10 and abs((first.inventory - began)[:, 0].sum()) < .1, 'the session ends in the middle of a swing'
    second = backtest('basis', rows[cut + 200:], u, p, inventory=first.inventory) # the process was away for a while
    left = float((second.inventory - began)[0, 0].sum())
    assert (abs(left) < .02 and second.funnel['trade'] == 1) if even else (left == on and second.funnel['trade'] == 0)
    held = {v: {a: Decimal(repr(float(first.inventory[i, j].sum()))) for j, a in enumerate(u.assets)} for i, v in enumerate(u.venues)}
    core, said = Core(SessionStart('next', 'sim', 'basis', Params(**{k: getattr(p, k) for k in Params.__struct_fields__}), u, held, int(rows['ts_recv_ns'][cut + 200]),
                                   wishes={k: float(getattr(p, k)) for k in BasisParams.__struct_fields__ if k not in Params.__struct_fields__})), []
    for row in rows[cut + 200:]:
        said += [x['side']*x['qty'] for x in core.row(int(row['ts_recv_ns']), row)[1] if x['slot'] == 0]
        core.take()
        if said: break
    assert said == ([pytest.approx(-on, abs=.02)] if even else []), 'a session decides as the backtest does'


def test_a_session_takes_up_the_position_that_the_one_before_it_left_though_coins_came_in_between():
    from arbwork.decide.basis import BasisParams, carry
    from arbwork.trade.core import Core, SessionStart
    u, rows = swings(1_600)
    own = dict(max_position=1_500., halflife_s=400., warm_s=200., stop_z=1e3, step_z=0., tranches=1)
    p = Params(max_age_s=5., max_skew_s=1., cooldown_s=0., trades_per_hour=1e5, risk_tolerance=1., max_notional=5e3, min_edge_bps=10., max_exposure=1e8)
    began, cut = rich(u), int(np.searchsorted(rows['ts_recv_ns'], rows['ts_recv_ns'][0] + 830*NS))
    first = backtest('basis', rows[:cut], u, BasisParams(**{k: getattr(p, k) for k in Params.__struct_fields__}, **own), inventory=began)
    on = float((first.inventory - began)[0, 0].sum())

    def session(inventory, at, memory=()):
        held = {v: {a: Decimal(repr(float(inventory[i, j].sum()))) for j, a in enumerate(u.assets)} for i, v in enumerate(u.venues)}
        return Core(SessionStart('s', 'sim', 'basis', p, u, held, int(rows['ts_recv_ns'][at]), wishes=own, memory=list(memory)))
    before = session(began, 0)
    for row in rows[:cut]: before.row(int(row['ts_recv_ns']), row); before.take()
    sent = first.inventory.copy()
    sent[0, 0, 0] += 500 # to the first venue
    left = carry(before.memory, first.inventory.sum(axis=2), sent.sum(axis=2))
    for memory, wanted in (((), []), (left, [pytest.approx(-on, abs=.02)])):
        core, said = session(sent, cut + 200, memory), []
        for row in rows[cut + 200:]:
            said += [x['side']*x['qty'] for x in core.row(int(row['ts_recv_ns']), row)[1] if x['slot'] == 0]
            core.take()
            if said: break
        assert said == wanted, 'an empty memory takes it for its beginning; one that was carried turns it back, and no coin more'
    for after_s, acts in (300, True), (500, False):
        late, row = session(sent, cut + 200, left), rows[-1].copy()
        for slot in range(2):
            row['slot'], row['ts_recv_ns'], row['ts_venue_ns'] = slot, rows['ts_recv_ns'][cut] + after_s*NS, rows['ts_recv_ns'][cut] + after_s*NS
            intents = late.row(int(row['ts_recv_ns']), row)[1]
        assert bool(len(intents)) == acts, 'what was usual more than a half-life ago is not acted on'


@pytest.mark.parametrize('name', ['cross', 'basis'])
def test_a_call_by_a_table_of_addresses_says_what_the_call_by_arguments_says(name):
    from arbwork.decide.strategies import STRATEGIES
    s, tape, universe = STRATEGIES[name], market(5, rows=400, gap_bps=25.), universe_of(.5)
    p = s.wishes(Params(min_edge_bps=.5, cooldown_s=1.))

    def arrays(): return (np.zeros(1, BOOK), universe.empty_board(), universe.specs(), rich(universe), rich(universe), np.zeros(MAX_TRADES, OPEN_TRADE), params_array(p, kind=Params),
                          params_array(p), s.setup(universe), np.zeros(len(universe.assets)), new_risk(), np.zeros(MAX_INTENTS, INTENT))
    a, b, said = arrays(), arrays(), []
    call = s.bound(*a)
    for row in tape:
        a[0][0] = b[0][0] = row
        now_ns = int(row['ts_recv_ns'])
        said.append(call(now_ns, 0))
        assert said[-1] == s.step(now_ns, b[0], 0, *b[1:])
        assert [x.tobytes() for x in a] == [x.tobytes() for x in b]
    assert len(set(said)) > 1 and (name != 'cross' or max(said) == 2)


def test_arrays_that_a_kernel_would_misread_are_refused():
    from arbwork.decide.strategies import STRATEGIES
    s, universe = STRATEGIES['cross'], universe_of()
    p = params_array(Params())
    good = [np.zeros(1, BOOK), universe.empty_board(), universe.specs(), rich(universe), rich(universe), np.zeros(MAX_TRADES, OPEN_TRADE), p, p, np.zeros(MEMORY), np.zeros(2),
            new_risk(), np.zeros(MAX_INTENTS, INTENT)]
    s.bound(*good)
    for k, bad, words in ((1, universe.specs(), 'board'), (3, rich(universe)[:, :, 0], 'start'), (8, np.zeros(MEMORY, 'f4'), 'memory'), (9, np.zeros(4)[::2], 'marks'),
                          (9, np.zeros(3), 'one universe'), (8, np.zeros(8), 'one universe'), (11, np.zeros(2, INTENT), 'one universe')):
        with pytest.raises(ConfigError, match=f'kernel array.*{words}'): s.bound(*good[:k], bad, *good[k + 1:])
    frozen = rich(universe)
    frozen.flags.writeable = False
    with pytest.raises(ConfigError, match='kernel array inventory'): s.bound(*good[:4], frozen, *good[5:])
    with pytest.raises(ValueError): s.bound(*good[:-1])
