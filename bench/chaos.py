"""`python -m bench.chaos [--seeds N] [--calm SECONDS] [--jobs 1,2] [--json]`: how many simulated seconds pass in a second of the wall, and what takes the processor's time.

How fast a schedule goes is a matter of how much happens in it, so there are three markets, each with the whole stack (codecs, feeds, journal, kernel, workers, ledger, recovery, and the judge at
the end):

- `chaos`: as `arbwork chaos` draws it. Two venues rewrite a book of ten levels a side twice a second each, two trades in three seconds, a fault a second, a process that dies.
- `calm`: the same books, and nothing in them to trade: what idle costs.
- `day`: a market that a person could meet, as in `bench.soak`: books that change every five seconds, trades some minutes apart, something wrong every five minutes.

`of the processor` is one schedule of each under cProfile, by the part of the stack in which the time was spent itself.
"""

import argparse
import cProfile
import json
import pstats
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context

import msgspec

SEEDS, FIRST, CALM_S, DAYS = 24, 400, 600., .02
PARTS = {'arbwork/sim/virtual': 'virtual clock', 'arbwork/sim/chaos': 'judge, kills', 'arbwork/sim': 'venues', 'arbwork/feed': 'codecs, feeds, links', 'arbwork/trade': 'core, workers, ledger',
         'arbwork/store': 'journal', 'sqlite3': 'journal', 'asyncio': 'virtual clock', 'contextvars': 'virtual clock', 'msgspec': 'encoding', 'hmac': 'codecs, feeds, links', 'arbwork/decide': 'kernel', 'numpy': 'numpy'}


def warmed() -> None:
    from arbwork.feed.book import warm
    from arbwork.sim.chaos import schedule
    warm()
    schedule(0, session_s=3., kills=0)


def drawn(seeds) -> float:  # simulated seconds
    from arbwork.sim.chaos import schedule
    return sum(v.seconds for v in map(good, (schedule(s) for s in seeds)))


def good(v):
    if v.wrong: raise RuntimeError(f'seed {v.seed}: {v.wrong}')
    return v


def lived(w) -> float:
    from arbwork.sim.chaos import judge, lives
    try:
        w.loop.run_until_complete(lives(w))
        return good(judge(w)).seconds
    finally: w.close()


def calm(seconds: float, seed: int = 2) -> float:
    from arbwork.sim.chaos import GAP, World
    from arbwork.sim.scenarios import stress
    quiet = msgspec.structs.replace(GAP, slow_sd_bps=2., fast_sd_bps=.5)
    return lived(World(seed, kinds=(), kills=0, session_s=seconds, scenario=stress(seed=seed, hours=(seconds + 90)/3600, step_s=.5, calibration=quiet, venues=('binance', 'bybit'))))


def day(days: float) -> float:
    from bench.soak import Days
    from arbwork.sim.chaos import Disk
    w = Days(days)
    w.disk = Disk()
    return lived(w)


def work(market: str, share) -> float: return dict(chaos=drawn, calm=calm, day=day)[market](share)


def shares(market: str, jobs: int, seeds: int, calm_s: float) -> list:
    "What each process does; as much for each as one alone would do."
    if market == 'chaos': return [range(FIRST + k*seeds, FIRST + (k + 1)*seeds) for k in range(jobs)]
    return [calm_s if market == 'calm' else DAYS]*jobs


def parts(market: str, share) -> dict[str, float]:  # part to its share of the time
    "Where the processor's time goes."
    p = cProfile.Profile()
    p.runcall(work, market, share)
    times, out = {}, {}
    for (file, _, name), (_, _, own, _, _) in pstats.Stats(p).stats.items():
        where = next((part for key, part in PARTS.items() if key in file or (file == '~' and key in name)), 'the rest of Python')
        times[where] = times.get(where, 0.) + own
    for where, x in sorted(times.items(), key=lambda x: -x[1]): out[where] = round(x/sum(times.values()), 3)
    return out


def race(jobs: list[int], seeds: int, calm_s: float, markets=('chaos', 'calm', 'day')) -> dict[str, dict]:
    "Simulated seconds a second of the wall, each market with so many processes at once."
    out = {}
    with ProcessPoolExecutor(max(jobs), mp_context=get_context('spawn'), initializer=warmed) as pool:
        list(pool.map(work, ['chaos']*max(jobs), [range(FIRST, FIRST + 2)]*max(jobs)))  # all of them are there
        for market in markets:
            out[market] = {}
            for n in jobs:
                began = time.perf_counter()
                simulated = sum(pool.map(work, [market]*n, shares(market, n, seeds, calm_s)))
                out[market][f'{n} job{"s"*(n > 1)}'] = round(simulated/(time.perf_counter() - began), 1)
    return out


@contextmanager
def lanes():
    "Microseconds of this process for a simulated second of each market; the baseline is the densest."
    import os
    quick = bool(os.environ.get('BENCH_QUICK'))
    warmed()
    sizes = dict(chaos=range(FIRST, FIRST + (1 if quick else 6)), calm=20. if quick else 120., day=.0005 if quick else .005)
    simulated = {m: work(m, x) for m, x in sizes.items()}
    yield {f'simulated second, {m}': ((lambda m=m: work(m, sizes[m]) and None), simulated[m]) for m in sizes}, 'µs', 1e6, 'simulated second, chaos', 1 if quick else 5


BENCHES = dict(chaos=lanes)


def main(argv: list[str] | None = None) -> int:
    p = argparse.ArgumentParser(prog='python -m bench.chaos', description=__doc__.splitlines()[0])
    p.add_argument('--seeds', type=int, default=SEEDS, help='schedules of chaos for each process')
    p.add_argument('--calm', type=float, default=CALM_S, help='simulated seconds of the calm market')
    p.add_argument('--jobs', default='1,2', help='processes at once, with commas between')
    p.add_argument('--json', action='store_true')
    args = p.parse_args(argv)
    found = race([int(x) for x in args.jobs.split(',')], args.seeds, args.calm)
    warmed()
    where = {m: parts(m, shares(m, 1, min(args.seeds, 6), args.calm)[0]) for m in found}
    if args.json: print(json.dumps(dict(simulated_seconds_a_second=found, of_the_processor=where)))
    else:
        for m, x in found.items():
            print(f'{m:6} simulated seconds a second: ' + ', '.join(f'{v:,.0f} with {n}' for n, v in x.items()))
            print('       of the processor: ' + ', '.join(f'{part} {share:.0%}' for part, share in where[m].items() if share >= .02))
    return 0


if __name__ == '__main__': sys.exit(main())
