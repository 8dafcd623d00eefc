"""What the scenarios claim, checked against the data it was claimed of where that is at hand."""

import gzip
from pathlib import Path

import numpy as np
import pytest

from arbwork.market import ConfigError, DataError
from arbwork.sim import scenarios as sc

SHARED = Path(__file__).parents[2]/'shared'/'data'/'real'


@pytest.mark.skipif(not (SHARED/'bars_1m').exists(), reason='the candles of March 2023 are not here (their licence is not stated, so they do not ship)')
def test_the_measured_figures_are_those_of_the_candles():
    n, figures = sc.measure_closes(SHARED/'bars_1m'/'coinbase_btc-usd_1m_20230301_20230321.parquet', SHARED/'bars_1m'/'kraken_btc-usd_1m_20230301_20230321.parquet',
                                   '2023-03-10', '2023-03-13')
    assert n == 5756 and set(figures) == set(sc.MEASURED)
    for name, said in sc.MEASURED.items(): assert figures[name] == pytest.approx(said, abs=.006), name


@pytest.mark.parametrize('seed', [1, 2, 3])
def test_the_generator_reproduces_what_was_measured(seed):
    minutes = 4_000*60
    figures = sc.gap_figures(np.arange(minutes), sc.gap_path(np.random.default_rng(seed), minutes, 60.))
    for name in ('over_5_bps', 'over_10_bps', 'over_20_bps', 'over_30_bps', 'episodes_per_hour'): assert figures[name] == pytest.approx(sc.MEASURED[name], rel=.25), name
    assert figures['excess_over_20_bps'] == pytest.approx(sc.MEASURED['excess_over_20_bps'], abs=1.5)
    for name in sc.MEASURED:
        if name.startswith('autocorrelation'): assert figures[name] == pytest.approx(sc.MEASURED[name], abs=.07), name


def test_the_step_does_not_change_the_process():
    fine, coarse = (sc.gap_path(np.random.default_rng(s), int(600*3600/step), step)[::max(1, int(60/step))] for s, step in ((4, 3.), (5, 60.)))
    a, b = (sc.gap_figures(np.arange(len(g)), g) for g in (fine, coarse))
    assert a['over_10_bps'] == pytest.approx(b['over_10_bps'], rel=.3) and a['autocorrelation_10'] == pytest.approx(b['autocorrelation_10'], abs=.1)


def test_the_recording_is_the_one_that_is_licensed():
    for file in ('link-usdt_binance_l10_1s_20210820.csv.gz', 'link-usdt_huobi_l10_1s_20210820.csv.gz'):
        ours = gzip.decompress((sc.BOOKS/file).read_bytes())
        assert ours.count(b'\n') == 7201
        if (SHARED/'books'/file).exists(): assert ours == gzip.decompress((SHARED/'books'/file).read_bytes())
    text = (sc.BOOKS.parent/'LICENSES.md').read_text()
    assert 'MIT License' in text and 'ANISH DAS' in text and 'KELVIN LEUNG' in text and 'WITHOUT WARRANTY OF ANY KIND' in text


@pytest.mark.parametrize('broken, words', [
    (lambda t: t.replace('27.095,27.088', 'nan,27.088', 1), 'bid_px of row 0'), (lambda t: t.replace('27.095,27.088', '0,27.088', 1), 'wanted numbers above 0'),
    (lambda t: t.replace('27.095,27.088', '28.095,27.088', 1), 'crossed book at row 0'), (lambda t: t.replace('00:00:02', '00:00:01', 1), 'time does not increase'),
])
def test_a_broken_recording_is_refused(tmp_path, broken, words):
    file = 'link-usdt_binance_l10_1s_20210820.csv.gz'
    text = '\n'.join(gzip.decompress((sc.BOOKS/file).read_bytes()).decode().splitlines()[:6])
    (tmp_path/'books.csv').write_text(broken(text))
    with pytest.raises(DataError, match=words): sc.read_books(tmp_path/'books.csv', 0)


def test_names_and_sizes_are_checked():
    with pytest.raises(ConfigError, match='wanted one of link-2021-08-20, stress'): sc.load_scenario('sunny')
    with pytest.raises(ConfigError, match='at least two steps'): sc.stress(hours=0)
    with pytest.raises(DataError, match='not there'): sc.recorded(books=Path('/nowhere'))
