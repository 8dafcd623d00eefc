"The strategy notebooks, executed on real stores by the command line's own function, and their pages opened without a network."
import json
import re
from pathlib import Path

import msgspec
import pytest

from arbwork.cli import execute_notebook, write_html
from arbwork.decide.cross import KERNELS, kernel_hash
from arbwork.market import ArbworkError
from arbwork.research.promote import load_manifest, load_study, public_keys, verify
from arbwork.research.report import load_curves
from arbwork.settings import load_settings
from arbwork.sim.scenarios import Calibration, stress
from arbwork.store.ticks import Ticks

ROOT = Path(__file__).parents[1]
GRID = dict(min_edge_bps=[2, 4, 8, 16], slippage_bps=[5, 20])


def place(folder, world=None):
    "Settings and a tick store of their own."
    folder.mkdir()
    text = (ROOT/'settings.ini').read_text().replace('instruments = LINK-USDT', 'instruments = BTC-USDT').replace('var = data/var', 'var = .')
    text = text.replace('://data/var/', '://').replace(':///data/var/', ':///')
    (folder/'settings.ini').write_text(text)
    s = load_settings(folder/'settings.ini')
    if world is not None:
        store = Ticks(s.ticks)
        for venue, listing in world.listings.items():
            store.write_rows(venue, listing.instrument, world.rows[venue], 1)
            store.write_listing(listing)
        store.close()
    return s


def study(s, **parameters):
    execute_notebook(ROOT/'strategies'/'cross.ipynb', s.root/'study'/'cross.ipynb', dict(settings=str(s.path), out_dir=str(s.root/'study'), grid=GRID, earlier_trials=0, now='2026-01-01', **parameters), 'study')
    return load_study(s.root/'study'/'study.json'), load_curves(s.root/'study'/'curves.json')


@pytest.fixture(scope='module')
def folder(tmp_path_factory): return tmp_path_factory.mktemp('strategies')


@pytest.fixture(scope='module')
def busy(folder):
    s = place(folder/'stress', stress(seed=5, hours=4, calibration=Calibration(jumps_per_hour=8., jump_bps=25., jump_below=.5)))
    return s, *study(s, label='stress', promoted_dir=str(folder/'promoted'))


def test_an_edge_that_is_there_becomes_a_signed_manifest(busy, folder):
    s, found, curves = busy
    assert found.promoted and all(g.passed for g in found.gates) and found.trials == 8 and found.trades >= 30
    manifest = load_manifest(folder/'promoted', 'cross')
    verify(manifest, public_keys(s.keys), kernel_hash(KERNELS['cross']), manifest.created_ns + 1)
    assert manifest.params == found.params and manifest.snapshot in Ticks(s.ticks).snapshots()
    assert found.recommendation[0].startswith('Promote') and sum(found.reasons.values()) == found.rows
    assert found.twin_fees_pnl < found.winner_pnl and curves.winner[-1] == pytest.approx(found.winner_pnl)
    assert curves.walk[-1] == pytest.approx(found.pnl_quote)


@pytest.mark.slow
def test_the_same_snapshot_and_seed_give_the_same_study(busy):
    s, found, _ = busy
    again, _ = study(s, label='stress', promote=False, snapshot=found.snapshot)
    assert again == msgspec.structs.replace(found, manifest='')


def test_calm_books_promote_nothing_and_say_why(folder):
    calm = stress(seed=4, hours=2, calibration=Calibration(jumps_per_hour=0., slow_sd_bps=1., fast_sd_bps=1.))
    s = place(folder/'calm', calm)
    found, _ = study(s, label='calm', promoted_dir=str(folder/'nothing'))
    assert not found.promoted and not found.winner_trades and not list(folder.glob('nothing/*.json'))
    assert found.dsr is None and found.pbo is None and found.recommendation[0].startswith('Do not promote, because min_trades')
    assert found.reasons['fee'] > 0 and '`fee` stopped' in ' '.join(found.recommendation)


def test_a_store_without_ticks_says_so(folder):
    s = place(folder/'empty')
    with pytest.raises(ArbworkError, match='holds nothing of the venues'): study(s)


def test_the_report_opens_without_a_network(busy, folder):
    s, found, _ = busy
    (folder/'summary.json').write_text(json.dumps(dict(recorded_rows=found.rows, gaps=0, duplicates=0)))
    execute_notebook(ROOT/'strategies'/'report.ipynb', folder/'report.ipynb', dict(settings=str(s.path), demo_dir=str(folder)), 'report')
    write_html(folder/'report.ipynb', folder/'report.html')
    page = (folder/'report.html').read_text()
    assert not re.findall(r'<(?:script|link|img|iframe)[^>]+(?:src|href)=["\']?(?:https?:)?//', page)
    assert page.count('Plotly.newPlot') > 5 and 'No session belongs to this report' in page


REFUSED = {
    'an empty window':       (dict(start='2030-01-01', end='2030-01-02'), 'no ticks|no rows|nothing'),
    'too short':             (dict(end='2024-01-01T00:10'), r'10 buckets of 60 s are too few for 4 unseen windows, wanted 16'),
    'a grid of ten million': (dict(grid=dict(min_edge_bps=list(range(100)), slippage_bps=list(range(100)), max_skew_s=list(range(1, 1_001)))), 'found 10,000,000 sets'),
    'a snapshot that is gone': (dict(snapshot='yesterday'), 'yesterday'),
    'a parameter out of its range': (dict(grid=dict(min_edge_bps=[2, -5_000])), 'min_edge_bps.* found .*-5000.* wanted'),
}


@pytest.mark.parametrize('what', REFUSED)
def test_what_cannot_be_studied_is_refused_with_the_cell_marked_and_the_store_as_it_was(busy, what):
    s, _, _ = busy
    parameters, says = REFUSED[what]
    store = Ticks(s.ticks)
    before = store.snapshots(), [store.span(v, i) for v, i in store.symbols()]
    out = s.root/'refused'/'cross.ipynb'
    with pytest.raises(ArbworkError, match=says): execute_notebook(ROOT/'strategies'/'cross.ipynb', out, dict(settings=str(s.path), out_dir=str(out.parent), **{'grid': GRID, 'label': 'stress', **parameters}), 'study')
    marked = [c for c in json.loads(out.read_text())['cells'] if c['metadata'].get('papermill', {}).get('exception')]
    assert len(marked) == 1 and not (out.parent/'study.json').exists()
    assert before == (store.snapshots(), [store.span(v, i) for v, i in store.symbols()])
    store.close()


def test_a_window_full_of_holes_is_refused_and_the_longest_is_named(folder):
    world = stress(seed=6, hours=1)
    venue, rows = next(iter(world.rows.items()))
    t = rows['ts_recv_ns'] - rows['ts_recv_ns'][0]
    world.rows[venue] = rows[(t < 900*10**9) | (t > 2_700*10**9)]
    s = place(folder/'torn', world)
    with pytest.raises(ArbworkError, match=rf'{venue} BTC-USDT: full of holes, found 50% of the window .* the longest from .* to .*, wanted at most 20%'): study(s, label='torn')
    assert not (s.root/'study'/'study.json').exists()
