"The cross strategy decides what it always decided: hashes of decisions, fills and equity, taken before the contract grew."
import hashlib

import numpy as np
import pytest

from arbwork.clock import NS
from arbwork.decide.contract import INTENT, MAX_INTENTS, MAX_TRADES, MEMORY, OPEN_TRADE, params_array
from arbwork.decide.cross import commit, decide
from arbwork.research.backtest import backtest, inventory_of, prepare
from arbwork.settings import Params
from arbwork.sim.scenarios import recorded, stress

EASY = dict(cooldown_s=0., trades_per_hour=1e6, max_exposure=1e8)
WORLDS = {
    'stress': lambda: stress(seed=7, hours=6.),
    'three venues': lambda: stress(seed=3, hours=2., venues=('binance', 'bybit', 'okx')),
    'recorded': lambda: recorded(),
}
SETS = {
    'free': (Params(min_edge_bps=1e-6, fee_mult=0., max_loss_day=1e8, **EASY), {}),
    'plain': (Params(min_edge_bps=1., fee_mult=0.2, max_loss_day=1e8, **EASY), {}),
    'wishes': (Params(min_edge_bps=2., fee_mult=0.1, max_notional=5_000., cooldown_s=20., trades_per_hour=60., min_profit_quote=0.1), dict(latency_ns=80_000_000)),
    'proceed': (Params(min_edge_bps=0.2, fee_mult=0.05, single_leg='proceed', max_open_trades=4, stop_bps=5., max_loss_day=1e8, **EASY), dict(latency_ns=3*NS, fee_in='received')),
    'reverse': (Params(min_edge_bps=0., fee_mult=0.02, slippage_bps=0.5, deadline_s=2., max_loss_day=1e8, **EASY), dict(latency_ns=2*NS, jitter=0.5, seed=11)),
    'cancel': (Params(min_edge_bps=0.5, fee_mult=0.05, single_leg='cancel', max_loss_day=30., **EASY), dict(latency_ns=4*NS)),
}
FILLS = ('trade', 'row', 'hedge', 'slot', 'side', 'sent_ns', 'filled_ns', 'booked_ns', 'wanted', 'qty', 'px', 'notional', 'fee', 'base_change', 'quote_change')
TRADES = ('id', 'row', 'opened_ns', 'lone_ns', 'closed_ns', 'edge_bps', 'expected', 'pnl', 'fees', 'hedges')
WANTED = ('slot', 'side', 'qty', 'limit_px', 'ref_px', 'edge_bps', 'profit')


def columns(rows, names): return [np.ascontiguousarray(rows[name]).tobytes() for name in names]
def short(parts): return hashlib.sha256(b'|'.join(parts)).hexdigest()[:16]


def digest(r):
    counts = [repr(sorted((k, v) for k, v in r.funnel.items() if v)).encode()]
    return short(counts + columns(r.fills, FILLS) + columns(r.trades, TRADES) + [r.equity.tobytes(), r.marks.tobytes(), r.inventory.tobytes()])


def decisions(world, n=6_000):
    "What the kernel says of the first rows when nothing ever fills."
    u, tape, p = world.universe, world.tape()[:n], params_array(SETS['plain'][0])
    board, specs, trades, memory, out = u.empty_board(), u.specs(), np.zeros(MAX_TRADES, OPEN_TRADE), np.zeros(MEMORY), np.zeros(MAX_INTENTS, INTENT)
    inventory, parts = inventory_of(u, world.balances), []
    for row in tape:
        board[row['slot']] = row
        k = decide(int(row['ts_recv_ns']), board, specs, inventory, trades, p, memory, out)
        if k > 0: commit(memory, int(row['ts_recv_ns']), out, k, p)
        parts += [str(k).encode(), *columns(out[:max(k, 0)], WANTED)]
    return short(parts)


@pytest.fixture(scope='module')
def worlds(): return {name: make() for name, make in WORLDS.items()}


def found(world):
    tape, universe = prepare(world.tape(), world.universe), world.universe
    how = dict(inventory=inventory_of(universe, world.balances))
    results = {label: backtest('cross', tape, universe, params, **how, **more) for label, (params, more) in SETS.items()}
    return {'decisions': decisions(world), **{label: digest(r) for label, r in results.items()}}, {label: len(r.trades) for label, r in results.items()}


LABELS = ('decisions', 'free', 'plain', 'wishes', 'proceed', 'reverse', 'cancel')
BEFORE = {
    'stress': 'e7d8cf56f88d6ac8 a73c9d8937683645 a9a46b9f9bc93922 5078209bd335ba58 dbaf5fc8f5173b96 f6735d6a859a15ce e18847e7862549c8',
    'three venues': '292bf51358386a97 a7d1c13e9673910a 4f208fc2af63adc0 c8774d6f26d3dc90 67694da6968dc671 cd688ae66417f17e 5ffa9140e0595c84',
    'recorded': '353775cfadb6799f 198d693e3045c7fc 0b99f30d67cc9dc9 49ecec9170911bbd 85d64739a52fdf43 cdb904e59623dadc 23726153d6d35bcb',
}


@pytest.mark.parametrize('name', WORLDS)
def test_the_results_are_those_of_before_to_the_bit(worlds, name):
    hashes, trades = found(worlds[name])
    assert hashes == dict(zip(LABELS, BEFORE[name].split()))
    assert all(trades.values())


if __name__ == '__main__':
    for name, make in WORLDS.items(): print(name, *found(make()))
