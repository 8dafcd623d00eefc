"What is in force and what runs by itself, seen and changed through the control API."
import time
from types import SimpleNamespace

import httpx
import msgspec
import pytest
from test_promote import study
from test_schedule import SLOW, person
from test_serve import bearer, serving, shape

from arbwork.clock import NS, WallClock
from arbwork.decide.cross import KERNELS, kernel_hash
from arbwork.research import promote as pr
from arbwork.serve import schedule as sc
from arbwork.serve.api import create_app
from arbwork.serve.auth import open_auth
from arbwork.serve.client import ApiError, Client
from arbwork.store.journal import open_journal
from arbwork.trade.core import Ack, Command


@pytest.fixture
def world(tmp_path):
    s = person(tmp_path, 'slow = 0 3 * * *', slow=SLOW)
    pr.make_key(s.keys)
    journal, clock, auth = open_journal(s.journal), WallClock(), open_auth(s)
    keys = {scope: auth.make_key(f'test {scope}', scope, clock.now_ns()) for scope in ('read', 'trade', 'admin')}
    with serving(create_app(s, journal, clock, auth)) as url: yield SimpleNamespace(s=s, journal=journal, clock=clock, auth=auth, keys=keys, url=url)
    journal.close()
    auth.close()


def put(w, stage, trials):
    "Promote a study; the id of its manifest."
    x = msgspec.structs.replace(study(trials=trials), kernel_hash=kernel_hash(KERNELS['cross']), stage=stage)
    return pr.promote(x, pr.load_key(w.s.keys), w.s.promoted, version='0', created_ns=w.clock.now_ns())[1].id


def wait(holds):
    deadline = time.monotonic() + 120
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(.05)


def client(w, scope): return Client(w.url, key=w.keys[scope])


def deeds(w):
    "What was asked, with by whom and what came of it."
    told = {'command': {}, 'ack': {}}
    for e in (*w.journal.read('deeds'), *w.journal.read('deeds-ack')): told[e.kind][e.key] = msgspec.msgpack.decode(e.body, type=Command if e.kind == 'command' else Ack)
    return [(c.verb, c.by, told['ack'][id].ok) for id, c in told['command'].items()]


def test_a_manifest_is_seen_taken_back_and_an_earlier_one_put_in_force(world):
    with client(world, 'admin') as c:
        by = c.session()['name']
        assert c.manifests() == []
        one, two = put(world, 'paper', 300), put(world, 'shadow', 301)
        seen, = c.manifests()
        assert (seen['id'], seen['stage'], seen['may'], seen['next'], seen['refused']) == (two, 'shadow', 'shadow', 'canary', '')
        assert seen['expires_ns'] > world.clock.now_ns() and seen['gates'] and all(g['passed'] for g in seen['gates']) and [d['id'] for d in seen['history']] == [two, one]
        with pytest.raises(ApiError, match='look again') as e: c.deed('manifests/demote', strategy='cross', id=one, why='an old picture')
        assert e.value.status == 409 and pr.demotion(world.s.promoted, pr.load_manifest(world.s.promoted, 'cross')) is None
        with pytest.raises(ApiError, match='no session of it in mode'): c.deed('manifests/promote', strategy='cross', id=two, stage='canary')
        with pytest.raises(ApiError, match='one stage at a time'): c.deed('manifests/promote', strategy='cross', id=two, stage='full')
        assert c.deed('manifests/demote', strategy='cross', id=two, why='it lost')['detail'].endswith('as far as paper')
        seen, = c.manifests()
        assert (seen['may'], seen['next'], seen['demoted']['why'], seen['demoted']['by']) == ('paper', '', 'it lost', by)
        c.deed('manifests/demote', strategy='cross', id=two, why='it lost more', to='none')
        assert 'demoted to nothing' in c.manifests()[0]['refused']
        c.deed('manifests/rollback', strategy='cross', id=two)
        assert c.manifests()[0]['id'] == one == pr.load_manifest(world.s.promoted, 'cross').id
    assert deeds(world) == [('demote', by, False), ('promote', by, False), ('promote', by, False), ('demote', by, True), ('demote', by, True), ('rollback', by, True)]


def test_a_manifest_edited_by_hand_is_shown_for_what_it_is(world):
    one = put(world, 'paper', 300)
    put(world, 'paper', 301)
    place = world.s.promoted/'cross.json'
    place.write_text(place.read_text().replace('"stage": "paper"', '"stage": "full"'))
    with client(world, 'admin') as c:
        seen, = c.manifests()
        assert 'altered after it was signed' in seen['refused'] and seen['next'] == ''
        with pytest.raises(ApiError, match='altered'): c.deed('manifests/promote', strategy='cross', id=seen['id'], stage='full')
        place.write_text('{')
        seen, = c.manifests()
        assert 'not a manifest' in seen['refused'] and seen['id'] == ''
        c.deed('manifests/rollback', strategy='cross', id='')
        assert c.manifests()[0]['refused'] == '' and c.manifests()[0]['id'] in {one, *(d.id for d in pr.history(world.s.promoted))}


def test_who_may_do_what_and_what_is_no_deed(world):
    two = put(world, 'shadow', 301)
    asked = {'/manifests/demote': dict(strategy='cross', id=two, why='x'), '/manifests/rollback': dict(strategy='cross', id=two),
             '/manifests/promote': dict(strategy='cross', id=two, stage='canary'), '/schedule/run': dict(job='slow')}
    with httpx.Client(base_url=world.url) as c:
        for path in ('/manifests', '/schedule'):
            shape(c.get(path), 401, 'not_authenticated')
            assert c.get(path, headers=bearer(world, 'read')).status_code == 200
            shape(c.get(path, params=dict(x=1), headers=bearer(world, 'read')), 400, 'unknown_parameter')
        for path, body in asked.items():
            shape(c.post(path, json=body), 401, 'not_authenticated')
            shape(c.post(path, json=body, headers=bearer(world, 'read')), 403, 'scope')
            if path not in ('/manifests/demote', '/schedule/run'): shape(c.post(path, json=body, headers=bearer(world, 'trade')), 403, 'scope')
            for bad in ({}, body | dict(override='because'), {k: 5 for k in body}): shape(c.post(path, json=bad, headers=bearer(world, 'admin')), 400, 'bad_json')
        assert deeds(world) == []
        for strategy in ('../../x', 'nobody', ''): shape(c.post('/manifests/demote', json=dict(strategy=strategy, id=two, why='x'), headers=bearer(world, 'trade')), 409, 'refused')
        shape(c.post('/manifests/demote', json=dict(strategy='cross', id=two, why=' '), headers=bearer(world, 'trade')), 409, 'refused')
        shape(c.post('/schedule/run', json=dict(job='moon'), headers=bearer(world, 'trade')), 409, 'refused')
        with pr.promoting(world.s.promoted): shape(c.post('/manifests/demote', json=dict(strategy='cross', id=two, why='x'), headers=bearer(world, 'trade')), 409, 'refused')
        assert c.get('/manifests', headers=bearer(world, 'read')).json()['manifests'][0]['may'] == 'shadow'


def test_a_notebook_begun_from_elsewhere_runs_once_and_ends_with_the_api(tmp_path):
    s = person(tmp_path, 'slow = 0 3 * * *', slow=SLOW)
    journal, auth = open_journal(s.journal), open_auth(s)
    key = auth.make_key('test', 'trade', time.time_ns())
    with serving(create_app(s, journal, auth=auth)) as url, Client(url, key=key) as c:
        job, = c.schedule()
        assert (job['job'], job['last'], job['outcome']) == ('slow', None, '') and job['next'].endswith('T03:00:00.000Z')
        assert c.deed('schedule/run', job='slow')['detail'] == 'slow begun'
        with pytest.raises(ApiError, match='under way'): c.deed('schedule/run', job='slow')
        wait(lambda: c.schedule()[0]['outcome'] == 'running')
    wait(lambda: sc.mend(s, 'slow') or sc.runs(s, 'slow')[0][1].outcome != 'running')
    assert [r.outcome for _, r in sc.runs(s, 'slow')] == ['interrupted']
    journal.close()
    auth.close()
