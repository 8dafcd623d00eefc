"From study to live for strategies of several legs: a notebook is run, what it found is signed, the bot trades it, and its journal decides the same again."
import asyncio
import contextlib
import signal
import time

import msgspec
import pytest
from test_trade_live import KEYS, SPEED, VENUES, Bot, balances, said, until

from arbwork.clock import utc
from arbwork.cli import execute_notebook
from arbwork.decide.basis import B_N, B_PAIRS, PAIR, position
from arbwork.decide.strategies import STRATEGIES
from arbwork.market import ConfigError
from arbwork.live import permitted, warm
from arbwork.research.backtest import inventory_of
from arbwork.research.parity import outcome_parity, parity_report
from arbwork.research.promote import load_key, load_study, promote_study, sign, write_manifest
from arbwork.research.recorded import curves_of, plenty, recorded
from arbwork.research.recorded import keep as write
from arbwork.research.report import load_curves
from arbwork.research.study import study_of
from arbwork.serve.standing import manifests
from arbwork.serve.vault import open_vault
from arbwork.settings import load_settings
from arbwork.sim.scenarios import Calibration, stress, triangles
from arbwork.sim.server import World
from arbwork.store.journal import open_journal
from arbwork.store.ticks import Ticks
from arbwork.trade.core import Core, SessionStart, replay
from arbwork.trade.reconcile import session_entries

WISHES = dict(risk_tolerance=1, max_notional=2_000, cooldown_s=5, max_age_s=60, max_skew_s=30, deadline_s=20, max_exposure=1e6, stop_bps=100, slippage_bps=20, max_loss_day=1e6)
FEES = {v: (0.5, 1.) for v in VENUES}
CASES = {
    'cycle': (lambda: triangles(seed=0, hours=.4, step_s=2.), dict(min_edge_bps=[1, 4], most_legs=[3, 4]), {}),
    'basis': (lambda: stress(seed=5, hours=.6, calibration=Calibration(jumps_per_hour=30., jump_bps=25., jump_below=.5)), dict(enter_z=[1., 2.], min_edge_bps=[0., 1.]),
              dict(halflife_s=60, warm_s=30, exit_z=0, step_z=0, max_position=3_000)),
    'maker': (lambda: stress(seed=5, hours=.6, calibration=Calibration(jumps_per_hour=30., jump_bps=25., jump_below=.5)), dict(min_edge_bps=[0., 1.], reprice_bps=[1., 3.]), {}),
}


def home(folder, world, ports=None):
    "A person's settings for all instruments of a world, its recording in their store, keys in the vault."
    folder.mkdir(exist_ok=True)
    instruments = list(dict.fromkeys(x.instrument for x in world.listings.values()))
    wishes = '\n'.join(f'{k} = {v}' for k, v in WISHES.items())
    at = lambda v, way: f'{way}://127.0.0.1:{(ports or {}).get(v, 1)}'
    venue = '\n'.join(f'[venue:{v}]\nrest = {at(v, "http")}\npublic_ws = {at(v, "ws")}\nprivate_ws = {at(v, "ws")}\ntrade_ws = {at(v, "ws")}\n'
                      f'maker_bps = {FEES[v][0]}\ntaker_bps = {FEES[v][1]}\nlatency_ms = 50\n' for v in VENUES)
    path = folder/'settings.ini'
    path.write_text(f'[arbwork]\nvenues = {", ".join(VENUES)}\ninstruments = {", ".join(instruments)}\nvar = var\nstrategies = strategies\njournal = sqlite:///var/journal.db\n'
                    f'ticks = lmdb://var/ticks\nboard = var/board.bin\n[params]\n{wishes}\n{venue}')
    return load_settings(path)


def keep(s, world):
    store = Ticks(s.ticks)
    for key, listing in world.listings.items():
        store.write_rows(listing.venue, listing.instrument, world.rows[key], 1)
        store.write_listing(listing)
    store.close()


def study(s, name, **parameters):
    from test_strategies import ROOT
    out = s.root/'study'
    execute_notebook(ROOT/'strategies'/f'{name}.ipynb', out/f'{name}.ipynb', dict(settings=str(s.path), out_dir=str(out), **parameters), 'study')
    return load_study(out/'study.json'), load_curves(out/'curves.json')


@contextlib.asynccontextmanager
async def world_of(folder, scenario):
    w = World(VENUES, scenario, 0, SPEED, KEYS, None, 0., fees_bps=FEES)
    await w.start()
    journal = None
    try:
        s = home(folder, scenario, w.ports)
        vault = open_vault(s, create=True)
        for v in VENUES: vault.put(v, dict(key=KEYS.key, secret=KEYS.secret))
        journal = open_journal(s.journal)
        yield w, s, journal
    finally:
        if journal: journal.close()
        await w.stop()


def judged(s, scenario, name):
    "The same judgement without a notebook."
    _, grid, wishes = CASES[name]
    data = recorded(s)
    found, parts = study_of(name, data.tape, data.universe, grid, inventory=inventory_of(data.universe, plenty(data.tape, data.universe, 2_000.)), latency_ms=data.latency_ms,
                            seed=1, base=STRATEGIES[name].wishes(s.params, **wishes), draws=20, now_ns=time.time_ns(), label='kit', snapshot=data.snapshot, apart=name == 'cycle')
    write(s.root/'study', found, curves_of(found, parts, data))
    return found


@pytest.mark.parametrize('name', ['cycle', *(pytest.param(x, marks=pytest.mark.slow) for x in ('basis', 'maker'))])
def test_a_notebook_judges_all_slots_and_what_the_strategy_adds(name, tmp_path):
    make, grid, wishes = CASES[name]
    scenario = make()
    s = home(tmp_path, scenario)
    keep(s, scenario)
    found, curves = study(s, name, grid=grid, wishes=wishes, now=utc(time.time_ns()))
    assert found.strategy == name and found.kernel_hash == STRATEGIES[name].hash
    assert [(x.venue, x.instrument) for x in found.universe.listings] == [(v, i) for v in s.venues for i in s.instruments]
    assert set(found.extra) == set(STRATEGIES[name].params.__struct_fields__) - set(found.params.__struct_fields__)
    assert found.trials == 4 and sum(found.reasons.values()) == found.rows and len(found.gates) == len(s.gates) and found.winner_trades > 5
    assert found.recommendation[0].startswith('Promote' if found.promoted else 'Do not promote, because')
    assert curves.winner[-1] == pytest.approx(found.winner_pnl) and found.twin_fees_pnl != found.winner_pnl
    if name == 'maker': assert found.reasons['quote'] > 0
    if name == 'cycle': assert found.best_gross_bps > 3 and 'cycles that did not fit together' in found.recommendation[1]


@pytest.mark.parametrize('name', CASES)
def test_the_bot_trades_it_and_its_journal_decides_the_same(name, tmp_path):
    scenario = CASES[name][0]()
    async def main():
        async with world_of(tmp_path, scenario) as (w, s, journal):
            keep(s, scenario)
            found = judged(s, scenario, name)
            _, m = promote_study(s.root/'study'/'study.json', s, time.time_ns(), override='for a test')
            assert m.extra == found.extra and m.strategy == name and found.winner_trades > 5
            assert [(x['strategy'], x['refused']) for x in manifests(s, time.time_ns())] == [(name, '')]
            warm(SessionStart('warm', 'sim', name, m.params, m.universe, {}, scenario.start_ns, wishes=m.extra)) # compiled here, so that the bot finds it on the disk
            with Bot(s, '--strategy', name, '--session', 'day') as bot:
                await until(lambda: bot.process.poll() is not None or ((x := said(journal)) and x.trades >= 3), 480)
                bot.process.send_signal(signal.SIGTERM)
                code, result, log = await bot.ended(300)
                assert code == 0, log
            assert result['reconciled'] and result['open_trades'] == 0 and result['trades'] >= 3 and (result['strategy'], result['manifest']) == (name, m.id)
            assert {k: result['params'][k] for k in m.extra} == m.extra
            again = replay(session_entries(journal, 'day'))
            assert again.first == '' and again.identical == again.total > 0
            core, there = again.core, balances(w)
            for v in VENUES:
                slack = core.ledger.slack().get(v, {})
                for a, x in core.ledger.wallet[v].items(): assert abs(x - there[v].get(a, 0)) <= slack.get(a, 0), (v, a)
            for t in core.all_trades.values():
                assert len(t.slots) == (3 if name == 'cycle' else 2), t.id
                if not t.why: assert core._lone(t, 'reverse') == 0
            outcome = outcome_parity(journal, 'day')
            assert sum(outcome.causes.values()) == pytest.approx(outcome.difference, abs=1e-9) and len(outcome.pairs) >= 3
            assert parity_report(s.journal, 'day')['decision'] == 1.
            if name == 'basis':
                with Bot(s, '--strategy', name, '--session', 'day', '--seconds', '2', name='next') as bot:
                    code, _, log = await bot.ended(300)
                    assert code == 0 and 'memory_taken_up' in log, log
                start = msgspec.msgpack.decode(journal.read('session/day-2', 0, 1)[0].body, type=SessionStart)
                taken = Core(start)
                for k in range(int(core.memory[B_N])):
                    at = int(core.memory[B_PAIRS]) + PAIR*k
                    assert position(taken.memory, at, taken.specs, taken.inventory) == pytest.approx(position(core.memory, at, core.specs, core.inventory), abs=1e-3)
            else: assert not msgspec.msgpack.decode(journal.read('session/day', 0, 1)[0].body, type=SessionStart).memory
            field = next(iter(m.extra))
            for extra, says in (({field: 1e9}, f'parameter {field}: found'), ({'no_such_wish': 1.}, 'parameter no_such_wish: unknown')):
                bad = sign(msgspec.structs.replace(m, extra=extra, signature=''), load_key(s.keys))
                write_manifest(bad, s.promoted/f'{name}.json')
                with pytest.raises(ConfigError, match=says): permitted(s, name, 'sim', time.time_ns())
    asyncio.run(main())


def test_a_maker_killed_while_its_order_rests_leaves_nothing_there(tmp_path):
    scenario = CASES['maker'][0]()
    async def main():
        async with world_of(tmp_path, scenario) as (w, s, journal):
            resting = lambda: [o.client_id for v in w.venues.values() for o in v.engine.orders.values() if o.tif == 'POST_ONLY' and o.open]
            keep(s, scenario)
            judged(s, scenario, 'maker')
            _, m = promote_study(s.root/'study'/'study.json', s, time.time_ns(), override='for a test')
            warm(SessionStart('warm', 'sim', 'maker', m.params, m.universe, {}, scenario.start_ns, wishes=m.extra))
            with Bot(s, '--strategy', 'maker', '--session', 'night') as bot:
                await until(lambda: bot.process.poll() is not None or resting(), 480)
                bot.process.kill()
                bot.process.communicate()
            left = resting()
            with Bot(s, '--strategy', 'maker', '--session', 'night', '--seconds', '4', name='again') as bot:
                code, result, log = await bot.ended(300)
                assert code == 0, log
            assert [r['session'] for r in result['recovered']] == ['night'] and result['recovered'][0]['clean'], log
            assert left and not resting() and result['reconciled'] and result['open_trades'] == 0
            for name in ('night', 'night-2'):
                again = replay(session_entries(journal, name))
                assert again.first == '' and again.identical == again.total > 0 and not again.core.open
    asyncio.run(main())
