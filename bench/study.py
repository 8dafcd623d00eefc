"""Many parameter sets: to a vectorbt Portfolio with metrics, beside vectorbt's own dense orders; and to a study with all its gates.

Each lane is a process of its own, which compiles and warms up on something small first and then says how many seconds of processor time
the rest took and how much memory it had at its peak. `python -m bench.study sweep|study` prints a table over four sizes of each kind.
"""

import json
import os
import resource
import subprocess
import sys
from contextlib import contextmanager
from time import perf_counter, process_time

import numpy as np

METRICS = ('total_profit', 'total_return', 'sharpe_ratio', 'max_drawdown')


def grid_of(sets: int) -> dict: # name to values; as many combinations
    "Mostly minimum edges, of which most never trade, as in a search from scratch."
    cooldowns, sizes = [1., 2., 5., 10.], [250., 500., 750., 1_000., 2_000.]
    if sets < 20 or sets%20: return dict(min_edge_bps=np.linspace(.5, 12, sets).tolist())
    return dict(min_edge_bps=np.linspace(.5, 12, sets//20).tolist(), cooldown_s=cooldowns, max_notional=sizes)


def _sets(events: int, busy: str = 'usual'):
    "The peers' world, prepared, and how it is swept."
    from bench import peers
    from arbwork.research.backtest import inventory_of, prepare
    u = peers.universe()
    held = inventory_of(u, {v: {'BTC': 50., 'USDT': 1e6} for v in u.venues})
    return prepare(peers.books(peers.quotes(events, peers.GAPS_BPS[busy])), u), u, dict(base=peers.params(), inventory=held, latency_ns=peers.RULE['latency_ns'])


def _metrics(portfolio) -> dict: return {name: getattr(portfolio, name)().to_numpy() for name in METRICS}


def to_portfolio(events: int, sets: int, busy: str = 'usual') -> dict:
    "A sweep to a Portfolio with metrics."
    from arbwork.research.sweep import sweep
    swept = portfolio = None
    for n, k in ((3_000, 2), (events, sets)):
        tape, u, how = _sets(n, busy)
        clock = [(process_time(), perf_counter())]
        swept = sweep('cross', tape, u, grid_of(k), **how)
        clock.append((process_time(), perf_counter()))
        portfolio = swept.portfolio
        clock.append((process_time(), perf_counter()))
        _metrics(portfolio)
        clock.append((process_time(), perf_counter()))
        _ = swept.frame
        clock.append((process_time(), perf_counter()))
    cpu = np.diff([c for c, _ in clock])
    return dict(events=events, sets=sets, trades=int(sum(r.funnel['trade'] for r in swept.results)), seconds=float(cpu[:3].sum()), kernel=float(cpu[0]),
                portfolio=float(cpu[1]), metrics=float(cpu[2]), frame=float(cpu[3]), wall=clock[3][1] - clock[0][1])


def dense(events: int, sets: int, busy: str = 'usual') -> dict:
    "vectorbt's own `from_orders` on the orders that the kernel made: a row an event, a column a set and slot, cash shared within a set."
    import pandas as pd
    import vectorbt as vbt
    from bench.peers import RULE
    from arbwork.research.sweep import sweep
    seconds, portfolio, orders = 0., None, 0
    for n, k in ((3_000, 2), (events, sets)):
        tape, u, how = _sets(n, busy)
        results, slots, ts = sweep('cross', tape, u, grid_of(k), **how).results, len(u.listings), tape.rows['ts_recv_ns']
        mids = np.empty((n, slots))
        for s in range(slots):
            own = np.flatnonzero(tape.rows['slot'] == s)
            at = np.clip(np.searchsorted(own, np.arange(n), 'right') - 1, 0, None)
            mids[:, s] = ((tape.rows['bid_px'][:, 0] + tape.rows['ask_px'][:, 0])/2)[own[at]]
        close, size = pd.DataFrame(np.tile(mids, (1, k))), np.zeros((n, k*slots))
        price, orders = close.to_numpy().copy(), 0
        for j, r in enumerate(results):
            rows, cols = np.minimum(np.searchsorted(ts, r.fills['booked_ns']), n - 1), j*slots + r.fills['slot']
            size[rows, cols], price[rows, cols] = r.fills['side']*r.fills['qty'], r.fills['px']
            orders += len(rows)
        size[size == 0] = np.nan
        begun = process_time()
        portfolio = vbt.Portfolio.from_orders(close, size=size, price=price, fees=RULE['fee_bps']/1e4, init_cash=4e6, cash_sharing=True,
                                              group_by=np.repeat(np.arange(k), slots), freq='10ms')
        _metrics(portfolio)
        seconds = process_time() - begun
    if len(portfolio.order_records) != orders: raise RuntimeError(f'vectorbt: found {len(portfolio.order_records)} orders, wanted {orders}')
    return dict(events=events, sets=sets, orders=orders, seconds=seconds)


def study(trials: int, hours: float, folds: int = 5, workers: int = 1) -> dict:
    "A study of the demo's generated day: search, weigh, doubt, conclude."
    from arbwork.research.study import study_of
    from arbwork.settings import make_params
    from arbwork.sim.scenarios import load_scenario
    seconds = wall = rows = 0
    for k, length in ((4, 2.), (trials, hours)):
        world = load_scenario('stress', seed=7, hours=length)
        tape, u = world.tape(), world.universe
        free, rows = u.empty_inventory(), len(tape)
        free[:, u.assets.index('BTC'), 0], free[:, u.assets.index('USDT'), 0] = 10., 200_000.
        grid = dict(min_edge_bps=np.linspace(1, 20, max(2, k//20)).tolist(), slippage_bps=[2., 5., 10., 20., 30.], max_skew_s=[.25, .5], single_leg=['reverse', 'proceed'])
        spent = resource.getrusage(resource.RUSAGE_CHILDREN)
        begun, started = process_time(), perf_counter()
        found, parts = study_of('cross', tape, u, grid, inventory=free, latency_ms=dict.fromkeys(u.venues, 50.), seed=7, base=make_params({}), folds=folds,
                                workers=workers)
        now = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds = process_time() - begun + now.ru_utime + now.ru_stime - spent.ru_utime - spent.ru_stime
        wall = perf_counter() - started
    return dict(events=rows, trials=len(parts.swept.results), gates=len(found.gates), promoted=found.promoted,
                trades=int(sum(r.funnel['trade'] for r in parts.swept.results)), seconds=seconds, wall=wall)


KINDS = {'portfolio': to_portfolio, 'dense': dense, 'study': study}


def peak_mb() -> float: return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/1024


def told(kind: str, *args) -> dict:
    "One of the above in a process of its own, with its peak memory; what it had before it began is in `idle_mb`."
    done = subprocess.run([sys.executable, '-W', 'ignore', '-m', 'bench.study', 'one', kind, json.dumps(args)], capture_output=True, text=True)
    if done.returncode: raise RuntimeError(f'{kind} {args}: ended with {done.returncode}: {done.stderr.strip()[-2_000:]}')
    return json.loads(done.stdout.splitlines()[-1])


def size(n: int) -> int: return max(1, n//50) if os.environ.get('BENCH_QUICK') else n


def _lanes(which: dict, unit: str, scale: float, baseline: str):
    "Lanes of name to (kind, arguments, operations)."
    def lane(kind, args):
        def run() -> float:
            found = told(kind, *args)
            print(f'{kind} {args}: {", ".join(f"{k} {v:,.3g}" if isinstance(v, float) else f"{k} {v:,}" for k, v in found.items())}', file=sys.stderr, flush=True)
            return found['seconds']
        return run
    return {name: (lane(kind, args), ops) for name, (kind, args, ops) in which.items()}, unit, scale, baseline, 1


@contextmanager
def sweep():
    "A million events and a thousand sets to a Portfolio with metrics; the baseline is vectorbt's own on a size it can do. Time for an event of a set."
    n, k = size(1_000_000), 1_000 if not os.environ.get('BENCH_QUICK') else 40
    m, j = size(100_000), 20
    yield _lanes({'vectorbt, dense orders': ('dense', (m, j), m*j), 'arbwork to vectorbt Portfolio': ('portfolio', (n, k), n*k)}, 'ns/set-event', 1e9,
                 'vectorbt, dense orders')


@contextmanager
def sweep_growth():
    "A sweep over four sizes; equal times an event are linear growth."
    sizes = [size(n) for n in (125_000, 250_000, 500_000, 1_000_000)]
    yield _lanes({f'{n:,} events, 100 sets': ('portfolio', (n, 100), n) for n in sizes}, 'ns/event', 1e9, f'{sizes[0]:,} events, 100 sets')


@contextmanager
def study_trials():
    "A study of the demo's day over four counts of trials, all gates; equal times a trial are linear growth."
    counts = [120, 240, 500, 1_000] if not os.environ.get('BENCH_QUICK') else [40, 80]
    yield _lanes({f'{k:,} trials, 24 h': ('study', (k, 24.), k) for k in counts}, 'ms/trial', 1e3, f'{counts[0]:,} trials, 24 h')


@contextmanager
def study_events():
    "A study of 240 trials over four lengths of the generated world; equal times an event are linear growth."
    lengths = [12., 24., 48., 96.] if not os.environ.get('BENCH_QUICK') else [2., 4.]
    yield _lanes({f'240 trials, {h:g} h': ('study', (240, h), 2*h*1_200) for h in lengths}, 'µs/event', 1e6, f'240 trials, {lengths[0]:g} h')


BENCHES = {'sweep': sweep, 'sweep_growth': sweep_growth, 'study_trials': study_trials, 'study_events': study_events}
TABLES = {'sweep': ('portfolio', [(125_000, 100), (250_000, 100), (500_000, 100), (1_000_000, 100), (250_000, 200), (250_000, 400), (250_000, 800)]),
          'busy': ('portfolio', [(250_000, 100, x) for x in ('quiet', 'usual', 'busy')]),
          'study': ('study', [(120, 24.), (240, 24.), (500, 24.), (1_000, 24.), (240, 12.), (240, 48.), (240, 96.)])}

if __name__ == '__main__':
    if sys.argv[1:2] == ['one']:
        idle = peak_mb()
        found = KINDS[sys.argv[2]](*json.loads(sys.argv[3]))
        print(json.dumps({**found, 'idle_mb': idle, 'peak_mb': peak_mb()}))
    elif sys.argv[1:2] and sys.argv[1] in TABLES:
        kind, cases = TABLES[sys.argv[1]]
        for case in cases: print('  '.join(f'{k} {v:,.4g}' if isinstance(v, float) else f'{k} {v:,}' for k, v in told(kind, *case).items()), flush=True)
    else: raise SystemExit(f'usage: python -m bench.study {"|".join(TABLES)}')
