"Sets shared out over processes and over a cluster of Dask, spaces explored by Optuna, and grids that are refused."
import msgspec
import numpy as np
import pytest
from numba import njit

from arbwork.decide.contract import make_params
from arbwork.market import ConfigError
from arbwork.research.backtest import prepare
from arbwork.research.sweep import combinations, explore, finer, sweep
from arbwork.sim.scenarios import Calibration, stress

GRID = dict(min_edge_bps=[2., 8.], slippage_bps=np.array([5., 20.]), single_leg=['reverse', 'cancel'])


@pytest.fixture(scope='module')
def world(): return stress(seed=5, hours=1, calibration=Calibration(jumps_per_hour=20., jump_bps=25., jump_below=.5))


def how(world): return dict(inventory=world.universe.empty_inventory() + 1e5, latency_ns=50_000_000, fee_in='received', seed=3, jitter=.5)


def same(a, b):
    assert a.returns.tobytes() == b.returns.tobytes() and len(a.results) == len(b.results)
    for x, y in zip(a.results, b.results):
        assert x.fills.tobytes() == y.fills.tobytes() and x.trades.tobytes() == y.trades.tobytes() and x.funnel == y.funnel and x.params == y.params


@pytest.fixture(scope='module')
def at_home(world): return sweep('cross', world.tape(), world.universe, GRID, **how(world))


def test_processes_give_the_same_to_the_bit(world, at_home):
    told = []
    same(at_home, sweep('cross', world.tape(), world.universe, GRID, workers=2, on_progress=lambda done, n: told.append((done, n)), **how(world)))
    assert at_home.frame['trades'].sum() > 20 and told[-1] == (8, 8)


def test_a_cluster_gives_the_same_to_the_bit(world, at_home):
    distributed = pytest.importorskip('distributed')
    with distributed.LocalCluster(n_workers=1, threads_per_worker=1, host='127.0.0.1', dashboard_address=None) as cluster:
        same(at_home, sweep('cross', world.tape(), world.universe, GRID, dask=cluster.scheduler_address, **how(world)))


def test_a_cluster_that_is_not_there_is_named(world):
    with pytest.raises(ConfigError, match='tcp://127.0.0.1:9: no scheduler answers'): sweep('cross', world.tape(), world.universe, GRID, dask='tcp://127.0.0.1:9', **how(world))


def test_a_function_of_ones_own_stays_at_home(world):
    with pytest.raises(ConfigError, match='a function of a notebook does not exist there'): sweep(njit(lambda *x: 0), world.tape(), world.universe, GRID, workers=2, **how(world))
    with pytest.raises(ConfigError, match='wanted a name, a Strategy or a function with @njit'): sweep(lambda *x: 0, world.tape(), world.universe, GRID, workers=2, **how(world))


def test_what_is_explored_depends_on_the_seed_and_on_the_buckets_that_may_be_seen(world):
    tape, space = prepare(world.tape(), world.universe), dict(min_edge_bps=(1., 30.), slippage_bps=(1., 30.), single_leg=['reverse', 'proceed'])
    ask = lambda **more: explore('cross', tape, world.universe, space, trials=15, buckets=slice(0, 30), **{**how(world), **more})
    first = ask()
    same(first, ask())
    assert [r.params for r in first.results] != [r.params for r in ask(seed=4).results]
    assert len({msgspec.json.encode(r.params) for r in first.results}) == len(first.results) <= 15
    assert set(first.frame) >= {*space, 'pnl'} and first.portfolio.total_profit().shape == (len(first.results),)
    rows = world.tape().copy()
    rows['bid_px'][rows['ts_recv_ns'] > tape.ends_ns[30]] *= 1.001 # what comes after changes nothing in what was tried
    later = prepare(rows, world.universe)
    other = explore('cross', later, world.universe, space, trials=15, buckets=slice(0, 30), **how(world))
    assert [r.params for r in other.results] == [r.params for r in first.results]


def test_grids_that_cannot_be_meant(world):
    with pytest.raises(ConfigError, match='found 10,000,000 sets .* wanted 100,000 at most'): combinations({f'p{k}': range(10) for k in range(7)})
    with pytest.raises(ConfigError, match='min_edge_bps'): combinations(dict(min_edge_bps=[1e9]))
    with pytest.raises(ConfigError, match='not among the values tried'): finer(dict(min_edge_bps=[2., 4.]), make_params(dict(min_edge_bps=3.)))
    assert finer(dict(min_edge_bps=[2., 4., 9.]), make_params(dict(min_edge_bps=9.))) == dict(min_edge_bps=[6.5, 9.])


def test_a_portfolio_knows_its_sets_by_name_also_where_two_are_alike(world):
    from arbwork.settings import Params
    tape = prepare(world.tape(), world.universe)
    swept = sweep('cross', tape, world.universe, dict(min_edge_bps=[2., 8.], slippage_bps=[5., 20.]), **how(world))
    profit = swept.portfolio.total_profit()
    assert profit.index.names == ['min_edge_bps', 'slippage_bps'] and profit.index.tolist() == [(2., 5.), (2., 20.), (8., 5.), (8., 20.)]
    np.testing.assert_allclose(profit, [r.pnl_quote for r in swept.results], atol=1e-6)
    assert swept.portfolio[(8., 5.)].total_profit() == pytest.approx(profit.iloc[2]) and swept.portfolio.sharpe_ratio().index.equals(profit.index)
    twice = sweep('cross', tape, world.universe, [Params(min_edge_bps=2.), Params(min_edge_bps=2., max_notional=300.), Params(min_edge_bps=2.)], names=('min_edge_bps', 'slippage_bps'), **how(world))
    np.testing.assert_allclose(twice.portfolio.total_profit(), [r.pnl_quote for r in twice.results], rtol=1e-6)
    assert len({r.pnl_quote for r in twice.results}) == 2
