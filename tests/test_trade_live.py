"The bot as a process against simulated venues over loopback: it trades, is steered, is hurt, is killed, and nothing is lost."
import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from decimal import Decimal
from pathlib import Path

import aiohttp
import msgspec
import numpy as np
import pytest

from arbwork import __version__
from arbwork.clock import NS
from arbwork.decide.cross import KERNELS, kernel_hash
from arbwork.feed.codec import Keys
from arbwork.feed.events import BOOK, VALID
from arbwork.feed.rights import Rights
from arbwork.research.promote import Manifest, demote, load_key, load_manifest, make_key, sign, write_manifest
from arbwork.serve.vault import open_vault
from arbwork.settings import Params, load_settings
from arbwork.sim.scenarios import load_scenario
from arbwork.sim.server import World
from arbwork.store.journal import open_journal
from arbwork.trade.core import Ack, Command, SessionStart, Status, Stop, replay
from arbwork.trade.reconcile import session_entries, sessions, unfinished

VENUES, PAIR, KEYS, SPEED = ['binance', 'bybit'], 'LINK-USDT', Keys('sim-key', 'sim-secret'), 20.
WISHES = Params(risk_tolerance=1., min_edge_bps=2., max_notional=1_000., cooldown_s=5., max_age_s=60., deadline_s=20., max_exposure=1e6, stop_bps=100.)


def drifting(seconds=2_000, apart_s=10, every_s=20, bps=40.):
    "Books a second apart; Bybit is dearer for some seconds of every `every_s`."
    s = load_scenario('link-2021-08-20')
    rows = {}
    for slot, venue in enumerate(VENUES):
        out = np.zeros(seconds, BOOK)
        t = np.arange(seconds)
        out['ts_venue_ns'] = out['ts_recv_ns'] = s.start_ns + t*NS
        out['slot'], out['state'], out['seq'] = slot, VALID, t + 1
        up = np.where((t % every_s >= every_s - apart_s) & (venue == 'bybit'), 1 + bps/1e4, 1.)
        tick = float(s.listings[venue].tick)
        for k in range(10):
            out['bid_px'][:, k] = np.round((26.690*up - k*0.01)/tick)*tick
            out['ask_px'][:, k] = np.round((26.695*up + k*0.01)/tick)*tick
            out['bid_qty'][:, k], out['ask_qty'][:, k] = 50 + (t + k) % 7, 60 + (t + k) % 5
        rows[venue] = out
    return msgspec.structs.replace(s, rows=rows, fees_bps={v: (10., 10.) for v in VENUES}, balances={v: {'LINK': Decimal(500), 'USDT': Decimal(20_000)} for v in VENUES})


def home(folder, ports, scenario, params=WISHES, stage='sim'):
    "A person's settings, keys in the vault, a signed manifest."
    venue = '\n'.join(f'[venue:{v}]\nrest = http://127.0.0.1:{p}\npublic_ws = ws://127.0.0.1:{p}\nprivate_ws = ws://127.0.0.1:{p}\ntrade_ws = ws://127.0.0.1:{p}\n'
                      f'maker_bps = 10\ntaker_bps = 10\nlatency_ms = 50\n' for v, p in ports.items())
    path = folder/'settings.ini'
    path.write_text(f'[arbwork]\nvenues = {", ".join(ports)}\ninstruments = {PAIR}\nvar = var\nstrategies = strategies\njournal = sqlite:///var/journal.db\n'
                    f'ticks = lmdb://var/ticks\nboard = var/board.bin\n{venue}')
    settings = load_settings(path)
    settings.keys.mkdir(parents=True, exist_ok=True)
    vault = open_vault(settings, create=True)
    for v in ports: vault.put(v, dict(key=KEYS.key, secret=KEYS.secret))
    make_key(settings.keys)
    settings.promoted.mkdir(parents=True, exist_ok=True)
    now = time.time_ns()
    m = Manifest(strategy='cross', params=params, kernel_hash=kernel_hash(KERNELS['cross']), version=__version__, snapshot='test', window=(0, 1), seed=1, trials=1, gates=[],
                 latency_ms={v: 50. for v in ports}, universe=scenario.universe, oos_sharpe=1., created_ns=now, expires_ns=now + 3_600*NS, override='for a test', stage=stage)
    write_manifest(sign(m, load_key(settings.keys)), settings.promoted/'cross.json')
    return settings


class Bot:
    "A live process."
    def __init__(self, settings, *args, name='bot', mode=('sim', '--clock-speed', str(SPEED))):
        self.log = settings.var/f'{name}.log'
        self.process = subprocess.Popen([sys.executable, '-m', 'arbwork.live', '--mode', *mode, '--settings', str(settings.path), '--json', '--log', str(self.log), *args],
                                        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def __enter__(self): return self
    def __exit__(self, *what):
        if self.process.poll() is None: self.process.kill()
        self.process.communicate()

    async def ended(self, seconds=120):
        out, err = await asyncio.wait_for(asyncio.to_thread(self.process.communicate), seconds)
        return self.process.returncode, (json.loads(out) if out.strip() else None), err + self.log.read_text()


@contextlib.asynccontextmanager
async def world(folder, scenario=None, params=WISHES, stage='sim', start_ns=None):
    scenario = scenario or drifting()
    w = World(VENUES, scenario, 0, SPEED, KEYS, None, 0., start_ns=start_ns)
    await w.start()
    journal = None
    try:
        settings = home(folder, w.ports, scenario, params, stage)
        journal = open_journal(settings.journal)
        yield w, settings, journal
    finally:
        if journal: journal.close()
        await w.stop()


async def until(true, seconds=90):
    async with asyncio.timeout(seconds):
        while not (found := true()): await asyncio.sleep(0.02) # noqa: ASYNC110
    return found


async def hurt(w, venue, **fault):
    async with aiohttp.ClientSession() as s, s.post(f'http://127.0.0.1:{w.ports[venue]}/_sim/faults', json=fault) as r: assert r.status == 200, await r.text()


def said(journal):
    e = journal.last('status')
    return msgspec.msgpack.decode(e.body, type=Status) if e else None


def whole(w, journal, session, orders=None):
    "No naked leg, no lost fill, no doubled order, and the replay decides the same."
    again = replay(session_entries(journal, session))
    assert again.first == '' and again.identical == again.total > 0
    core = again.core
    assert not core.open
    for venue, v in w.venues.items():
        ours = [f for f in v.engine.fills if f.client_id.rsplit('-', 3)[0] == session] if v.engine.fills and hasattr(v.engine.fills[0], 'client_id') else None
        if ours is not None: assert sum(f.qty for f in ours) == sum((o.booked for o in core.orders.values() if o.place.venue == venue), Decimal(0))
    for t in core.all_trades.values(): assert abs(t.total(1) - t.total(-1)) < Decimal('0.4'), t.id
    return core


def balances(w): return {v: {b.asset: b.free + b.held for b in x.engine.balances()} for v, x in w.venues.items()}


def test_it_trades_is_steered_and_ends_clean(tmp_path):
    async def main():
        async with world(tmp_path) as (w, settings, journal):
            with Bot(settings, '--session', 'day') as bot:
                await until(lambda: bot.process.poll() is not None or ((s := said(journal)) and s.trades >= 2))
                with Bot(settings, name='second') as second:
                    code, _, err = await second.ended()
                    assert code == 1 and 'has it' in err
                for i, (verb, args) in enumerate([('set_params', {'min_profit_quote': 0.25}), ('pause', {}), ('resume', {}), ('set_params', {'stop_bps': 'wide'})]):
                    journal.append('control', 'command', msgspec.msgpack.encode(Command(f'c{i}', verb, args, 'kit')), ts_ns=time.time_ns(), key=f'c{i}', durable=True).wait()
                acks = await until(lambda: len(found := journal.read('control-ack')) == 4 and [msgspec.msgpack.decode(e.body, type=Ack) for e in found])
                assert [a.ok for a in acks] == [True, True, True, False] and acks[0].params['min_profit_quote'] == 0.25 and 'stop_bps' in acks[3].detail
                bot.process.send_signal(signal.SIGTERM)
                code, result, log = await bot.ended()
                assert code == 0, log
            assert result['reconciled'] and result['residual_exposure'] == 0 and result['trades'] >= 2 and result['fills'] >= 4 and result['pnl_quote'] > 0
            assert result['params']['min_profit_quote'] == 0.25 and (result['gaps'], result['duplicates']) == (0, 0)
            core = whole(w, journal, 'day')
            found = balances(w)
            for v in VENUES: assert core.ledger.wallet[v] == {a: found[v].get(a, 0) for a in core.ledger.wallet[v]}
    asyncio.run(main())


def test_wounds_leave_no_naked_leg(tmp_path):
    wounds = [('bybit', [dict(kind='reject', code='insufficient_funds')]), ('binance', [dict(kind='partial', value=0.5)]),
              ('bybit', [dict(kind='drop_ack'), dict(kind='lose_private', n=3)]), ('binance', [dict(kind='drop_ack')]),
              ('bybit', [dict(kind='delay', value=0.7)]), ('binance', [dict(kind='disconnect')]), ('binance', [dict(kind='reject', code='rate')])]
    async def main():
        async with world(tmp_path) as (w, settings, journal):
            with Bot(settings, '--session', 'hurt') as bot:
                done = lambda: len(journal.read('session/hurt', kind='trade'))
                await until(lambda: bot.process.poll() is not None or done() >= 1)
                for venue, faults in wounds:
                    before = done()
                    for f in faults: await hurt(w, venue, **f)
                    await until(lambda before=before: bot.process.poll() is not None or done() > before)
                bot.process.send_signal(signal.SIGTERM)
                code, result, log = await bot.ended()
                assert code == 0, log
            assert result['reconciled'] and result['open_trades'] == 0
            core = whole(w, journal, 'hurt')
            names = [o.place.why for o in core.orders.values()]
            assert names.count('unwind') >= 2 and 'worker_failed' not in log
    asyncio.run(main())


async def dies_mid_trade(w, settings):
    "A session that begins a trade and is killed; then the venues are well again."
    with Bot(settings, '--session', 'night') as bot:
        await until(lambda: bot.process.poll() is not None or any(v.engine.orders for v in w.venues.values()))
        bot.process.kill()
        bot.process.communicate()
    await asyncio.sleep(0.6)
    for v in w.venues.values(): v.faults.clear()


@pytest.mark.parametrize('silent', [True, False])
def test_killed_mid_trade_and_started_again(tmp_path, silent):
    async def main():
        async with world(tmp_path) as (w, settings, journal):
            if silent: await hurt(w, 'bybit', kind='drop_ack'), await hurt(w, 'bybit', kind='lose_private', n=9)
            else: await hurt(w, 'bybit', kind='delay', value=0.5)
            await dies_mid_trade(w, settings)
            with Bot(settings, '--session', 'night', '--seconds', '4', name='again') as bot:
                code, result, log = await bot.ended()
                assert code == 0, log
            assert [r['session'] for r in result['recovered']] == ['night'] and result['recovered'][0]['clean'], log
            assert sessions(journal) == ['night', 'night-2'] and result['session'] == 'night-2'
            for name in sessions(journal): whole(w, journal, name)
            assert result['reconciled'] and result['trades'] >= 1
            ids = [o.client_id for v in w.venues.values() for o in v.engine.orders.values()]
            assert len(ids) == len(set(ids))
    asyncio.run(main())


@pytest.mark.parametrize('why', ['taken back', 'dearer'])
def test_what_is_open_is_settled_though_nothing_new_may_begin(tmp_path, why):
    async def main():
        async with world(tmp_path) as (w, settings, journal):
            await hurt(w, 'bybit', kind='drop_ack')
            await hurt(w, 'bybit', kind='lose_private', n=9)
            await dies_mid_trade(w, settings)
            assert unfinished(journal, 'sim') == ['night']
            if why == 'taken back': demote(settings.promoted, load_manifest(settings.promoted, 'cross'), 'for a test', time.time_ns(), '', 'kit')
            else: settings.path.write_text(settings.path.read_text().replace('taker_bps = 10', 'taker_bps = 11'))
            with Bot(settings, '--session', 'night', '--seconds', '4', name='again') as bot:
                code, result, log = await bot.ended()
            assert code == 2 and result is None and 'settled first: session night, 0 trades open' in log, log
            assert ('for a test' if why == 'taken back' else 'study again') in log and sessions(journal) == ['night'] and not unfinished(journal, 'sim')
            whole(w, journal, 'night')
            with Bot(settings, '--session', 'night', '--seconds', '4', name='and again') as bot:
                code, result, log = await bot.ended()
                assert code == 2 and 'settled first' not in log, log
    asyncio.run(main())


def test_a_halt_is_released_and_one_that_is_not_outlives_the_process(tmp_path):
    async def main():
        async with world(tmp_path) as (w, settings, journal):
            async def tell(k, verb):
                journal.append('control', 'command', msgspec.msgpack.encode(Command(f'{verb}{k}', verb, {}, 'kit')), ts_ns=time.time_ns(), key=f'{verb}{k}').wait()
                return await until(lambda: next((msgspec.msgpack.decode(e.body, type=Ack) for e in journal.read('control-ack') if e.key == f'{verb}{k}'), None))
            with Bot(settings, '--session', 'one') as bot:
                await until(lambda: (s := said(journal)) and s.trades >= 1)
                assert (await tell(1, 'halt')).ok and not (await tell(1, 'resume')).ok
                await until(lambda: said(journal).state == 'halted')
                assert (await tell(1, 'release')).ok
                n = said(journal).trades
                await until(lambda: said(journal).trades > n)
                assert (await tell(2, 'halt')).ok and (await tell(1, 'stop')).ok
                code, result, log = await bot.ended()
                assert code == 0 and result['state'] == 'halted', log
            with Bot(settings, '--session', 'two', '--seconds', '2', name='two') as bot:
                code, result, log = await bot.ended()
                assert code == 0 and (result['state'], result['trades']) == ('halted', 0), log
    asyncio.run(main())


def test_no_manifest_no_trade(tmp_path):
    async def main():
        async with world(tmp_path) as (w, settings, journal):
            path = settings.promoted/'cross.json'
            m = msgspec.json.decode(path.read_bytes(), type=Manifest)
            path.write_bytes(msgspec.json.encode(msgspec.structs.replace(m, params=msgspec.structs.replace(m.params, max_notional=1e6))))
            with Bot(settings) as bot:
                code, result, log = await bot.ended()
                assert code == 2 and result is None and 'altered' in log
            path.unlink()
            with Bot(settings, name='none') as bot:
                code, _, log = await bot.ended()
                assert code == 2 and 'nothing is promoted' in log
            assert journal.streams() == [] and all(not v.engine.orders for v in w.venues.values())
    asyncio.run(main())


def test_paper_sends_nothing_and_still_reconciles(tmp_path):
    async def main():
        quick = msgspec.structs.replace(WISHES, cooldown_s=0.2, deadline_s=2.)
        async with world(tmp_path, params=quick, stage='paper', start_ns=time.time_ns()) as (w, settings, journal):
            with Bot(settings, '--session', 'paper', '--seconds', '4', '--balance', 'LINK=500', '--balance', 'USDT=20000', mode=('paper',)) as bot:
                code, result, log = await bot.ended()
                assert code == 0 and result['trades'] >= 2 and result['pnl_quote'] > 0, (result, log)
            whole(w, journal, 'paper')
            assert all(not v.engine.orders for v in w.venues.values())
            with Bot(settings, '--session', 'real', '--i-know-this-is-real-money', mode=('live',), name='live') as bot:
                code, _, log = await bot.ended()
                assert code == 2 and "wanted for 'live'" in log
    asyncio.run(main())


def test_what_cannot_go_well_is_refused_at_the_start(tmp_path):
    async def main():
        async with world(tmp_path) as (w, settings, journal):
            async def refused(*args, **how):
                with Bot(settings, *args, name='no', **how) as bot: code, result, text = await bot.ended()
                assert code == 2 and result is None and all(not v.engine.orders for v in w.venues.values()), text
                return text.strip().splitlines()[-1] if 'arbwork.live' not in text else next(x for x in text.splitlines() if x.startswith('arbwork.live'))
            assert 'wanted --i-know-this-is-real-money' in await refused(mode=('live',))
            w.venues['bybit'].rights = Rights(True, True)
            assert 'bybit: found a key that may withdraw (SpotTrade, Withdraw)' in await refused()
            w.venues['bybit'].rights, w.venues['binance'].rights = Rights(True, False), Rights(False, False)
            assert 'binance: found a key that may not trade (reading)' in await refused()
            w.venues['binance'].rights = Rights(True, False)
            held = w.venues['bybit'].engine.free['LINK'], w.venues['binance'].engine.free['LINK']
            for v in w.venues.values(): v.engine.free['LINK'] = Decimal(0)
            assert 'balance too small' in await refused() and sessions(journal) == []
            for v, qty in zip(('bybit', 'binance'), held): w.venues[v].engine.free['LINK'] = qty
            start = SessionStart('new', 'sim', 'cross', WISHES, w.scenario.universe, {}, 1, versions={'arbwork': '99.0.0'})
            journal.append('session/new', 'start', msgspec.msgpack.encode(start), ts_ns=1).wait()
            assert 'found arbwork 99.0.0, wanted' in await refused()
    asyncio.run(main())
