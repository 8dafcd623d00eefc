"""The tick store and its recorder when processes die, disks fill up, and others read meanwhile."""

import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from arbwork.feed.events import BOOK, LEVELS, VALID
from arbwork.market import ArbworkError, DataError
from arbwork.store.collect import QUALITY, Recorder, append_problem, append_slots, market, tape
from arbwork.store.journal import open_journal
from arbwork.store.ticks import Problem, Ticks, from_frame, to_frame

T0, S = 1_629_417_600_000_000_000, 1_000_000_000


def books(n, first=0, slot=0, seed=7):
    rng, rows = np.random.default_rng(seed), np.zeros(n, BOOK)
    at = np.arange(first, first + n)
    rows['slot'], rows['ts_recv_ns'], rows['seq'], rows['state'] = slot, T0 + at*1_000_000, at, VALID
    px, steps = 27 + rng.random((n, 1)), np.arange(LEVELS)*0.001
    rows['bid_px'], rows['ask_px'] = px - steps, px + 0.002 + steps
    rows['bid_qty'], rows['ask_qty'] = rng.random((n, LEVELS)), rng.random((n, LEVELS))
    return rows


def run(code, *args, prefix=(), **kwargs):
    return subprocess.run([*prefix, sys.executable, '-c', code, *map(str, args)], capture_output=True, text=True, timeout=90, **kwargs)


def test_rows_come_back_bit_for_bit():
    rows = books(500)
    rows['bid_qty'][3, 5:] = 0
    assert from_frame(to_frame(rows)).tobytes() == rows.tobytes()


RECORD = '''
import sys
from arbwork.store.collect import Recorder, market
from arbwork.store.journal import open_journal
from arbwork.store.ticks import Ticks
import arbwork.store.collect as collect
collect.BATCH_ROWS = 200
recorder = Recorder(open_journal(sys.argv[1]), Ticks(sys.argv[2]), [market('binance'), market('bybit')])
print('ready', flush=True)
while True: print(recorder.step(), flush=True)
'''


def test_killed_recorder_records_everything_once(tmp_path):
    rng, urls = random.Random(11), (f'sqlite:///{tmp_path}/j.db', f'lmdb://{tmp_path}/ticks')
    journal = open_journal(urls[0])
    heard = {v: books(12_000, slot=i, seed=i) for i, v in enumerate(['binance', 'bybit'])}
    for slot, venue in enumerate(heard): append_slots(journal, venue, {'LINK-USDT': slot}, T0)
    for i in range(0, 12_000, 40):
        for venue, rows in heard.items(): journal.append(market(venue), 'rows', rows[i:i + 40].tobytes(), ts_ns=T0)
    journal.flush()
    for _ in range(3):
        recorder = subprocess.Popen([sys.executable, '-c', RECORD, *urls], stdout=subprocess.PIPE, text=True)
        assert recorder.stdout.readline() == 'ready\n'
        for _ in range(rng.randrange(1, 4)): recorder.stdout.readline()
        time.sleep(rng.random()*0.02)
        os.kill(recorder.pid, signal.SIGKILL)
        recorder.wait()
        recorder.stdout.close()
    ticks = Ticks(urls[1])
    Recorder(journal, ticks, [market(v) for v in heard]).drain()
    for venue, rows in heard.items():
        kept = ticks.rows(venue, 'LINK-USDT')
        kept['slot'] = rows['slot'][0]
        assert kept.tobytes() == rows.tobytes()
    ticks.close(), journal.close()


def test_crash_between_two_instruments_of_one_batch(tmp_path):
    class Crash(Exception): pass
    class Dying(Ticks):
        left = 1
        def write(self, *args):
            if not self.left: raise Crash
            self.left -= 1
            return super().write(*args)
    journal, names = open_journal(f'sqlite:///{tmp_path}/j.db'), ['BTC-USDT', 'LINK-USDT', 'ETH-USDT']
    append_slots(journal, 'binance', {x: i for i, x in enumerate(names)}, T0)
    rows = np.concatenate([books(500, slot=i, seed=i) for i in range(3)])
    rows = rows[np.argsort(rows['ts_recv_ns'], kind='stable')]
    for row in rows[:900]: journal.append_rows(market('binance'), 'rows', row, T0)
    journal.flush()
    dying = Dying(f'lmdb://{tmp_path}/ticks')
    with pytest.raises(Crash): Recorder(journal, dying, [market('binance')]).step()
    assert len(dying.symbols()) == 1
    dying.close()
    for row in rows[900:]: journal.append_rows(market('binance'), 'rows', row, T0)
    journal.flush()
    ticks = Ticks(f'lmdb://{tmp_path}/ticks')
    assert Recorder(journal, ticks, [market('binance')]).drain() == 1_500 - 300
    for slot, name in enumerate(names):
        kept = ticks.rows('binance', name)
        kept['slot'] = slot
        assert kept.tobytes() == rows[rows['slot'] == slot].tobytes()
    ticks.close(), journal.close()


def test_second_recorder_is_refused(tmp_path):
    uri = f'lmdb://{tmp_path}/ticks'
    ticks = Ticks(uri)
    ticks.write_rows('binance', 'LINK-USDT', books(10), 1)
    done = run('''
import sys
import numpy as np
from arbwork.feed.events import BOOK
from arbwork.market import ArbworkError
from arbwork.store.ticks import Ticks
rows = np.zeros(1, BOOK)
rows['ts_recv_ns'] = 1
try: Ticks(sys.argv[1]).write_rows('binance', 'LINK-USDT', rows, 2)
except ArbworkError as e: print(e); sys.exit(e.exit_code)
''', uri)
    assert done.returncode == 1 and f'process {os.getpid()} has it' in done.stdout, done.stderr
    assert len(ticks.rows('binance', 'LINK-USDT')) == 10
    ticks.close()


def test_reader_in_another_process_sees_each_batch_while_versions_are_pruned(tmp_path):
    uri = f'lmdb://{tmp_path}/ticks'
    ticks = Ticks(uri)
    ticks.write_rows('binance', 'LINK-USDT', books(10), 1)
    reader = subprocess.Popen([sys.executable, '-c', '''
import sys
from arbwork.store.ticks import Ticks
ticks, n = Ticks(sys.argv[1]), 0
while n < 610:
    now = len(ticks.rows('binance', 'LINK-USDT'))
    if now < n or now%10: sys.exit(f'saw {now} rows after {n}')
    n = now
    print(n, flush=True)
''', uri], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert reader.stdout.readline() == '10\n'
    for i in range(1, 61): ticks.write_rows('binance', 'LINK-USDT', books(10, 10*i), 1 + i)
    out, err = reader.communicate(timeout=90)
    assert reader.returncode == 0, err
    assert out.split()[-1] == '610'
    ticks.close()


@pytest.mark.parametrize('first', ['arcticdb', 'arbwork.store.bars', 'arbwork.store.ticks'])
def test_writer_that_takes_over_appends_to_what_the_other_one_left(tmp_path, first):
    "ArcticDB may have been imported before us, and the store been read a moment before the other one wrote."
    uri = f'lmdb://{tmp_path}/ticks'
    ticks = Ticks(uri)
    ticks.write_rows('binance', 'LINK-USDT', books(10), 1)
    later = subprocess.Popen([sys.executable, '-c', f'''
import sys, {first}
from arbwork.store.ticks import Ticks
from tests.test_store_ticks import books
ticks = Ticks(sys.argv[1])
for i in range(2, 12):
    print(len(ticks.latest('books', 'binance', 'LINK-USDT', 1_000)), ticks.last_offset('binance', 'LINK-USDT'), flush=True)
    sys.stdin.readline()
print(ticks.write_rows('binance', 'LINK-USDT', books(10, 100), 10), ticks.write_rows('binance', 'LINK-USDT', books(10, 100), 11), flush=True)
''', uri], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1],
                             env={k: x for k, x in os.environ.items() if not k.startswith('ARCTICDB_')})
    for i in range(1, 11):
        assert later.stdout.readline() == f'{10*i} {i}\n'
        if i < 10: ticks.write_rows('binance', 'LINK-USDT', books(10, 10*i), i + 1)
        if i == 9: ticks.close()
        print(file=later.stdin, flush=True)
    assert later.communicate(timeout=90)[0] == '0 10\n' and later.returncode == 0
    assert Ticks(uri).rows('binance', 'LINK-USDT')['seq'].tolist() == books(110)['seq'].tolist()


FULL = '''
import sys
import numpy as np
from arbwork.feed.events import BOOK
from arbwork.market import ArbworkError
from arbwork.store.ticks import Ticks
ticks, rows, rng, n = Ticks('lmdb://' + sys.argv[1] + '/ticks'), np.zeros(2_000, BOOK), np.random.default_rng(1), 0
try:
    for i in range(1_000):
        rows['ts_recv_ns'] = 10**18 + i*10**12 + np.arange(2_000)
        rows['bid_px'], rows['ask_qty'] = rng.random((2_000, 10)), rng.random((2_000, 10))
        n += ticks.write_rows('binance', 'LINK-USDT', rows, i + 1)
except ArbworkError as e:
    assert len(ticks.rows('binance', 'LINK-USDT')) == n > 0 and ticks.last_offset('binance', 'LINK-USDT') == n//2_000
    ticks.close()
    print(e)
    sys.exit(e.exit_code)
'''


def test_full_disk_keeps_what_was_written(tmp_path):
    prefix = ['unshare', '-Urm', 'sh', '-c', f'mount -t tmpfs -o size=48m tmpfs {tmp_path} && exec "$@"', 'sh']
    if not shutil.which('unshare') or subprocess.run([*prefix, 'true'], capture_output=True).returncode:
        pytest.skip('no user namespaces here: run as root, or allow them with sysctl kernel.unprivileged_userns_clone=1')
    done = run(FULL, tmp_path, prefix=prefix)
    assert done.returncode == DataError.exit_code, done.stderr
    assert 'disk full, found' in done.stdout and str(tmp_path) in done.stdout


def test_disk_that_fills_up_inside_a_commit_ends_in_an_error_not_an_abort(tmp_path):
    limit = 8_000_000
    done = run(FULL, tmp_path, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)))
    assert done.returncode == DataError.exit_code, done.stderr
    assert 'cannot be written' in done.stdout and str(tmp_path) in done.stdout
    ticks = Ticks(f'lmdb://{tmp_path}/ticks')
    n, last = len(ticks.rows('binance', 'LINK-USDT')), ticks.last_offset('binance', 'LINK-USDT')
    assert n == 2_000*last > 0
    assert ticks.write_rows('binance', 'LINK-USDT', books(5, 10**12), last + 1) == 5
    ticks.close()


def test_recorder_goes_on_after_the_store_has_room_again(tmp_path):
    journal, small = open_journal(f'sqlite:///{tmp_path}/j.db'), Ticks(f'lmdb://{tmp_path}/ticks', map_size='1MB')
    append_slots(journal, 'binance', {'LINK-USDT': 0}, T0)
    rows = books(6_000)
    journal.append_rows(market('binance'), 'rows', rows, T0)
    journal.flush()
    with pytest.raises(DataError, match='map is full'): Recorder(journal, small, [market('binance')]).drain()
    small.close()
    del small
    large = Ticks(f'lmdb://{tmp_path}/ticks', map_size='1GB')
    assert Recorder(journal, large, [market('binance')]).drain() == 6_000
    assert large.rows('binance', 'LINK-USDT').tobytes() == rows.tobytes()
    large.close(), journal.close()


def test_new_journal_beside_an_old_store_is_recorded_too(tmp_path):
    ticks = Ticks(f'lmdb://{tmp_path}/ticks')
    for k in range(2):
        journal = open_journal(f'sqlite:///{tmp_path}/j{k}.db')
        append_slots(journal, 'binance', {'LINK-USDT': 0}, T0)
        journal.append_rows(market('binance'), 'rows', books(100, 100*k), T0)
        journal.flush()
        assert Recorder(journal, ticks, [market('binance')]).drain() == 100
        journal.close()
    assert len(ticks.rows('binance', 'LINK-USDT')) == 200
    ticks.close()


def test_slots_may_change_their_meaning_between_runs(tmp_path):
    journal, ticks = open_journal(f'sqlite:///{tmp_path}/j.db'), Ticks(f'lmdb://{tmp_path}/ticks')
    append_slots(journal, 'binance', {'LINK-USDT': 0}, T0)
    journal.append_rows(market('binance'), 'rows', books(10), T0)
    append_slots(journal, 'binance', {'BTC-USDT': 0, 'LINK-USDT': 1}, T0)
    journal.append_rows(market('binance'), 'rows', books(10, 10, slot=0), T0)
    journal.append_rows(market('binance'), 'rows', books(10, 10, slot=1), T0)
    append_problem(journal, Problem(T0, 'binance', '', 'unheard-of', 'ü'*300))
    journal.flush()
    recorder = Recorder(journal, ticks, [market('binance'), QUALITY])
    assert recorder.drain() == 30
    assert [len(ticks.rows(*x)) for x in ticks.symbols()] == [10, 20]
    told = ticks.quality('binance').iloc[0]
    assert told['kind'] == 'unheard-of' and told['detail'].startswith('ü'*100)
    recorder.prune()
    assert Recorder(journal, ticks, [market('binance'), QUALITY]).drain() == 0
    ticks.close(), journal.close()


def test_rows_without_meaning_and_time_are_refused(tmp_path):
    journal, ticks = open_journal(f'sqlite:///{tmp_path}/j.db'), Ticks(f'lmdb://{tmp_path}/ticks')
    journal.append_rows(market('binance'), 'rows', books(10), T0)
    journal.flush()
    with pytest.raises(DataError, match='what their slots mean'): Recorder(journal, ticks, [market('binance')]).step()
    with pytest.raises(DataError, match='wanted above 0'): ticks.write_rows('binance', 'LINK-USDT', np.zeros(1, BOOK), 1)
    class Nothing: listings = [type('Listing', (), dict(venue='binance', instrument='LINK-USDT'))]
    with pytest.raises(DataError, match='it is empty: collect first'): tape(ticks, Nothing)
    with pytest.raises(DataError, match='it is empty: collect first'): ticks.snapshot('study')
    with pytest.raises(DataError, match='wanted lmdb'): Ticks('parquet://x')
    with pytest.raises(DataError, match='after its start'): ticks.rows('binance', 'LINK-USDT', T0, T0)
    ticks.close(), journal.close()
    with pytest.raises(ArbworkError, match='closed'): ticks.symbols()
