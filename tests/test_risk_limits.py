"Limits of the parts, a venue that is not traded, and reconciling while it runs: as the core decides it, journals it and lives it again."
import asyncio
from decimal import Decimal

import msgspec
import pytest
from test_trade_runner import FUNDS, LINK_AT, UNIVERSE, Watched, a_session, drift, sent

from arbwork.feed.events import OrderUpdate
from arbwork.live import warm as load
from arbwork.market import ConfigError
from arbwork.settings import Limits, Params, load_settings, make_limits
from arbwork.store.journal import open_journal
from arbwork.trade.core import Command, Health, SessionStart, Status, replay
from arbwork.trade.reconcile import session_entries


@pytest.fixture
def journal(tmp_path):
    j = open_journal(f'sqlite:///{tmp_path}/journal.db')
    yield j
    j.close()


@pytest.fixture(scope='module', autouse=True)
def warm():
    "No kernel is loaded between two books: they would be too far apart."
    load(SessionStart('warm', 'sim', 'cross', Params(), UNIVERSE, FUNDS, 1))


def say(runner, verb, **args): runner.give('command', Command(f'{verb}{len(runner.core.commands)}', verb, args, 'kit'))


async def live(runner, script):
    "Run a session beside a script; gives how it ended."
    stop = asyncio.Event()
    running = asyncio.create_task(runner.run(stop=stop))
    await asyncio.sleep(0.03)
    try: await script()
    finally: stop.set()
    return await running


async def until(true, seconds=20):
    async with asyncio.timeout(seconds):
        while not true(): await asyncio.sleep(0.01) # noqa: ASYNC110


@pytest.mark.parametrize('limits, words', [(dict(order_notional=300), 'order_notional'), (dict(venue_notional=300), 'venue_notional'), (dict(instrument_notional=900), 'instrument_notional'),
                                           (dict(venue_drift=300), 'venue_drift'), (dict(orders_per_minute=1), '')])
def test_a_limit_refuses_with_a_figure_and_can_be_lifted_while_it_runs(journal, limits, words):
    runner = a_session(journal, cooldown_s=0.)
    async def script():
        say(runner, 'set_limits', **limits)
        drift(runner)
        refused = runner.core.status(0).refused
        if words: assert not sent(runner) and list(refused) == [words] and 'wanted at most' in refused[words]
        say(runner, 'set_limits', **dict.fromkeys(limits, 0))
        drift(runner)
        await until(lambda: len(sent(runner)) >= 2 and not runner.core.open)
        assert not runner.core.status(0).refused
    word = asyncio.run(live(runner, script))
    assert word.clean and replay(session_entries(journal, 'one')).first == ''


def test_bad_limits_are_refused_where_they_stand(journal, tmp_path):
    runner = a_session(journal)
    async def script():
        say(runner, 'set_limits', venue_drift=-1)
        say(runner, 'set_limits', venue_drfit=1)
    asyncio.run(live(runner, script))
    acks = [msgspec.msgpack.decode(e.body) for e in journal.read('control-ack')]
    assert [a['ok'] for a in acks] == [False, False, True] and 'found -1' in acks[0]['detail'] and 'unknown' in acks[1]['detail'] and runner.core.limits == Limits()
    head = '[arbwork]\nvenues = binance\ninstruments = LINK-USDT\n[venue:binance]\nrest = http://a\npublic_ws = ws://a\nprivate_ws = ws://a\ntrade_ws = ws://a\nmaker_bps = 1\ntaker_bps = 1\n[limits]\n'
    path = tmp_path/'settings.ini'
    for line, words in (('troubles = many', r'12: \[limits\] limit troubles: found .many., wanted a whole number'), ('venue_drfit = 1', r'12: \[limits\] venue_drfit: unknown key; did you mean venue_drift')):
        path.write_text(f'{head}{line}\n')
        with pytest.raises(ConfigError, match=words): load_settings(path)
    path.write_text(f'{head}venue_drift = 250\n')
    assert load_settings(path).limits == make_limits({'venue_drift': 250})


def test_a_venue_in_trouble_is_not_traded_and_comes_back(journal):
    runner = a_session(journal, cooldown_s=0.)
    async def script():
        say(runner, 'set_limits', troubles=2, rest_s=1)
        runner.core._trouble('bybit', 'rate', runner.clock.now_ns()); runner.core._trouble('bybit', 'venue_down', runner.clock.now_ns())
        assert 'troubles: found 2' in runner.core.status(0).venues['bybit']
        drift(runner)
        assert not sent(runner) and runner.core.status(0).reasons.get('invalid')
        await asyncio.sleep(1.1)
        drift(runner)
        drift(runner)
        await until(lambda: len(sent(runner)) >= 2 and not runner.core.open)
        assert not runner.core.blocked
    asyncio.run(live(runner, script))


def test_a_measure_past_its_limit_blocks_until_it_is_back(journal):
    runner = a_session(journal)
    async def script():
        runner.give('health', Health('binance', 'clock', 7.2, 5.))
        drift(runner)
        assert not sent(runner) and 'clock: found 7.2, wanted at most 5' in runner.core.status(0).venues['binance']
        runner.give('health', Health('binance', 'clock', 0.2, 5.))
        drift(runner)
        await until(lambda: len(sent(runner)) >= 2 and not runner.core.open)
    word = asyncio.run(live(runner, script))
    again = replay(session_entries(journal, 'one'))
    assert word.clean and again.first == '' and again.core.trade_count == 1


def test_a_withdrawal_halts_that_venue_to_the_cent_and_a_person_may_take_it_as_such(journal):
    runner = a_session(journal, cooldown_s=0.)
    runner.reconcile_s = 0.05
    async def script():
        link = runner.links['bybit']
        link.holdings['USDT'] -= Decimal('3.21')
        await until(lambda: 'bybit' in runner.core.blocked)
        assert 'bybit USDT: the venue holds 19996.79, the ledger 20000' in runner.core.status(0).venues['bybit'] and 'binance' not in runner.core.blocked
        drift(runner)
        assert not sent(runner)
        say(runner, 'release')
        assert not runner.core.blocked and runner.core.ledger.change('bybit', 'USDT') == 0
        drift(runner)
        await until(lambda: len(sent(runner)) >= 2 and not runner.core.open)
        link.holdings['USDT'] += Decimal('10')
        await until(lambda: 'bybit' in runner.core.blocked)
        link.holdings['USDT'] -= Decimal('10')
        await until(lambda: not runner.core.blocked)
    word = asyncio.run(live(runner, script))
    again = replay(session_entries(journal, 'one'))
    assert word.clean and again.first == '' and not again.core.mismatches and again.core.risk['pnl'][0] == runner.core.risk['pnl'][0]
    acks = [msgspec.msgpack.decode(e.body)['detail'] for e in journal.read('control-ack')]
    assert any('bybit USDT -3.21 taken as moved from outside' in a for a in acks)
    told = [msgspec.msgpack.decode(e.body, type=dict) for e in journal.read('wallet')]
    assert any(w['differs'] == ['bybit'] for w in told) and told[-1]['differs'] == []


def test_orders_that_nobody_knows_are_cancelled_if_ours_and_told_if_not(journal):
    class Resting(Watched):
        gone = ()
        async def open_orders(self, instrument=''):
            return [OrderUpdate(x, 'v', 'LINK-USDT', 1, 'acked', Decimal(1), Decimal(0), 0) for x in ('one-7-0-0', 'web_3f9a') if x not in self.gone]
        async def cancel(self, instrument, client_id): self.gone = (*self.gone, client_id)
    said = []
    class Log:
        def __getattr__(self, level): return lambda event, **fields: said.append((event, fields.get('order')))
    runner = a_session(journal)
    runner.reconcile_s, runner.log = 0.05, Log()
    runner.links['binance'].__class__ = Resting
    async def script(): await until(lambda: runner.links['binance'].gone)
    asyncio.run(live(runner, script))
    assert runner.links['binance'].gone == ('one-7-0-0',) and said.count(('foreign_order', 'web_3f9a')) == 1 and ('orphan_cancelled', 'one-7-0-0') in said


def test_limits_of_the_start_count_and_are_in_the_journal(journal):
    start = SessionStart('two', 'sim', 'cross', a_session(journal).core.params, UNIVERSE, FUNDS, 1, limits=Limits(order_notional=5.))
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(start), type=SessionStart).limits.order_notional == 5. and set(LINK_AT) == {'binance', 'bybit'}
    assert Status.__struct_fields__[-2:] == ('venues', 'refused')
