"Someone outside: kill with the bot alive, hanging and gone; the watchdog; the drill. Real processes against simulated venues over loopback."
import asyncio
import json
import signal
import sys
import time
from decimal import Decimal

import msgspec
from test_trade_live import PAIR, WISHES, Bot, balances, hurt, said, until, whole, world

from arbwork.feed.codec import Keys
from arbwork.feed.events import NewOrder
from arbwork.market import BUY
from arbwork.serve.drill import drill
from arbwork.serve.guard import Reach, kill
from arbwork.serve.vault import open_vault
from arbwork.serve.watch import Watched, watch
from arbwork.settings import load_settings
from arbwork.sim.scenarios import load_scenario
from arbwork.sim.server import World
from arbwork.store.journal import open_journal
from arbwork.trade.core import Command, Status
from arbwork.trade.order import client_id
from arbwork.trade.reconcile import unheard_halt
from arbwork.trade.watchdog import Bounds

SPEED, KEYS = 20., Keys('watch-key', 'd2F0Y2gtc2VjcmV0', 'watch words')


async def arbwork(*args, seconds=150):
    "A command as a person gives it: exit code, its JSON, what it said."
    p = await asyncio.create_subprocess_exec(sys.executable, '-m', 'arbwork', *map(str, args), '--json', stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE)
    out, err = await asyncio.wait_for(p.communicate(), seconds)
    return p.returncode, json.loads(out) if out.strip() else None, err.decode()


async def tell(journal, verb):
    at = time.time_ns()
    journal.append('control', 'command', msgspec.msgpack.encode(Command(f'{verb}{at}', verb, {}, 'kit')), ts_ns=at, key=f'{verb}{at}').wait()
    await until(lambda: any(e.key == f'{verb}{at}' for e in journal.read('control-ack')))


def change(w, begin):
    "What an asset moved by, over all venues, since `begin`."
    now = balances(w)
    return {a: sum(now[v].get(a, 0) - begin[v].get(a, 0) for v in now) for a in ('LINK', 'USDT')}


def flat(w, begin): "But for fees, which a venue may take in the base."; return abs(change(w, begin)['LINK']) < Decimal('0.4')


async def lone_leg(w, bot, begin):
    "Hang the bot while it has one leg: Bybit swallows its order, and says nothing. A trade that was under way before that is no lone leg, nor is one between its two fills."
    await hurt(w, 'bybit', kind='status', value=503, n=50, where='socket')
    while True:
        await until(lambda: bot.process.poll() is not None or not flat(w, begin))
        await asyncio.sleep(0.2)
        if bot.process.poll() is not None or not flat(w, begin): break
    bot.process.send_signal(signal.SIGSTOP)
    assert bot.process.poll() is None


def test_balances_that_differ_trip_the_watchdog_and_then_a_person_kills(tmp_path):
    async def main():
        async with world(tmp_path, params=msgspec.structs.replace(WISHES, cooldown_s=200.)) as (w, settings, journal):
            with Bot(settings, '--session', 'day') as bot:
                await until(lambda: bot.process.poll() is not None or ((s := said(journal)) and s.trades >= 1))
                w.venues['bybit'].engine.free['USDT'] -= Decimal('3.21')
                watched = await asyncio.wait_for(watch(settings, open_vault(settings), bounds=Bounds(silence_s=30.), speed=SPEED, check_s=0.2, once=True), 120)
                trip = watched['trips'][0]
                assert trip['trip']['code'] == 'mismatch' and 'bybit USDT' in trip['trip']['detail'] and (trip['did']['bot'], trip['did']['left']) == ('answered', []), watched
                assert said(journal).state == 'halted' or await until(lambda: said(journal).state == 'halted')
                w.venues['bybit'].engine.free['USDT'] += Decimal('3.21')
                await tell(journal, 'release')
                await until(lambda: said(journal).state == 'active')
                code, result, text = await arbwork('kill', '--settings', settings.path, '--clock-speed', SPEED, '--reason', 'a test')
                assert code == 0 and (result['bot'], result['journal'], result['flat'], result['session']) == ('answered', 'halted', True, 'day'), (result, text)
                assert result['reached'] and not result['orders'] and said(journal).state == 'halted' and 'a test' in said(journal).why
                bot.process.send_signal(signal.SIGTERM)
                code, end, log = await bot.ended()
                assert code == 0 and end['state'] == 'halted', log
            whole(w, journal, 'day')
    asyncio.run(main())


def test_a_person_can_stop_what_is_gone_without_a_journal(tmp_path):
    async def main():
        async with world(tmp_path) as (w, settings, journal):
            journal.close()
            settings_elsewhere = msgspec.structs.replace(settings, journal=f'sqlite:///{tmp_path}/none/journal.db')
            async with Reach(settings, open_vault(settings), SPEED) as hands:
                link = hands.links['binance']
                await link.place(NewOrder(client_id('gone', 1, 0, 0), PAIR, BUY, Decimal('10'), Decimal('20'), 'GTC'))
                await link.place(NewOrder('web_7', PAIR, BUY, Decimal('10'), Decimal('19'), 'GTC'))
                bought = await link.place(NewOrder(client_id('gone', 2, 0, 0), PAIR, BUY, Decimal('12'), Decimal('30'), 'IOC'))
                assert bought.filled_qty == 12
            named = await kill(settings_elsewhere, open_vault(settings), speed=SPEED)
            assert named.code == 1 and named.cancelled == ['gone-1-0-0'] and named.foreign == ['web_7'] and 'gone trade 2: +12 LINK' in named.left[0] and 'no journal' in named.journal
            begin = balances(w)
            done = await kill(settings_elsewhere, open_vault(settings), speed=SPEED, flatten=True)
            assert done.code == 0 and not done.left and [(o['venue'], o['side'], o['filled']) for o in done.orders] == [('binance', 'sell', '12')]
            assert change(w, begin)['LINK'] == -12 and [o.client_id for o in w.venues['binance'].engine.orders.values() if o.open] == ['web_7']
            again = await kill(settings_elsewhere, open_vault(settings), speed=SPEED, flatten=True)
            assert again.code == 0 and not again.orders
    asyncio.run(main())


def test_kill_when_the_bot_hangs_and_nothing_is_undone_twice(tmp_path):
    async def main():
        patient = msgspec.structs.replace(WISHES, deadline_s=120., cooldown_s=60.)
        async with world(tmp_path, params=patient) as (w, settings, journal):
            begin = balances(w)
            with Bot(settings, '--session', 'night') as bot:
                await until(lambda: bot.process.poll() is not None or said(journal))
                await lone_leg(w, bot, begin)
                for v in w.venues.values(): v.faults.clear()
                assert not flat(w, begin)
                code, result, text = await arbwork('kill', '--flatten', '--settings', settings.path, '--clock-speed', SPEED)
                assert code == 0 and result['bot'] == 'silent' and result['journal'] == 'kept' and len(result['orders']) >= 1, (result, text)
                assert flat(w, begin) and unheard_halt(journal)
                bot.process.send_signal(signal.SIGCONT)
                await until(lambda: said(journal).state == 'halted' and not said(journal).open_trades, 120)
                bot.process.send_signal(signal.SIGTERM)
                code, end, log = await bot.ended()
                assert code == 0 and end['reconciled'] and 'stood_still' in log, log
            core = whole(w, journal, 'night')
            assert flat(w, begin) and any('-90-' in name for name in core.orders)
    asyncio.run(main())


def test_a_bot_that_is_killed_with_one_leg_is_brought_home(tmp_path):
    done = asyncio.run(drill(('kill',), tmp_path))
    r = done['rounds'][0]
    print(done)
    assert done["ok"] and r['lone_qty'] and r['code'] == 'silence' and r['state'] == 'halted' and r['reconciled'] and abs(r['residual_qty']) < 0.3 and not r['doubled'], done


def test_a_venue_cancels_by_itself_when_bot_and_watchdog_are_gone(tmp_path, monkeypatch):
    monkeypatch.setattr('arbwork.serve.watch.DEAD_S', 10.) # the shortest that OKX takes; simulated venues count it by the wall
    async def main():
        scenario = load_scenario('stress', seed=3, venues=['okx', 'kraken'], hours=2)
        w = World(['okx', 'kraken'], scenario, 0, SPEED, KEYS, None, 0.)
        await w.start()
        where = ''.join(f'[venue:{v}]\n' + ''.join(f'{k} = {x}\n' for k, x in w.place_of(v, w.ports[v]).items()) + 'maker_bps = 10\ntaker_bps = 10\nlatency_ms = 50\n' for v in w.ports)
        (tmp_path/'settings.ini').write_text(f'[arbwork]\nvenues = okx, kraken\ninstruments = {scenario.instrument}\nvar = var\nstrategies = strategies\njournal = sqlite:///var/journal.db\n'
                                             f'ticks = lmdb://var/ticks\nboard = var/board.bin\n{where}')
        settings = load_settings(tmp_path/'settings.ini')
        settings.var.mkdir(parents=True)
        vault, journal, dog = open_vault(settings, create=True), open_journal(settings.journal), None
        for v in w.ports: vault.put(v, dict(key=KEYS.key, secret=KEYS.secret, passphrase=KEYS.passphrase))
        resting = lambda: [o.client_id for v in w.venues.values() for o in v.engine.orders.values() if o.open]
        try:
            async with Reach(settings, vault, SPEED) as reach:
                for v, link in reach.links.items():
                    listing, row = scenario.listings[v], scenario.rows[v][0]
                    px = (Decimal(str(float(row['bid_px'][0])))*Decimal('0.8')//listing.tick)*listing.tick
                    qty = (max(listing.min_qty, listing.min_notional*2/px)//listing.lot + 1)*listing.lot
                    assert (await link.place(NewOrder(client_id('night', 1, 0, 0), scenario.instrument, BUY, qty, px, 'GTC'))).status == 'acked'
            assert len(resting()) == 2
            def speak(): # what a bot does that lives and is well
                now = time.time_ns()
                journal.append('status', 'status', msgspec.msgpack.encode(Status('night', 'active', msgspec.structs.asdict(WISHES), 0., 0., 0., 0, 0, 0, {}, now, 1, 'sim', 'maker', wall_ns=now)), ts_ns=now)
            speak()
            dog = asyncio.create_task(watch(settings, vault, speed=SPEED, check_s=1e6))
            def guarded():
                speak()
                said = journal.last('watchdog', kind='watch')
                return msgspec.msgpack.decode(said.body, type=Watched).guarded if said else {}
            await until(lambda: dog.done() or set(guarded()) == {'okx', 'kraken'})
            assert len(resting()) == 2, 'it is told so again and again while the bot speaks'
            dog.cancel() # no word of theirs any more; and nobody cancels but the venue
            await until(lambda: not resting())
            assert journal.last('watchdog', kind='trip') is None
        finally:
            if dog: await asyncio.gather(dog, return_exceptions=True)
            journal.close()
            await w.stop()
    asyncio.run(main())
