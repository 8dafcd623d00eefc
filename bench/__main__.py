"""`python -m bench [NAME...] [--json]`: one row a lane with bench, lane, unit, p50, p99, ratio, baseline.

The lanes of a bench take turns, round after round, so that a machine which slows down slows all of them. `ratio` is the lane's median
over the median of the bench's baseline: below 1 is faster than the baseline. A lane that runs in a process of its own says itself how
many seconds of processor time it took.
"""

import argparse
import gc
import json
import os
import statistics
import sys
import time

from bench.lanes import BENCHES


def quantile(values: list[float], q: float) -> float:
    "The smallest value that at least the share `q` of the values does not exceed."
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, -(-int(q*1000)*len(ordered)//1000) - 1))]


def measure(lanes: dict, rounds: int) -> dict[str, list[float]]:
    "Seconds for one operation, a value a round and lane; the lanes take turns, and the first round is not counted."
    seconds = {name: [] for name in lanes}
    gc.collect()
    gc.disable()
    try:
        for turn in range(rounds + 1):
            for name, (run, ops) in lanes.items():
                start = time.perf_counter()
                own = run()
                if turn: seconds[name].append((own if isinstance(own, float) else time.perf_counter() - start)/ops)
    finally: gc.enable()
    return seconds


def main() -> int:
    parser = argparse.ArgumentParser(prog='python -m bench', description=__doc__.splitlines()[0])
    parser.add_argument('names', nargs='*', metavar='NAME', help=f'of {", ".join(BENCHES)}; otherwise all')
    parser.add_argument('--json', action='store_true', help='one JSON object a row')
    parser.add_argument('--quick', action='store_true', help='a hundredth of the size, where a bench knows one: to see that it runs')
    args = parser.parse_args()
    if args.quick: os.environ['BENCH_QUICK'] = '1'
    unknown = set(args.names) - set(BENCHES)
    if unknown: parser.error(f'found {sorted(unknown)}, wanted some of {list(BENCHES)}')
    print(f'{"bench":<14}{"lane":<34}{"unit":<12}{"p50":>12}{"p99":>12}{"ratio":>10}  baseline') if not args.json else None
    for bench in args.names or BENCHES:
        with BENCHES[bench]() as (lanes, unit, scale, baseline, rounds):
            seconds = measure(lanes, rounds)
            base = statistics.median(seconds[baseline])
            for lane, values in seconds.items():
                row = dict(bench=bench, lane=lane, unit=unit, p50=statistics.median(values)*scale, p99=quantile(values, 0.99)*scale,
                           ratio=statistics.median(values)/base, baseline=baseline)
                if args.json: print(json.dumps(row), flush=True)
                else: print(f'{bench:<14}{lane:<34}{unit:<12}{row["p50"]:>12.3f}{row["p99"]:>12.3f}{row["ratio"]:>10.3f}  {baseline}', flush=True)
    return 0


if __name__ == '__main__':
    sys.exit(main())
