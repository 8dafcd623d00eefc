"The command line in the hands of a stranger: whatever is wrong is said in one line with what, where, found and wanted, and nothing stored is lost."
import http.server
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import msgspec
import numpy as np
import pytest

from arbwork.clock import NS
from arbwork.decide.cross import KERNELS, kernel_hash
from arbwork.desk.demo import free_ports
from arbwork.feed.events import VALID
from arbwork.research.promote import Study, load_key, make_key, manifest_of, sign, write_manifest
from arbwork.settings import Params, load_settings
from arbwork.sim.scenarios import load_scenario
from arbwork.store.quality import DOUBTS, doubts
from arbwork.store.ticks import Ticks

ROOT = Path(__file__).resolve().parents[1]
COMMANDS = 'sim collect new research promote live parity report api token vault doctor demo'.split()
VENUES, PAIR, SPEED = ['binance', 'bybit'], 'LINK-USDT', 60


def command(*args):
    module = args[0] if args[0] == 'arbwork.live' else 'arbwork'
    return [sys.executable, '-m', module, *map(str, args[module == 'arbwork.live':])]


def environment(**more):
    clean = {k: v for k, v in os.environ.items() if not k.startswith('ARBWORK_')}
    return {**clean, 'COLUMNS': '120', 'NO_COLOR': '1', **more}


def run(*args, code=0, stdin='', cwd=None, env=None):
    "One command to its end; no traceback ever, and nothing on standard output when it failed."
    done = subprocess.run(command(*args), input=stdin, capture_output=True, text=True, timeout=60, cwd=cwd, env=environment(**env or {}))
    assert 'Traceback' not in done.stderr + done.stdout, done.stderr
    assert done.returncode == code or code is None, (done.returncode, done.stdout, done.stderr)
    return done.stdout, done.stderr


def refused(*args, code=2, says=(), **kwargs):
    "A command that must fail: one line that begins with our name, and holds every one of `says`."
    out, err = run(*args, code=code, **kwargs)
    said = [line for line in err.splitlines() if line.startswith(('arbwork: ', 'arbwork.live: '))]
    assert len(said) == 1 and said[0] == err.splitlines()[-1] and not out, (out, err)
    for text in says: assert str(text) in said[0], (text, said[0])
    return said[0]


def write_settings(folder, ports, more='', **main):
    values = dict(venues=', '.join(VENUES), instruments=PAIR, var='var', strategies='strategies', journal='sqlite:///var/journal.db',
                  ticks='lmdb://var/ticks', board='var/board.bin') | main
    text = '[arbwork]\n' + ''.join(f'{k} = {v}\n' for k, v in values.items())
    for venue, port in zip(VENUES, ports):
        text += f'[venue:{venue}]\nrest = http://127.0.0.1:{port}\n' + ''.join(f'{k} = ws://127.0.0.1:{port}\n' for k in ('public_ws', 'private_ws', 'trade_ws'))
        text += 'maker_bps = 10\ntaker_bps = 10\nlatency_ms = 50\n'
    folder.mkdir(parents=True, exist_ok=True)
    (folder/'settings.ini').write_text(text + more)
    return folder/'settings.ini'


@contextmanager
def simulated(*args):
    "Venues in a process of their own; yields the first port."
    port = free_ports(2)
    process = subprocess.Popen(command('sim', '--port', port, '--json', *args), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment())
    try:
        line = process.stdout.readline()
        assert line, process.stderr.read()
        assert json.loads(line)['venues']['binance']['rest'] == f'http://127.0.0.1:{port}'
        yield port
    finally:
        process.terminate()
        _, err = process.communicate(timeout=10)
        assert 'Traceback' not in err, err


@pytest.fixture(scope='module')
def world():
    "Two venues that play the recording at sixty times its pace."
    with simulated('--speed', SPEED, '--lead', 0, '--api-key', 'k', '--api-secret', 's', '--balance', 'LINK=500', '--balance', 'USDT=20000') as port: yield port


@pytest.fixture
def young():
    "The same, begun just now: the recording lasts two minutes at that pace."
    with simulated('--speed', SPEED, '--lead', 0, '--api-key', 'k', '--api-secret', 's', '--balance', 'LINK=500', '--balance', 'USDT=20000') as port: yield port


@pytest.fixture(scope='module')
def alone(tmp_path_factory):
    "Settings whose venues are not there."
    return write_settings(tmp_path_factory.mktemp('alone'), (9, 9))


# what a person types


def test_every_command_explains_itself():
    out, _ = run('--help')
    for name in COMMANDS: assert f' {name} ' in out
    groups = dict(token=('password', 'create', 'list', 'revoke'), vault=('init', 'put', 'list', 'remove'))
    for name in COMMANDS:
        out, _ = run(name, '--help')
        if name not in groups: assert '--json' in out, name
        for sub in groups.get(name, ()): assert f' {sub} ' in out
    for name, sub in (('token', 'create'), ('vault', 'put')): assert '--json' in run(name, sub, '--help')[0]


def test_what_is_not_there_is_named():
    refused('frobnicate', says=["'frobnicate'", '--help'])
    refused('sim', '--frob', says=['--frob', 'sim --help'])
    refused('sim', '--port', 'x', says=['--port'])
    refused('parity', 'a', 'b', says=['parity --help'])
    _, err = run('arbwork.live', '--mode', 'dry', code=2)
    assert "invalid choice: 'dry'" in err and 'paper' in err
    _, err = run('arbwork.live', '--mode', 'sim', '--seconds', 'nan', code=2)
    assert '--seconds: found nan, wanted more than 0' in err


@pytest.mark.parametrize('args, says', [
    (['sim', '--hours', 'nan'], ['--hours', 'found nan', 'wanted more than 0']),
    (['sim', '--seed', '-1'], ['--seed']),
    (['sim', '--port', '65535'], ['found port 65535 for 2 venues', 'wanted 0 to 65534']),
    (['sim', '--speed', '0'], ['found speed 0', 'wanted above 0']),
    (['sim', '--scenario', 'moon'], ["found 'moon'", 'link-2021-08-20', 'stress']),
    (['sim', '--venues', 'binance,mars'], ["found 'mars'", 'bybit']),
    (['sim', '--from-hour', '99'], ['found 99', 'less than the 2.00 hours']),
    (['sim', '--balance', 'USDT=nan'], ["found 'USDT=nan'", 'ASSET=QTY']),
    (['collect', '--minutes', '0'], ['--minutes', 'found 0', 'wanted more than 0']),
    (['collect', '--until', 'yesterday'], ["found 'yesterday'", '2021-08-20T00:30']),
    (['collect', '--until', '2021-08-20'], ['found 2021-08-20T00:00:00', 'wanted later than now']),
], ids=lambda x: x[1].strip('-') if x[0] in ('sim', 'collect') else '')
def test_a_figure_that_cannot_be(alone, args, says):
    refused(*args, *(['--settings', alone] if args[0] == 'collect' else []), says=says)


@pytest.mark.parametrize('change, says', [
    (('seed = 1', 'sede = 1'), [':2: [arbwork] sede', 'did you mean seed?']),
    (('taker_bps = 10', 'taker_bps = ten'), ["[venue:binance] taker_bps: found 'ten'", 'wanted a number']),
    (('taker_bps = 10', 'taker_bps = nan'), ["found 'nan'", 'wanted a number']),
    (('venues = binance', 'venues = kraken'), ["found 'kraken'", '[venue:kraken]']),
    (('rest = http', 'rest = gopher'), ['[venue:binance] rest', 'http://']),
    (('[venue:bybit]', '[venus:bybit]'), ['[venus:bybit]: unknown section']),
    (('min_edge_bps = 2', 'min_edge_bps = nan'), ['[params]', 'min_edge_bps', 'found nan', 'wanted -50 to 1000']),
], ids=lambda x: x[1] if isinstance(x, tuple) else '')
def test_settings_that_are_wrong(tmp_path, change, says):
    path = write_settings(tmp_path, (9, 9), more='[params]\nmin_edge_bps = 2\n')
    text = path.read_text().replace('[arbwork]\n', '[arbwork]\nseed = 1\n')
    assert change[0] in text
    path.write_text(text.replace(*change, 1))
    line = 1 + path.read_text()[:path.read_text().index(change[1])].count('\n')
    refused('token', 'list', '--settings', path, says=[f'{path}:{line}: ', *says])
    assert sorted(x.name for x in tmp_path.iterdir()) == ['settings.ini']


def test_settings_that_are_none(tmp_path):
    refused('token', 'list', '--settings', tmp_path/'none.ini', says=[tmp_path/'none.ini', 'No such file'])
    refused('token', 'list', cwd='/', says=['settings.ini: not found in /', '--settings'])
    (tmp_path/'settings.ini').write_bytes(b'\xff\xfe\0[')
    refused('token', 'list', cwd=tmp_path, says=[tmp_path/'settings.ini', 'found 0xff', 'UTF-8'])


def test_a_path_that_is_something_else_is_left_as_it_is(tmp_path):
    notes = tmp_path/'notes.txt'
    notes.write_text('mine, all mine\n'*100)
    for i, (key, value, args, code) in enumerate([('var', notes, ['token', 'list'], 1), ('var', notes, ['arbwork.live', '--mode', 'sim'], 1), ('board', notes, ['collect'], 2),
                                                  ('journal', f'sqlite:///{notes}', ['parity'], 3), ('ticks', f'lmdb://{notes}', ['collect'], 3)]):
        path = write_settings(tmp_path/str(i), (9, 9), **{key: value})
        refused(*args, '--settings', path, code=code, says=[notes])
    assert notes.read_text() == 'mine, all mine\n'*100


def test_the_doctor_answers_a_program(alone, tmp_path):
    out, _ = run('doctor', '--json', '--settings', alone, code=None if shutil.disk_usage(alone).free < 5e9 else 0)
    found = json.loads(out)
    assert set(found) == {'ok', 'checks'} and all(set(c) == {'what', 'ok', 'found', 'mend'} for c in found['checks'])
    assert {'python', 'clock', 'settings', 'disk', 'api port', 'loopback'} <= {c['what'] for c in found['checks']}
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        s.listen()
        path = write_settings(tmp_path, (9, 9), more=f'[api]\nport = {s.getsockname()[1]}\n')
        out, _ = run('doctor', '--json', '--settings', path, code=1)
    bad = [c for c in json.loads(out)['checks'] if not c['ok']]
    assert [c['what'] for c in bad] == ['api port'] and 'in use' in bad[0]['found'] and 'another [api] port' in bad[0]['mend']


# who may steer, and with which keys


def test_doors_and_keys(tmp_path):
    path = write_settings(tmp_path, (9, 9))
    at = ['--settings', path]
    refused('api', *at, says=['nobody could log in', 'arbwork token password'])
    refused('token', 'password', *at, stdin='short\n', says=['found 5 characters', 'wanted 12'])
    refused('token', 'create', 'bot', '--scope', 'god', *at, says=["found 'god'", 'read, trade, admin'])
    refused('token', 'create', 'bot', '--days', '-1', *at, says=['--days', 'found -1', 'wanted more than 0'])
    refused('token', 'revoke', 'nosuch', *at, says=["'nosuch'", 'there is none'])
    assert json.loads(run('token', 'list', '--json', *at)[0]) == dict(users=[], keys=[])
    refused('vault', 'put', 'mars', '--key', 'k', *at, stdin='s\n', says=["found venue 'mars'", 'binance, bybit', path])
    refused('vault', 'put', 'binance', '--key', 'k', *at, stdin='s\n', says=['no passphrase', 'ARBWORK_VAULT_PASSPHRASE', 'arbwork vault init'])
    refused('vault', 'put', 'binance', '--key', 'k', *at, env=dict(ARBWORK_VAULT_PASSPHRASE='open sesame seven'), says=['binance', 'secret is missing'])
    assert json.loads(run('vault', 'init', '--json', *at)[0])['vault'].endswith('vault.json')
    run('vault', 'put', 'binance', '--key', 'k', '--json', *at, stdin='s\n')
    assert json.loads(run('vault', 'list', '--json', *at)[0]) == dict(venues=['binance'])
    run('token', 'create', 'bot', '--json', *at)
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        s.listen()
        refused('api', '--port', s.getsockname()[1], *at, code=None, says=[s.getsockname()[1], 'in use'])


# a port, an empty store, a session that never was


def test_a_port_in_use(world):
    refused('sim', '--port', world, says=['binance', f'port {world} on 127.0.0.1 is in use', '--port'])
    refused('sim', '--port', world - 1, says=['is in use']) # the second venue's, or a stranger's on the first


def test_nothing_there_to_read(alone, tmp_path):
    path = write_settings(tmp_path, (9, 9), strategies=ROOT/'strategies')
    refused('research', 'moon', '--settings', path, says=['moon.ipynb', 'cross'])
    refused('new', 'cross', '--settings', path, says=['cross comes with arbwork', 'wanted another name'])
    refused('research', 'cross', '-p', 'x', '--settings', path, says=["found 'x'", 'NAME=VALUE'])
    refused('research', 'cross', '-p', 'trails=9', '--settings', path, says=['trails: unknown', 'wanted one of'])
    refused('research', 'cross', '--settings', path, says=['lmdb://', 'holds nothing', 'wanted', 'the executed copy is'])
    refused('report', tmp_path/'none', '--settings', path, says=[tmp_path/'none', 'arbwork research'])
    refused('parity', '--settings', path, says=['journal.db', 'no session'])
    refused('parity', 'ghost', '--settings', path, says=['journal.db', "'ghost'", 'there is none'])
    refused('collect', '--minutes', '1', '--clock-speed', '5', '--settings', path, code=4, says=['http://127.0.0.1:9/'])


def test_somebody_else_at_the_venue_s_address(tmp_path):
    class Page(http.server.BaseHTTPRequestHandler):
        def do_GET(self): self.send_error(404)
        def log_message(self, *what): pass
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Page)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        path = write_settings(tmp_path, [server.server_port]*2)
        refused('collect', '--minutes', '0.02', '--settings', path, code=4, says=['binance: HTTP 404', 'html'])
    finally: server.shutdown(), server.server_close()


# the page that the bot obeys


def a_study(**changes):
    s = load_scenario('link-2021-08-20')
    return Study(**dict(scenario='made by hand', strategy='cross', snapshot='none', window=(0, NS), seed=1, rows=1, trials=1, params=Params(), kernel_hash=kernel_hash(KERNELS['cross']),
                        universe=s.universe, latency_ms={v: 50. for v in VENUES}, bucket_s=60., trades=3, pnl_quote=1., oos_sharpe=1., oos_low=0., oos_high=2., dsr=None, pbo=0.1,
                        folds=4, folds_positive=1., suspect_share=0., twin_fees_pnl=0., twin_latency_pnl=0., winner_pnl=1., winner_trades=3, best_gross_bps=9., gross_share=.1,
                        reasons=dict(fee=5)) | changes)


def test_a_study_that_may_not_pass_and_one_that_is_let_through(tmp_path):
    path, study = write_settings(tmp_path, (9, 9)), tmp_path/'study.json'
    (tmp_path/'strategies/promoted').mkdir(parents=True)
    refused('promote', study, '--settings', path, says=[study, 'arbwork research'])
    study.write_text('{"scenario": 3')
    refused('promote', study, '--settings', path, says=[study, 'not a study'])
    study.write_bytes(msgspec.json.encode(a_study()))
    refused('promote', study, '--settings', path, says=['not promoted', 'min_trades found 3, wanted >= 30', 'min_dsr found nothing to measure', '--override'])
    assert not list((tmp_path/'strategies/promoted').glob('*.json'))
    told = json.loads(run('promote', study, '--settings', path, '--override', 'a rehearsal', '--json')[0])
    assert told['strategy'] == 'cross' and json.loads(Path(told['manifest']).read_text())['override'] == 'a rehearsal'


@pytest.fixture(scope='module')
def bot(world, tmp_path_factory):
    "A person's folder with keys for both venues and a signed manifest."
    path = write_settings(tmp_path_factory.mktemp('bot'), (world, world + 1))
    s = load_settings(path)
    run('vault', 'init', '--settings', path)
    for venue in VENUES: run('vault', 'put', venue, '--key', 'k', '--settings', path, stdin='s\n')
    make_key(s.keys)
    s.promoted.mkdir(parents=True)
    return s, manifest_of(a_study(), version='0', created_ns=time.time_ns(), override='a rehearsal')


def resign(m, s): return sign(m, load_key(s.keys))


def flipped(digits): return ('1' if digits[0] == '0' else '0') + digits[1:]


BAD = dict(
    altered=(lambda m, s, d: msgspec.structs.replace(resign(m, s), params=Params(max_notional=1e6)), ['altered after it was signed', 'cross.json']),
    kernel=(lambda m, s, d: resign(msgspec.structs.replace(m, kernel_hash=flipped(m.kernel_hash)), s), ['made for kernel', 'found kernel', 'study again']),
    expired=(lambda m, s, d: resign(msgspec.structs.replace(m, created_ns=m.created_ns - 9*NS, expires_ns=m.created_ns - NS), s), ['expired at 2', 'now is']),
    early=(lambda m, s, d: resign(msgspec.structs.replace(m, created_ns=m.created_ns + 9_000*NS), s), ['lies ahead', 'set the clock']),
    unsigned=(lambda m, s, d: m, ['unsigned']),
    stranger=(lambda m, s, d: sign(m, load_key(make_key(d).parent)), ['not among the trusted keys', 'var/keys']),
    gates=(lambda m, s, d: resign(msgspec.structs.replace(m, override=''), s), ['gates not passed']))


@pytest.mark.parametrize('name', BAD)
def test_a_manifest_that_may_not_trade(bot, tmp_path, name):
    s, m = bot
    make, says = BAD[name]
    write_manifest(make(m, s, tmp_path), s.promoted/'cross.json')
    refused('arbwork.live', '--mode', 'sim', '--settings', s.path, '--clock-speed', SPEED, '--json', says=[s.promoted/'cross.json', *says])


def test_a_manifest_that_is_none_and_odd_wishes_to_the_bot(bot, tmp_path):
    s, m = bot
    at = ['--settings', s.path, '--clock-speed', SPEED, '--seconds', 5]
    (s.promoted/'cross.json').unlink(missing_ok=True)
    refused('live', '--mode', 'sim', *at, says=[s.promoted/'cross.json', 'nothing is promoted', 'arbwork promote'])
    (s.promoted/'cross.json').write_text('{"strategy": "cross"}')
    refused('live', '--mode', 'sim', *at, says=[s.promoted/'cross.json', 'not a manifest'])
    write_manifest(resign(m, s), s.promoted/'cross.json')
    refused('live', '--mode', 'sim', '--strategy', 'moon', *at, says=["found 'moon'", 'cross'])
    refused('live', '--mode', 'sim', '--log', tmp_path/'none/bot.log', *at, code=1, says=[tmp_path/'none/bot.log', 'No such file'])
    refused('live', '--mode', 'sim', '--session', 'a b', *at, code=None, says=["'a b'"])
    poor = write_settings(tmp_path, (9, 9), strategies=s.strategies)
    refused('live', '--mode', 'sim', '--settings', poor, '--trust', s.keys, code=4, says=['http://127.0.0.1:9/'])


def test_no_key_no_trade(bot, world, tmp_path):
    s, m = bot
    write_manifest(resign(m, s), s.promoted/'cross.json')
    path = write_settings(tmp_path, (world, world + 1), strategies=s.strategies)
    refused('live', '--mode', 'sim', '--settings', path, '--clock-speed', SPEED, '--trust', s.keys, says=['no passphrase', 'arbwork vault init'])


# frames that are not what they should be


def admin(port, faults=None):
    if faults is not None:
        urllib.request.urlopen(urllib.request.Request(f'http://127.0.0.1:{port}/_sim/faults', json.dumps(faults).encode(), method='POST'), timeout=5).close()
    with urllib.request.urlopen(f'http://127.0.0.1:{port}/_sim/status', timeout=5) as r: return json.load(r)


def until(true, seconds=90):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)


def stored(path):
    s = load_settings(path)
    ticks = Ticks(s.ticks)
    try: return {x: ticks.rows(*x) for x in ticks.symbols()}, {v: ticks.quality(v) for v in VENUES if (v, PAIR) in ticks.symbols()}
    finally: ticks.close()


def test_spoiled_frames_are_told_mended_and_never_believed(young, tmp_path):
    world = young
    path = write_settings(tmp_path, (world, world + 1))
    process = subprocess.Popen(command('collect', '--settings', path, '--clock-speed', SPEED, '--json'), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment())
    try:
        until(lambda: all(admin(world + i)['sockets'] for i in (0, 1)))
        time.sleep(1)
        for kind in ('repeat', 'gap', 'swap', 'cross', 'zero', 'nan', 'truncate'):
            for i in (0, 1): admin(world + i, dict(kind=kind))
            until(lambda: not any(admin(world + i)['faults'] for i in (0, 1)))
            until(lambda: all(admin(world + i)['sockets'] for i in (0, 1)))
            time.sleep(0.5)
        process.terminate()
        out, err = process.communicate(timeout=20)
    finally:
        if process.poll() is None: process.kill(), process.communicate()
    assert process.returncode == 0 and 'Traceback' not in err, err
    report = json.loads(out)
    rows, told = stored(path)
    assert report['stored'] == report['rows'] == sum(map(len, rows.values())) > 100
    for venue in VENUES:
        r = rows[venue, PAIR]
        valid = r[r['state'] == VALID]
        assert len(valid) > 20 and not np.isin(doubts(valid), [DOUBTS.index(x) for x in ('number', 'crossed', 'order')]).any()
        words = ' '.join(told[venue]['detail'])
        assert f'{venue} {PAIR}: crossed book' in words and ', wanted ' in words and 'found' in words and {'gap', 'crossed', 'frame'} <= set(told[venue]['kind']), words
        assert report['venues'][venue]['gaps'] >= 1 and report['venues'][venue]['duplicates'] >= 1 and report['venues'][venue]['reconnects'] >= 1
        assert isinstance(report['venues'][venue]['clock_offset_ms'], float) and report['venues'][venue]['clock_error_ms'] > 0, 'the clock of each venue is measured and reported'


# a full disk


FILL = '''
set -e
mount -t tmpfs -o size=96m tmpfs "$1"; cp "$2" "$1/settings.ini"; cd "$1"; shift 2
step() { name=$1; shift; code=0; "$@" > $OUT/$name.out 2> $OUT/$name.err || code=$?; echo $code > $OUT/$name.code; }
step before "$@"
mkdir $OUT/first $OUT/second; cp -r var $OUT/first/
step tight "$@" --minutes 60 &
until grep -q '[1-9][0-9,]* stored' $OUT/tight.err; do sleep 0.1; kill -0 $!; done
head -c $(($(stat -f -c '%a*%S' .) - 12000000)) /dev/zero > ballast
wait $!
cp -r var $OUT/second/
head -c 100000000 /dev/zero >> ballast || true
step full "$@"
rm ballast
step after "$@"
cp -r var $OUT/
'''


def test_a_full_disk_loses_nothing(young, tmp_path):
    "Room, then 12 MB from one moment to the next, then none at all, then room again; the disk is one of our own."
    prefix = [] if os.geteuid() == 0 else ['unshare', '-Urm']
    disk, out = tmp_path/'disk', tmp_path/'out'
    disk.mkdir(), out.mkdir()
    trial = f'mount -t tmpfs -o size=1m tmpfs {disk} && umount {disk}'
    if not shutil.which('mount') or prefix and not shutil.which('unshare') or subprocess.run([*prefix, 'sh', '-c', trial], capture_output=True).returncode:
        pytest.skip('no small disk can be mounted here: run as root, or allow user namespaces')
    path = write_settings(tmp_path/'from', (young, young + 1))
    try: done = subprocess.run([*prefix, 'sh', '-c', FILL, 'sh', disk, path, *command('collect', '--minutes', 2, '--clock-speed', SPEED, '--json')],
                               capture_output=True, text=True, timeout=120, env=environment(OUT=str(out)))
    finally: subprocess.run(['umount', disk], capture_output=True)
    assert done.returncode == 0, done.stderr
    codes = {x: int((out/f'{x}.code').read_text()) for x in ('before', 'tight', 'full', 'after')}
    said = {x: (out/f'{x}.err').read_text() for x in codes}
    assert codes['before'] == codes['after'] == 0 and min(codes['tight'], codes['full']) > 0, (codes, said)
    for x in ('tight', 'full'):
        last = said[x].splitlines()[-1]
        assert 'Traceback' not in said[x] and last.startswith('arbwork: ') and str(disk) in last and ' free ' in last, last
    before, after = (json.loads((out/f'{x}.out').read_text()) for x in ('before', 'after'))
    rows, first, second = (stored(write_settings(x, (9, 9)))[0] for x in (out, out/'first', out/'second'))
    assert sum(map(len, first.values())) == before['rows'] > 0
    for x in first:
        assert len(second[x]) >= len(first[x]) and second[x][:len(first[x])].tobytes() == first[x].tobytes()
        assert rows[x][:len(second[x])].tobytes() == second[x].tobytes()
    kept = sum(map(len, second.values()))
    assert kept > before['rows'] and sum(map(len, rows.values())) == kept + after['stored'] and after['stored'] > after['rows'] # what was heard without room is there as well
