"""Kills at random instants under load: what was acknowledged is kept, once and in order, and every store can be read afterwards.

`python -m bench.kills --kills 200 --journal sqlite|redis|nats [--seed 7] [--json]`

Two campaigns share the kills. In the first, two producers write quotes, trades, differences of books, orders and fills into a journal and write
down what they were told is kept; a recorder takes it to a tick store, pruning and tidying all the while; producers, the recorder and, where there is
one, the journal's server are killed (SIGKILL) in turns drawn from the seed, and started again. Rows carry the life of their producer and a running
number, so that afterwards each life must be there from its first row on, without a hole, at least as far as it was told, and nothing twice. In
the second, `collect` itself records a venue of numbered updates, with workers as tasks and as processes; it, its workers' processes and the server are
killed. All that is in the journal must be in the tick store as it is there, and wherever numbers do not follow one another the quality ledger must say why.

What is promised: an entry whose ticket was settled, and every row handed over before it, survives the death of any process of ours and of the server's
process. Rows handed over and not yet acknowledged (some milliseconds of them) may be lost with the process that held them. Loss of power is another
matter: SQLite and Redis sync what is `durable` before they say so; NATS does when its server runs with `sync_interval: always`.
"""

import argparse
import asyncio
import faulthandler
import json
import multiprocessing
import os
import random
import signal
import struct
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from decimal import Decimal
from pathlib import Path

import msgspec
import numpy as np

from arbwork.clock import WallClock
from arbwork.feed.events import NewOrder
from arbwork.settings import Recording, load_settings
from arbwork.store import collect as collecting
from arbwork.store.collect import QUALITY, Recorder, append_slots, collect, stream
from arbwork.store.journal import open_journal, rows_of
from arbwork.store.tables import FEEDS, FIRST, QUOTE, TABLES, TRADE, Placed, ToldFill, depth_body, level_rows, words_text
from arbwork.store.ticks import Ticks
from bench.servers import Store
from bench.venue import Venue, settings_for

T0, LIFE = 1_629_417_600_000_000_000, 10**7 # numbers that one life may use
VENUES, NAME, KEPT = ('binance', 'bybit'), 'LINK-USDT', ('quotes', 'trades', 'depth', 'fills', 'orders')
WAIT_S = 120. # for anything to happen, on the slowest machine
told = struct.Struct('=5q')


def said(pipe, run, *args):
    "Run in a process of its own; an error goes to whoever holds the other end."
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    faulthandler.register(signal.SIGUSR1)
    try: run(pipe, *args)
    except BaseException: pipe.send_bytes(b'E' + traceback.format_exc().encode())
    os._exit(1)


def produce(pipe, url, venue, life, seed):
    "Write rows and fills; say how many of each are surely kept."
    journal, rng, n, made = open_journal(url), random.Random(seed), Counter(), int(life)*LIFE
    for of in KEPT[:3]: append_slots(journal, venue, {NAME: 0}, T0, of)
    while True:
        of, k = rng.choice(KEPT[:4]), rng.randint(1, 30)
        at = np.arange(n[of], n[of] + k) + made
        ts = (T0 + at*1_000).tolist()
        if of == 'quotes':
            rows = np.zeros(k, QUOTE)
            rows['seq'], rows['ts_recv_ns'], rows['bid_px'], rows['ask_px'] = at, ts, 27, 27.1
        elif of == 'trades':
            rows = np.zeros(k, TRADE)
            rows['id'], rows['ts_recv_ns'], rows['px'], rows['qty'] = at, ts, 27, 1
        elif of == 'depth': rows = memoryview(depth_body([(t, 0, 0, 0, i, [(27., 1.)]*rng.randint(0, 3), []) for t, i in zip(ts, at.tolist())]))
        if of != 'fills': journal.append_rows(stream(of, venue), 'rows', rows, ts[0])
        else:
            k, i, name = 1, int(at[0]), f'{at[0]}'
            placed = Placed(venue, NewOrder(name, NAME, 1, Decimal(2), Decimal(27)), 'open')
            journal.append(f'session/{venue}', 'intent', msgspec.msgpack.encode(placed), ts_ns=ts[0], key=name, durable=rng.random() < 0.3)
            fill = ToldFill(name, 'v', name, NAME, 1, Decimal(27), Decimal(2), Decimal(0), 'USDT', False, i, venue)
            ticket = journal.append(f'session/{venue}', 'fill', msgspec.msgpack.encode(fill), ts_ns=ts[0], key=f'fill-{name}', durable=rng.random() < 0.3)
        n[of] += k
        n['orders'] = n['fills']
        if of == 'fills' and rng.random() < 0.5:
            ticket.wait()
            pipe.send_bytes(b'T' + told.pack(*(n[x] for x in KEPT)))
        if rng.random() < 0.5: time.sleep(rng.random()*0.01) # load, and yet no more than can be looked at afterwards


STREAMS = [stream(of, v) for v in VENUES for of in KEPT[:3]] + [QUALITY]


def recorder_of(journal, ticks): return Recorder(journal, ticks, STREAMS, sessions=True, recording=Recording(journal_hours=0))


def record(pipe, url, uri, seed):
    "Take everything to the tick store in small batches, pruning and tidying often."
    collecting.BATCH_ROWS, collecting.LOOK_S = 400, 0.
    rng, ticks = random.Random(seed), Ticks(uri)
    recorder = recorder_of(open_journal(url), ticks)
    while True:
        n = recorder.step()
        if rng.random() < 0.1: recorder.prune()
        if rng.random() < 0.1: ticks.tidy(10)
        pipe.send_bytes(b'%d' % n)


def hear(pipe, path, how):
    "`arbwork collect`, without its screen."
    def tell(report): pipe.send_bytes(b'%d' % report['rows'])
    asyncio.run(collect(load_settings(path), WallClock(), workers=how, on_progress=tell))


_context = None


def forks():
    "Processes that have everything imported when they begin."
    global _context
    if _context is None:
        _context = multiprocessing.get_context('forkserver')
        _context.set_forkserver_preload(['bench.kills', 'arbwork.store.journal_redis', 'arbwork.store.journal_nats', 'aiohttp'])
    return _context


class Life:
    "A process that says how it goes."
    def __init__(self, run, *args):
        self.pipe, end = forks().Pipe(duplex=False)
        self.process = forks().Process(target=said, args=(end, run, *args), daemon=True)
        self.process.start()
        end.close()
        self.heard, self.last, self.run = 0, None, run

    def listen(self) -> int: # messages so far
        "Take what it has said."
        try:
            while self.pipe.poll(0):
                self.last = self.pipe.recv_bytes()
                self.heard += 1
                if self.last[:1] == b'E': raise AssertionError(f'a process ended by itself: {self.last[1:].decode()}')
        except EOFError:
            if not self.killed: raise AssertionError(f'a process ended by itself with code {self.process.exitcode}') from None
        return self.heard

    killed = False

    def busy(self, more: int = 1):
        "Wait until it has done something."
        want, end = self.listen() + more, time.monotonic() + WAIT_S
        while self.listen() < want:
            time.sleep(0.002)
            if time.monotonic() < end: continue
            os.kill(self.process.pid, signal.SIGUSR1) # it shows where it is
            time.sleep(1)
            raise AssertionError(f'nothing was heard of {self.run.__name__} for {WAIT_S:g} s')

    def kill(self):
        if self.killed: return
        self.killed = True
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.join()
        self.listen()
        self.pipe.close()


class Pipeline:
    "Producers, a journal, a recorder, a tick store."
    def __init__(self, scheme: str, folder: Path, seed: int):
        self.store, self.uri, self.rng = Store(scheme, folder/'store'), f'lmdb://{folder}/ticks?map_size=4GB', random.Random(seed)
        self.count, self.kept, self.lives, self.done = 0, {}, {}, Counter()
        self.journal, self.ticks = open_journal(self.store.url), Ticks(self.uri)
        for name in (*VENUES, 'recorder'): self.begin(name)

    def begin(self, name: str):
        seed = self.rng.random()
        if name == 'recorder': self.lives[name] = (Life(record, self.store.url, self.uri, seed), 0)
        else:
            self.count += 1
            self.lives[name] = (Life(produce, self.store.url, name, self.count, seed), self.count)

    def end(self, name: str):
        life, number = self.lives[name]
        life.kill()
        if number: self.kept[name, number] = told.unpack(life.last[1:]) if life.last else (0,)*len(KEPT)

    def kill(self, what: str): # producer, recorder or server
        "One kill, some milliseconds after all have been seen at work; then what is stored is looked at."
        for life, _ in self.lives.values(): life.busy()
        time.sleep(self.rng.random()*0.1)
        if what == 'server':
            self.store.kill()
            time.sleep(self.rng.random()*0.1)
            self.store.start()
        else:
            name = self.rng.choice(VENUES) if what == 'producer' else what
            self.end(name)
            self.begin(name)
        for life, _ in self.lives.values(): life.listen()
        for s in STREAMS: self.journal.last(s)
        for of in KEPT:
            for pair in self.ticks.symbols(of): self.ticks.latest(of, *pair, 10)
        self.done[what] += 1

    def finish(self) -> dict:
        "Record the rest and count."
        for name in self.lives: self.end(name)
        recorder_of(self.journal, self.ticks).drain()
        out = Counter(acknowledged=0, stored=0, lost=0, doubled=0, disordered=0, holes=0)
        for i, of in enumerate(KEPT):
            for venue in VENUES:
                if not self.ticks.holds(of, venue, NAME): rows = np.zeros(0, TABLES[of].dtype)
                else: rows = self.ticks.read(of, venue, NAME)
                if of == 'depth': rows = rows[rows['mark'] & FIRST > 0]
                numbers = np.array([int(x) for x in words_text(rows['client_id'])], 'i8') if of in ('fills', 'orders') else rows['id' if of == 'trades' else 'seq']
                unique = np.unique(numbers)
                out['stored'] += len(numbers)
                out['doubled'] += len(numbers) - len(unique)
                out['disordered'] += int((np.diff(numbers) < 0).sum())
                for (who, life), kept in self.kept.items():
                    if who != venue: continue
                    mine = unique[unique//LIFE == life]%LIFE
                    out['acknowledged'] += kept[i]
                    gone = kept[i] - int((mine < kept[i]).sum())
                    out['lost'] += gone
                    if gone: out[f'lost of {of} {venue} life {life}'] = gone
                    out['holes'] += int(mine[-1]) + 1 - len(mine) if len(mine) else 0
        self.close()
        return dict(out)

    def close(self):
        for life, _ in self.lives.values(): life.kill()
        for end in (self.ticks.close, self.journal.close): end()
        self.store.stop()


class Collection:
    "`collect` and a venue, recorded in lives of one kind of workers after the other."
    def __init__(self, scheme: str, folder: Path, seed: int):
        self.store, self.rng, self.folder, self.done, self.life = Store(scheme, folder/'store'), random.Random(seed), folder, Counter(), None
        self.loop, self.venue = asyncio.new_event_loop(), Venue(10**9, pause_s=0.001)
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()
        asyncio.run_coroutine_threadsafe(self.venue.__aenter__(), self.loop).result(WAIT_S)
        self.settings = settings_for(folder, {'bybit': self.venue.port}, journal=self.store.url, more='journal_hours = 24\nmap_size = 4GB\n')
        self.how = None

    def begin(self, how: str):
        self.how, self.life = how, Life(hear, str(self.settings.path), how)

    def workers(self) -> list[int]:
        "Processes that the collector has started."
        pid = self.life.process.pid
        return [int(x) for t in os.listdir(f'/proc/{pid}/task') for x in Path(f'/proc/{pid}/task/{t}/children').read_text().split()]

    def at_work(self):
        "Wait until rows have come in since now."
        end, first = time.monotonic() + WAIT_S, None
        while True:
            self.life.busy()
            rows = int(self.life.last)
            first = rows if first is None else first
            if rows > first: return
            assert time.monotonic() < end, 'no row was heard'

    def kill(self, what: str, how: str): # collector, worker or server; task or process
        if self.life is None or self.how != how:
            if self.life: self.life.kill()
            self.begin(how)
        self.at_work()
        time.sleep(self.rng.random()*0.3)
        if what == 'server':
            self.store.kill()
            time.sleep(self.rng.random()*0.1)
            self.store.start()
        elif what == 'worker':
            for pid in self.workers(): os.kill(pid, signal.SIGKILL)
        else:
            self.life.kill()
            self.begin(how)
        self.done[f'{what} ({how})'] += 1

    def close(self):
        if self.life: self.life.kill()
        self.store.stop()

    def finish(self) -> dict:
        "Record the rest; what is in the journal is in the tick store, and what does not follow on is explained."
        self.at_work()
        self.life.kill()
        asyncio.run_coroutine_threadsafe(self.venue.__aexit__(), self.loop).result(WAIT_S)
        self.loop.call_soon_threadsafe(self.loop.stop)
        deadline = time.monotonic() + WAIT_S
        while True: # a worker's process may live some moments longer than the collector
            journal = open_journal(self.settings.journal)
            marks = [getattr(journal.last(stream(of, 'bybit')), 'offset', 0) for of in FEEDS]
            time.sleep(0.5)
            again = [getattr(journal.last(stream(of, 'bybit')), 'offset', 0) for of in FEEDS]
            if again == marks: break
            assert time.monotonic() < deadline
            journal.close()
        ticks, out = Ticks(self.settings.ticks), Counter(acknowledged=0, stored=0, lost=0, doubled=0, disordered=0, holes=0)
        Recorder(journal, ticks, [stream(of, 'bybit') for of in FEEDS] + [QUALITY], keep=True).drain()
        for of in ('books', 'depth'):
            entries = [x for x in journal.read(stream(of, 'bybit'), limit=10**7) if x.kind == 'rows']
            kept = level_rows([x.body for x in entries]) if of == 'depth' else np.concatenate([rows_of(x, TABLES[of].dtype) for x in entries])
            rows = ticks.read(of, 'bybit', NAME)
            kept = kept[np.argsort(kept['ts_recv_ns'], kind='stable')].copy()
            kept['slot'] = 0
            out['acknowledged'] += len(kept)
            out['stored'] += len(rows)
            if rows.tobytes() == kept.tobytes(): continue
            a, b = Counter(x.tobytes() for x in kept), Counter(x.tobytes() for x in rows)
            out['lost'] += (a - b).total()
            out['doubled'] += (b - a).total()
            out['disordered'] += a == b
        rows, ledger = ticks.rows('bybit', NAME), ticks.quality('bybit')
        why = np.sort(ledger['ts_ns'][ledger['kind'].isin(['restart', 'gap', 'resync', 'error', 'worker'])].to_numpy())
        for i in np.flatnonzero(np.diff(rows['seq']) != 1):
            a, b = rows['ts_recv_ns'][i:i + 2]
            out['jumps'] += 1
            out['holes'] += int(np.searchsorted(why, a) == np.searchsorted(why, b, 'right'))
        ticks.close(), journal.close()
        self.store.stop()
        return dict(out)


def plan(scheme: str, kills: int, rng: random.Random, parts=('pipeline', 'collection')) -> tuple[list[str], list[tuple[str, str]]]:
    "Who is killed, in what order: in the pipeline, and in collections."
    served = scheme != 'sqlite'
    n = kills//4 if len(parts) == 2 else kills*(parts == ('collection',))
    some = [('collector', 'task'), ('worker', 'process'), ('collector', 'process'), *([('server', 'task'), ('server', 'process')] if served else [])]
    second = [some[i%len(some)] for i in range(n)]
    first = [(('recorder', 'producer', 'server') if served else ('recorder', 'producer'))[i%(2 + served)] for i in range(kills - n)]
    rng.shuffle(first)
    second.sort(key=lambda x: x[1] == 'process')
    return first, second


def campaign(scheme: str, kills: int, seed: int, folder: Path, say=lambda text: None, parts=('pipeline', 'collection'), minutes: float = 1e6) -> list[dict]:
    "Both parts; a line each with what was killed and what was found."
    rng, out = random.Random(seed), []
    first, second = plan(scheme, kills, rng, parts)
    for name, make, victims, share in (('pipeline', Pipeline, first, 0.7), ('collection', Collection, second, 0.3)):
        if not victims: continue
        begun = time.monotonic()
        (folder/name).mkdir()
        world = make(scheme, folder/name, rng.randrange(2**32))
        try:
            for i, who in enumerate(victims, 1):
                world.kill(*(who if type(who) is tuple else (who,)))
                say(f'{name}: {i} of {len(victims)}: {who}')
                if time.monotonic() - begun > minutes*60*share: break
        except BaseException:
            world.close()
            raise
        out.append(dict(part=name, journal=scheme, seed=seed, kills=world.done.total(), killed=dict(world.done), **world.finish(), seconds=round(time.monotonic() - begun, 1)))
    return out


def main(argv=None) -> int:
    p = argparse.ArgumentParser(prog='python -m bench.kills', description=__doc__.splitlines()[0])
    p.add_argument('--kills', type=int, default=200)
    p.add_argument('--journal', choices=('sqlite', 'redis', 'nats'), default='sqlite')
    p.add_argument('--seed', type=int, default=7)
    p.add_argument('--minutes', type=float, default=1e6, help='no more kills after so long; those that were made are counted')
    p.add_argument('--json', action='store_true', help='one JSON object a part, and no progress')
    args = p.parse_args(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    if args.kills < 1: p.error(f'found {args.kills} kills, wanted at least 1')
    with tempfile.TemporaryDirectory() as folder:
        say = (lambda text: None) if args.json else lambda text: print(f'\r{text:<60}', end='', file=sys.stderr, flush=True)
        found = campaign(args.journal, args.kills, args.seed, Path(folder), say, minutes=args.minutes)
    if not args.json: print(file=sys.stderr)
    for x in found: print(json.dumps(x) if args.json else '  '.join(f'{k} {v}' for k, v in x.items()))
    return int(any(x[k] for x in found for k in ('lost', 'doubled', 'disordered', 'holes')))

