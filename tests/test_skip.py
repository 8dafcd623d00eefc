"Rows that cannot trade are passed over by whole blocks, and nothing changes by it: funnel, trades, fills, equity and inventory, to the bit."
from decimal import Decimal

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from arbwork.clock import NS
from arbwork.decide.contract import Params, Universe
from arbwork.decide.cross import touch
from arbwork.feed.events import BOOK, CROSSED, EMPTY, INVALID, VALID
from arbwork.market import ConfigError, Listing
from arbwork.research.backtest import BLOCK, backtest, look_at, prepare
from arbwork.research.sweep import sweep

T0 = 1_629_417_600*NS
GRID = tuple(map(Decimal, ('0.001', '0.01', '0.01', '1')))


def universe_of(slots, fees_bps, bases=('LINK',)):
    names = ('binance', 'bybit', 'okx', 'kraken')[:slots]
    return Universe([Listing(v, f'{bases[k%len(bases)]}-USDT', f'{bases[k%len(bases)]}USDT', *GRID) for k, v in enumerate(names)], {v: (f, f) for v, f in zip(names, fees_bps)})


def tape_of(seed, n, slots, gap_bps, odd, stamped=True):
    "Venues that drift apart; a share of the rows are empty, crossed, not to be believed, without a price, or no numbers at all."
    rng, out = np.random.default_rng(seed), np.zeros(n, BOOK)
    out['slot'], out['seq'] = rng.integers(0, slots, n), np.arange(n)
    out['ts_recv_ns'] = T0 + np.cumsum(rng.integers(0, 40_000_000, n))
    out['ts_venue_ns'] = np.where(rng.random(n) < .05, 0, out['ts_recv_ns'] - rng.integers(0, 30_000_000, n)) if stamped else 0
    out['state'] = np.where(rng.random(n) < odd, rng.choice([EMPTY, INVALID, CROSSED], n), VALID)
    gap = np.zeros((n, slots))
    for i in range(1, n): gap[i] = .98*gap[i - 1] + rng.normal(0, gap_bps/5, slots)
    px = 27*np.exp(np.cumsum(rng.normal(0, 2e-5, n)))*(1 + gap[np.arange(n), out['slot']]/1e4)
    levels = np.arange(10)*2
    out['bid_px'], out['ask_px'] = np.floor(px[:, None]*1000 - levels)/1000, np.ceil(px[:, None]*1000 + 1 + levels)/1000
    out['bid_qty'], out['ask_qty'] = rng.integers(10, 3_000, (2, n, 10))/100
    bare = rng.random((2, n)) < odd/2
    out['bid_px'][bare[0]] = out['ask_px'][bare[1]] = 0
    wild = (out['state'] != VALID) & (rng.random(n) < .3)
    out['bid_px'][wild], out['ask_px'][wild] = rng.choice([np.nan, np.inf, -1., 30.], (2, wild.sum(), 1))
    return out


def same(a, b):
    assert a.funnel == b.funnel
    for name in ('trades', 'fills', 'equity', 'marks', 'inventory', 'risk', 'stock'): assert getattr(a, name).tobytes() == getattr(b, name).tobytes(), name


SETS = st.builds(dict, min_edge_bps=st.sampled_from([-3., 0., .5, 2., 6., 15., 200.]), fee_mult=st.sampled_from([0., .1, 1., 3.]), cooldown_s=st.sampled_from([0., .2, 5.]),
                 max_open_trades=st.integers(1, 4), max_skew_s=st.sampled_from([.01, 5.]), min_profit_quote=st.sampled_from([0., .05]), max_loss_day=st.sampled_from([.5, 1e8]),
                 single_leg=st.sampled_from(['cancel', 'reverse', 'proceed']), trades_per_hour=st.sampled_from([30., 1e6]))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(seed=st.integers(0, 2**32), n=st.sampled_from([1, 700, BLOCK, BLOCK + 1, 3*BLOCK, 3_500]), slots=st.integers(1, 4), gap_bps=st.sampled_from([.5, 4., 15.]),
       odd=st.sampled_from([0., .02, .3]), two=st.booleans(), fees=st.lists(st.sampled_from([-1., 0., 4., 10.]), min_size=4, max_size=4), wishes=SETS,
       latency_ns=st.sampled_from([0, 30_000_000, 2*NS]), lean=st.sampled_from([None, .7]), fee_in=st.sampled_from(['quote', 'received']), bucket_s=st.sampled_from([.5, 60.]))
def test_passing_over_changes_nothing(seed, n, slots, gap_bps, odd, two, fees, wishes, latency_ns, lean, fee_in, bucket_s):
    u = universe_of(slots, fees, ('LINK', 'BTC') if two else ('LINK',))
    how = dict(inventory=u.empty_inventory() + [2e3, 0.], latency_ns=latency_ns, fee_in=fee_in, lean_bps=None if lean is None else lean*np.arange(slots))
    tape, p = prepare(tape_of(seed, n, slots, gap_bps, odd), u, bucket_s), Params(**wishes, risk_tolerance=1., max_exposure=1e8)
    plain = backtest('cross', tape, u, p, skip=False, **how)
    same(plain, backtest('cross', tape, u, p, **how))
    if lean is None: same(plain, backtest('cross', tape, u, p, ready=look_at(tape, p.fee_mult, -1.), **how))
    assert sum(plain.funnel.values()) == n


@pytest.mark.parametrize('fee_mult', [0., .3, 1.])
def test_a_look_says_of_each_row_what_touch_says(fee_mult):
    u = universe_of(3, (4., 5., 1.))
    tape = prepare(tape_of(3, 2*BLOCK + 77, 3, 6., .1), u)
    look, specs, least = look_at(tape, fee_mult, 2.), tape.specs, 0.
    records, rows, best, counts = tape.rows.view(np.recarray), [], [], np.zeros(4, np.int64)
    for i in range(len(tape.rows)):
        said = [touch.py_func(records[tape.latest[i, b]], records[tape.latest[i, s]], specs[b]['taker_bps']*fee_mult, specs[s]['taker_bps']*fee_mult, np.inf)
                for b in range(3) for s in range(3) if b != s and tape.latest[i, b] >= 0 and tape.latest[i, s] >= 0] or [(-np.inf, 0)]
        if i%BLOCK == 0: assert look.sums[i//BLOCK].tolist() == counts.tolist()
        why, top = max(code for _, code in said), max([net for net, _ in said if net == net], default=-np.inf)
        if top == np.inf: why = look.codes[i] # always visited, so nobody asks
        assert look.codes[i] == why, i
        counts[why] += 1
        if top >= least: rows.append(i), best.append(top)
    assert look.sums[-1].tolist() == counts.tolist() and (counts > 0).sum() >= 3
    assert look.rows.tolist() == rows and look.best.tolist() == best and len(rows) > 50


def test_a_look_at_other_fees_or_with_a_higher_floor_is_not_used():
    u = universe_of(2, (4., 4.))
    tape, p = prepare(tape_of(9, 2_500, 2, 12., .02), u), Params(min_edge_bps=-4., cooldown_s=0.)
    how = dict(inventory=u.empty_inventory() + [2e3, 0.])
    plain = backtest('cross', tape, u, p, skip=False, **how)
    assert plain.funnel['trade'] > 5
    for wrong in (look_at(tape, 1., 0.), look_at(tape, 3., -9.)): same(plain, backtest('cross', tape, u, p, ready=wrong, **how))


def test_a_sweep_looks_once_per_fee_level_and_says_what_single_runs_say():
    u = universe_of(2, (4., 4.))
    tape = prepare(tape_of(11, 4_000, 2, 12., .02), u)
    how = dict(inventory=u.empty_inventory() + [2e3, 0.], latency_ns=20_000_000)
    swept = sweep('cross', tape, u, dict(min_edge_bps=[-1., 3., 90.], fee_mult=[.5, 1.]), base=Params(cooldown_s=0., trades_per_hour=1e6, max_notional=100., risk_tolerance=1., max_exposure=1e8), **how)
    for r in swept.results: same(r, backtest('cross', tape, u, r.params, skip=False, **how))
    assert len({r.funnel['trade'] for r in swept.results}) > 3


def test_prices_that_were_changed_after_preparing_need_preparing_anew():
    u = universe_of(2, (4., 4.))
    rows = tape_of(5, 3_000, 2, 2., 0.)
    before, p, how = prepare(rows.copy(), u), Params(cooldown_s=0.), dict(inventory=u.empty_inventory() + [2e3, 0.])
    rows['bid_px'][rows['slot'] == 0] *= 1.01
    after = prepare(rows, u)
    assert backtest('cross', before, u, p, **how).funnel != (r := backtest('cross', after, u, p, **how)).funnel
    same(r, backtest('cross', after, u, p, skip=False, **how))
    with pytest.raises(ConfigError, match='bucket_s'): prepare(rows, u, 0.)
