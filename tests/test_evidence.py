"Evidence against plain definitions and published figures."
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from arbwork.market import DataError
from arbwork.research import evidence as ev


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


def test_a_window_without_trades_says_nothing():
    from arbwork.research.evidence import Split, Walk
    windows = [Split((0, 4), (4, 6)), Split((2, 6), (6, 8)), Split((4, 8), (8, 10))]
    walked = Walk(windows, [0, 0, 0], [1.]*3, [1.]*3, [-1.3, 34.1, 0.7], np.zeros(6))
    assert walked.positive([0, 12, 0]) == 1. and walked.positive([3, 12, 0]) == .5 and walked.positive([0, 0, 0]) == 0.
