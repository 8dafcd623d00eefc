"""Whatever is sent to the control API, it answers in its own words and never breaks; whatever it says, the screen shows as text."""
from pathlib import Path

import httpx
import msgspec
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings as how, strategies as st

from arbwork.clock import WallClock
from arbwork.desk.widgets import head, reasons_table, report_page, trades_table
from arbwork.serve.api import checked, create_app, problem
from arbwork.serve.api import Problem
from arbwork.serve.auth import open_auth
from arbwork.settings import Params, load_settings
from arbwork.store.journal import open_journal

ROOT = Path(__file__).parents[1]
json_values = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20), lambda x: st.lists(x, max_size=3) | st.dictionaries(st.text(max_size=9), x, max_size=3), max_leaves=8)
names = st.sampled_from([*Params.__struct_fields__, 'min_egde_bps', '', '__class__'])


def test_no_request_breaks_the_api(tmp_path):
    settings = msgspec.structs.replace(load_settings(ROOT/'settings.ini'), var=tmp_path)
    journal, auth = open_journal(f'sqlite:///{tmp_path}/journal.db'), open_auth(settings)
    key = auth.make_key('fuzz', 'admin', WallClock().now_ns())
    paths = ['/status', '/params', '/trades', '/report', '/pause', '/login', '/logout', '/session', '/commands/x', '/metrics', '/manifests', '/schedule', '/manifests/demote', '/manifests/rollback', '/schedule/run', '/', '/%00', '/openapi.json']
    with TestClient(create_app(settings, journal, auth=auth), base_url='http://127.0.0.1', raise_server_exceptions=True) as web:
        @how(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
        @given(st.sampled_from(['GET', 'POST', 'PATCH', 'PUT', 'DELETE', 'HEAD', 'OPTIONS']), st.sampled_from(paths), st.binary(max_size=60) | json_values.map(lambda x: str(x).encode()),
               st.sampled_from([{}, {'Authorization': f'Bearer {key}'}, {'Authorization': 'Bearer'}, {'Cookie': 'arbwork_session=x; =;'}, {'X-CSRF-Token': 'ÿ'.encode('latin1')}]),
               st.dictionaries(st.sampled_from(['limit', 'x', '']), st.text(max_size=8), max_size=2))
        def ask(method, path, body, headers, query):
            r = web.request(method, path, content=body, headers=headers, params=query)
            assert r.status_code < 500 or r.status_code == 503, (method, path, body, r.text)
            assert r.headers['x-frame-options'] == 'DENY'
            if r.status_code >= 400 and method != 'HEAD': assert set(r.json()) == {'error', 'what', 'found', 'wanted'}
        ask()
    assert journal.last('control') is None
    journal.close()
    auth.close()


@how(max_examples=300, deadline=None)
@given(st.dictionaries(names, json_values, max_size=3))
def test_what_passes_the_door_is_fit_for_the_bot(values):
    try: got = checked(values, Params())
    except Problem as p:
        assert p.status == 400 and len(str(p.body)) < 1500
        return
    assert got == values and set(got) <= set(Params.__struct_fields__)


@given(st.text(max_size=80))
def test_any_message_becomes_a_problem(text): assert set(problem(400, 'x', text).body) == {'error', 'what', 'found', 'wanted'}


def test_words_from_outside_stay_text():
    bad = '<img src=x onerror=alert(1)>'
    trade = dict(id=1, state=bad, why=bad, buy_venue=bad, sell_venue=bad, qty=1., edge_bps=1., expected_quote=1., pnl_quote=float('nan'), opened_ns=0, done_ns=0, legs=[{'fee_quote': 1.}])
    pages = [head(dict(running=True, state=bad, mode=bad, session=bad, ts_ns=0, why=bad)), trades_table([trade], bad, bad), reasons_table({'fee': 3}),
             report_page(dict(recommendation=[bad], html=bad, studies=[dict(scenario=bad, promoted=True)], session=None))]
    assert not any('<img' in page for page in pages)
