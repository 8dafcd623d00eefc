"""What a row costs on the disk: real books (`data/books`, one a second) and their best levels, recorded in batches of a thousand and tidied, as a recorder does.

A day of one instrument of one venue costs 86,400 times the rows a second times this. Books a second apart differ more from one another than
updates that follow one another, so a quick feed costs less a row.
"""

import tempfile
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd

from arbwork.feed.events import BOOK, LEVELS, VALID
from arbwork.store.tables import QUOTE, TABLES
from arbwork.store.ticks import Ticks, to_frame

COPIES = 12 # symbols with the same rows: the store compresses each by itself


def real_books() -> np.ndarray:
    "The shipped recording of Binance as rows."
    table = pd.read_csv(next((Path(__file__).parents[1]/'data/books').glob('*binance*')))
    rows = np.zeros(len(table), BOOK)
    ts = pd.to_datetime(table['timestamp']).astype('datetime64[ns]').astype('i8').to_numpy()
    jitter = np.random.default_rng(7).integers(1_000_000, 90_000_000, (2, len(rows))).cumsum(0) # stamps to the nanosecond, as live ones are
    rows['ts_venue_ns'], rows['ts_recv_ns'] = ts + jitter[0], ts + jitter[1]
    rows['seq'], rows['state'] = 10**9 + np.cumsum(np.random.default_rng(8).integers(1, 400, len(rows))), VALID
    for side, px, qty in (('bid', 'b', 'bv'), ('ask', 'a', 'av')):
        rows[f'{side}_px'] = table[[f'{px}{i + 1}' for i in range(LEVELS)]].to_numpy()
        rows[f'{side}_qty'] = table[[f'{qty}{i + 1}' for i in range(LEVELS)]].to_numpy()
    return rows


def quotes_of(books: np.ndarray) -> np.ndarray:
    rows = np.zeros(len(books), QUOTE)
    for x in ('ts_venue_ns', 'ts_recv_ns', 'seq'): rows[x] = books[x]
    for x in ('bid_px', 'bid_qty', 'ask_px', 'ask_qty'): rows[x] = books[x][:, 0]
    return rows


def size(folder: Path) -> int: return sum(x.stat().st_size for x in folder.rglob('*') if x.is_file())


@contextmanager
def disk():
    "Bytes a row in the tick store after tidying, in the journal on the way there, and in zstd Parquet, the baseline."
    books = real_books()
    of = {'books': books, 'quotes': quotes_of(books)}

    def stored(what):
        def run() -> float:
            with tempfile.TemporaryDirectory() as folder:
                sizes = []
                for copies in (2, 2 + COPIES): # the difference is what rows cost; an empty store has a size of its own
                    ticks = Ticks(f'lmdb://{folder}/{copies}?map_size=4GB')
                    for k in range(copies):
                        for i in range(0, len(books), 1_000): ticks.write(what, 'binance', f'S{k}-USDT', of[what][i:i + 1_000], i + 1)
                        ticks.compact(after=0)
                    ticks.close()
                    sizes.append(size(Path(folder)/str(copies)))
                return float(sizes[1] - sizes[0])
        return run

    def journal(what) -> float:
        from arbwork.store.journal import open_journal
        with tempfile.TemporaryDirectory() as folder:
            j = open_journal(f'sqlite:///{folder}/j.db')
            for k in range(COPIES):
                for i in range(0, len(books), 100): j.append(f'{TABLES[what].stream}/v{k}', 'rows', of[what][i:i + 100].tobytes(), ts_ns=i).wait()
            j.close()
            return float(size(Path(folder)))

    def parquet(what) -> float:
        with tempfile.TemporaryDirectory() as folder:
            to_frame(of[what]).to_parquet(f'{folder}/x.parquet', compression='zstd')
            return float(size(Path(folder)))

    n = len(books)
    yield {'zstd Parquet, quotes': (lambda: parquet('quotes'), n), 'tick store, quotes': (stored('quotes'), n*COPIES), 'tick store, books': (stored('books'), n*COPIES),
           'journal, quotes': (lambda: journal('quotes'), n*COPIES), 'journal, books': (lambda: journal('books'), n*COPIES),
           'zstd Parquet, books': (lambda: parquet('books'), n)}, 'bytes/row', 1, 'zstd Parquet, quotes', 1


BENCHES = dict(store_disk=disk)
