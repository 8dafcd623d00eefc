"""The backtest beside hftbacktest and nautilus_trader: the same quotes, the same rule, and no time is compared before the trades are equal.

Each peer lives in an environment of its own, which `python -m bench.peers install` makes in a folder of the user's cache; a lane whose
environment is missing is left out with a word. Peers run as processes of their own that load once and then run when told. They say
themselves how many seconds of processor time their thread took, so start-up, compiling and loading are in nobody's time, ours included,
and neighbours on the machine are in nobody's time either. `BENCH_PEERS=hftbacktest` takes that
one alone; `BENCH_PEERS=hftbacktest,nautilus_trader` lets both into the largest sizes too, where nautilus_trader takes minutes a run.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from contextlib import ExitStack, contextmanager
from decimal import Decimal
from pathlib import Path
from time import thread_time

import numpy as np

PEERS = {'hftbacktest': 'hftbacktest==2.4.4', 'nautilus_trader': 'nautilus_trader'}
CACHE = Path(os.environ.get('XDG_CACHE_HOME') or Path.home()/'.cache')/'arbwork'/'peers'
QUOTES = np.dtype([('ts_ns', 'i8'), ('slot', 'i8'), ('bid_px', 'f8'), ('bid_qty', 'f8'), ('ask_px', 'f8'), ('ask_qty', 'f8')])
TRADE = np.dtype([('ts_ns', 'i8'), ('buy_slot', 'i8'), ('qty', 'f8'), ('bought', 'f8'), ('sold', 'f8')])
RULE = dict(fee_bps=4., min_edge_bps=1., max_notional=1_000., cooldown_s=1., max_age_s=5., max_skew_s=.5, latency_ns=25_000_003,
            base=5., quote=100_000., tick=.1, lot=1e-5, min_qty=1e-5, min_notional=5.)
GAPS_BPS = {'quiet': 2., 'usual': 3.5, 'busy': 8.} # how far the venues drift apart, one standard deviation
STEP_NS = 9_766*1_024 # about 10 ms; in steps of 1,024 ns a float64 holds these times exactly, and so do cooldowns
T0 = 1_704_067_200_000_000_000//1_024*1_024


def _swing(rng, n: int, sd: float, steps: float) -> np.ndarray:
    "A gap that comes back within about `steps` steps."
    from scipy.signal import lfilter
    a = np.exp(-1/steps)
    return lfilter([1.], [1., -a], rng.standard_normal(n)*sd*np.sqrt(1 - a*a))


def quotes(n: int, gap_bps: float, seed: int = 7) -> np.ndarray: # (n,) of QUOTES
    "Two venues of BTC-USDT: nine rows in ten change the size on one side, one in ten the prices. Sizes exceed any order, so that depth is nobody's question."
    rng, rows = np.random.default_rng(seed), np.zeros(n, QUOTES)
    rows['ts_ns'], rows['slot'] = T0 + np.arange(n)*STEP_NS, rng.integers(0, 2, n)
    mid = 20_000*np.exp(np.cumsum(rng.standard_normal(n))*.13e-4)
    gap = _swing(rng, n, gap_bps, 3_000)
    for slot in range(2):
        at = np.flatnonzero(rows['slot'] == slot)
        moves, k = rng.random(len(at)) < .1, np.arange(len(at))
        moves[0] = True
        last = np.maximum.accumulate(np.where(moves, k, 0))
        ticks = np.rint((mid*np.exp((slot - .5)*gap/1e4))[at][last]/RULE['tick'])
        rows['bid_px'][at], rows['ask_px'][at] = (ticks - 3)/10, (ticks + 3)/10
        side, sizes = rng.random(len(at)) < .5, rng.integers(100_000, 900_000, (2, len(at)))
        for name, own, size in (('bid_qty', side, sizes[0]), ('ask_qty', ~side, sizes[1])):
            rows[name][at] = size[np.maximum.accumulate(np.where(own | moves, k, 0))]/1e5
    return rows


def books(rows: np.ndarray) -> np.ndarray: # (n,) of BOOK with one level
    "The same quotes as our feed writes them."
    from arbwork.feed.events import BOOK, VALID
    out = np.zeros(len(rows), BOOK)
    out['ts_venue_ns'] = out['ts_recv_ns'] = rows['ts_ns']
    out['seq'], out['slot'], out['state'] = np.arange(1, len(rows) + 1), rows['slot'], VALID
    for name in ('bid_px', 'bid_qty', 'ask_px', 'ask_qty'): out[name][:, 0] = rows[name]
    return out


def universe():
    from arbwork.decide.contract import Universe
    from arbwork.market import Listing
    grid = [Decimal(str(RULE[k])) for k in ('tick', 'lot', 'min_qty', 'min_notional')]
    fee = RULE['fee_bps']
    return Universe([Listing(v, 'BTC-USDT', 'BTCUSDT', *grid) for v in ('binance', 'bybit')], {v: (fee, fee) for v in ('binance', 'bybit')})


def params(**other):
    "The rule in our words: nothing gives way, a lone leg stays, no limit beyond cooldown and inventory."
    from arbwork.settings import make_params
    return make_params({**dict(risk_tolerance=1., min_edge_bps=RULE['min_edge_bps'], max_notional=RULE['max_notional'], cooldown_s=RULE['cooldown_s'],
                               trades_per_hour=1e6, max_age_s=RULE['max_age_s'], max_skew_s=RULE['max_skew_s'], slippage_bps=0., max_exposure=1e8,
                               max_loss_day=1e8, max_drawdown=1., single_leg='cancel'), **other})


class Ours:
    "One parameter set on a tape that was prepared once."
    def __init__(self, rows: np.ndarray):
        from arbwork.research.backtest import backtest, inventory_of, prepare
        self.universe, self.books = universe(), books(rows)
        begun = thread_time()
        self.tape = prepare(self.books, self.universe)
        self.prepared_s = thread_time() - begun
        held = inventory_of(self.universe, {v: {'BTC': RULE['base'], 'USDT': RULE['quote']} for v in self.universe.venues})
        self.backtest = lambda tape, **other: backtest('cross', tape, self.universe, params(**other), inventory=held, latency_ns=RULE['latency_ns'])

    def run(self) -> float:
        begun = thread_time()
        self.result = self.backtest(self.tape)
        return thread_time() - begun

    def from_rows(self) -> float:
        "Checking the rows and making the indices as well."
        begun = thread_time()
        self.backtest(self.books)
        return thread_time() - begun

    @property
    def trades(self) -> np.ndarray:
        x = self.result.trades
        out = np.zeros(len(x), TRADE)
        for to, found in (('ts_ns', x['opened_ns']), ('buy_slot', x['slot'][:, 0]), ('qty', x['qty'][:, 0]), ('bought', x['own'][:, 0]), ('sold', x['own'][:, 1])): out[to] = found
        return np.sort(out, order='ts_ns')

    @property
    def held(self) -> np.ndarray: return self.result.inventory.sum(axis=2) # (venues, assets)


class Peer:
    "A peer in a process of its own."
    def __init__(self, name: str, folder: Path, rows: Path):
        self.name, self.out = name, folder/f'{name}.npy'
        script = Path(__file__).with_name(f'peer_{name.split("_")[0]}.py')
        env = {k: v for k, v in os.environ.items() if k not in ('PYTHONPATH', 'PYTHONHOME')}
        self.process = subprocess.Popen([python_of(name), '-W', 'ignore', str(script), str(rows), str(self.out), json.dumps(RULE)], stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE, text=True, env=env)
        self._line()

    def _line(self) -> dict:
        for line in self.process.stdout:
            if line.startswith('{'): return json.loads(line)
        raise RuntimeError(f'{self.name}: ended with {self.process.wait()} before it answered')

    def run(self) -> float:
        self.process.stdin.write('run\n')
        self.process.stdin.flush()
        self.said = self._line()
        return float(self.said['seconds'])

    @property
    def trades(self) -> np.ndarray: return np.load(self.out)
    @property
    def held(self) -> np.ndarray: return np.array(self.said['held'])

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def python_of(name: str) -> str: return str(CACHE/name/'bin'/'python')


def have(name: str) -> bool: return Path(python_of(name)).exists()


def differ(ours, peer) -> str: # '' when they are equal
    "The first thing in which two runs disagree."
    a, b = ours.trades, peer.trades
    if len(a) != len(b): return f'found {len(b)} trades, wanted {len(a)}'
    for name in TRADE.names:
        odd = np.flatnonzero(a[name] != b[name]) if TRADE[name].kind == 'i' else np.flatnonzero(~np.isclose(a[name], b[name], rtol=0, atol=RULE['lot']/1e3))
        if len(odd): return f'trade {odd[0]}: found {name} {b[name][odd[0]]}, wanted {a[name][odd[0]]}'
    x, y = ours.held, peer.held
    return '' if np.allclose(x, y, rtol=1e-9, atol=1e-5) else f'found {y.tolist()} held at the end, wanted {x.tolist()}'


def _beside(size: int, busy: str, rounds: int, who=tuple(PEERS)):
    "One world for all who are here; the baseline is the first peer."
    @contextmanager
    def bench():
        n = size//100 if os.environ.get('BENCH_QUICK') else size
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix='arbwork-peers-')))
            rows = quotes(n, GAPS_BPS[busy])
            np.save(folder/'quotes.npy', rows)
            ours = Ours(rows)
            del rows
            ours.run()
            trades = len(ours.trades)
            word(f'{n:,} quotes of two venues, {busy}: {trades:,} trades, {trades/n*1e6:,.0f} a million; {said_no(ours.result)}')
            lanes, baseline = {'arbwork, prepared': (ours.run, n), 'arbwork, from rows': (ours.from_rows, n)}, 'arbwork, prepared'
            for name in PEERS:
                if name not in asked_for(who):
                    word(f'{name}: left out; BENCH_PEERS={",".join(PEERS)} lets it in')
                    continue
                if not have(name):
                    word(f'{name}: left out, not installed; `python -m bench.peers install` does that')
                    continue
                peer = Peer(name, folder, folder/'quotes.npy')
                stack.callback(peer.close)
                peer.run()
                if why := differ(ours, peer): raise RuntimeError(f'{name}: its trades are not ours, so no time is compared: {why}')
                word(f'{name} {peer.said["version"]}: its {len(peer.trades):,} trades and what it holds at the end are ours')
                lanes[name] = (peer.run, n)
                if baseline.startswith('arbwork'): baseline = name
            yield lanes, 'ns/event', 1e9, baseline, rounds
    return bench


def asked_for(who) -> list[str]: return [x for x in os.environ.get('BENCH_PEERS', '').split(',') if x] or list(who)


def timed(run):
    "The same as a lane that says itself how much processor time it took."
    def lane() -> float:
        begun = thread_time()
        run()
        return thread_time() - begun
    return lane


def word(text: str): print(text, file=sys.stderr, flush=True)


def said_no(result) -> str:
    "Where the other events went."
    return ', '.join(f'{k} {v:,}' for k, v in result.funnel.items() if v and k != 'trade')


quiet, usual, busy = (_beside(1_000_000, x, 2) for x in ('quiet', 'usual', 'busy'))
large, large_quiet = _beside(10_000_000, 'usual', 3, ('hftbacktest',)), _beside(10_000_000, 'quiet', 3, ('hftbacktest',))


@contextmanager
def ten_levels():
    "Books of ten levels from the generated stress world, one parameter set, three degrees of business; the baseline is one numpy pass over the bytes."
    from arbwork.research.backtest import backtest as run, prepare
    from arbwork.settings import Params
    from arbwork.sim.scenarios import load_scenario
    world = load_scenario('stress', seed=7, hours=2. if os.environ.get('BENCH_QUICK') else 240.)
    rows = world.tape()
    tape, how = prepare(rows, world.universe), dict(inventory=world.universe.empty_inventory() + 1e6, latency_ns=50_000_000, seed=7)
    asked = {'busy': 2, 'usual': 10, 'quiet': 40, 'nothing to trade': 500}
    for name, bps in asked.items():
        r = run('cross', tape, world.universe, Params(min_edge_bps=bps), **how)
        word(f'{len(rows):,} books of ten levels, {name}: {r.funnel["trade"]/len(rows)*1e6:,.0f} trades a million; {said_no(r)}')
    lane = lambda bps: (timed(lambda: run('cross', tape, world.universe, Params(min_edge_bps=bps), **how)), len(rows))
    yield {'one numpy pass': (timed(lambda: np.add.reduce(rows.view('f8'))), len(rows)), **{k: lane(v) for k, v in asked.items()}}, 'ns/event', 1e9, 'one numpy pass', 5


def _calls(venues: int, min_edge_bps: float, by_arguments: bool = False):
    "What live does with a row: one call of the jitted step from Python on arrays that stay; how many calls, and the share that ended in a trade."
    from arbwork.decide.contract import INTENT, MAX_INTENTS, MAX_TRADES, MEMORY, OPEN_TRADE, params_array
    from arbwork.decide.risk import new_risk
    from arbwork.decide.strategies import STRATEGIES
    from arbwork.sim.scenarios import stress
    world = stress(seed=7, hours=1., venues=('binance', 'bybit', 'okx', 'kraken', 'coinbase')[:venues])
    rows, u, cross = world.tape(), world.universe, STRATEGIES['cross']
    free, p = u.empty_inventory() + 1e6, params_array(params(min_edge_bps=min_edge_bps, cooldown_s=0., fee_mult=.1))
    held = (u.empty_board(), u.specs(), free, free.copy(), np.zeros(MAX_TRADES, OPEN_TRADE), p, p, np.zeros(MEMORY), np.zeros(len(u.assets)), new_risk(),
            np.zeros(MAX_INTENTS, INTENT))
    times, step, call = rows['ts_recv_ns'].tolist(), cross.step, cross.bound(rows, *held)

    def run():
        n = 0
        for i, now_ns in enumerate(times): n += call(now_ns, i) > 0
        return n

    def run_by_arguments():
        n = 0
        for i, now_ns in enumerate(times): n += step(now_ns, rows, i, *held) > 0
        return n
    run = run_by_arguments if by_arguments else run
    return run, len(times), run()/len(times)


@contextmanager
def decide():
    "A kernel call as live makes it, books of ten levels: where no pair has an edge, and where most calls walk both books to a trade; the baseline hands over thirteen arguments."
    lanes = {}
    for venues in (2, 5):
        for name, bps in (('nothing to trade', 500.), ('trading', 0.)):
            run, n, share = _calls(venues, bps)
            word(f'{venues} venues, {name}: {share:.0%} of {n:,} calls end in a trade')
            lanes[f'{venues} venues, {name}'] = timed(run), n
    run, n, _ = _calls(2, 500., by_arguments=True)
    lanes['2 venues, by arguments'] = timed(run), n
    yield lanes, 'µs/call', 1e6, '2 venues, by arguments', 15


BENCHES = {'peers': usual, 'peers_quiet': quiet, 'peers_busy': busy, 'peers_large': large, 'peers_large_quiet': large_quiet, 'ten_levels': ten_levels, 'decide': decide}


def install(names=()):
    "An environment for each peer, made anew, with the newest Python of this machine that has wheels for it."
    for name in names or PEERS:
        if name not in PEERS: raise SystemExit(f'{name}: unknown, wanted some of {", ".join(PEERS)}')
        folder = CACHE/name
        found = [sys.executable] if name == 'hftbacktest' else [*(p for v in ('3.13', '3.12') for p in interpreters(v)), sys.executable]
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run([found[0], '-m', 'venv', str(folder)], check=True)
        subprocess.run([python_of(name), '-m', 'pip', 'install', '-q', PEERS[name]], check=True)
        word(f'{name}: in {folder}')


def interpreters(version: str):
    "Interpreters of this version that start."
    for path in [shutil.which(f'python{version}'), *map(str, sorted(Path.home().glob(f'.pyenv/versions/{version}*/bin/python')))]:
        if path and subprocess.run([path, '-c', 'import venv'], capture_output=True).returncode == 0: yield path


if __name__ == '__main__':
    if sys.argv[1:2] != ['install']: raise SystemExit('usage: python -m bench.peers install [NAME...]; the lanes run with `python -m bench peers`')
    install(sys.argv[2:])
