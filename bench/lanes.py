"""What is measured: each bench yields its lanes as (run, operations), with unit, scale of seconds to that unit, baseline and rounds."""

import sqlite3
import tempfile
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from bench import board, chaos, disk, feed, live, peers, soak, start, store, study
from bench.sample import rows


@contextmanager
def journal():
    "Durable puts, one by one and in rows; the baseline is one SQLite transaction a put, as durable as ours."
    from arbwork.store.journal import open_journal
    n, body, some = 300, b'x'*200, rows(20_000)
    with tempfile.TemporaryDirectory() as folder:
        plain = sqlite3.connect(f'{folder}/plain.db', isolation_level=None)
        plain.executescript('PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; CREATE TABLE t(id INTEGER PRIMARY KEY, body BLOB)')
        ours = open_journal(f'sqlite:///{folder}/ours.db')

        def one_by_one():
            for _ in range(n): plain.execute('INSERT INTO t(body) VALUES (?)', (body,))

        def durable():
            for i in range(n): ours.append('intents', 'intent', body, ts_ns=i, durable=True).wait(5)

        def hot():
            for row in some: ours.append_rows('market', 'rows', row, ts_ns=0)

        def in_rows():
            hot()
            ours.flush()

        yield {'sqlite, a transaction a put': (one_by_one, n), 'durable put, waited for': (durable, n),
               'row handed over': (hot, len(some)), 'row handed over and kept': (in_rows, len(some))}, 'µs/put', 1e6, 'sqlite, a transaction a put', 9
        ours.close()
        plain.close()


@contextmanager
def backtest():
    "Ten-level books through the whole kernel with fills, latency and inventory; the baseline is one numpy pass over the same bytes."
    from arbwork.research.backtest import backtest as run
    from arbwork.settings import Params
    from arbwork.sim.scenarios import load_scenario
    world = load_scenario('stress', seed=7, hours=24.0)
    tape = world.tape()
    how = dict(inventory=world.universe.empty_inventory() + 1e6, latency_ns=50_000_000, seed=7)

    def stream(): np.add.reduce(tape.view('f8'))
    yield {'one numpy pass': (stream, len(tape)), 'backtest, trading': (lambda: run('cross', tape, world.universe, Params(min_edge_bps=2), **how), len(tape)),
           'backtest, nothing to trade': (lambda: run('cross', tape, world.universe, Params(min_edge_bps=500), **how), len(tape))}, 'ns/event', 1e9, 'one numpy pass', 9


BENCHES = {'journal': journal, 'backtest': backtest,
           'quote': feed.quote, 'depth': feed.depth, 'quote_wire': feed.quote_wire, 'depth_wire': feed.depth_wire, 'burst': feed.burst,
           'board': board.board, **store.BENCHES, **disk.BENCHES, **peers.BENCHES, **study.BENCHES, **live.BENCHES, **start.BENCHES, **soak.BENCHES, **chaos.BENCHES}
