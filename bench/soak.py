"""`python -m bench.soak [--days N] [--minutes N] [--rate R] [--json]`: simulated days and real minutes of the bot, one after the other; a part of 0 is left out.

Days (8): codecs, feeds, kernel, risk, journal, order workers and ledger as one session on a virtual clock, at two venues where something goes wrong every five minutes; the venues live in the
same process, so what they remember counts as well. At the end the venues' own books of account are laid beside the journal, as in chaos. Lag is the processor's seconds a simulated hour.

Minutes (30): two venues in Binance's words stream R changes of a book a second (5,000) through sockets to `arbwork.live`, a process of its own, and open an edge once a second. Lag is the
time from a frame to the first order's bytes.

Of each the medians of four quarters. Exit code 1: memory of the last quarter is more than 5 % beside that of the second, its lag more than twice that of the second (days: a quarter more),
or something was lost, doubled, left alone or cannot be explained.

The bench `held` measures how long one call to the journal or the log holds the event loop, with the writer busy.
"""

import argparse
import asyncio
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path

import msgspec

from arbwork.sim.chaos import WANTS, World, judge, lives
from arbwork.sim.faults import draw_faults
from arbwork.sim.scenarios import Calibration, stress
from bench.live import CHEAP, DEAR, VENUES, Venue, frame, furnish

PACE_S = 0.01
STEP_S, FAULT_EVERY = 5., 120. # simulated seconds between two changes of a book; times as rare as in chaos' own mix
MARKET = Calibration(level_bps=0., slow_sd_bps=8., slow_minutes=10., fast_sd_bps=2., fast_seconds=30., jumps_per_hour=2., jump_bps=40., jump_below=.5, vol_bps_minute=3.)
WISHES = msgspec.structs.replace(WANTS, cooldown_s=60., max_age_s=60., max_skew_s=30., max_notional=100.)


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


def quarters(x: list[float]) -> list[float]:
    n = len(x)
    return [statistics.median(x[n*k//4:n*(k + 1)//4]) for k in range(4)]


class Days(World):
    "Venues for days: a market that a person could meet, trades some minutes apart, and something wrong now and then."

    def __init__(self, days: float):
        market = stress(seed=8, hours=24*days + .1, step_s=STEP_S, venues=('binance', 'bybit'), calibration=MARKET)
        super().__init__(8, kills=0, session_s=days*86_400, scenario=market, wants=WISHES)
        self.disk = None  # its journal in files: days of it are no memory of the bot
        self.sizes, self.took, self.worked = [], [], time.process_time()
        self.loop.call_later(60., self.look)

    def haunt(self, name, v, kinds):
        "The next fault is drawn when the one before has come."
        drawn = draw_faults(f'all:{self.seed}', name)
        def after(last_s):
            at_s, f = next(drawn)
            if at_s*FAULT_EVERY > self.session_s: return
            def strike(): self.strike(v, f); after(at_s)
            self.loop.call_later((at_s - last_s)*FAULT_EVERY, strike)
        after(0.)
        self.loop.call_later(self.session_s, self.calm_down, v)

    def strike(self, v, f):
        "One of a kind waits at a time: what finds no occasion in this market would only make the venue's list longer."
        if not any((x.kind, x.place) == (f.kind, f.place) for x in v.faults): super().strike(v, f)

    def look(self):
        "Once a simulated hour."
        self.sizes.append(memory_mb(os.getpid()))
        now = time.process_time()
        self.took.append(now - self.worked)
        self.worked = now
        self.alerts.clear()
        if sys.stderr.isatty(): print(f'\r{self.loop.now/86_400:.2f} days, {self.sizes[-1]:.1f} MB, {self.took[-1]:.2f} s an hour', end='', file=sys.stderr, flush=True)
        if self.loop.now < self.session_s - 3_600: self.loop.call_later(3_600., self.look)


def days(n: float) -> dict:
    w = Days(n)
    began = time.monotonic()
    try:
        w.loop.run_until_complete(lives(w))
        wall, simulated, size = time.monotonic() - began, w.loop.now, sum(x.stat().st_size for x in w.folder.iterdir())
        v = judge(w)
    finally:
        w.loop.close()
        shutil.rmtree(w.folder, ignore_errors=True)
    sizes, took = quarters(w.sizes[1:]), quarters(w.took[1:])
    return dict(days=n, trades=v.trades, faults=v.faults, frames=w.lines.frames, wall_s=round(wall, 1), times_the_wall=round(simulated/wall), journal_mb=round(size/2**20, 1), memory_mb=[round(x, 1) for x in sizes],
                memory_growth=round(sizes[3]/sizes[1] - 1, 4), lag=[round(x, 3) for x in took], lag_unit='s of the processor a simulated hour', lag_growth=round(took[3]/took[1] - 1, 4), naked_legs=v.naked_legs,
                lost_fills=v.lost_fills, doubled_orders=v.doubled_orders, unexplained_quote=v.unexplained_quote, parity=v.parity, wrong=v.wrong)


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
    size, lag = quarters(sizes), quarters(lags)
    return dict(minutes=minutes, frames=sent, frames_a_second=round(sent/60/minutes), trades=len(lags), missed=missed, memory_mb=[round(x, 1) for x in size], memory_growth=round(size[3]/size[1] - 1, 4),
                lag=[round(x, 2) for x in lag], lag_unit='ms from tick to order', lag_growth=round(lag[3]/lag[1] - 1, 4))


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

        def intent(i):  # what a trade does: in one transaction in this thread; the sync too, where the disk has been quick
            journal.append('session', 'intent', body, ts_ns=0, durable=True, later=True)
            journal.at_once()
        yield {'nothing': (lambda: worst(lambda i: None), 1), 'rows handed over': (lambda: worst(lambda i: journal.append_rows('market', 'rows', some[i], 0)), 1),
               'durable entry, written in the loop': (lambda: worst(intent, 0.002), 1),
               'durable entry, handed over': (lambda: worst(lambda i: journal.append('session', 'intent', body, ts_ns=0, durable=True), 0.002), 1),
               'line of the log': (lambda: worst(lambda i: log.info('trade', id=i, state='DONE', pnl=0.1)), 1)}, 'ms p99.9', 1e3, 'nothing', 3
        journal.close()


BENCHES = {'held': held}


def main() -> int:
    p = argparse.ArgumentParser('python -m bench.soak', description=__doc__.splitlines()[0])
    p.add_argument('--days', type=float, default=8., help='simulated; 0: none')
    p.add_argument('--minutes', type=float, default=30., help='real; 0: none')
    p.add_argument('--rate', type=float, default=5_000., help='changes of a book a second, real minutes')
    p.add_argument('--json', action='store_true')
    args, bad = p.parse_args(), []
    for name, run, most in ('days', lambda: days(args.days), 0.25), ('minutes', lambda: asyncio.run(soak(args.minutes, args.rate)), 1.):
        if not getattr(args, name): continue
        found = run()
        print(json.dumps(found) if args.json else '\n'.join(f'{k:18} {v}' for k, v in found.items()) + '\n', flush=True)
        bad += [f'{name}: {k} {found[k]}, wanted at most {top}' for k, top in (('memory_growth', 0.05), ('lag_growth', most)) if (abs(found[k]) if k == 'memory_growth' else found[k]) > top]
        bad += [f'{name}: {x}' for x in found.get('wrong', [])]
    print('\n'.join(bad) or 'flat', file=sys.stderr)
    return int(bool(bad))


if __name__ == '__main__': sys.exit(main())
