"A bot that never sleeps: it trades as ever, and takes nothing but its core."
import asyncio
import os
import signal
import threading

import pytest
import uvloop
from test_trade_live import Bot, balances, said, until, whole, world

from arbwork.live import Spin, arguments, spins
from arbwork.market import ConfigError
from arbwork.settings import load_settings
from arbwork.store.journal import open_journal


def test_timers_signals_sockets_and_the_writer_are_heard_while_it_spins(tmp_path):
    async def main():
        journal, loop, heard = open_journal(f'sqlite:///{tmp_path}/journal.db'), asyncio.get_running_loop(), asyncio.Event()
        spin = Spin(journal.at_work)
        try:
            loop.add_signal_handler(signal.SIGUSR1, heard.set)
            os.kill(os.getpid(), signal.SIGUSR1)
            await heard.wait()
            for k in range(50):
                await journal.append('a', 'b', b'x'*300, ts_ns=k, durable=True).done()
                journal.append_rows('rows', 'rows', memoryview(b'y'*8), ts_ns=k)
            journal.flush()
            assert len(journal.read('a')) == 50 and sum(len(e.body) for e in journal.read('rows')) == 50*8
            server = await asyncio.start_server(lambda r, w: w.close(), '127.0.0.1', 0)
            reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
            assert await reader.read() == b''
            writer.close(), server.close()
            await asyncio.sleep(0.01)
            await until(lambda: spin.turns > 1_000)
            assert await asyncio.to_thread(lambda: threading.current_thread() is not threading.main_thread())
        finally: spin.stop()
        turns = spin.turns
        await asyncio.sleep(0.01)
        assert spin.turns == turns
        journal.close()
    uvloop.run(main())


def test_the_loop_sleeps_while_the_writer_is_at_work():
    async def main():
        at_work = [True]
        spin = Spin(lambda: at_work[0])
        await asyncio.sleep(0.2)
        assert 0 < spin.turns < 1_000 # a loop that spins turns some 100,000 times in that
        at_work.clear(), at_work.append(False)
        await until(lambda: spin.turns > 1_000)
        spin.stop()
    uvloop.run(main())


def test_who_may_spin(tmp_path, monkeypatch):
    from pathlib import Path
    text, path = (Path(__file__).parents[1]/'settings.ini').read_text(), tmp_path/'settings.ini'
    def asked(word, *more):
        path.write_text(text.replace('spin = no', f'spin = {word}'))
        return spins(arguments().parse_args(['--mode', 'sim', *more]), load_settings(path))
    monkeypatch.setattr(os, 'sched_getaffinity', lambda pid: {0, 1}, raising=False)
    assert [asked('no'), asked('yes'), asked('no', '--spin')] == [False, True, True]
    with pytest.raises(ConfigError, match=r'\[live\] spin: found \'often\', wanted yes or no'): asked('often')
    monkeypatch.setattr(os, 'sched_getaffinity', lambda pid: {0}, raising=False)
    assert not asked('no')
    with pytest.raises(ConfigError, match='--spin: found 1 core for this process, wanted 2 or more'): asked('no', '--spin')
    with pytest.raises(ConfigError, match=r'settings.ini: \[live\] spin: found 1 core'): asked('yes')


def test_a_bot_that_spins_trades_and_ends_clean(tmp_path):
    async def main():
        async with world(tmp_path) as (w, settings, journal):
            with Bot(settings, '--session', 'awake', '--spin') as bot:
                await until(lambda: bot.process.poll() is not None or ((s := said(journal)) and s.trades >= 1))
                bot.process.send_signal(signal.SIGTERM)
                code, result, log = await bot.ended()
                assert code == 0, log
            assert result['reconciled'] and result['residual_exposure'] == 0 and result['trades'] >= 1
            core, found = whole(w, journal, 'awake'), balances(w)
            for v in w.venues: assert core.ledger.wallet[v] == {a: found[v].get(a, 0) for a in core.ledger.wallet[v]}
    asyncio.run(main())
