"The bound is a bound: nothing that the backtest does on the same books earns more."
from decimal import Decimal

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from arbwork.clock import NS
from arbwork.decide.contract import Universe
from arbwork.feed.events import BOOK, INVALID, VALID
from arbwork.market import ConfigError, Listing
from arbwork.research.backtest import backtest, inventory_of, prepare
from arbwork.research.hindsight import STEPS, capture_ratio, hindsight, waterfall, _last_marks
from arbwork.settings import make_params

TWO = Universe([Listing(v, 'LINK-USDT', 'LINKUSDT', *map(Decimal, ('0.01', '0.01', '0.01', '1'))) for v in ('binance', 'bybit')],
               {'binance': (1., 2.), 'bybit': (1., 3.)})
SEEDS = st.integers(0, 2**32 - 1)


def tape(seed: int, n: int, swing: float = 8.):
    "Two venues whose books wander apart and come back, some levels standing still, some frames invalid."
    rng = np.random.default_rng(seed)
    rows = np.zeros(n, BOOK)
    rows['ts_recv_ns'] = NS + np.cumsum(rng.integers(1, 300, n))*1_000_000
    rows['ts_venue_ns'] = rows['ts_recv_ns'] - rng.integers(0, 30, n)*1_000_000
    rows['slot'], rows['state'] = np.arange(n) % 2 if seed % 2 else rng.integers(0, 2, n), np.where(rng.random(n) < .05, INVALID, VALID)
    mid = np.round(2_700 + np.cumsum(rng.normal(0, 1, n)) + np.where(rows['slot'] == 1, swing*np.sin(np.arange(n)/7), 0))
    for k in range(4):
        rows['bid_px'][:, k], rows['ask_px'][:, k] = (mid - 1 - k)/100, (mid + 1 + k)/100
        rows['bid_qty'][:, k], rows['ask_qty'][:, k] = rng.integers(1, 4, (2, n))*5.
    return prepare(rows, TWO)


def money(rng): return inventory_of(TWO, {v: dict(USDT=float(rng.integers(0, 4_000)), LINK=float(rng.integers(0, 150))) for v in TWO.venues})


@settings(max_examples=40, deadline=None)
@given(SEEDS, st.integers(4, 120), st.sampled_from([0, 40_000_000, 400_000_000]), st.sampled_from(['quote', 'received']),
       st.sampled_from(['cancel', 'reverse', 'proceed']), st.floats(-5, 10))
def test_no_backtest_earns_more_than_the_bound(seed, n, latency_ns, fee_in, policy, edge):
    some, start = tape(seed, n), money(np.random.default_rng(seed))
    p = make_params(dict(min_edge_bps=edge, single_leg=policy, cooldown_s=0, max_skew_s=2, max_age_s=9, max_notional=5_000, risk_tolerance=1, slippage_bps=20,
                         max_open_trades=8, max_exposure=1e7, max_loss_day=1e7, max_drawdown=1, trades_per_hour=1e5))
    r = backtest('cross', some, TWO, p, inventory=start, latency_ns=latency_ns, fee_in=fee_in)
    marks = _last_marks(some, TWO, start, p)
    earned = float(((r.inventory - start).sum((0, 2))*marks).sum())
    most = hindsight(some, TWO, inventory=start, params=p, latency_ns=latency_ns, fee_in=fee_in, neutral=False).pnl_quote
    assert earned <= most + 1e-6*(1 + abs(most))


@settings(max_examples=25, deadline=None)
@given(SEEDS, st.integers(4, 60), st.sampled_from([0, 150_000_000]), st.booleans(), st.booleans())
def test_what_is_left_out_changes_nothing(seed, n, latency_ns, stocked, reactive):
    some, start = tape(seed, n), money(np.random.default_rng(seed))
    for window in (n, 7):
        ask = dict(inventory=start, latency_ns=latency_ns, stocked=stocked, reactive=reactive, window=window)
        thin, all_ = (hindsight(some, TWO, prune=prune, **ask) for prune in (True, False))
        assert thin.pnl_quote == pytest.approx(all_.pnl_quote, abs=1e-6)
        assert thin.choices <= all_.choices


@settings(max_examples=25, deadline=None)
@given(SEEDS, st.integers(4, 60), st.sampled_from([0, 150_000_000]))
def test_each_constraint_only_takes(seed, n, latency_ns):
    some, start = tape(seed, n), money(np.random.default_rng(seed))
    ask = dict(inventory=start, window=n)
    any_, neutral = (hindsight(some, TWO, latency_ns=latency_ns, neutral=x, **ask).pnl_quote for x in (False, True))
    seen, full = (hindsight(some, TWO, latency_ns=latency_ns, reactive=True, stocked=x, **ask).pnl_quote for x in (False, True))
    offered = hindsight(some, TWO, reactive=True, stocked=True, **ask).pnl_quote
    cut = hindsight(some, TWO, inventory=start, latency_ns=latency_ns, window=5).pnl_quote
    slack = 1e-6*(1 + abs(any_) + abs(offered))
    assert 0 <= seen <= neutral + slack <= any_ + 2*slack and seen <= full + slack <= offered + 2*slack
    assert cut >= neutral - slack # windows bound the whole from above


def test_a_heap_is_taken_once_however_often_it_is_shown():
    rows = tape(1, 2).rows[[0]*8].copy()
    rows['ts_recv_ns'] = rows['ts_venue_ns'] = NS*(1 + np.arange(8))
    rows['slot'], rows['state'] = np.arange(8) % 2, VALID
    rows['bid_px'][rows['slot'] == 1] += .5
    rows['ask_px'][rows['slot'] == 1] += .5
    once = hindsight(rows[:2], TWO, inventory=inventory_of(TWO, {v: dict(USDT=1e6, LINK=1e5) for v in TWO.venues})).pnl_quote
    often = hindsight(rows, TWO, inventory=inventory_of(TWO, {v: dict(USDT=1e6, LINK=1e5) for v in TWO.venues}), window=8).pnl_quote
    assert once > 1 and often == pytest.approx(once)


def test_the_waterfall_adds_up_to_what_was_earned():
    some, start = tape(12, 400), inventory_of(TWO, {v: dict(USDT=3_000, LINK=100) for v in TWO.venues})
    p = make_params(dict(min_edge_bps=3, max_skew_s=2, max_age_s=9, max_notional=800, cooldown_s=0))
    table = waterfall('cross', some, TWO, p, inventory=start, latency_ns=20_000_000)
    assert list(table['step']) == list(STEPS)
    assert table['change'].sum() == pytest.approx(backtest('cross', some, TWO, p, inventory=start, latency_ns=20_000_000).pnl_quote)
    assert table['left'][0] >= table['left'][1] >= table['left'][2] > 0 and capture_ratio(table) < 1


def test_too_large_a_program_is_refused():
    with pytest.raises(ConfigError, match='4,001 instants.*neutral trading in windows'): hindsight(tape(3, 4_001), TWO, inventory=TWO.empty_inventory(), neutral=False)
