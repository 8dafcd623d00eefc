"""From an event to the tick store and back: handing over, sustained ingest, bare appends, reads. `--quick` makes everything a hundredth of its size.

At full size, 2026-11-26, on two quiet cores (AMD EPYC of the first generation, 2 GHz; virtual disk, a sync takes about 0.5 ms): an event to board and ring
1.4 µs (wanted at most 3), with its difference 2.5, with the draining 10.9. Durable through the journal from three venues: 1.49 M quotes/s
(wanted 0.2 M), 0.26 M books/s. 10 M quotes read in 0.40 of pandas over zstd Parquet (wanted 0.5), with their mask 0.42; a minute of them in 0.08, with its mask
0.12 (wanted 0.2); the last 1,000 rows in 7.7 ms (wanted 10). The board: written in 0.91 µs, its best prices read from another process in 0.88
(wanted 1), a whole row of twenty levels in 2.0; a bare numpy copy of a row takes 0.69.

Missed: bare appends of 10,000 quotes, 0.99 M rows/s (wanted 3 M); of 100,000 2.8 M, of 10,000 books 0.4 M. ArcticDB's own `append` of a finished frame
of that size makes 1.2 M rows/s on this disk and 2.0 M in memory: of its 8 ms, 4 are the syncs of LMDB (four commits, each synced twice), 3 its
own work, 1.5 pandas. Appending several symbols in one call made it 1.5 M. What remains is larger batches, or giving up the syncs, which the
journal's promise (what is acknowledged there may be pruned once it is here) does not allow.
"""

import os
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter, thread_time

import numpy as np
import pandas as pd

from arbwork.feed.events import BOOK, LEVELS, VALID, BookUpdate
from arbwork.store.tables import QUOTE

T0 = 1_629_417_600_000_000_000


def size(full: int, quick: int) -> int: return quick if os.environ.get('BENCH_QUICK') else full


def quotes(n: int, first: int = 0, seed: int = 7) -> np.ndarray:
    "Best bid and ask that wander, a hundred a second: six stored columns."
    rng, rows = np.random.default_rng(seed + first), np.zeros(n, QUOTE)
    at = np.arange(first, first + n)
    rows['seq'], rows['ts_recv_ns'] = at, T0 + at*10_000_000
    rows['ts_venue_ns'] = rows['ts_recv_ns'] - rng.integers(1_000_000, 9_000_000, n)
    rows['bid_px'] = np.round(27 + np.cumsum(rng.integers(-1, 2, n))*1e-3, 3)
    rows['ask_px'], rows['bid_qty'], rows['ask_qty'] = rows['bid_px'] + 1e-3, rng.integers(1, 9_999, n)/100, rng.integers(1, 9_999, n)/100
    return rows


def books(n: int, first: int = 0, seed: int = 7) -> np.ndarray:
    "The same with ten levels a side: 43 stored columns."
    q, rows, steps = quotes(n, first, seed), np.zeros(n, BOOK), np.arange(LEVELS)*1e-3
    for name in ('seq', 'ts_recv_ns', 'ts_venue_ns'): rows[name] = q[name]
    rows['state'], rows['bid_px'], rows['ask_px'] = VALID, q['bid_px'][:, None] - steps, q['ask_px'][:, None] + steps
    rows['bid_qty'], rows['ask_qty'] = np.random.default_rng(seed).integers(1, 9_999, (2, n, LEVELS))/100
    return rows


@contextmanager
def hand_over():
    "What the next frame waits for, in processor time: an event to board and journal; the baseline is an append of the row to the journal, without a board."
    from arbwork.feed.board import BoardWriter
    from arbwork.feed.book import Book
    from arbwork.store.journal import open_journal
    from arbwork.store.worker import Tap
    n = size(20_000, 1_000)
    some, wrong = list(books(n)), []
    with tempfile.TemporaryDirectory() as folder:
        journal, board = open_journal(f'sqlite:///{folder}/j.db'), BoardWriter(Path(folder)/'board', 1)
        tap = Tap('binance', {'LINK-USDT': 0}, journal, board, lambda: T0, wrong.append)
        book = Book('binance', 'LINK-USDT', lambda seq, u: True)
        levels = [(27 - k/1000, 5.) for k in range(20)], [(27.1 + k/1000, 4.) for k in range(20)]
        book.apply(BookUpdate('LINK-USDT', True, 1, 1, -1, T0, *levels))
        update = BookUpdate('LINK-USDT', False, 2, 2, -1, T0, levels[0][:3], levels[1][:3])
        tap.depth((book, None, T0))
        tap.drain()

        def timed(run):
            "Processor time of this thread: what the journal's own thread does meanwhile is not what the next frame waits for."
            def lane():
                spent = run()
                journal.flush()
                return spent
            return lane

        def bare():
            begun = thread_time()
            for row in some: journal.append_rows('market', 'rows', row, T0)
            return thread_time() - begun

        def before():
            begun = thread_time()
            for row in some:
                board.write(row)
                journal.append_rows('market', 'rows', row, T0)
            return thread_time() - begun

        def only_hand(with_depth):
            def run():
                spent = 0.
                for i in range(0, n, 256): # less than the ring takes, emptied off the clock
                    begun = thread_time()
                    for row in some[i:i + 256]:
                        tap.row(row)
                        if with_depth: tap.depth((book, update, T0))
                    spent += thread_time() - begun
                    tap.drain()
                return spent
            return run

        def drained():
            begun = thread_time()
            for row in some:
                tap.row(row)
                tap.depth((book, update, T0))
            tap.drain()
            return thread_time() - begun

        yield {'row to journal': (timed(bare), n), 'row to board and journal': (timed(before), n), 'row to board and ring': (timed(only_hand(False)), n),
               'row and difference': (timed(only_hand(True)), n), 'the same and its draining': (timed(drained), n)}, 'µs/event', 1e6, 'row to journal', 15
        journal.close(), board.close()
        assert not wrong


FEED = '''
import sys
from bench.store import books, quotes
from arbwork.store.journal import open_journal
from arbwork.store.worker import stream
journal, venue, of, n = open_journal(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4])
print('ready', flush=True)
for line in sys.stdin:
    rows = (quotes if of == 'quotes' else books)(n, int(line))
    print('made', flush=True)
    sys.stdin.readline()
    for i in range(0, n, 512): journal.append_rows(stream(of, venue), 'rows', rows[i:i + 512], int(rows['ts_recv_ns'][i])) # as a tap hands them over
    journal.flush()
    print('kept', flush=True)
'''
VENUES = ('binance', 'bybit', 'kraken')


class Ingest:
    "Three venues in processes of their own, and a recorder in this one."
    def __init__(self, folder: str, of: str, n: int):
        from arbwork.store.collect import Recorder
        from arbwork.store.journal import open_journal
        from arbwork.store.ticks import Ticks
        from arbwork.store.worker import append_slots, stream
        self.n, self.first, url = n, 0, f'sqlite:///{folder}/{of}.db'
        self.journal, self.ticks = open_journal(url), Ticks(f'lmdb://{folder}/{of}?map_size=16GB')
        for venue in VENUES: append_slots(self.journal, venue, {'LINK-USDT': 0}, T0, of).wait()
        self.recorder = Recorder(self.journal, self.ticks, [stream(of, v) for v in VENUES])
        self.feeds = [subprocess.Popen([sys.executable, '-c', FEED, url, venue, of, str(n)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for venue in VENUES]
        for feed in self.feeds: assert feed.stdout.readline() == 'ready\n'

    def say(self, text: str):
        for feed in self.feeds: feed.stdin.write(f'{text}\n'); feed.stdin.flush()

    def run(self) -> float:
        self.say(str(self.first))
        for feed in self.feeds: assert feed.stdout.readline() == 'made\n'
        want, begun = self.recorder.rows + 3*self.n, perf_counter()
        self.say('go')
        while self.recorder.rows < want: self.recorder.care(self.recorder.step())
        spent = perf_counter() - begun
        for feed in self.feeds: assert feed.stdout.readline() == 'kept\n'
        self.first += self.n
        self.recorder.prune()
        return spent

    def close(self):
        for feed in self.feeds: feed.stdin.close(); feed.wait()
        self.ticks.close(), self.journal.close()


@contextmanager
def ingest():
    "Rows of three venues through the journal into ArcticDB, from the first hand-over to the last append; the baseline writes the same quotes as zstd Parquet files, unjournalled."
    n = size(400_000, 10_000)
    some = pd.DataFrame({name: quotes(n)[name] for name in QUOTE.names})
    with tempfile.TemporaryDirectory() as folder:
        parts = {of: Ingest(folder, of, n if of == 'quotes' else n//4) for of in ('quotes', 'books')}

        def parquet():
            for k in range(3):
                for i in range(0, n, 10_000): some[i:i + 10_000].to_parquet(f'{folder}/{k}-{i}.parquet', compression='zstd')

        yield {'zstd Parquet, quotes': (parquet, 3*n), 'quotes, 6 columns': (parts['quotes'].run, 3*n), 'books, 43 columns': (parts['books'].run, 3*(n//4))}, \
            'µs/row', 1e6, 'zstd Parquet, quotes', 3
        for x in parts.values(): x.close()


@contextmanager
def append():
    """A batch to the recorder's own `write`, journal left out; the baseline is a zstd Parquet file of 10,000 quotes, not synced. ArcticDB's own `append`
    of a finished frame stands beside it, on the same disk and in memory: an append is four commits of LMDB, each synced twice."""
    from arbwork.store.ticks import Ticks, to_frame
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory(dir='/dev/shm' if os.path.isdir('/dev/shm') else None) as memory:
        ticks, offset = Ticks(f'lmdb://{folder}/ticks?map_size=16GB'), 0
        base = {('quotes', n): quotes(n) for n in (10_000, 100_000)} | {('books', 10_000): books(10_000)}
        frame = pd.DataFrame({name: base['quotes', 10_000][name] for name in QUOTE.names})

        def write(of, n):
            rows = base[of, n]
            def run():
                nonlocal offset
                offset += 1
                rows['ts_recv_ns'] += n*10_000_000
                assert ticks.write(of, f'v{n}', 'LINK-USDT', rows, offset) == n
            return run

        def bare(where):
            library, kept = Ticks(f'lmdb://{where}/bare?map_size=4GB').library, to_frame(base['quotes', 10_000])
            library.write('bare', kept)
            def run():
                kept.index += pd.Timedelta(100, 's')
                library.append('bare', kept, prune_previous_versions=False, validate_index=False)
            return run

        yield {'zstd Parquet file, 10,000 quotes': (lambda: frame.to_parquet(f'{folder}/q.parquet', compression='zstd'), 10_000),
               '10,000 quotes, 6 columns': (write('quotes', 10_000), 10_000), '100,000 quotes': (write('quotes', 100_000), 100_000),
               '10,000 books, 43 columns': (write('books', 10_000), 10_000),
               'ArcticDB alone, 10,000 quotes': (bare(folder), 10_000), 'the same in memory': (bare(memory), 10_000)}, 'ns/row', 1e9, 'zstd Parquet file, 10,000 quotes', size(40, 3)
        ticks.close()


@contextmanager
def _stored(n: int):
    "The same quotes in a tick store and in a zstd Parquet file."
    from arbwork.store.ticks import Ticks
    with tempfile.TemporaryDirectory() as folder:
        rows, (root, var) = quotes(n), (Path(folder), Path(folder)/'var')
        settings = root/'settings.ini'
        settings.write_text('[arbwork]\nvenues = binance\ninstruments = LINK-USDT\nvar = var\nticks = lmdb://var/ticks\nmap_size = 8GB\n[venue:binance]\nrest = http://x\n'
                            'public_ws = ws://x\nprivate_ws = ws://x\ntrade_ws = ws://x\nmaker_bps = 10\ntaker_bps = 10\n')
        ticks = Ticks(f'lmdb://{var}/ticks?map_size=8GB')
        ticks.write('quotes', 'binance', 'LINK-USDT', rows, 1)
        frame = ticks.frame('quotes', 'binance', 'LINK-USDT')
        frame.to_parquet(root/'q.parquet', compression='zstd')
        yield ticks, settings, root/'q.parquet', frame.index
        ticks.close()


@contextmanager
def read():
    "All of the quotes; the baseline is pandas over zstd Parquet."
    from arbwork.store.tape import ticks as tape
    n = size(10_000_000, 100_000)
    with _stored(n) as (store, settings, parquet, _):
        def ours():
            assert len(store.frame('quotes', 'binance', 'LINK-USDT')) == n
        yield {'pandas, zstd Parquet': (lambda: pd.read_parquet(parquet), 1), 'tick store': (ours, 1),
               'tape.ticks, with its mask': (lambda: tape('binance', 'LINK-USDT', what='quotes', settings=settings), 1)}, 'ms', 1e3, 'pandas, zstd Parquet', 5


@contextmanager
def read_part():
    "A minute out of the quotes, and the last 1,000; the baseline is pandas over zstd Parquet, asked for the minute."
    from arbwork.store.tape import ticks as tape
    n = size(10_000_000, 100_000)
    with _stored(n) as (store, settings, parquet, index):
        low = index[n//2]
        high = low + pd.Timedelta(60, 's')
        name = index.name or '__index_level_0__'
        window = low.value, high.value

        def theirs():
            assert len(pd.read_parquet(parquet, filters=[(name, '>=', low), (name, '<', high)])) == min(6_000, n//2)

        def ours():
            assert len(store.frame('quotes', 'binance', 'LINK-USDT', *window)) == min(6_000, n//2)

        def last():
            assert len(store.latest('quotes', 'binance', 'LINK-USDT', 1_000)) == 1_000
        yield {'pandas, zstd Parquet': (theirs, 1), 'tick store': (ours, 1), 'tape.ticks, with its mask': (lambda: tape('binance', 'LINK-USDT', *window, what='quotes', settings=settings), 1),
               'last 1,000 rows': (last, 1)}, 'ms', 1e3, 'pandas, zstd Parquet', size(25, 3)


BENCHES = dict(store_hand=hand_over, store_ingest=ingest, store_append=append, store_read=read, store_read_part=read_part)
