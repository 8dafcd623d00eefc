"The shell of a session: a journal that fails, a worker that fails, a link that is down, orders that nobody owns."
import asyncio
from decimal import Decimal
from types import SimpleNamespace

import msgspec
import numpy as np
import pytest

from arbwork.clock import NS, WallClock
from arbwork.decide.contract import Universe
from arbwork.feed.events import BOOK, VALID, OrderUpdate
from arbwork.live import Desk, warm
from arbwork.market import ConfigError, DataError, Listing, VenueError
from arbwork.settings import make_params
from arbwork.sim.chaos import LoopJournal
from arbwork.sim.virtual import LoopClock, VirtualLoop, apart
from arbwork.store.journal import open_journal
from arbwork.trade.core import Command, Core, SessionStart, replay
from arbwork.trade.reconcile import session_entries
from arbwork.trade.runner import Runner, clear_orphans, recover
from arbwork.trade.workers import PaperLink

LINK_AT = {v: Listing(v, 'LINK-USDT', 'LINKUSDT', Decimal('0.001'), Decimal('0.01'), Decimal('0.01'), Decimal('5')) for v in ('binance', 'bybit')}
UNIVERSE = Universe(list(LINK_AT.values()), {'binance': (10, 10), 'bybit': (10, 10)})
FUNDS = {v: {'LINK': Decimal(500), 'USDT': Decimal(20_000)} for v in LINK_AT}


class Watched(PaperLink):
    "A paper account that counts what reaches it and can be broken."
    broken, sent = None, ()
    async def place(self, order):
        self.sent = (*self.sent, order.client_id)
        if self.broken: raise self.broken
        return await super().place(order)


def a_session(journal, name='one', clock=None, **params):
    clock = clock or WallClock()
    wishes = dict(max_notional=1_000, cooldown_s=60, deadline_s=1, max_age_s=60, max_skew_s=60) | params
    links = {}
    runner = Runner(Core(SessionStart(name, 'sim', 'cross', make_params(wishes), UNIVERSE, FUNDS, clock.now_ns(), window_s=0.2)), journal, links, clock, clock)
    for slot, venue in enumerate(LINK_AT):
        links[venue] = Watched(venue, {'LINK-USDT': slot}, {'LINK-USDT': LINK_AT[venue]}, 10, FUNDS[venue], clock, lambda e, venue=venue: runner.on_event(venue, e), 0.001)
    runner.begin()
    return runner


def drift(runner):
    for slot, bid in ((0, 26.69), (1, 26.81)):
        row = np.zeros(1, BOOK)[0]
        row['ts_recv_ns'], row['slot'], row['state'] = runner.clock.now_ns(), slot, VALID
        for i in range(5):
            row['bid_px'][i], row['ask_px'][i], row['bid_qty'][i], row['ask_qty'][i] = bid - i*0.01, bid + 0.01 + i*0.01, 200, 200
        for link in runner.links.values(): link.row(row)
        runner.on_row(row)


@pytest.fixture(scope='module', autouse=True)
def warmed():
    "Kernels loaded before the first price, as live does: a loop that stands still for seconds meanwhile holds its news back."
    warm(SessionStart('warm', 'sim', 'cross', make_params(dict(max_notional=1_000)), UNIVERSE, FUNDS, WallClock().now_ns()))


@pytest.fixture
def journal(tmp_path):
    j = open_journal(f'sqlite:///{tmp_path}/journal.db')
    yield j
    j.close()


async def to_the_end(runner, seconds=0.3):
    stop = asyncio.Event()
    running = asyncio.create_task(runner.run(stop=stop))
    await asyncio.sleep(0.05)
    drift(runner)
    await asyncio.sleep(seconds)
    stop.set()
    return await running


def sent(runner): return [x for link in runner.links.values() for x in link.sent]


def test_without_a_journal_nothing_leaves(journal):
    class Full:
        def __init__(self, inner): self.inner = inner
        def __getattr__(self, name): return getattr(self.inner, name)
        def append(self, stream, kind, body, **how):
            if kind == 'intent': raise DataError('journal: no space left')
            return self.inner.append(stream, kind, body, **how)
    runner = a_session(Full(journal))
    with pytest.raises(DataError, match='no space left'): asyncio.run(to_the_end(runner))
    assert sent(runner) == [] and runner.closed


def test_an_intent_that_does_not_become_durable_does_not_leave(journal):
    class Late:
        offset = 1
        async def done(self): raise DataError('journal: cannot be written')
    class Failing:
        def __init__(self, inner): self.inner = inner
        def __getattr__(self, name): return getattr(self.inner, name)
        def append(self, stream, kind, body, **how): return Late() if kind == 'intent' else self.inner.append(stream, kind, body, **how)
    runner = a_session(Failing(journal))
    with pytest.raises(DataError, match='cannot be written'): asyncio.run(to_the_end(runner))
    assert sent(runner) == []


@pytest.mark.parametrize('error', [RuntimeError('a bug'), VenueError('no word', 'unknown_outcome'), OSError('reset'), VenueError('busy', 'venue_down')])
def test_no_word_is_asked_about_and_nothing_stays_open(journal, error):
    runner = a_session(journal)
    runner.links['bybit'].broken = error
    word = asyncio.run(to_the_end(runner, 1.5))
    assert word.clean and not runner.core.open and runner.core.orders['one-1-1-0'].state == 'ABSENT'
    assert runner.core.all_trades[1].total(1) == runner.core.all_trades[1].total(-1) > 0
    assert replay(session_entries(journal, 'one')).first == ''


def test_a_refusal_is_believed(journal):
    runner = a_session(journal)
    runner.links['bybit'].broken = VenueError('balance', 'insufficient_funds')
    word = asyncio.run(to_the_end(runner))
    assert word.clean and runner.core.orders['one-1-1-0'].state == 'REJECTED' and len(sent(runner)) == 3


def test_a_link_that_is_down_is_not_written_to(journal):
    runner = a_session(journal)
    runner.links['bybit'].live = False
    word = asyncio.run(to_the_end(runner))
    assert word.clean and runner.links['bybit'].sent == () and runner.core.orders['one-1-1-0'].why.startswith('not sent')


def test_commands_older_than_the_session_are_not_obeyed(journal):
    journal.append('control', 'command', msgspec.msgpack.encode(Command('old', 'halt')), ts_ns=0, key='old').wait()
    runner = a_session(journal)
    journal.append('control', 'command', b'\xc1', ts_ns=0).wait()
    journal.append('control', 'command', msgspec.msgpack.encode(Command('new', 'set_params', {'min_edge_bps': 7})), ts_ns=0, key='new').wait()
    asyncio.run(to_the_end(runner, 0.1))
    assert [e.key for e in journal.read('control-ack')] == ['new', 'one-end'] and runner.core.params.min_edge_bps == 7


def test_orphans_are_cancelled_and_strangers_left_alone(journal):
    class Resting(Watched):
        gone = ()
        async def open_orders(self, instrument=''):
            return [OrderUpdate(x, 'v', 'LINK-USDT', 1, 'acked', Decimal(1), Decimal(0), 0) for x in ('one-1-0-0', 'lost-3-1-0', 'web_3f9a')]
        async def cancel(self, instrument, client_id): self.gone = (*self.gone, client_id)
    runner = a_session(journal)
    journal.flush()
    link = runner.links['binance']
    link.__class__ = Resting
    assert asyncio.run(clear_orphans(journal, {'binance': link})) == 1 and link.gone == ('lost-3-1-0',)


def test_a_session_left_open_at_a_venue_that_is_gone_is_not_forgotten(journal):
    runner = a_session(journal)
    journal.flush()
    with pytest.raises(ConfigError, match='left open at bybit'):
        asyncio.run(recover('one', journal, {'binance': runner.links['binance']}, runner.clock, runner.clock))


def virtual(tmp_path, scene, **params):
    "A session on a loop whose time jumps: `scene` is a coroutine of loop and runner."
    loop = VirtualLoop()
    clock, journal = LoopClock(loop, 1_700_000_000*NS), LoopJournal(tmp_path/'virtual.db', loop)
    try: return loop.run_until_complete(scene(loop, a_session(journal, clock=clock, **params)))
    finally:
        journal.close()
        loop.close()


def test_an_idle_hour_is_a_few_turns_a_second_and_ends_on_time(tmp_path):
    async def scene(loop, runner):
        runner.poll_s, runner.reconcile_s = 10., 1e6
        began_ns = runner.clock.now_ns()
        word = await runner.run(began_ns + 3600*NS)
        return word, loop.now, loop.turns
    word, now, turns = apart(virtual, tmp_path, scene)
    assert word.clean and word.why == 'time is over' and 3600 <= now < 3600.01
    assert turns < 4*3600 # once a second it says how it is, and the journal writes that


def test_a_deadline_is_kept_to_the_millisecond_though_nobody_looks(tmp_path):
    async def scene(loop, runner):
        runner.poll_s, silent = 1., asyncio.Event()
        async def place(order): await silent.wait()
        runner.links['bybit'].place = place
        running, late, give = asyncio.ensure_future(runner.run(runner.clock.now_ns() + 10*NS)), [], runner.give
        def noted(kind, body):
            if kind == 'timer': late.append(runner.clock.now_ns() - runner.core.next_ns)
            give(kind, body)
        runner.give = noted
        await asyncio.sleep(0.5)
        drift(runner)
        await running
        return late, runner.core.open
    late, left = apart(virtual, tmp_path, scene)
    assert len(late) > 1 and not left and all(0 <= x <= NS//1000 for x in late)


def test_a_session_that_is_cut_off_does_nothing_more(tmp_path):
    async def scene(loop, runner):
        silent = asyncio.Event()
        async def place(order): await silent.wait()
        for link in runner.links.values(): link.place = place
        running = asyncio.ensure_future(runner.run())
        await asyncio.sleep(0.5)
        drift(runner)
        await asyncio.sleep(0.1)
        assert runner.core.open and runner.core.next_ns
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        runner.journal.flush()
        before = runner.journal.last('session/one').offset
        await asyncio.sleep(30)
        runner.journal.flush()
        return before, runner.journal.last('session/one').offset
    before, after = apart(virtual, tmp_path, scene)
    assert before == after > 1


def test_a_halt_ends_a_session_that_is_to_end_then(journal):
    async def scene():
        runner = a_session(journal)
        running = asyncio.ensure_future(runner.run(on_halt=True))
        journal.append('control', 'command', msgspec.msgpack.encode(Command('h', 'halt', by='me')), ts_ns=0, key='h')
        return await asyncio.wait_for(running, 60)
    assert asyncio.run(scene()).why == 'halted: halted by me'


def test_a_link_that_fails_half_way_is_closed_with_the_others(monkeypatch):
    class Half:
        def __init__(self, name): self.name, self.closed = name, 0
        async def start(self):
            if self.name == 'bybit': raise VenueError('bybit: the second socket was refused', 'venue_down')
        async def close(self): self.closed += 1
    made = {}
    monkeypatch.setattr('arbwork.live.open_vault', lambda settings: {})
    monkeypatch.setattr(Desk, 'account', lambda self, name, vault: made.setdefault(name, Half(name)))

    async def scene():
        desk = Desk(SimpleNamespace(venues=dict.fromkeys(('binance', 'bybit', 'okx'))), UNIVERSE, WallClock(), None)
        with pytest.raises(VenueError, match='second socket'): await desk.connect('sim', {})
        await desk.close()
    asyncio.run(scene())
    assert {name: x.closed for name, x in made.items()} == {'binance': 1, 'bybit': 1, 'okx': 1}


def test_after_a_cut_fills_are_asked_for_since_balances_last_agreed_and_not_since_the_beginning(journal):
    runner, asked, now = a_session(journal), [], [0]
    began = runner.core.start.started_ns
    runner.clock = SimpleNamespace(now_ns=lambda: began + now[0]*NS, wall_seconds=lambda s: s)
    async def fills(instrument, since_ns):
        asked.append((since_ns - began)//NS)
        return []
    async def scene():
        for link in runner.links.values(): link.fills = fills
        async def after(seconds):
            now[0] = seconds
            runner.missed('bybit')
            await asyncio.gather(*runner.tasks)
        await after(7_200)                                # nothing is known yet
        assert await runner.check_venue('bybit')          # at 7,200 s the balances are the ledger's
        await after(86_400)
        runner.core.ledger.wallet['bybit']['USDT'] += 1   # they are not any more
        now[0] = 86_500
        await runner.check_venue('bybit', tries=1)
        await after(86_600)
    asyncio.run(scene())
    assert asked == [-5, 7_200 - 900, 7_200 - 900]
