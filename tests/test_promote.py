"From a study to a stage and back: by the command line, by processes against each other, and under a running bot."
import asyncio
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest
from test_cli import command, environment
from test_strategies import place
from test_trade_live import WISHES, Bot, home, until, world

from arbwork import cli
from arbwork.clock import NS
from arbwork.decide.contract import Params, Universe
from arbwork.decide.cross import KERNELS, kernel_hash
from arbwork.market import ArbworkError, ConfigError, Listing, decimal
from arbwork.research import promote as pr
from arbwork.research.promote import load_study
from arbwork.research.stages import session_facts
from arbwork.settings import GATES, MORE_GATES, Limits, load_settings
from arbwork.sim.scenarios import Calibration, stress
from arbwork.store.ticks import Ticks
from arbwork.trade.core import Command, replay
from arbwork.trade.reconcile import session_entries

ROOT = Path(__file__).parents[1]


def facts(**more):
    return pr.SessionFacts(**dict(session='s', mode='paper', manifest='m', began_ns=0, ended_ns=NS, trades=40, expected_quote=20., pnl_quote=17., drawdown=1., equity=2e4, halts=0,
                                  doubted={}, decision=1., decisions=9, model_quote=18.) | more)


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
                 latency_ms={}, universe=Universe([], {}), oos_sharpe=99., created_ns=1_001*NS, expires_ns=m.expires_ns + 1, stage='full', override='because', notebook='y.ipynb', notebook_hash='0',
                 executed='evidence/y', executed_hash='1', parameters=dict(grid={}), wishes=Params(), figures=dict(trades=1), parent='abc', evidence=[facts()], extra=dict(enter_z=1.), limits=Limits(venue_drift=1.))
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


# the ladder, by the command line


def tell(capsys, *args, code=0):
    "A command in this process: what it says as JSON, or the one line of its refusal."
    found = cli.main([*map(str, args)])
    out, err = capsys.readouterr()
    assert found == code, (found, out, err)
    return json.loads(out) if out.strip() else err.strip().splitlines()[-1]


@pytest.fixture
def person(tmp_path):
    s = place(tmp_path/'p')
    path = s.path
    path.write_text(path.read_text().replace('strategies = strategies', f'strategies = {tmp_path}/p/strategies'))
    s = load_settings(path)
    s.promoted.mkdir(parents=True)
    return s


def written(s, name, **figures):
    path = s.root/f'{name}.json'
    path.write_bytes(msgspec.json.encode(study(kernel_hash=kernel_hash(KERNELS['cross']), **figures)))
    return path


def test_promote_demote_rollback_and_what_is_left_of_it(capsys, person):
    s, at = person, ['--settings', person.path, '--json']
    one = tell(capsys, 'promote', written(s, 'one', stage='paper'), *at)
    two = tell(capsys, 'promote', written(s, 'two', stage='shadow', trials=301), *at)
    assert [x['stage'] for x in (one, two)] == ['paper', 'shadow'] and pr.load_manifest(s.promoted, 'cross').id == two['id']
    assert tell(capsys, 'manifest', 'verify', 'cross', '--mode', 'shadow', *at)['id'] == two['id']
    assert "that is 'canary'" in tell(capsys, 'manifest', 'verify', '--mode', 'live', *at, code=2)
    assert tell(capsys, 'manifest', 'show', one['id'][:8], *at)['figures']['trades'] == 120
    assert 'wanted one below' in tell(capsys, 'demote', 'cross', '--to', 'full', '--why', 'x', *at, code=2)
    assert tell(capsys, 'demote', 'cross', '--why', 'it lost', *at)['stage'] == 'paper'
    assert tell(capsys, 'demote', 'cross', '--to', 'none', '--why', 'it lost more', *at)['stage'] == 'none'
    assert 'demoted to nothing' in tell(capsys, 'manifest', 'verify', *at, code=2) and 'nowhere' in tell(capsys, 'demote', 'cross', '--why', 'x', *at, code=2)
    assert tell(capsys, 'rollback', 'cross', *at)['id'] == one['id'] == pr.load_manifest(s.promoted, 'cross').id
    (s.promoted/'cross.json').write_text('{')
    assert tell(capsys, 'rollback', 'cross', *at)['id'] == one['id'] # two was demoted, so the last good one is the first
    deeds = tell(capsys, 'manifest', 'history', *at)['deeds']
    assert [(d['what'], d['stage']) for d in deeds] == [('promote', 'paper'), ('promote', 'shadow'), ('demote', 'paper'), ('demote', ''), ('rollback', 'paper'), ('rollback', 'paper')]
    assert 'nothing is promoted' in tell(capsys, 'manifest', 'show', 'maker', *at, code=2)


def test_nothing_to_roll_back_to_says_why_for_each(capsys, person):
    at = ['--settings', person.path, '--json']
    assert 'there is none' in tell(capsys, 'rollback', *at, code=2)
    for k in (1, 2): tell(capsys, 'promote', written(person, f's{k}', trials=300 + k), *at)
    first = next(d.id for d in pr.history(person.promoted))
    page = pr.kept(person.promoted, 'cross', first)
    page.write_text(page.read_text().replace('"trials": 301', '"trials": 1'))
    assert 'no earlier manifest may trade' in tell(capsys, 'rollback', *at, code=2)


def test_a_stage_wants_sessions_and_an_override_stays(capsys, person):
    at = ['--settings', person.path, '--json']
    sim = tell(capsys, 'promote', written(person, 'sim'), *at)
    assert 'simulated data' in tell(capsys, 'promote', sim['id'], '--stage', 'canary', *at, code=2)
    low = tell(capsys, 'promote', written(person, 'low', stage='paper'), *at)
    assert 'no session of it' in tell(capsys, 'promote', 'cross', '--stage', 'shadow', *at, code=2)
    assert 'one stage at a time' in tell(capsys, 'promote', 'cross', '--stage', 'full', *at, code=2)
    up = tell(capsys, 'promote', low['id'], '--stage', 'shadow', '--override', 'a rehearsal', *at)
    m = pr.load_manifest(person.promoted, 'cross')
    assert (m.id, m.stage, m.parent, m.override) == (up['id'], 'shadow', low['id'], 'a rehearsal')
    assert 'further up it takes sessions' in tell(capsys, 'promote', written(person, 'high', stage='canary'), *at, code=2)


def test_every_figure_that_can_be_a_gate_can_be_set_as_one(person):
    assert {*GATES, *MORE_GATES} == set(pr.FIGURES) and person.gates == GATES
    person.path.write_text(person.path.read_text().replace('[gates]\n', '[gates]\nmax_astray_share = 0.5\n'))
    assert load_settings(person.path).gates == GATES | dict(max_astray_share=.5)
    astray = msgspec.structs.replace(load_study(written(person, 'astray')), astray_share=.7)
    assert [g.passed for g in pr.gates(astray, dict(max_astray_share=.5))] == [False]


def test_the_published_schema_is_the_one_of_the_struct():
    assert (ROOT/'docs'/'manifest.schema.json').read_bytes() == pr.manifest_schema()


def test_a_clock_that_went_back_is_noticed(person):
    from arbwork.live import permitted
    now = time.time_ns()
    pr.promote_study(written(person, 'one'), person, now)
    with pytest.raises(ConfigError, match='the clock says .* set the clock'): permitted(person, 'cross', 'sim', now - 400*NS)
    with pytest.raises(ConfigError, match='expired at'): permitted(person, 'cross', 'sim', now + 31*86_400*NS)


# under a running bot


def signed(settings, **more):
    return pr.sign(msgspec.structs.replace(pr.load_manifest(settings.promoted, 'cross'), **more), pr.load_key(settings.keys))


def test_a_running_bot_takes_up_refuses_and_obeys(tmp_path):
    async def main():
        async with world(tmp_path) as (w, settings, journal):
            log = lambda: (settings.var/'bot.log').read_text()
            with Bot(settings, '--session', 'day') as bot:
                commands = lambda: [msgspec.msgpack.decode(e.body, type=Command) for e in journal.read('session/day', kind='command')]
                running = lambda x: bot.process.poll() is not None or x()
                await until(lambda: running(lambda: journal.read('session/day', kind='trade')), 240)
                new = signed(settings, params=msgspec.structs.replace(WISHES, min_edge_bps=3.))
                pr.put_in_force(new, settings.promoted, time.time_ns(), 'promote')
                await until(lambda: running(lambda: any(c.by == f'manifest {new.id}' for c in commands())), 240)
                spoiled = msgspec.structs.replace(new, params=msgspec.structs.replace(WISHES, max_notional=1e6))
                pr.write_manifest(spoiled, settings.promoted/'cross.json')
                await until(lambda: running(lambda: 'altered after it was signed' in log()), 240)
                pr.write_manifest(new, settings.promoted/'cross.json')
                pr.demote(settings.promoted, new, 'the world changed', time.time_ns(), '')
                await until(lambda: running(lambda: any(c.verb == 'pause' and 'the world changed' in c.by for c in commands())), 240)
                last = signed(settings, params=msgspec.structs.replace(WISHES, min_edge_bps=4.))
                pr.put_in_force(last, settings.promoted, time.time_ns(), 'promote')
                await until(lambda: running(lambda: commands()[-1].verb == 'resume'), 240)
                bot.process.terminate()
                code, result, text = await bot.ended(240)
                assert code == 0, text
            assert result['params']['min_edge_bps'] == 4. and result['params']['max_notional'] == WISHES.max_notional
            assert (result['manifest_now'], result['taken_up'], result['reconciled']) == (last.id, 2, True)
            again = replay(session_entries(journal, 'day'))
            assert again.first == '' and again.identical == again.total > 0
            for m in (new, last): assert session_facts(journal, 'day', m.id).manifest == m.id
            whole = session_facts(journal, 'day')
            assert whole.decision == 1. and 1 <= whole.trades < len(again.core.all_trades) + 1 and whole.pnl_quote > 0 and whole.mode == 'sim'
    asyncio.run(main())


def test_a_running_bot_takes_its_manifest_back_by_itself_and_takes_up_the_next(tmp_path):
    "An edge that brings less than was hoped for: hoped for here are a hundred thousand times what was decided on, so that every trade disappoints."
    async def main():
        quick = msgspec.structs.replace(WISHES, cooldown_s=0.2, deadline_s=2.)
        async with world(tmp_path, params=quick, stage='paper', start_ns=time.time_ns()) as (_, settings, journal):
            settings.path.write_text(settings.path.read_text() + '[stages]\nmin_session_trades = 1\nmin_edge_share = 100000\nreview_s = 0.5\n')
            first = pr.load_manifest(settings.promoted, 'cross')
            with Bot(settings, '--session', 'day', '--balance', 'LINK=500', '--balance', 'USDT=20000', mode=('paper',)) as bot:
                told = lambda verb: [c for e in journal.read('session/day', kind='command') if (c := msgspec.msgpack.decode(e.body, type=Command)).verb == verb]
                running = lambda x: bot.process.poll() is not None or x()
                await until(lambda: running(lambda: told('pause')), 240)
                note = pr.demotion(settings.promoted, first)
                assert note and note.stage == 'sim' and note.by == 'session day' and note.why.startswith('edge: ') and 'brought' in note.why, bot.process.poll()
                assert [c.by for c in told('pause')] == [f'manifest: {note.why}']
                begun = len(journal.read('session/day', kind='decision'))
                await asyncio.sleep(3) # several dislocations, none of them taken
                assert len(journal.read('session/day', kind='decision')) == begun
                new = signed(settings, params=msgspec.structs.replace(quick, min_edge_bps=3.))
                pr.put_in_force(new, settings.promoted, time.time_ns(), 'promote')
                await until(lambda: running(lambda: told('resume')), 240)
                await until(lambda: running(lambda: len(journal.read('session/day', kind='decision')) > begun), 240)
                await until(lambda: running(lambda: len(told('pause')) == 2), 240) # the next one disappoints as well
                bot.process.terminate()
                code, result, text = await bot.ended(240)
                assert code == 0, text
            assert result['manifest_now'] == new.id and result['taken_up'] == 1 and result['reconciled'] and pr.demotion(settings.promoted, new).stage == 'sim'
            again = replay(session_entries(journal, 'day'))
            assert again.first == '' and again.identical == again.total > 0
    asyncio.run(main())


def test_a_shadow_decides_and_sends_nothing_and_is_evidence_for_a_canary(tmp_path, capsys):
    async def main():
        quick = msgspec.structs.replace(WISHES, cooldown_s=0.2, deadline_s=2.)
        async with world(tmp_path, params=quick, stage='shadow', start_ns=time.time_ns()) as (w, settings, journal):
            with Bot(settings, '--session', 'dark', mode=('shadow',)) as bot:
                await until(lambda: bot.process.poll() is not None or len(journal.read('session/dark', kind='trade')) >= 2, 240)
                bot.process.terminate()
                code, result, text = await bot.ended(240)
                assert code == 0, text
            assert result['trades'] >= 2 and result['fills'] == 0 and result['residual_exposure'] == 0 and result['reconciled']
            assert all(not v.engine.orders for v in w.venues.values())
            f = session_facts(journal, 'dark')
            assert f.mode == 'shadow' and f.trades >= 2 and f.pnl_quote == 0 and f.model_quote != 0 and f.decision == 1.
            settings.path.write_text(settings.path.read_text() + '[stages]\nmin_session_trades = 1000\n')
            assert 'wanted 1000' in tell(capsys, 'promote', 'cross', '--stage', 'canary', '--settings', settings.path, code=2)
            settings.path.write_text(settings.path.read_text().replace('1000', '2'))
            if f.model_quote <= 0: # two trades can have bad luck; then they are no evidence
                assert 'the model makes' in tell(capsys, 'promote', 'cross', '--stage', 'canary', '--settings', settings.path, code=2)
                return
            up = tell(capsys, 'promote', 'cross', '--stage', 'canary', '--settings', settings.path, '--json')
            m = pr.load_manifest(settings.promoted, 'cross')
            assert m.id == up['id'] and [(x.session, x.model_quote) for x in m.evidence] == [('dark', f.model_quote)] and m.parent == f.manifest
            assert tell(capsys, 'manifest', 'verify', '--mode', 'live', '--settings', settings.path, '--json')['good_for'] == 'live'
    asyncio.run(main())


# the same study once more


def long(*args, code=0):
    "A command that may take minutes on a busy machine."
    done = subprocess.run(command(*args, '--json'), capture_output=True, text=True, timeout=600, env=environment())
    assert done.returncode == code and 'Traceback' not in done.stderr, (done.returncode, done.stdout, done.stderr)
    return json.loads(done.stdout) if done.stdout.strip() else done.stderr.strip().splitlines()[-1]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_promoted_study_comes_out_the_same_again_and_what_differs_is_said(tmp_path):
    s = place(tmp_path/'p', stress(seed=5, hours=.5, calibration=Calibration(jumps_per_hour=20., jump_bps=25., jump_below=.5)))
    s.strategies.mkdir()
    shutil.copy(ROOT/'strategies'/'cross.ipynb', s.strategies)
    found = long('research', 'cross', '--settings', s.path, '-p', 'grid={"min_edge_bps": [2, 8]}', '-p', 'earlier_trials=0', '-p', 'bucket_s=20')
    long('promote', s.var/'research'/'cross'/'study.json', '--settings', s.path, '--override', 'half an hour is short')
    m, at = pr.load_manifest(s.promoted, 'cross'), ['--settings', s.path]
    assert found['winner_trades'] and m.figures['winner_pnl'] == found['winner_pnl'] and m.parameters['grid'] == dict(min_edge_bps=[2, 8])
    assert m.wishes == s.params and pr.load_origin(s.var/'research'/'cross'/'origin.json').executed_hash == m.executed_hash
    s.path.write_text(s.path.read_text().replace('max_notional = 2000', 'max_notional = 700').replace('taker_bps = 10', 'taker_bps = 11')) # a study is run with its own wishes
    (s.promoted/m.executed).write_text('{}')
    again = long('reproduce', 'cross', *at, code=1)
    assert [x['field'] for x in again['differs']] == ['executed copy'] and not again['same'] # and every figure is the same, to the bit
    other = msgspec.structs.replace(load_study(s.var/'reproduce'/m.id/'study.json'), trials=9, dsr=.5)
    assert [x['field'] for x in cli.differences(m, other)] == ['trials', 'figures.dsr']
    gone = pr.sign(msgspec.structs.replace(m, snapshot='yesterday'), pr.load_key(s.keys))
    assert 'snapshot yesterday is gone' in long('reproduce', pr.write_manifest(gone, tmp_path/'gone.json'), *at, code=3)
    assert 'altered after it was signed' in long('reproduce', pr.write_manifest(msgspec.structs.replace(m, seed=2), tmp_path/'edited.json'), *at, code=2)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_study_that_fails_leaves_its_page_and_the_store_as_it_was(tmp_path):
    import nbformat
    s = place(tmp_path/'p', stress(seed=4, hours=.2))
    s.strategies.mkdir()
    book = nbformat.read(ROOT/'strategies'/'cross.ipynb', 4)
    at = next(i for i, c in enumerate(book.cells) if c.cell_type == 'code' and 'store.snapshot(snapshot)' in c.source)
    book.cells = [*book.cells[:at + 1], nbformat.v4.new_code_cell('1/0')]
    nbformat.write(book, s.strategies/'broken.ipynb')
    said = long('research', 'broken', '--settings', s.path, code=1)
    page = nbformat.read(s.var/'research'/'broken'/'broken.ipynb', 4)
    assert 'ZeroDivisionError' in said and 'the executed copy is' in said and any('ZeroDivisionError' in str(c.get('outputs')) for c in page.cells)
    store = Ticks(s.ticks)
    try: assert store.snapshots() == []
    finally: store.close()
    assert not list(s.strategies.glob('promoted/*'))


def test_what_to_change_next_is_said_kept_and_found_again(tmp_path, capsys):
    world_ = stress(seed=5, hours=.6, calibration=Calibration(jumps_per_hour=20., jump_bps=25., jump_below=.5))
    s = place(tmp_path/'p', world_)
    at = ['--settings', s.path, '--json']
    found = tell(capsys, 'recommend', *at)
    kept = json.loads((s.var/'recommendations.json').read_text())
    assert kept['said'] == found['said'] and found['said'] and found['tried'] > 10 and found['about']['snapshot'] in Ticks(s.ticks).snapshots()
    assert all(x['reproduce']['snapshot'] == found['about']['snapshot'] and x['wish'] in x['reproduce']['move'] for x in found['found'])
    again = tell(capsys, 'recommend', '--snapshot', found['about']['snapshot'], *at)
    assert again['found'] == found['found']
    assert 'no snapshot moon' in tell(capsys, 'recommend', '--snapshot', 'moon', *at, code=3)
    assert "found 'moon'" in tell(capsys, 'recommend', 'moon', *at, code=2)
