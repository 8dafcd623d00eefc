"""`python -m bench.soak --minutes N [--rate R] [--json]`: the bot for N real minutes at R changes of a book a second (5,000) through sockets, codec, kernel, risk and journal, with a trade a second.

Two venues in Binance's words stream their depth to `arbwork.live`, a process of its own, and open an edge once a second. It says whether the bot's memory stays flat and whether an
order takes longer at the end than at the beginning. Exit code 1: memory moved by more than 5 %, or the lag of the last quarter is more than twice that of the second.

The bench `held` measures how long one call to the journal or the log holds the event loop, with the writer busy.
"""

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path

from bench.live import CHEAP, DEAR, VENUES, Venue, frame, furnish

PACE_S = 0.01


def memory_mb(pid: int) -> float:
    return int(Path(f'/proc/{pid}/statm').read_text().split()[1])*os.sysconf('SC_PAGE_SIZE')/2**20


async def stream(venue: Venue, rate: float, until: float) -> int:  # frames sent
    "Changes of the depth, as many as are due by now every hundredth of a second; sizes change, prices do not."
    began, sent = time.monotonic(), 0
    while (now := time.monotonic()) < until:
        due, writers = int((now - began)*rate) - sent, [w for kind, w in venue.streams if kind == 'depth']
        at, bid, ask = time.time_ns()//10**6, str(venue.px - Decimal('0.01')).encode(), str(venue.px).encode()
        for _ in range(due):
            venue.seq = venue.deep = venue.seq + 1
            sent += 1
            raw = frame(b'{"stream":"linkusdt@depth@100ms","data":{"e":"depthUpdate","E":%d,"s":"LINKUSDT","U":%d,"u":%d,"b":[["%s","%d.00"]],"a":[["%s","%d.00"]]}}' % (
                at, venue.seq, venue.seq, bid, 400 + sent%100, ask, 400 + sent%97))
            for w in writers: w.write(raw)
        await asyncio.sleep(PACE_S)
    return sent


async def soak(minutes: float, rate: float) -> dict:
    with tempfile.TemporaryDirectory(prefix='bench-soak-') as folder, open(f'{folder}/log', 'wb') as log: # noqa: ASYNC230
        a, b = [await Venue(name).open() for name in VENUES]
        env = furnish(Path(folder), [a.port, b.port])
        bot = subprocess.Popen([sys.executable, '-m', 'bench.live', 'live', folder, str(minutes*60 + 60)], env=env, cwd=Path(__file__).parents[1], stdout=log, stderr=log) # noqa: ASYNC220
        try:
            async with asyncio.timeout(180):
                while not (a.streams and b.streams):
                    if bot.poll() is not None: raise RuntimeError(Path(f'{folder}/log').read_text()[-2000:]) # noqa: ASYNC240
                    await asyncio.sleep(0.1)
            await asyncio.sleep(3)
            until, sizes, lags, missed = time.monotonic() + 60*minutes, [], [], 0
            streams = [asyncio.create_task(stream(v, rate/2, until)) for v in (a, b)]
            while time.monotonic() < until - 3:
                for v in (a, b): v.heard.clear(); v.move(CHEAP)
                await asyncio.sleep(0.5)
                began = b.move(DEAR)
                try:
                    async with asyncio.timeout(5): await asyncio.gather(a.heard.wait(), b.heard.wait())
                    lags.append((min(a.at, b.at) - began)/1e6)
                except TimeoutError: missed += 1
                b.move(CHEAP)
                await asyncio.sleep(0.5)
                sizes.append(memory_mb(bot.pid))
            sent = sum(await asyncio.gather(*streams))
        finally:
            bot.terminate()
            await asyncio.to_thread(bot.wait, 60)
    if len(lags) < 8: raise RuntimeError(f'{len(lags)} trades, {missed} missed: wanted at least 8; more minutes or a lower rate')
    def quarter(x, k): return statistics.median(x[len(x)*k//4:len(x)*(k + 1)//4])
    return dict(minutes=minutes, frames=sent, frames_a_second=round(sent/60/minutes), trades=len(lags), missed=missed, memory_mb=[round(quarter(sizes, k), 1) for k in range(4)],
                memory_growth=round(quarter(sizes, 3)/quarter(sizes, 1) - 1, 4), lag_ms=[round(quarter(lags, k), 2) for k in range(4)])


@contextmanager
def held():
    "How long a call holds the loop at p99.9: rows, durable entries and log lines at 5,000 a second, beside a writer that keeps them; the baseline is taking the time twice."
    from arbwork.live import open_log
    from arbwork.store.journal import open_journal
    from bench.sample import rows
    n, some, body = 500 if os.environ.get('BENCH_QUICK') else 10_000, rows(10_000), b'x'*400
    with tempfile.TemporaryDirectory() as folder:
        journal, log = open_journal(f'sqlite:///{folder}/journal.db'), open_log(f'{folder}/log')
        journal.make_room()

        def worst(what, every=0.0002):
            took = []
            for i in range(n):
                began = time.perf_counter()
                what(i)
                took.append(time.perf_counter() - began)
                time.sleep(every)
            return sorted(took)[int(0.999*(n - 1))]
        yield {'nothing': (lambda: worst(lambda i: None), 1), 'rows handed over': (lambda: worst(lambda i: journal.append_rows('market', 'rows', some[i], 0)), 1),
               'durable entry, handed over': (lambda: worst(lambda i: journal.append('session', 'intent', body, ts_ns=0, durable=True), 0.002), 1),
               'line of the log': (lambda: worst(lambda i: log.info('trade', id=i, state='DONE', pnl=0.1)), 1)}, 'ms p99.9', 1e3, 'nothing', 3
        journal.close()


BENCHES = {'held': held}


def main() -> int:
    p = argparse.ArgumentParser('python -m bench.soak', description=__doc__.splitlines()[0])
    p.add_argument('--minutes', type=float, default=30.)
    p.add_argument('--rate', type=float, default=5_000.)
    p.add_argument('--json', action='store_true')
    args = p.parse_args()
    found = asyncio.run(soak(args.minutes, args.rate))
    print(json.dumps(found) if args.json else '\n'.join(f'{k:18} {v}' for k, v in found.items()))
    return int(abs(found['memory_growth']) > 0.05 or found['lag_ms'][3] > 2*found['lag_ms'][1])


if __name__ == '__main__': sys.exit(main())
