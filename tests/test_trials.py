"The ledger of trials under two writers and a kill."
import os
import signal
import subprocess
import sys
import time
from decimal import Decimal

import msgspec
import pytest

from arbwork.decide.contract import Universe
from arbwork.market import DataError, Listing
from arbwork.research.trials import Setting, Trials, trial_key
from arbwork.settings import make_params

LISTINGS = [Listing(v, 'LINK-USDT', 'LINKUSDT', *map(Decimal, ('0.001', '0.01', '0.01', '5'))) for v in ('binance', 'bybit')]
DAY = Setting('cross', 'k', Universe(LISTINGS, {'binance': (10., 10.), 'bybit': (10., 10.)}), 's', (0, 10), {'binance': 50.}, 1, 60.)

WRITER = '''
import sys
sys.path.insert(0, sys.argv[3])
from test_trials import *
ledger, first = Trials(sys.argv[1]), int(sys.argv[2])
print('go', flush=True)
for k in range(first, first + 200): ledger.add(DAY, [make_params(dict(min_edge_bps=k/10))], [k/1000], [1.], [2], now_ns=k)
'''


def writer(path, first):
    return subprocess.Popen([sys.executable, '-c', WRITER, str(path), str(first), os.path.dirname(__file__)], stdout=subprocess.PIPE, text=True)


def test_two_studies_at_once_lose_no_trial(tmp_path):
    both = [writer(tmp_path/'trials.db', first) for first in (0, 100)]
    assert [p.wait(120) for p in both] == [0, 0]
    ledger = Trials(tmp_path/'trials.db')
    assert ledger.charge(DAY.study, 60.).trials == 300 and len(ledger.table(DAY.study)) == 300


def test_a_killed_study_leaves_whole_trials_and_goes_on(tmp_path):
    p = writer(tmp_path/'trials.db', 0)
    assert p.stdout.readline().strip() == 'go'
    time.sleep(0.15)
    os.kill(p.pid, signal.SIGKILL)
    p.wait()
    ledger = Trials(tmp_path/'trials.db')
    kept = ledger.charge(DAY.study, 60.).trials
    assert 0 <= kept <= 200
    assert writer(tmp_path/'trials.db', 0).wait(120) == 0
    assert ledger.charge(DAY.study, 60.).trials == 200


@pytest.mark.parametrize('change', [dict(seed=2), dict(window=(0, 11)), dict(kernel='l'), dict(snapshot='t'), dict(latency_ms={'binance': 51.}), dict(inventory=[1.]),
                                    dict(bucket_s=30.), dict(universe=Universe(LISTINGS, {'binance': (10., 11.), 'bybit': (10., 10.)}))])
def test_whatever_changes_the_outcome_makes_another_trial(change):
    p = make_params({})
    assert trial_key(msgspec.structs.replace(DAY, **change), p) != trial_key(DAY, p) == trial_key(DAY, make_params({}))
    assert trial_key(DAY, make_params(dict(stop_bps=51))) != trial_key(DAY, p)


def test_figures_that_do_not_fit_are_refused_whole(tmp_path):
    ledger = Trials(tmp_path/'trials.db')
    with pytest.raises(DataError, match='one each'): ledger.add(DAY, [make_params({})], [.1, .2], [1.], [1], now_ns=1)
    assert ledger.studies() == {}
