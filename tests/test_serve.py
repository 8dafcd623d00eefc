"""The control plane over real sockets, asked nicely and otherwise."""
import json
import socket
import stat
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import msgspec
import pytest
import uvicorn

from arbwork.clock import NS, WallClock
from arbwork.market import ConfigError
from arbwork.serve.api import MAX_BODY, create_app, run_api
from arbwork.serve.auth import IDLE_NS, LIFE_NS, Auth, Denied, open_auth
from arbwork.serve.client import ApiError, Client, local_client
from arbwork.serve.vault import Vault, open_vault, vault_passphrase
from arbwork.settings import load_settings, make_params
from arbwork.store.journal import open_journal
from arbwork.trade.core import Ack, Command, LegReport, Status, TradeReport

ROOT = Path(__file__).parents[1]
PASSWORD = 'nine copper kettles'


class LateClock(WallClock):
    "Wall time, moved by hand."
    late_ns = 0
    def now_ns(self): return super().now_ns() + self.late_ns


class Bot(threading.Thread):
    "A session that reports and obeys, as `arbwork.live` does, without a market."
    def __init__(self, journal, params, clock):
        super().__init__(daemon=True)
        self.journal, self.params, self.clock = journal, params, clock
        self.state, self.commands, self.mute, self.ended = 'active', [], False, False
        self.said_once = threading.Event()

    def run(self):
        heard, last = 0, 0
        while not self.ended:
            for e in self.journal.read('control', after=heard):
                heard, c = e.offset, msgspec.msgpack.decode(e.body, type=Command)
                self.commands.append(c)
                if not self.mute: self.obey(c)
            if time.monotonic() - last > 0.2:
                last = time.monotonic()
                now = self.clock.now_ns()
                said = Status('s1', self.state, msgspec.structs.asdict(self.params), 1.25, 4001.25, 0., 1, 2, 0, {'binance>bybit LINK-USDT': float('nan')},
                              now, 812, 'sim', 'cross', reasons={'fee': 800}, wall_ns=now)
                self.journal.append('status', 'status', msgspec.msgpack.encode(said), ts_ns=now).wait(5)
                self.said_once.set()
            time.sleep(0.01)

    def obey(self, c):
        ok, detail = True, c.verb
        if c.verb == 'set_params': self.params = make_params(c.args, self.params)
        elif c.verb == 'pause': self.state = 'paused'
        elif c.verb == 'resume' and self.state != 'paused': ok, detail = False, f'resume: found state {self.state}, wanted paused'
        elif c.verb == 'halt': self.state = 'halted'
        else: self.state = 'active'
        self.journal.append('control-ack', 'ack', msgspec.msgpack.encode(Ack(c.id, ok, detail, msgspec.structs.asdict(self.params))), ts_ns=c.ts_ns, key=c.id, durable=True)


@contextmanager
def serving(app):
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level='critical', server_header=False, ws='none'))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    try: yield 'http://127.0.0.1:%d' % server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        thread.join(10)


class World: pass


@pytest.fixture
def world(tmp_path):
    w = World()
    w.settings = msgspec.structs.replace(load_settings(ROOT/'settings.ini'), var=tmp_path)
    w.journal, w.clock, w.auth = open_journal(f'sqlite:///{tmp_path}/journal.db'), LateClock(), open_auth(w.settings)
    w.auth.set_password('ada', PASSWORD)
    now = w.clock.now_ns()
    w.keys = {scope: w.auth.make_key(f'test {scope}', scope, now) for scope in ('read', 'trade', 'admin')}
    w.bot = Bot(w.journal, w.settings.params, w.clock)
    w.bot.start()
    assert w.bot.said_once.wait(5)
    with serving(create_app(w.settings, w.journal, w.clock, w.auth, ack_s=1)) as w.url:
        yield w
    w.bot.ended = True
    w.bot.join()
    w.journal.close()
    w.auth.close()


def bearer(w, scope): return {'Authorization': f'Bearer {w.keys[scope]}'}


def shape(r, status, error):
    "An answer is a refusal in the one shape."
    assert (r.status_code, r.json()['error']) == (status, error), r.text
    assert set(r.json()) == {'error', 'what', 'found', 'wanted'}
    assert r.headers['content-type'] == 'application/json'
    assert r.headers['x-content-type-options'] == 'nosniff' and r.headers['cache-control'] == 'no-store'


def test_a_person_steers_a_session(world):
    with Client(world.url) as c:
        said = c.login('ada', PASSWORD)
        assert said['scope'] == 'admin' and c.session()['name'] == 'user:ada'
        assert c.status()['running'] and c.status()['edges'] == {'binance>bybit LINK-USDT': None}
        assert c.set_params(min_edge_bps=4, max_open_trades=2)['params']['min_edge_bps'] == 4
        assert world.bot.params.min_edge_bps == 4 and world.bot.params.max_open_trades == 2
        c.pause()
        assert world.bot.state == 'paused'
        c.resume()
        with pytest.raises(ApiError, match='found state active, wanted paused') as e: c.resume()
        assert (e.value.status, e.value.error) == (409, 'refused')
        c.halt()
        assert world.bot.state == 'halted'
        c.release()
        assert {x.by for x in world.bot.commands} == {'user:ada'}
        c.logout()
        with pytest.raises(ApiError) as e: c.status()
        assert e.value.status == 401


def test_cookie_is_kept_from_pages_and_ends_with_the_session(world):
    with httpx.Client(base_url=world.url) as c:
        r = c.post('/login', json=dict(user='ada', password=PASSWORD))
        flags = r.headers['set-cookie'].lower()
        assert 'httponly' in flags and 'samesite=strict' in flags
        token = c.cookies['arbwork_session']
        assert token not in r.text
        raw = b''.join(p.read_bytes() for p in world.settings.keys.iterdir())
        assert token.encode() not in raw and PASSWORD.encode() not in raw and all(k.split('_')[2].encode() not in raw for k in world.keys.values())
        c.post('/logout', headers={'X-CSRF-Token': r.json()['csrf']})
        shape(httpx.get(f'{world.url}/status', cookies={'arbwork_session': token}), 401, 'not_authenticated')


def test_a_change_by_session_needs_the_csrf_token(world):
    with httpx.Client(base_url=world.url) as c:
        first = c.post('/login', json=dict(user='ada', password=PASSWORD)).json()['csrf']
        second = c.post('/login', json=dict(user='ada', password=PASSWORD)).json()['csrf']
        for headers in ({}, {'X-CSRF-Token': ''}, {'X-CSRF-Token': 'x'*64}, {'X-CSRF-Token': first}, {'X-CSRF-Token': 'é'.encode()}):
            for method, path in (('POST', '/halt'), ('PATCH', '/params'), ('POST', '/logout')):
                shape(c.request(method, path, headers=headers, json={}), 403, 'bad_csrf')
        assert not world.bot.commands
        assert c.post('/pause', headers={'X-CSRF-Token': second}).status_code == 200


def test_scopes(world):
    allowed = {'read': set(), 'trade': {'/pause', '/resume', '/halt', '/stop'}, 'admin': {'/pause', '/resume', '/halt', '/stop', '/release'}}
    with httpx.Client(base_url=world.url) as c:
        for scope, paths in allowed.items():
            assert c.get('/status', headers=bearer(world, scope)).status_code == 200
            for path in ('/pause', '/resume', '/halt', '/release', '/stop'):
                r = c.post(path, headers=bearer(world, scope))
                if path in paths: assert r.status_code == 200, r.text
                else: shape(r, 403, 'scope')
        shape(c.patch('/params', json=dict(min_edge_bps=1), headers=bearer(world, 'read')), 403, 'scope')
        for path in ('/status', '/params', '/trades', '/report', '/metrics', '/session', '/commands/x'): shape(c.get(path), 401, 'not_authenticated')
        assert c.get('/healthz').json() == {'ok': True}


def test_wrong_keys(world):
    good = world.keys['admin']
    _, key_id, secret = good.split('_')
    wrong = ['arb', 'arb__', f'arb_{key_id}_', f'arb_{key_id}_{"0"*64}', f'{good}0', good[:-1], f'arb_{key_id}_{secret}_x', f'xyz_{key_id}_{secret}', secret, "arb_' or 1=1 --_x"]
    with httpx.Client(base_url=world.url) as c:
        for text in wrong: shape(c.get('/status', headers={'Authorization': f'Bearer {text}'}), 401, 'not_authenticated')
        shape(c.get('/status', headers={'Authorization': f'Basic {good}'}), 401, 'not_authenticated')
        world.auth.revoke(key_id)
        shape(c.get('/status', headers={'Authorization': f'Bearer {good}'}), 401, 'not_authenticated')


@pytest.mark.parametrize('late_ns', [IDLE_NS + NS, LIFE_NS + NS])
def test_sessions_expire(world, late_ns):
    with Client(world.url) as c:
        c.login('ada', PASSWORD)
        world.clock.late_ns = late_ns
        with pytest.raises(ApiError, match='session') as e: c.status()
        assert e.value.status == 401


def test_a_session_in_use_still_ends_after_its_life(tmp_path):
    auth, now = Auth(tmp_path/'auth.db'), 10**18
    auth.set_password('ada', PASSWORD)
    import asyncio
    token = asyncio.run(auth.login('ada', PASSWORD, now)).token
    t = now
    while t + IDLE_NS - NS <= now + LIFE_NS:
        t += IDLE_NS - NS
        assert auth.session(token, t).name == 'user:ada'
    with pytest.raises(Denied, match='expired'): auth.session(token, now + LIFE_NS + 1)


def test_guessing_is_slowed_down(world):
    with httpx.Client(base_url=world.url) as c:
        got = [c.post('/login', json=dict(user='ada', password=f'nine copper kettle{i}')).status_code for i in range(6)]
        assert got == [401]*5 + [429]
        r = c.post('/login', json=dict(user='ada', password=PASSWORD))
        shape(r, 429, 'denied')
        assert int(r.headers['retry-after']) > 0
        assert c.get('/status', headers=bearer(world, 'read')).status_code == 200


def test_an_unknown_user_is_told_the_same_and_takes_as_long(tmp_path):
    import asyncio
    auth = Auth(tmp_path/'auth.db')
    auth.set_password('ada', PASSWORD)
    words, took = [], []
    for i, user in enumerate(('ada', 'eve')):
        t = time.perf_counter()
        with pytest.raises(Denied) as e: asyncio.run(auth.login(user, 'wrong wrong wrong', 0, f'a{i}'))
        took.append(time.perf_counter() - t)
        words.append(str(e.value))
    assert words[0] == words[1] and min(took) > 0.2*max(took)


def test_slow_hashing_leaves_the_loop_free(world):
    with ThreadPoolExecutor(5) as pool, httpx.Client(base_url=world.url, timeout=30) as c:
        guesses = [pool.submit(httpx.post, f'{world.url}/login', json=dict(user=f'u{i}', password='x'*20), timeout=30) for i in range(4)]
        between = 0
        while not all(g.done() for g in guesses): between += c.get('/healthz').status_code == 200
        assert between > 3 and all(g.result().status_code == 401 for g in guesses)


BAD_JSON = [b'', b'{', b'[]', b'null', b'"x"', b'{"min_edge_bps": NaN}', b'{"min_edge_bps": Infinity}', b'{"min_edge_bps": [1]}',
            b'\xff\xfe', b'['*60_000, b'{"min_edge_bps": 1} x', b'{"min_edge_bps":' + b'9'*400 + b'}']


def test_bad_json(world):
    with httpx.Client(base_url=world.url, headers=bearer(world, 'trade')) as c:
        for body in BAD_JSON:
            r = c.patch('/params', content=body)
            assert r.status_code == 400 and set(r.json()) == {'error', 'what', 'found', 'wanted'}, body
    assert not world.bot.commands


BAD_PARAMETERS = [({}, 'request body'), ({'min_egde_bps': 1}, 'min_egde_bps'), ({'min_edge_bps': '4'}, 'min_edge_bps'),
    ({'min_edge_bps': True}, 'min_edge_bps'), ({'min_edge_bps': None}, 'min_edge_bps'), ({'risk_tolerance': 1.01}, 'risk_tolerance'),
    ({'risk_tolerance': -1e-9}, 'risk_tolerance'), ({'max_notional': 1e300}, 'max_notional'), ({'max_open_trades': 1.5}, 'max_open_trades'),
    ({'single_leg': 'hope'}, 'single_leg'), ({'single_leg': 1}, 'single_leg'), ({'min_edge_bps': 3, 'x'*5000: 1}, 'xxx'), ({'__class__': 1}, '__class__')]


def test_bad_parameters(world):
    with httpx.Client(base_url=world.url, headers=bearer(world, 'trade')) as c:
        for values, name in BAD_PARAMETERS:
            r = c.patch('/params', json=values)
            shape(r, 400, 'bad_parameter')
            assert name in r.json()['what'] and len(r.text) < 2000
    assert not world.bot.commands


def test_unknown_query_bodies_and_paths(world):
    with httpx.Client(base_url=world.url, headers=bearer(world, 'admin')) as c:
        shape(c.get('/status?verbose=1'), 400, 'unknown_parameter')
        shape(c.get('/trades?limit=0'), 400, 'bad_parameter')
        shape(c.get('/trades?limit=1e9'), 400, 'bad_parameter')
        shape(c.post('/pause', json=dict(minutes=5)), 400, 'bad_json')
        shape(c.post('/login', json=dict(user='ada', password=PASSWORD, admin=True)), 400, 'bad_json')
        shape(c.post('/login', data=dict(user='ada', password=PASSWORD)), 415, 'bad_type')
        shape(c.get('/../../etc/passwd'), 404, 'not_found')
        shape(c.get('/docs'), 404, 'not_found')
        shape(c.delete('/params'), 405, 'bad_method')
        shape(c.get('/commands/nonsense'), 404, 'no_answer')
    assert not world.bot.commands


def test_a_foreign_page_gets_nowhere(world):
    with httpx.Client(base_url=world.url, headers=bearer(world, 'admin')) as c:
        port = world.url.rpartition(':')[2]
        for host in ('evil.example', f'evil.example:{port}', '127.0.0.1.evil.example', 'localhost.evil.example', '127.0.0.1:x', '', '127.0.0.1@evil.example', '127.1'):
            shape(c.get('/status', headers={'Host': host}), 400, 'bad_host')
        for host in (f'localhost:{port}', f'LOCALHOST:{port}', '[::1]', '127.0.0.1'): assert c.get('/status', headers={'Host': host}).status_code == 200
        for origin in ('https://evil.example', 'null', 'http://localhost:8888', 'http://127.0.0.1:1'): shape(c.post('/halt', headers={'Origin': origin}), 403, 'bad_origin')
        shape(c.post('/halt', headers={'Sec-Fetch-Site': 'cross-site'}), 403, 'bad_origin')
        assert not world.bot.commands
        assert c.post('/pause', headers={'Origin': world.url, 'Sec-Fetch-Site': 'same-origin'}).status_code == 200
        assert 'access-control-allow-origin' not in c.options('/params', headers={'Origin': world.url, 'Access-Control-Request-Method': 'PATCH'}).headers


def raw(url, request):
    host, port = url.removeprefix('http://').split(':')
    with socket.create_connection((host, int(port)), 5) as s:
        s.settimeout(5)
        s.sendall(request)
        got = b''
        while b'\r\n\r\n' not in got or b'}' not in got:
            part = s.recv(65536)
            if not part: break
            got += part
    return got


def test_long_bodies_and_two_hosts(world):
    big = b'POST /login HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n'
    assert b' 413 ' in raw(world.url, big + b'Content-Length: %d\r\n\r\n' % (MAX_BODY + 1) + b'x'*(MAX_BODY + 1))
    chunked = b''.join(b'2000\r\n' + b'x'*0x2000 + b'\r\n' for _ in range(9))
    assert b' 413 ' in raw(world.url, big + b'Transfer-Encoding: chunked\r\n\r\n' + chunked)
    assert b' 400 ' in raw(world.url, b'GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\nHost: evil.example\r\n\r\n')


def test_silence_is_an_unknown_outcome_and_can_be_asked_about(world):
    world.bot.mute = True
    with Client(world.url, world.keys['admin']) as c:
        with pytest.raises(ApiError, match='GET /commands/') as e: c.halt()
        assert (e.value.status, e.value.error) == (504, 'unknown_outcome')
        command = world.bot.commands[-1]
        world.bot.obey(command)
        world.journal.flush()
        assert c.command(command.id) == dict(id=command.id, ok=True, detail='halt', params=msgspec.to_builtins(world.bot.params))


def test_nothing_is_sent_to_a_session_that_is_gone(world):
    world.bot.ended = True
    world.bot.join()
    world.clock.late_ns = 60*NS
    with Client(world.url, world.keys['admin']) as c:
        with pytest.raises(ApiError, match='running session') as e: c.halt()
        assert e.value.status == 503 and world.journal.last('control') is None
        assert c.status()['running'] is False and c.status()['age_s'] > 50


def test_many_commands_at_once_each_get_their_own_answer(world):
    with ThreadPoolExecutor(6) as pool:
        def change(i):
            with Client(world.url, world.keys['trade']) as c: return i, c.set_params(min_edge_bps=i)['params']['min_edge_bps']
        got = list(pool.map(change, range(1, 13)))
    assert all(a == b for a, b in got) and len({c.id for c in world.bot.commands}) == 12


def trade(i, pnl):
    leg = LegReport(f's1-{i}-b-0', 'binance', 'LINK-USDT', 1, 'FILLED', 10, 10, 27.1, 27.1, .02, 10**18, 10**18 + 10**7)
    return TradeReport(i, 'DONE', 'binance', 'bybit', 'LINK-USDT', 10., 4.2, .11, pnl, 0., 10**18 + i, 10**18 + i + 10**8, [leg, leg])


def test_trades_report_and_metrics(world):
    for i in range(5): world.journal.append('session/s1', 'trade', msgspec.msgpack.encode(trade(i, i - 1.)), ts_ns=10**18 + i).wait(5)
    (world.settings.var/'stress').mkdir()
    (world.settings.var/'stress'/'study.json').write_text(json.dumps(dict(trials=400, promoted=True, recommendation='Promote min_edge_bps 4.')))
    (world.settings.var/'broken').mkdir()
    (world.settings.var/'broken'/'study.json').write_text('{')
    with Client(world.url, world.keys['read']) as c:
        assert [t['id'] for t in c.trades(limit=3)] == [4, 3, 2] and c.trades()[0]['legs'][0]['qty'] == '10'
        world.journal.append('session/s1', 'trade', msgspec.msgpack.encode(trade(5, 1.)), ts_ns=10**18 + 9).wait(5)
        assert [t['id'] for t in c.trades(limit=2)] == [5, 4]
        report = c.report()
        assert report['recommendation'] == 'Promote min_edge_bps 4.' and report['session']['won'] == 4 and report['session']['trades'] == 6
        text = c.metrics()
    assert 'arbwork_session_up 1.0' in text and 'arbwork_rows_refused{reason="fee"} 800.0' in text and 'arbwork_api_answers_total{route="/trades",status="200"}' in text


def test_the_process_refuses_what_would_be_open(world, tmp_path):
    empty = msgspec.structs.replace(world.settings, var=tmp_path/'other')
    with pytest.raises(ConfigError, match='nobody could log in'): run_api(empty)
    with pytest.raises(ConfigError, match='loopback'): run_api(world.settings, host='0.0.0.0')
    with socket.create_server(('127.0.0.1', 0)) as busy, pytest.raises(ConfigError, match='in use'): run_api(world.settings, port=busy.getsockname()[1])


def test_a_server_that_breaks_says_only_that(tmp_path):
    settings = msgspec.structs.replace(load_settings(ROOT/'settings.ini'), var=tmp_path)
    auth = open_auth(settings)
    key = auth.make_key('t', 'read', WallClock().now_ns())
    class Broken:
        def last(self, stream): raise RuntimeError('secret path /root/x')
    with serving(create_app(settings, Broken(), auth=auth)) as url:
        r = httpx.get(f'{url}/status', headers={'Authorization': f'Bearer {key}'})
    shape(r, 500, 'server')
    assert 'secret' not in r.text
    auth.close()


def test_a_local_client_leaves_no_old_keys(world):
    now = world.clock.now_ns()
    world.auth.make_key('workbench', 'admin', now - 10*NS, 1)
    with local_client(world.settings, base_url=world.url) as c: assert c.session()['scope'] == 'admin'
    assert sum(k.name == 'workbench' for k in world.auth.keys()) == 1


def test_two_writers_of_a_vault_lose_nothing(tmp_path):
    path = tmp_path/'vault.json'
    code = ('import sys; from arbwork.serve.vault import Vault\n'
            'for i in range(3): Vault(sys.argv[1], "plum lantern orbit").put(sys.argv[2] + str(i), dict(key="k", secret=sys.argv[2]))')
    runs = [subprocess.Popen([sys.executable, '-c', code, str(path), name]) for name in ('binance', 'bybit')]
    assert [r.wait(60) for r in runs] == [0, 0]
    vault = Vault(path, 'plum lantern orbit')
    assert len(vault.names()) == 6 and vault.get('bybit2')['secret'] == 'bybit'
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert not list(tmp_path.glob('.*.new'))


@pytest.mark.parametrize('change', [{'memory_kib': 2**31}, {'memory_kib': 8}, {'passes': 10**6}, {'lanes': 0}])
def test_a_forged_vault_cannot_ask_for_the_moon(tmp_path, change):
    path = tmp_path/'vault.json'
    Vault(path, 'plum lantern orbit').put('binance', dict(key='k', secret='s'))
    f = json.loads(path.read_bytes())
    f['kdf'] |= change
    path.write_text(json.dumps(f))
    with pytest.raises(ConfigError, match='key derivation'): Vault(path, 'plum lantern orbit').names()


@pytest.mark.parametrize('text', ['', '{}', 'x', '[]', '{"arbwork_vault": 2}'])
def test_what_is_no_vault(tmp_path, text):
    (tmp_path/'vault.json').write_text(text)
    with pytest.raises(ConfigError, match='vault'): Vault(tmp_path/'vault.json', 'plum lantern orbit').put('binance', dict(key='k', secret='s'))
    assert (tmp_path/'vault.json').read_text() == text


def test_secrets_stay_out_of_words(tmp_path):
    settings = msgspec.structs.replace(load_settings(ROOT/'settings.ini'), var=tmp_path)
    vault = open_vault(settings, create=True)
    assert vault_passphrase(settings, environ={}) not in repr(vault) + str(vars(vault).keys())
    with pytest.raises(ConfigError) as e: vault.put('binance', dict(key='k', secret='hush\n'))
    assert 'hush' not in str(e.value)
    assert 'arb_' not in repr(Client('http://127.0.0.1:1', 'arb_1_hush'))
