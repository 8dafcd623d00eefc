"""The mapped board: what it costs to write and to read it."""

import tempfile
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from arbwork.feed.events import BOOK
from bench.sample import rows


@contextmanager
def board():
    "Writing and reading the mapped board, both in this process; the baseline is a bare numpy copy of the same row."
    from arbwork.feed.board import BoardReader, BoardWriter
    n, some = 20_000, rows(20_000)
    with tempfile.TemporaryDirectory() as folder:
        writer = BoardWriter(Path(folder)/'board', 1)
        reader, plain = BoardReader(Path(folder)/'board'), np.zeros(1, BOOK)
        writer.write(some[0])

        def copy():
            for row in some: plain[0] = row

        def write():
            for row in some: writer.write(row)

        def read():
            for _ in range(n): reader.latest(0)

        yield {'numpy row copy': (copy, n), 'board write': (write, n), 'board read': (read, n)}, 'µs/row', 1e6, 'numpy row copy', 15
        writer.close()
