"Plans of transfers: never below zero, never worse than nothing, priced as their dual says."
from decimal import Decimal

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from arbwork.decide.contract import Universe
from arbwork.market import ConfigError, Listing
from arbwork.research.inventory import Direction, Transfer, lean_bps, plan

TWO = Universe([Listing(v, 'LINK-USDT', 'LINKUSDT', *map(Decimal, ('0.001', '0.01', '0.01', '5'))) for v in ('binance', 'bybit')],
               {'binance': (10., 10.), 'bybit': (10., 10.)})
MARKS = np.array([27., 1.])


def drawn(seed):
    rng = np.random.default_rng(seed)
    holdings = np.stack([rng.uniform(0, 200, 2), rng.uniform(0, 5_000, 2)], 1)
    pace = rng.uniform(1, 30)
    ways = [Direction('there', float(rng.uniform(.1, 4)), [[pace, -27*pace], [-pace, 27.1*pace]]),
            Direction('back', float(rng.uniform(.1, 4)), [[-pace/3, 9.1*pace], [pace/3, -9*pace]])]
    roads = [Transfer(a, b, x, 'main', float(rng.uniform(0, .5)), float(rng.uniform(0, 60)), 5., float(rng.uniform(5, 90)), bool(rng.random() < .8))
             for a, b in (('binance', 'bybit'), ('bybit', 'binance')) for x in ('LINK', 'USDT')]
    return holdings, ways, roads


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_a_plan_is_never_worse_than_none_and_keeps_each_road_s_rules(seed):
    holdings, ways, roads = drawn(seed)
    p = plan(TWO, holdings, ways, roads, MARKS, hours=6, steps=8)
    assert p.earns >= p.without - 1e-6
    assert all(0 <= x <= 1 + 1e-9 for x in (*p.pace.values(), *p.pace_without.values()))
    for t, amount in p.moves:
        v, a = TWO.venues.index(t.source), TWO.assets.index(t.asset)
        assert t.is_open and t.minimum - 1e-6 <= amount <= holdings[v, a] + 1e-6
    assert (np.array(p.worth) >= -1e-9).all()


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(0, 1), st.integers(0, 1))
def test_a_dual_price_lies_between_what_one_unit_more_brings_and_one_less_takes(seed, v, a):
    holdings, ways, _ = drawn(seed)
    def earned(extra):
        h = holdings.copy(); h[v, a] += extra
        return plan(TWO, h, ways, [], MARKS, hours=6, steps=8).earns
    step = min(1e-3, holdings[v, a])
    if step <= 0: return
    worth = plan(TWO, holdings, ways, [], MARKS, hours=6, steps=8).worth[v][a]
    up, down = (earned(step) - earned(0.))/step, (earned(0.) - earned(-step))/step
    assert up - 1e-5 <= worth <= down + 1e-5 # the value of holdings is concave


def test_lean_is_one_figure_a_slot_and_opposite_ways_are_opposite():
    worth = [[0., .001], [.2, 0.]]
    lean = lean_bps(TWO, worth, MARKS)
    assert lean[1] - lean[0] == pytest.approx((.2 + 27*.001)/27*1e4)
    assert lean_bps(TWO, np.zeros((2, 2)), MARKS).tolist() == [0., 0.]
    with pytest.raises(ConfigError, match='price above 0'): lean_bps(TWO, worth, np.array([0., 1.]))


def test_what_cannot_be_is_refused_by_name():
    holdings, ways, roads = drawn(1)
    with pytest.raises(ConfigError, match='figures >= 0'): plan(TWO, -holdings, ways, roads, MARKS)
    with pytest.raises(ConfigError, match='no direction'): plan(TWO, holdings, [], roads, MARKS)
    with pytest.raises(ConfigError, match="asset 'DOGE'"): plan(TWO, holdings, ways, [Transfer('binance', 'bybit', 'DOGE', 'main', 0., 0., 1., 2.)], MARKS)
