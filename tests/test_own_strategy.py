"A strategy of a person's own, from two new files to a study, a manifest, a trade, a death and a changed mind."
import asyncio
import time

import msgspec
import pytest
from test_cli import refused
from test_study_live import CASES, keep, world_of
from test_trade_live import Bot, said, until, whole

from arbwork.cli import study_notebook
from arbwork.decide.strategies import strategy_of
from arbwork.live import warm
from arbwork.research.backtest import inventory_of
from arbwork.research.own import write_own
from arbwork.research.parity import parity_report
from arbwork.research.promote import load_study, promote_study
from arbwork.research.recorded import plenty, recorded
from arbwork.research.sweep import sweep
from arbwork.serve.standing import kernel_now, manifests
from arbwork.settings import load_settings
from arbwork.trade.core import SessionStart
from arbwork.trade.reconcile import sessions, unfinished


def test_from_two_new_files_to_a_trade_and_back(tmp_path):
    scenario = CASES['maker'][0]()
    async def main():
        async with world_of(tmp_path, scenario) as (w, s, journal):
            keep(s, scenario)
            s.path.write_text(s.path.read_text() + '[limits]\norder_notional = 2500\n')
            s = load_settings(s.path)
            kernel, page = write_own(s.strategies, 'narrow')
            own = strategy_of('narrow', s.strategies)
            with pytest.raises(Exception, match='no_such'): study_notebook(s, page, s.root/'no', dict(settings=str(s.path), out_dir=str(s.root/'no'), no_such=1))
            await asyncio.to_thread(study_notebook, s, page, s.root/'study', dict(settings=str(s.path), out_dir=str(s.root/'study'), grid=dict(min_edge_bps=[0., 1.], widest_bps=[2., 50.])))
            found = load_study(s.root/'study'/'study.json')
            assert (found.strategy, found.kernel_hash, found.trials, set(found.extra)) == ('narrow', own.hash, 4, {'widest_bps'}) and found.winner_trades > 5
            data = recorded(s)
            how = dict(inventory=inventory_of(data.universe, plenty(data.tape, data.universe, 2_000.)), base=own.wishes(s.params), latency_ns=50_000_000, fee_in='received')
            one, two = [await asyncio.to_thread(lambda n=n: sweep(own, data.tape, data.universe, dict(widest_bps=[2., 50.]), workers=n, **how)) for n in (1, 2)]
            assert one.returns.tobytes() == two.returns.tobytes() and one.results[0].funnel['depth'] > one.results[1].funnel['depth'] # also in other processes, which read the file
            _, m = promote_study(s.root/'study'/'study.json', s, time.time_ns(), override='for a test')
            s.path.write_text(s.path.read_text().replace('order_notional = 2500', 'order_notional = 2800')) # looser than what it was studied under
            s = load_settings(s.path)
            assert kernel_now(s, 'narrow') == m.kernel_hash and [x['refused'] for x in manifests(s, time.time_ns())] == ['']
            warm(SessionStart('warm', 'sim', 'narrow', m.params, m.universe, {}, scenario.start_ns, wishes=m.extra, file=own.file)) # compiled here, so that the bot finds it on the disk
            with Bot(s, '--strategy', 'narrow', '--session', 'day') as bot:
                await until(lambda: bot.process.poll() is not None or ((x := said(journal)) and x.trades >= 2), 300)
                bot.process.kill()
                bot.process.communicate()
            assert unfinished(journal, 'sim') == ['day']
            start = msgspec.msgpack.decode(journal.read('session/day', 0, 1)[0].body, type=SessionStart)
            assert (start.limits.order_notional, m.limits.order_notional, s.limits.order_notional) == (2500, 2500, 2800) and start.wishes == m.extra and start.kernel == own.hash
            kernel.write_text(kernel.read_text().replace('p.widest_bps', '2*p.widest_bps')) # its author goes on writing
            with Bot(s, '--strategy', 'narrow', '--session', 'day', name='again') as bot:
                code, result, log = await bot.ended(300)
            assert code == 2 and result is None and 'the code changed, study again; settled first: session day, 0 trades open' in log, log
            whole(w, journal, 'day')
            assert sessions(journal) == ['day'] and not unfinished(journal, 'sim') and parity_report(s.journal, 'day')['decision'] == 1.
            assert 'code changed' in manifests(s, time.time_ns())[0]['refused']
            refused('manifest', 'verify', 'narrow', '--settings', s.path, says=['the code changed'])
            kernel.unlink()
            assert parity_report(s.journal, 'day')['decision'] == 1. # by the copy that the session kept
            with Bot(s, '--strategy', 'narrow', name='gone') as bot:
                code, _, log = await bot.ended(300)
                assert code == 2 and 'narrow.py' in log, log
    asyncio.run(main())
