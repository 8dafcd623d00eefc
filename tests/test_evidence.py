"Evidence against plain definitions and published figures; promotions by real processes against each other."
import json
import os
import subprocess
import sys
import time
from itertools import combinations
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from arbwork.clock import NS
from arbwork.decide.contract import Params, Universe
from arbwork.market import ArbworkError, ConfigError, DataError, decimal, Listing
from arbwork.research import evidence as ev
from arbwork.research import promote as pr


# evidence

@pytest.mark.parametrize('trials, skew, kurt, wanted', [(100, -3, 10, 0.9004), (46, -3, 10, 0.9505), (88, 0, 3, 0.9505)])
def test_deflated_sharpe_ratio_gives_the_figures_of_its_paper(trials, skew, kurt, wanted):
    found = ev.dsr(2.5/250**.5, 1250, skew, kurt, var_trials=.5/250, trials=trials)
    assert found == pytest.approx(wanted, abs=5e-5)


def test_expected_maximum_agrees_with_drawing_it():
    draws = np.random.default_rng(1).normal(0, .1, (4_000, 300)).max(1).mean()
    assert ev.expected_max_sharpe(.1**2, 300) == pytest.approx(draws, rel=.02)
    assert ev.expected_max_sharpe(.1**2, 1) == 0


def test_noise_is_rarely_believed_once_the_trials_are_counted():
    rng = np.random.default_rng(2)
    found = [ev.deflated(rng.normal(0, 1, (300, 60))) for _ in range(150)]
    plain = [ev.psr(float(ev.sharpe(rng.normal(0, 1, (300, 60))).max()), 300) for _ in range(150)]
    assert np.mean(np.array(found) > .95) < .05
    assert np.mean(np.array(plain) > .95) > .95


def test_overfitting_probability_of_noise_is_one_half():
    rng = np.random.default_rng(3)
    found = [ev.pbo(rng.normal(0, 1, (160, 41)), blocks=8).pbo for _ in range(200)]
    assert np.mean(found) == pytest.approx(.5, abs=.05)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([2, 4, 6]), st.integers(2, 9), st.integers(0, 5))
def test_splits_agree_with_the_plain_definition(seed, blocks, n, extra):
    rng = np.random.default_rng(seed)
    size = int(rng.integers(3, 8))
    x = rng.normal(rng.normal(0, 1, n), 1, (blocks*size + min(extra, blocks - 1), n))
    if seed % 3 == 0: x[:, 0] = 0
    found, x = ev.pbo(x, blocks), x[len(x) - blocks*size:]
    for k, half in enumerate(combinations(range(blocks), blocks//2)):
        inside = np.isin(np.arange(blocks*size)//size, half)
        a, b = ev.sharpe(x[inside]), ev.sharpe(x[~inside])
        won = b[a.argmax()]
        rank = (b < won).sum() + ((b == won).sum() + 1)/2
        assert found.logits[k] == pytest.approx(np.log(rank/(n + 1 - rank)), abs=1e-9)
        assert found.unseen[k] == pytest.approx(won, abs=1e-7)
    assert 0 <= found.pbo <= 1 and 0 <= found.loss <= 1


@settings(max_examples=200, deadline=None)
@given(st.integers(4, 400), st.integers(2, 200), st.integers(2, 90), st.booleans(), st.integers(0, 5), st.integers(0, 5))
def test_a_walk_forward_never_trains_on_what_it_tests(n, train, test, anchored, purge, embargo):
    try: splits = ev.walk_forward(n, train, test, anchored, purge, embargo)
    except DataError:
        assert train - purge < 2 or n < train + embargo + 2
        return
    end = 0
    for s in splits:
        (a, b), (c, d) = s.train, s.test
        assert 0 <= a < b <= c - purge - embargo and c < d <= n and d - c < 1.5*test + embargo + 2 and c >= end
        assert a == 0 if anchored else b - a == train - purge
        end = d
    assert end == n or len(splits) == 0


def test_choosing_sees_only_the_window_before():
    rng = np.random.default_rng(4)
    x = rng.normal(0, 1, (200, 8))
    splits = ev.walk_forward(200, 80, 30)
    before = ev.walk(x, splits)
    y = x.copy()
    y[splits[1].test[0]:] = rng.normal(5, 1, y[splits[1].test[0]:].shape)
    after = ev.walk(y, splits)
    assert after.chosen[:2] == before.chosen[:2]
    assert len(before.returns) == sum(b - a for a, b in (s.test for s in splits))


@pytest.mark.parametrize('bad', [np.nan, np.inf])
def test_what_is_no_number_is_refused(bad):
    x = np.zeros((40, 3)); x[7, 1] = bad
    for f in (ev.sharpe, ev.pbo, ev.deflated, lambda x: ev.walk(x, ev.walk_forward(40, 20, 10))):
        with pytest.raises(DataError, match='not finite'): f(x)


def test_an_interval_covers_as_often_as_it_says():
    rng = np.random.default_rng(5)
    hits = sum(a <= .1 <= b for a, b in (ev.bootstrap(rng.normal(.1, 1, 200), lambda x: x.mean(0), draws=300, block=1, rng=rng) for _ in range(200)))
    assert 176 <= hits <= 200


def test_a_track_record_long_enough_is_believed_and_a_shorter_one_is_not():
    assert [round(ev.min_track_record(2/n**.5, skew, kurt, benchmark=1/n**.5)/n, 2) for n, skew, kurt in ((252, 0, 3), (12, 0, 3), (12, -.72, 5.78))] == [2.73, 3.24, 4.99]
    for sr, skew, kurt in ((.02, 0, 3), (.1, -2, 12), (.5, 1, 6)):
        n = int(np.ceil(ev.min_track_record(sr, skew, kurt)))
        assert ev.psr(sr, n, skew, kurt) >= .95 - 1e-9 and ev.psr(sr, n - 2, skew, kurt) < .95
    assert ev.min_track_record(-.1) == float('inf')
    with pytest.raises(DataError, match='level'): ev.min_track_record(.1, level=.4)


def test_the_best_of_many_without_skill_is_rarely_called_superior():
    rng = np.random.default_rng(6)
    found = [ev.superior(rng.normal(0, 1, (240, 40)), draws=200, rng=rng) for _ in range(120)]
    assert np.mean([x.spa < .05 for x in found]) <= .1 and np.mean([x.white < .05 for x in found]) <= .1
    assert .35 < np.mean([x.spa for x in found]) < .6
    assert all(x.lower <= x.spa <= x.upper for x in found)


def test_skill_is_called_superior_also_among_trials_that_lose_wildly():
    rng = np.random.default_rng(7)
    for _ in range(10):
        x = rng.normal(0, 1, (480, 60)); x[:, 5] += .3
        wild = np.hstack([x, rng.normal(-2, 12, (480, 60))])
        assert ev.superior(x, draws=200, rng=rng).white < .05 and ev.superior(wild, draws=200, rng=rng).spa < .05 < ev.superior(wild, draws=200, rng=rng).white


# promotion

def study(**figures):
    listings = [Listing(v, 'BTC-USDT', 'BTCUSDT', *map(decimal, ('0.01', '0.00001', '0.00001', '5'))) for v in ('binance', 'bybit')]
    base = dict(scenario='stress', strategy='cross', snapshot='s1', window=(0, 86_400*NS), seed=1, rows=57_600, trials=300, params=Params(), kernel_hash='ab12',
                universe=Universe(listings, {'binance': (10., 10.), 'bybit': (10., 10.)}), latency_ms={'binance': 50., 'bybit': 50.}, bucket_s=300., trades=120,
                pnl_quote=90., oos_sharpe=40., oos_low=20., oos_high=60., dsr=.99, pbo=.05, folds=4, folds_positive=1., suspect_share=0., twin_fees_pnl=10.,
                twin_latency_pnl=80., winner_pnl=150., winner_trades=200, best_gross_bps=90., gross_share=.5, oos_loss=.01, spa=.01, track_share=5., placebo_share=-.1, reasons={'none': 100, 'fee': 50, 'trade': 20})
    s = pr.Study(**{**base, **figures})
    return msgspec.structs.replace(s, gates=pr.gates(s))


@pytest.mark.parametrize('figure, value, gate', [('trades', 3, 'min_trades'), ('dsr', .5, 'min_dsr'), ('dsr', None, 'min_dsr'), ('oos_loss', .3, 'max_oos_loss'),
    ('oos_loss', None, 'max_oos_loss'), ('oos_sharpe', 0., 'min_oos_sharpe'), ('oos_sharpe', float('nan'), 'min_oos_sharpe'), ('suspect_share', .2, 'max_suspect_share'),
    ('folds_positive', .5, 'min_folds_positive'), ('spa', .2, 'max_spa'), ('spa', None, 'max_spa'), ('track_share', .5, 'min_track_share'),
    ('suspect_pnl_share', .3, 'max_suspect_pnl_share')])
def test_each_gate_stops_a_promotion_alone(tmp_path, figure, value, gate):
    pr.make_key(tmp_path)
    bad = study(**{figure: value})
    assert [g.name for g in bad.gates if not g.passed] == [gate]
    with pytest.raises(ConfigError, match=gate): pr.promote(bad, pr.load_key(tmp_path), tmp_path/'promoted', version='0', created_ns=1)
    assert not list(tmp_path.glob('promoted/*.json'))
    assert any(gate in line for line in pr.recommend(bad))


def test_every_field_of_a_manifest_is_signed(tmp_path):
    pr.make_key(tmp_path)
    _, m = pr.promote(study(), pr.load_key(tmp_path), tmp_path/'promoted', version='0', created_ns=1_000*NS)
    keys = pr.public_keys(tmp_path)
    m = pr.load_manifest(tmp_path/'promoted', 'cross')
    assert pr.verify(m, keys, 'ab12', 2_000*NS) == m
    other = dict(strategy='x', params=Params(min_edge_bps=1.), kernel_hash='cd', version='9', commit='f', snapshot='x', window=(1, 2), seed=9, trials=1, gates=m.gates[:1],
                 latency_ms={}, universe=Universe([], {}), oos_sharpe=99., created_ns=1_001*NS, expires_ns=m.expires_ns + 1, stage='live', override='because')
    assert set(other) | {'key_id', 'signature'} == set(pr.Manifest.__struct_fields__)
    for name, value in other.items():
        with pytest.raises(ConfigError, match='altered'): pr.verify(msgspec.structs.replace(m, **{name: value}), keys, 'ab12', 2_000*NS)
    with pytest.raises(ConfigError, match='altered'): pr.verify(msgspec.structs.replace(m, signature='!!'), keys, 'ab12', 2_000*NS)


def test_a_field_nobody_signed_is_no_manifest(tmp_path):
    pr.make_key(tmp_path)
    page, _ = pr.promote(study(), pr.load_key(tmp_path), tmp_path/'promoted', version='0', created_ns=1)
    fields = json.loads(page.read_text())
    page.write_text(json.dumps({**fields, 'leverage': 20}))
    with pytest.raises(ConfigError, match='not a manifest.*leverage'): pr.load_manifest(page)


def test_processes_that_make_a_key_at_once_agree(tmp_path):
    code = 'import sys; from arbwork.research.promote import *; make_key(sys.argv[1]); print(key_id(load_key(sys.argv[1]).public_key()))'
    runs = [subprocess.Popen([sys.executable, '-c', code, str(tmp_path)], stdout=subprocess.PIPE, text=True) for _ in range(3)]
    said = {r.communicate(timeout=60)[0].strip() for r in runs}
    assert len(said) == 1 and list(pr.public_keys(tmp_path)) == list(said)
    assert (tmp_path/'promote.key').stat().st_mode & 0o777 == 0o600
    assert not [p for p in tmp_path.iterdir() if p.name.startswith('.')]


def test_a_second_promotion_is_refused_until_the_first_ends_or_dies(tmp_path):
    code = 'import sys, time\nfrom arbwork.research.promote import promoting\nwith promoting(sys.argv[1]):\n    print("held", flush=True); time.sleep(60)'
    holder = subprocess.Popen([sys.executable, '-c', code, str(tmp_path/'promoted')], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline().strip() == 'held'
        pr.make_key(tmp_path)
        with pytest.raises(ArbworkError, match=f'promotions in .*: process {holder.pid} has it'):
            pr.promote(study(), pr.load_key(tmp_path), tmp_path/'promoted', version='0', created_ns=1)
    finally: holder.kill(); holder.wait()
    pr.promote(study(), pr.load_key(tmp_path), tmp_path/'promoted', version='0', created_ns=1)


def test_a_reader_never_sees_half_a_manifest(tmp_path):
    pr.make_key(tmp_path)
    key, folder = pr.load_key(tmp_path), tmp_path/'promoted'
    page, _ = pr.promote(study(), key, folder, version='0', created_ns=1)
    code = ('import sys\nfrom arbwork.research.promote import *\nkeys = public_keys(sys.argv[2])\nn = 0\nprint("go", flush=True)\n'
            'for _ in range(400): verify(load_manifest(sys.argv[1], "cross"), keys, "ab12", 10**9); n += 1\nprint(n)')
    reader = subprocess.Popen([sys.executable, '-c', code, str(folder), str(tmp_path)], stdout=subprocess.PIPE, text=True)
    reader.stdout.readline()
    written = 0
    while reader.poll() is None and written < 500:
        written += 1
        pr.promote(study(trials=300 + written), key, folder, version='0', created_ns=1)
    assert reader.communicate(timeout=60)[0].strip() == '400' and reader.returncode == 0 and written > 5


def test_live_would_not_load_a_plotting_or_sweeping_library():
    code = 'import sys, arbwork.research.promote, arbwork.research.evidence; print([m for m in ("vectorbt", "plotly", "papermill", "pandas", "matplotlib") if m in sys.modules])'
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout.strip() == '[]'


def test_a_window_without_trades_says_nothing():
    from arbwork.research.evidence import Split, Walk
    windows = [Split((0, 4), (4, 6)), Split((2, 6), (6, 8)), Split((4, 8), (8, 10))]
    walked = Walk(windows, [0, 0, 0], [1.]*3, [1.]*3, [-1.3, 34.1, 0.7], np.zeros(6))
    assert walked.positive([0, 12, 0]) == 1. and walked.positive([3, 12, 0]) == .5 and walked.positive([0, 0, 0]) == 0.
