"""A few kills of each kind on every journal; `python -m bench.kills` makes hundreds of them."""

import json
import random

import pytest

from bench.kills import campaign, plan

FOUND = ('lost', 'doubled', 'disordered', 'holes')


@pytest.mark.parametrize('scheme', ['sqlite', 'redis', 'nats'])
def test_what_was_acknowledged_survives_kills(scheme, server, tmp_path):
    server(scheme) # or the test is skipped
    found, = campaign(scheme, 4, 5, tmp_path, parts=('pipeline',))
    assert found['kills'] == 4 and found['killed'].keys() == {'recorder', 'producer', *(['server'] if scheme != 'sqlite' else [])}
    assert found['acknowledged'] > 200 and found['stored'] >= found['acknowledged'] and not any(found[x] for x in FOUND), json.dumps(found)


def test_a_collector_and_its_worker_are_killed_and_every_jump_is_explained(tmp_path):
    found, = campaign('sqlite', 2, 5, tmp_path, parts=('collection',))
    assert sorted(found['killed']) == ['collector (task)', 'worker (process)']
    assert found['acknowledged'] == found['stored'] > 100 and found['jumps'] > 0 and not any(found[x] for x in FOUND), json.dumps(found)


@pytest.mark.parametrize('scheme', ['sqlite', 'redis', 'nats'])
def test_a_campaign_kills_everything(scheme):
    first, second = plan(scheme, 200, random.Random(1))
    assert len(first) + len(second) == 200 and plan(scheme, 200, random.Random(1)) == (first, second) != plan(scheme, 200, random.Random(2))
    assert len(set(first)) == 2 + (scheme != 'sqlite') and {x[1] for x in second} == {'task', 'process'} and ('server' in {x[0] for x in second}) == (scheme != 'sqlite')
