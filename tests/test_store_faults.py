"""Recording while the world fails: the disk fills up, the network is pulled, the venue starts again; each is reported by name, and recording goes on."""

import asyncio
import shutil
import subprocess
import sys
from contextlib import suppress

import numpy as np
import pytest
from aiohttp import web

from arbwork.clock import WallClock
from arbwork.feed.events import VALID
from arbwork.store.collect import collect
from arbwork.store.ticks import Ticks
from bench.venue import Venue, settings_for

FULL = '''
import asyncio, os, sys
from pathlib import Path
from arbwork.clock import WallClock
from arbwork.market import ArbworkError
from arbwork.store.collect import collect, stream
from arbwork.store.journal import open_journal, rows_of
from arbwork.store.tables import TABLES
from arbwork.store.ticks import Ticks
from bench.venue import Venue, settings_for
folder, filler = Path(sys.argv[1]), Path(sys.argv[1])/'filler'

def fill():
    "Take all there is."
    with open(filler, 'wb') as f:
        try:
            while True: f.write(bytes(2**16)); f.flush()
        except OSError: return

async def run():
    async with Venue(10**6) as venue:
        settings = settings_for(folder, {'bybit': venue.port}, more='journal_hours = 24\\nrecord = books\\n')
        def first(report):
            if report['stored'] > 100 and not filler.exists(): fill()
        try: await collect(settings, WallClock(), on_progress=first)
        except ArbworkError as e: print(e)
        filler.unlink()
        stop = asyncio.Event()
        def second(report):
            if report['stored'] > 100: stop.set()
        await collect(settings, WallClock(), on_progress=second, stop_event=stop)
        return settings
settings = asyncio.run(run())
journal, ticks = open_journal(settings.journal), Ticks(settings.ticks)
kept = b''.join(x.body for x in journal.read(stream('books', 'bybit'), limit=10**7) if x.kind == 'rows')
rows = ticks.rows('bybit', 'LINK-USDT')
assert rows.tobytes() == kept and len(rows) > 200, (len(rows), len(kept))
print('restarts', (ticks.quality('bybit')['kind'] == 'restart').sum())
'''


def test_a_disk_that_fills_up_ends_recording_by_name_and_with_room_it_goes_on(tmp_path):
    prefix = ['unshare', '-Urm', 'sh', '-c', f'mount -t tmpfs -o size=160m tmpfs {tmp_path} && exec "$@"', 'sh']
    if not shutil.which('unshare') or subprocess.run([*prefix, 'true'], capture_output=True).returncode:
        pytest.skip('no user namespaces here: run as root, or allow them with sysctl kernel.unprivileged_userns_clone=1')
    done = subprocess.run([*prefix, sys.executable, '-c', FULL, str(tmp_path)], capture_output=True, text=True, timeout=170)
    assert done.returncode == 0, done.stderr
    first, last = done.stdout.strip().split('\n')[0], done.stdout.strip().split('\n')[-1]
    assert ('disk full' in first or 'cannot be written' in first) and str(tmp_path) in first and last == 'restarts 2', done.stdout


class Cable:
    "Connections to a port that can be pulled: they stay open, and nothing comes through."
    def __init__(self): self.open, self.port, self.to = asyncio.Event(), 0, 0

    async def __aenter__(self):
        self.open.set()
        self.server = await asyncio.start_server(self.joined, '127.0.0.1', 0)
        self.port = self.server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_): self.server.close()

    async def joined(self, reader, writer):
        await self.open.wait()
        try: there, back = await asyncio.open_connection('127.0.0.1', self.to)
        except OSError: return writer.close()
        async def pump(a, b):
            with suppress(OSError):
                while data := await a.read(2**16):
                    await self.open.wait()
                    b.write(data)
            b.close()
        await asyncio.gather(pump(reader, back), pump(there, writer))


def test_recording_goes_on_after_the_venue_started_again_and_after_the_network_was_pulled(tmp_path):
    async def run():
        async with Cable() as cable, Venue(10**9) as venue:
            cable.to = venue.port
            settings, stop, seen = settings_for(tmp_path, {'bybit': cable.port}), asyncio.Event(), []
            task = asyncio.create_task(collect(settings, WallClock(), stop_event=stop, on_progress=lambda r: seen.append(r)))
            async def until(what):
                while not (seen and what(seen[-1])): # a test that waits for ever is ended by its timeout
                    assert not task.done(), task
                    await asyncio.sleep(0.02)
                return seen[-1]
            await until(lambda r: r['rows'] > 100)
            await venue.runner.cleanup()
            now = await until(lambda r: r['venues']['bybit']['failed'] or r['reconnects'] > 0)
            venue.runner = web.AppRunner(venue.app, shutdown_timeout=0.1)
            await venue.runner.setup()
            await web.TCPSite(venue.runner, '127.0.0.1', venue.port).start()
            back = await until(lambda r: r['rows'] > now['rows'] + 100)
            cable.open.clear()
            pulled = await until(lambda r: r['reconnects'] > back['reconnects'] or r['problems'] > back['problems'])
            cable.open.set()
            await until(lambda r: r['rows'] > pulled['rows'] + 100)
            stop.set()
            return settings, await task
    settings, report = asyncio.run(run())
    ticks = Ticks(settings.ticks)
    rows, ledger = ticks.rows('bybit', 'LINK-USDT'), ticks.quality('bybit')
    assert len(rows) == report['stored'] == report['rows'] and rows['state'][-1] == VALID and (np.diff(rows['ts_recv_ns']) >= 0).all()
    why = np.sort(ledger['ts_ns'].to_numpy())
    jumps = [i for i in np.flatnonzero(np.diff(rows['seq']) != 1) if rows['state'][i] == rows['state'][i + 1] == VALID]
    for i in jumps: assert np.searchsorted(why, rows['ts_recv_ns'][i]) < np.searchsorted(why, rows['ts_recv_ns'][i + 1], 'right'), 'a jump that nothing in the ledger explains'
    assert {'restart', 'stop'} < set(ledger['kind']) and {'silent', 'lost', 'error', 'worker'} & set(ledger['kind']), ledger['kind'].tolist()
    ticks.close()
