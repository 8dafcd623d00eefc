"""The mapped board: what it costs to write it while another process reads, and to read it from that process.

`python -m bench.board PATH` is the reader: for each `latest N` or `top N` on its standard input it reads that many rows of twenty levels, or the
best prices of them, looks whether all are whole, and says how long its processor was busy.
"""

import json
import select
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from arbwork.feed.board import BoardReader, BoardWriter
from arbwork.feed.events import BOOK
from bench.sample import rows

PRICES = [x for x in BOOK.names if x.endswith(('px', 'qty'))]


class Beside:
    "A writer here and a reader in another process, both busy at the same time."

    def __init__(self, folder: str):
        path = Path(folder)/'board'
        self.writer, self.some = BoardWriter(path, 1), rows(2_000)
        for name in PRICES: self.some[name] = self.some['seq'][:, None] # so that half of a row would show
        self.writer.write(self.some[0])
        self.listed = list(self.some)
        self.child = subprocess.Popen([sys.executable, '-m', 'bench.board', str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1,
                                      cwd=Path(__file__).parents[1])
        self.write_s = 0.

    def read(self, how: str, n: int) -> float:
        "Seconds in which the reader read n rows, the writer writing all the while."
        self.child.stdin.write(f'{how} {n}\n')
        writes, spent, write = 0, 0., self.writer.write
        while not select.select([self.child.stdout], [], [], 0)[0]:
            start = time.process_time()
            for row in self.listed: write(row)
            spent, writes = spent + time.process_time() - start, writes + len(self.some)
        found = json.loads(self.child.stdout.readline())
        if found['torn']: raise RuntimeError(f'{found["torn"]} torn rows of {n}')
        self.write_s = spent/max(1, writes)*n
        return found['cpu_s']

    def close(self):
        self.child.stdin.close()
        self.child.wait(10)
        self.writer.close()


@contextmanager
def board():
    "The board written while another process reads it, and read while it is written, no row torn; the baseline is a bare numpy copy of a row."
    n, some, plain = 20_000, list(rows(2_000)), np.zeros(1, BOOK)

    def copy() -> float:
        start = time.process_time()
        for _ in range(n//len(some)):
            for row in some: plain[0] = row
        return time.process_time() - start
    with tempfile.TemporaryDirectory() as folder:
        both = Beside(folder)
        yield {'numpy row copy': (copy, n), 'rows, from another process': (lambda: both.read('latest', n), n), 'best prices, the same': (lambda: both.read('top', n), n), 'write, being read': (lambda: both.write_s, n)}, 'µs cpu/row', 1e6, 'numpy row copy', 15
        both.close()


def serve(path: str):
    reader = BoardReader(path)
    for line in sys.stdin:
        how, n = line.split()[0], int(line.split()[1])
        read = getattr(reader, how)
        start = time.process_time()
        for _ in range(n): read(0)
        took = time.process_time() - start
        if how == 'latest':
            seen = np.array([read(0) for _ in range(n)], BOOK)
            torn = sum((seen[x] != seen['seq'][:, None]).any(1).sum() for x in PRICES)
        else: torn = sum(len(set(read(0)[2:])) > 1 for _ in range(n))
        print(json.dumps(dict(cpu_s=took, torn=int(torn))), flush=True)


if __name__ == '__main__': serve(sys.argv[1])
