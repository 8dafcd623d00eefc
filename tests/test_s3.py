"""A tick store in S3, on a real S3 server: recorded, read elsewhere, written by one machine at a time, its keys shown to nobody."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from test_store_collect import Venue, collected, settings_for
from test_store_ticks import T0, books

from arbwork import live
from arbwork.cli import main
from arbwork.decide.contract import Universe
from arbwork.market import ArbworkError, ConfigError, DataError
from arbwork.settings import load_settings
from arbwork.store.collect import tape
from arbwork.store.importing import BOOK
from arbwork.store.lease import bucket_at, lease_in, request
from arbwork.store.ticks import Ticks

KEY, SECRET = 'AKIADESKOFTHEDESK', 's3crtOfTheDesk77'
SERVE = '''
import logging, sys
logging.getLogger('werkzeug').setLevel(logging.ERROR)
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer(ip_address='127.0.0.1', port=0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()
'''


@pytest.fixture(scope='module')
def s3():
    "The port of an S3 server in a process of its own."
    pytest.importorskip('moto.server')
    process = subprocess.Popen([sys.executable, '-c', SERVE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    yield int(process.stdout.readline())
    process.kill()
    process.wait()
    process.stdin.close(), process.stdout.close()


def address(port, name, keys=True):
    uri = f's3://127.0.0.1:{name}?port={port}&region=us-east-1&' + (f'access={KEY}&secret={SECRET}' if keys else 'aws_auth=true')
    if keys: request(bucket_at(uri.replace('?', '?path_prefix=&')), 'PUT', '')
    return uri


@pytest.fixture
def uri(s3, request): return address(s3, f'b{abs(hash(request.node.name)) % 10**8}')


@pytest.fixture
def machine(tmp_path, monkeypatch):
    "Become another machine: locks lie in another folder."
    def become(name):
        (tmp_path/name).mkdir(exist_ok=True)
        monkeypatch.setattr('tempfile.tempdir', str(tmp_path/name))
    return become


READ = '''
import json, sys
from arbwork.store.ticks import Ticks
ticks = Ticks(sys.argv[1])
rows = ticks.rows('bybit', 'LINK-USDT')
print(json.dumps([len(rows), rows['seq'].tolist()[:3], len(ticks.rows('bybit', 'LINK-USDT', as_of='study-1')), ticks.listing('bybit', 'LINK-USDT').symbol]))
'''


def test_recorded_here_and_read_elsewhere(uri, tmp_path, machine):
    machine('a')
    settings_for(tmp_path, {'bybit': 1})
    async def run():
        async with Venue(200) as venue:
            settings_for(tmp_path, {'bybit': venue.port})
            path = tmp_path/'settings.ini'
            path.write_text(path.read_text().replace('lmdb://var/ticks', uri))
            return await collected(load_settings(path), venue), venue.sent
    report, sent = asyncio.run(run())
    assert report['rows'] == sent and report['stored'] >= sent
    ticks = Ticks(uri)
    assert ticks.snapshot('study-1') == 'study-1'
    more = ticks.rows('bybit', 'LINK-USDT')[-1:].copy()
    more['ts_recv_ns'] += 10**9
    assert ticks.write_rows('bybit', 'LINK-USDT', more, 10**12, 'test') == 1
    elsewhere = subprocess.run([sys.executable, '-c', READ, uri], capture_output=True, text=True, timeout=120)
    assert json.loads(elsewhere.stdout.splitlines()[-1]) == [sent + 1, [1, 2, 3], sent, 'LINKUSDT'], elsewhere.stderr
    study = tape(ticks, Universe([ticks.listing('bybit', 'LINK-USDT')], {'bybit': (10., 10.)}), as_of='study-1') # what a study reads
    assert len(study) == sent and study.dtype == BOOK
    ticks.close()


def test_a_second_machine_is_refused_until_the_first_lets_go(uri, machine):
    machine('a')
    a = Ticks(uri)
    assert a.write_rows('binance', 'LINK-USDT', books(100), 1, 'j') == 100
    machine('b')
    b = Ticks(uri)
    with pytest.raises(ArbworkError, match='ticks/binance in .*: process .* has it, wanted it free'): b.write_rows('binance', 'LINK-USDT', books(100, 100), 2, 'j')
    assert b.write_rows('bybit', 'LINK-USDT', books(10), 1, 'j') == 10 # another venue is another matter
    assert len(b.rows('binance', 'LINK-USDT')) == 100 # and reading is free
    a.close()
    assert b.write_rows('binance', 'LINK-USDT', books(100, 100), 2, 'j') == 100
    assert b.rows('binance', 'LINK-USDT')['seq'].tolist() == list(range(200))
    b.close()


HOLD = '''
import sys
sys.path.insert(0, sys.argv[3])
from test_store_ticks import books
import arbwork.store.lease as lease
lease.lease_in.__defaults__ = (lease.lease_in.__defaults__[0], 4.)
from arbwork.market import ArbworkError
from arbwork.store.ticks import Ticks
ticks = Ticks(sys.argv[1])
n = 0
print('open', flush=True)
for line in sys.stdin:
    n += 1
    try: print(ticks.write_rows('binance', 'LINK-USDT', books(10, 10*n), n, 'j'), flush=True)
    except ArbworkError as e: print('refused', e, flush=True)
'''


class Holder:
    "A recorder on a machine of its own."
    def __init__(self, uri, folder):
        folder.mkdir(exist_ok=True)
        self.process = subprocess.Popen([sys.executable, '-c', HOLD, uri, 'x', os.path.dirname(__file__)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        stderr=subprocess.DEVNULL, text=True, env={**os.environ, 'TMPDIR': str(folder)})
        assert self.process.stdout.readline() == 'open\n'

    def write(self):
        self.process.stdin.write('\n')
        self.process.stdin.flush()
        return self.process.stdout.readline().strip()

    def end(self):
        self.process.kill()
        self.process.wait()
        self.process.stdin.close(), self.process.stdout.close()


def wait_for(what, seconds=60):
    end = time.monotonic() + seconds
    while True:
        try: return what()
        except ArbworkError:
            assert time.monotonic() < end
            time.sleep(0.1)


def test_a_machine_that_is_held_up_is_followed_and_finds_out(uri, tmp_path, machine):
    holder = Holder(uri, tmp_path/'far')
    try:
        assert holder.write() == '10'
        os.kill(holder.process.pid, signal.SIGSTOP)
        machine('near')
        b = Ticks(uri)
        assert wait_for(lambda: b.write_rows('binance', 'LINK-USDT', books(10, 20), 2, 'j')) == 10
        os.kill(holder.process.pid, signal.SIGCONT)
        said = holder.write()
        assert said.startswith('refused') and 'wanted the sole right to it' in said, said
        assert b.rows('binance', 'LINK-USDT')['seq'].tolist() == list(range(10, 30))
        b.close()
    finally: holder.end()


def test_a_machine_that_died_is_followed_at_once_by_itself_and_later_by_others(uri, tmp_path, machine):
    holder = Holder(uri, tmp_path/'far')
    assert holder.write() == '10'
    holder.end()
    machine('near')
    b = Ticks(uri)
    with pytest.raises(ArbworkError, match='it lapses in'): b.write_rows('binance', 'LINK-USDT', books(10, 20), 2, 'j')
    b.close()
    machine('far')
    again = Ticks(uri)
    assert again.write_rows('binance', 'LINK-USDT', books(10, 20), 2, 'j') == 10
    again.close()


def test_rows_of_another_writer_do_not_go_unnoticed(uri, machine, monkeypatch):
    "What leases cannot prevent, a write in flight at the wrong moment, is seen at the next write."
    machine('a')
    a = Ticks(uri)
    a.write_rows('binance', 'LINK-USDT', books(10), 1, 'j')
    monkeypatch.setenv('ARBWORK_S3_LEASE', 'none')
    machine('b')
    late = Ticks(uri)
    late.write_rows('binance', 'LINK-USDT', books(10, 10), 2, 'other')
    with pytest.raises(DataError, match='another machine has written'): a.write_rows('binance', 'LINK-USDT', books(10, 20), 2, 'j')
    for x in (a, late): x.close()


def test_a_server_that_ignores_conditions_is_refused():
    class Handler(BaseHTTPRequestHandler):
        held = b''
        def answer(self, status, body=b''):
            self.send_response(status)
            self.send_header('Content-Length', str(len(body)))
            self.send_header('ETag', '"1"')
            self.end_headers()
            self.wfile.write(body)
        def do_GET(self): self.answer(404)
        def do_PUT(self):
            self.rfile.read(int(self.headers['Content-Length'] or 0))
            self.answer(200)
        def log_message(self, *args): return None
    server = ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    b = bucket_at(f's3://127.0.0.1:ticks?port={server.server_port}&access={KEY}&secret={SECRET}')
    with pytest.raises(ConfigError, match='takes no conditional writes') as e: lease_in(b, 'ticks/binance')
    assert SECRET not in str(e.value)
    server.shutdown(), server.server_close()


def test_of_many_that_reach_for_a_bucket_one_has_it(uri):
    b, got, start = bucket_at(uri), [], threading.Barrier(5)
    def reach():
        start.wait()
        try: got.append(lease_in(b, 'ticks/okx'))
        except ArbworkError: return
    threads = [threading.Thread(target=reach) for _ in range(5)]
    for t in threads: t.start()
    for t in threads: t.join()
    assert len(got) == 1
    got[0].release()
    lease_in(b, 'ticks/okx').release()


# keys


def closed_port():
    with socket.create_server(('127.0.0.1', 0)) as s: return s.getsockname()[1]


def test_keys_are_used_and_never_shown(s3, tmp_path, machine, capfd, monkeypatch):
    machine('a')
    shown = []
    uri = address(s3, 'keys')
    ticks = Ticks(uri)
    ticks.write_rows('binance', 'LINK-USDT', books(10), 1, 'j')
    with pytest.raises(DataError) as e: ticks.rows('okx', 'LINK-USDT')
    shown += [str(e.value), repr(e.value), repr(ticks), repr(vars(ticks)['where']), repr(bucket_at(uri))]
    ticks.close()
    for bad in (uri.replace('s3://', 'S3://'), f's3://127.0.0.1:gone?port={s3}&access={KEY}&secret={SECRET}'):
        with pytest.raises(ArbworkError) as e: Ticks(bad).write_rows('binance', 'LINK-USDT', books(10), 1, 'j')
        shown += [str(e.value), repr(e.value.__cause__)]
    with pytest.raises(DataError) as e: request(bucket_at(f's3://127.0.0.1:x?port={closed_port()}&access={KEY}&secret={SECRET}'), 'GET', 'x')
    shown.append(str(e.value))
    settings_for(tmp_path, {'bybit': 9})
    path = tmp_path/'settings.ini'
    path.write_text(path.read_text().replace('lmdb://var/ticks', uri))
    for args in (['import', str(tmp_path/'none.csv')], ['import', str(tmp_path/'none.csv'), '--json'], ['doctor', '--json']): main([*args, '--settings', str(path)])
    out, err = capfd.readouterr()
    assert 'none.csv' in out + err
    assert not [x for x in (*shown, out, err) if SECRET in x], [x for x in (*shown, out, err) if SECRET in x]


def test_keys_from_the_environment(s3, tmp_path, machine, monkeypatch):
    machine('a')
    address(s3, 'fromenv')
    uri = address(s3, 'fromenv', keys=False)
    for name in ('AWS_ACCESS_KEY_ID', 'AWS_SECRET_ACCESS_KEY', 'AWS_SESSION_TOKEN'): monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv('AWS_SHARED_CREDENTIALS_FILE', str(tmp_path/'none'))
    with pytest.raises(ConfigError, match='found no keys, wanted AWS_ACCESS_KEY_ID'): bucket_at(uri)
    (tmp_path/'keys').write_text(f'[default]\naws_access_key_id = {KEY}\naws_secret_access_key = {SECRET}\n')
    monkeypatch.setenv('AWS_SHARED_CREDENTIALS_FILE', str(tmp_path/'keys'))
    assert bucket_at(uri).secret == SECRET
    monkeypatch.setenv('AWS_ACCESS_KEY_ID', KEY), monkeypatch.setenv('AWS_SECRET_ACCESS_KEY', SECRET)
    ticks = Ticks(uri)
    assert ticks.write_rows('binance', 'LINK-USDT', books(10), 1, 'j') == 10 and len(ticks.rows('binance', 'LINK-USDT', T0, T0 + 10**12)) == 10
    assert SECRET not in ticks.uri
    ticks.close()


# one journal, two machines


@pytest.mark.parametrize('scheme', ['redis', 'nats'])
def test_a_second_collector_and_a_second_bot_are_refused_elsewhere(scheme, tmp_path, capsys, server):
    served = server(scheme)
    places = []
    for name in ('a', 'b'):
        (tmp_path/name).mkdir()
        settings_for(tmp_path/name, {'bybit': 9})
        path = tmp_path/name/'settings.ini'
        path.write_text(path.read_text().replace('sqlite:///var/journal.db', served.url))
        places.append(str(path))
    from arbwork.store.journal import open_journal
    journal = open_journal(served.url)
    leases = [journal.lease('collector of bybit'), journal.lease('trading')]
    assert main(['collect', '--settings', places[1], '--minutes', '0.01']) == 1
    assert 'collector of bybit: process' in capsys.readouterr().err
    assert live.main(['--settings', places[1], '--mode', 'sim']) == 1
    assert 'trading: process' in capsys.readouterr().err
    for x in leases: x.release()
    assert live.main(['--settings', places[1], '--mode', 'sim']) != 0 # no manifest; but it was let in
    assert 'trading: process' not in capsys.readouterr().err
    journal.lease('trading').release()
    journal.close()
