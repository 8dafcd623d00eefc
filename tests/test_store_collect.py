"""Collecting over real sockets: a venue that gaps, one that is not there, a full journal, a stop in the middle; and the board across processes."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import msgspec
import numpy as np
import pytest

from arbwork.clock import WallClock
from arbwork.feed.board import BoardReader, BoardWriter
from arbwork.feed.events import BOOK, VALID
from arbwork.market import ArbworkError, ConfigError, DataError, VenueError
from arbwork.store.collect import collect, market
from arbwork.store.journal import open_journal
from arbwork.store.ticks import Ticks
from bench.venue import Venue, settings_for


async def collected(settings, venue, seconds=120., **kwargs):
    "Collect until the venue has nothing more to send, or for too long."
    stop = asyncio.Event()
    async def watch():
        await asyncio.wait([asyncio.ensure_future(venue.ended.wait())], timeout=seconds)
        await asyncio.sleep(0.2)
        stop.set()
    watching = asyncio.create_task(watch())
    try: return await collect(settings, WallClock(), stop_event=stop, **kwargs)
    finally: watching.cancel()


def test_everything_heard_is_stored(tmp_path):
    told = []
    async def run():
        async with Venue(600) as venue:
            settings = settings_for(tmp_path, {'bybit': venue.port})
            return settings, venue.sent, await collected(settings, venue, on_progress=told.append), venue.sent
    settings, _, report, sent = asyncio.run(run())
    assert (report['rows'], report['stored'], report['gaps'], report['duplicates']) == (sent, sent, 0, 0)
    ticks = Ticks(settings.ticks)
    rows = ticks.rows('bybit', 'LINK-USDT')
    assert rows['seq'].tolist() == list(range(1, 601)) and (rows['state'] == VALID).all()
    assert ticks.listing('bybit', 'LINK-USDT').symbol == 'LINKUSDT'
    assert BoardReader(settings.board).latest(0)['seq'] == 600
    assert told and told[-1]['venues']['bybit']['failed'] == ''
    ticks.close()


def test_gaps_and_repetitions_are_counted_told_and_mended(tmp_path):
    async def run():
        async with Venue(400, lost={150, 151}, twice={350, 351, 352}) as venue:
            settings = settings_for(tmp_path, {'bybit': venue.port})
            return settings, await collected(settings, venue)
    settings, report = asyncio.run(run())
    assert (report['gaps'], report['duplicates'], report['resyncs'] >= 1) == (1, 3, True)
    ticks = Ticks(settings.ticks)
    told = ticks.quality('bybit')
    assert sorted(told['kind']) == ['gap', 'restart', 'resync', 'stop']
    gap, resync = (told[told['kind'] == kind].iloc[0] for kind in ('gap', 'resync'))
    assert gap['instrument'] == resync['instrument'] == 'LINK-USDT' and '150' in gap['detail'] and 0 < resync['until_ns'] - resync['ts_ns'] < 5*10**9
    rows = ticks.rows('bybit', 'LINK-USDT')
    assert (rows['state'] != VALID).sum() == 1 and rows['state'][-1] == VALID
    ticks.close()


def test_a_venue_that_is_not_there_leaves_the_other_alone(tmp_path):
    async def run():
        async with Venue(300) as venue:
            settings = settings_for(tmp_path, {'binance': 1, 'bybit': venue.port})
            return settings, await collected(settings, venue)
    settings, report = asyncio.run(run())
    assert report['venues']['bybit']['rows'] == report['stored'] == 300
    assert '127.0.0.1:1' in report['venues']['binance']['failed']
    ticks = Ticks(settings.ticks)
    assert set(ticks.quality('binance')['kind']) == {'restart', 'worker', 'stop'}
    ticks.close()


def test_nobody_there_is_an_error_and_so_is_an_unknown_venue(tmp_path):
    tried, clock = threading.Event(), WallClock()
    def look(report):
        if report['venues']['bybit']['failed']: tried.set()
    with pytest.raises(VenueError, match='127.0.0.1:1'): asyncio.run(collect(settings_for(tmp_path, {'bybit': 1}), clock, stop_event=tried, on_progress=look))
    async def run(instruments):
        async with Venue(10) as venue: await collect(settings_for(tmp_path, {'bybit': venue.port}, instruments), clock, clock.now_ns() + 10**11)
    with pytest.raises(ConfigError, match='BTC-USDT'): asyncio.run(run('LINK-USDT, BTC-USDT'))
    with pytest.raises(ConfigError, match='wanted one of binance, bybit'):
        asyncio.run(collect(settings_for(tmp_path, {'mtgox': 1}), clock, clock.now_ns() + 10**11))


COLLECT = '''
import asyncio, sys
from arbwork.clock import WallClock
from arbwork.market import ArbworkError
from arbwork.settings import load_settings
from arbwork.store.collect import collect
try: print(asyncio.run(collect(load_settings(sys.argv[1]), WallClock())))
except ArbworkError as e: print(e); sys.exit(e.exit_code)
'''


def test_killed_in_the_middle_and_started_again(tmp_path):
    async def run():
        async with Venue(10**6, pause_s=0.0005, busy_after=2_000) as venue:
            settings = settings_for(tmp_path, {'bybit': venue.port})
            first = await asyncio.create_subprocess_exec(sys.executable, '-c', COLLECT, str(settings.path))
            await asyncio.wait_for(venue.busy.wait(), 120)
            os.kill(first.pid, signal.SIGKILL)
            await first.wait()
            venue.ended.clear()
            stop, clock = threading.Event(), WallClock()
            return settings, await collect(settings, clock, clock.now_ns() + 2*10**9, stop_event=stop)
    settings, report = asyncio.run(run())
    ticks = Ticks(settings.ticks)
    rows = ticks.rows('bybit', 'LINK-USDT')
    assert report['stored'] >= report['rows'] and len(rows) > 2_000
    assert len(np.unique(rows['seq'])) >= len(rows) - 2, 'rows are there twice (a snapshot may repeat a number)'
    assert (np.diff(rows['ts_recv_ns']) >= 0).all()
    ticks.close()


def test_second_collector_is_refused_and_a_full_journal_ends_it(tmp_path):
    async def run():
        async with Venue(10**6) as venue:
            settings = settings_for(tmp_path, {'bybit': venue.port})
            first = asyncio.create_task(collect(settings, WallClock()))
            await asyncio.wait_for(venue.busy.wait(), 120)
            second = await asyncio.create_subprocess_exec(sys.executable, '-c', COLLECT, str(settings.path), stdout=subprocess.PIPE)
            said, _ = await second.communicate()
            assert second.returncode == 1 and b'collector of bybit' in said
            first.cancel()
            with pytest.raises(asyncio.CancelledError): await first
            journal, ticks = open_journal(settings.journal), Ticks(settings.ticks)
            kept, entries = journal.last(market('bybit')).offset, journal.read(market('bybit'), limit=10**6, kind='rows')
            assert len(ticks.rows('bybit', 'LINK-USDT')) == sum(len(x.body) for x in entries)//BOOK.itemsize >= 100
            ticks.close()
            journal.close()
            third = await asyncio.create_subprocess_exec('sh', '-c', 'ulimit -f 3000; exec "$@"', 'sh', sys.executable, '-c', COLLECT, str(settings.path),
                                                         stdout=subprocess.PIPE, stderr=subprocess.PIPE)
            said, err = await asyncio.wait_for(third.communicate(), 120)
            assert third.returncode == DataError.exit_code, err
            assert b'cannot be written' in said
            return settings, kept
    settings, kept = asyncio.run(run())
    journal = open_journal(settings.journal)
    assert journal.last(market('bybit')).offset >= kept
    journal.close()


def test_readers_in_other_processes_never_see_half_a_row(tmp_path):
    path, row = tmp_path/'board.bin', np.zeros(1, BOOK)[0]
    writer = BoardWriter(path, slots=2, ring=4)
    row['slot'] = 1
    readers = [subprocess.Popen([sys.executable, '-c', '''
import sys
import numpy as np
from arbwork.feed.board import BoardReader
reader, looks, seqs = BoardReader(sys.argv[1]), 0, set()
while True:
    rows = [reader.latest(1), *reader.ring(1)]
    for row in rows:
        whole = np.concatenate([row[x] for x in ('bid_px', 'bid_qty', 'ask_px', 'ask_qty')])
        if not (whole == row['seq']).all(): sys.exit(f'torn: {row}')
    if len(set((top := reader.top(1))[2:])) > 1: sys.exit(f'torn: {top}')
    newest = rows[0]['seq']
    seqs.add(int(newest))
    looks += 1
    if newest == -1: break
    if looks == 1: print('ready', flush=True)
print(looks, len(seqs))
''', path], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    for r in readers: assert r.stdout.readline() == 'ready\n', r.stderr.read()
    for seq in [*range(40_000), -1]:
        row['seq'] = seq
        for x in ('bid_px', 'bid_qty', 'ask_px', 'ask_qty'): row[x] = seq
        writer.write(row)
    if seq == -1: row['seq'] = seq
    for _ in range(4): writer.write(row)
    for r in readers:
        out, err = r.communicate(timeout=30)
        assert r.returncode == 0, err
        looks, seen = map(int, out.split())
        assert looks > 10 and seen > 1
    with pytest.raises(ArbworkError, match='one writer at a time'): BoardWriter(path, slots=2)
    writer.close()


def test_board_says_what_is_wrong_with_its_file(tmp_path):
    (tmp_path/'short.bin').write_bytes(b'x'*10)
    for name in ('short.bin', 'none.bin'):
        with pytest.raises(DataError, match=name): BoardReader(tmp_path/name)
    with pytest.raises(DataError, match='wanted at least'): BoardWriter(tmp_path/'b.bin', slots=0)
