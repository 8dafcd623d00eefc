"The bytes of an order leave in the call that says its intent is safe, and nothing is heard before `sent` is said; a sync that held the loop is the writer's for a while."
import asyncio

import pytest
from test_trade_runner import a_session, drift, journal, warmed  # noqa: F401 (fixtures)

from arbwork.market import VenueError
from arbwork.store import journal as store
from arbwork.store.journal import open_journal
from arbwork.trade.order import INTENT, UNKNOWN
from arbwork.trade.runner import Runner


def departing(runner, order):
    "Paper links that write in the call; what happens is noted in `order`."
    for link in runner.links.values():
        def depart(o, urgent=False, link=link):
            order.append(('bytes', o.client_id, runner.core.orders[o.client_id].state, {e.body for e in runner.journal.read(runner.stream, kind='intent')}))
            if link.broken: raise link.broken
            return link.place(o)
        link.depart = depart
    give = runner._pass
    def passed(kind, body):
        order.append((kind, getattr(body, 'client_id', '')))
        give(kind, body)
    runner._pass = passed


async def traded(runner, order):
    "One edge, until both orders have been heard of."
    stop = asyncio.Event()
    running = asyncio.create_task(runner.run(stop=stop))
    drift(runner)
    async with asyncio.timeout(60):
        while len({x[1] for x in order if x[0] in ('order', 'silence')}) < 2: await asyncio.sleep(0.01) # noqa: ASYNC110
    stop.set()
    return await running


def test_an_order_leaves_with_its_intent_safe_and_before_anything_is_said_of_it(journal): # noqa: F811
    runner, order = a_session(journal, max_skew_s=60), []
    departing(runner, order)
    stop = asyncio.run(traded(runner, order))
    assert stop.clean and stop.open_trades == 0
    left = [x for x in order if x[0] == 'bytes']
    assert len({x[1] for x in left}) == len(left) == 2
    for _, name, state, intents in left:
        assert state == INTENT and any(name.encode() in body for body in intents)
        said = [x[0] for x in order if x[1] == name]
        assert said[:2] == ['bytes', 'sent'] and said.count('sent') == 1 and 'fill' in said


def test_an_order_that_could_not_leave_is_refused_or_unknown_as_ever(journal): # noqa: F811
    runner, order = a_session(journal, deadline_s=0.2, max_skew_s=60), []
    departing(runner, order)
    for link, code in zip(runner.links.values(), ('rate', 'unknown_outcome')): link.broken = VenueError('broken', code)
    asyncio.run(traded(runner, order))
    heard = {tuple(x[0] for x in order if x[1] == name)[:3] for name in {x[1] for x in order if x[0] == 'bytes'} if name.split('-')[-2] in '01'}
    assert heard == {('bytes', 'sent', 'order'), ('bytes', 'sent', 'silence')}


def test_nothing_leaves_of_a_session_that_is_over_or_of_an_order_given_up(journal): # noqa: F811
    runner, order = a_session(journal, max_skew_s=60), []
    departing(runner, order)
    class Safe: error, settled = None, True
    class Place:
        class order: client_id = 'x'
        why, venue = 'open', 'binance'
    runner.core.orders['x'] = type('Order', (), {'state': UNKNOWN})()
    runner._depart(Place, runner.links['binance'], Safe)
    runner.core.orders['x'].state, runner.closed = INTENT, True
    runner._depart(Place, runner.links['binance'], Safe)
    runner.closed, Safe.error = False, 'disk full'
    runner._depart(Place, runner.links['binance'], Safe)
    assert order == [] and 'disk full' in str(runner.failure) and isinstance(runner, Runner)


def test_what_is_to_be_done_then_is_done_once_in_the_loop_that_asked(tmp_path):
    async def main():
        kept, seen, loop = open_journal(f'sqlite:///{tmp_path}/journal.db'), [], asyncio.get_running_loop()
        tickets = [kept.append('a', 'x', b'', ts_ns=0, durable=True) for _ in range(20)]
        for t in tickets: t.then(lambda t=t: seen.append((t.offset, t.settled, asyncio.get_running_loop() is loop)))
        for t in tickets: await t.done()
        while len(seen) < 20: await asyncio.sleep(0.001) # noqa: ASYNC110
        assert [x[0] for x in seen] == [t.offset for t in tickets] and all(x[1:] == (True, True) for x in seen)
        tickets[0].then(lambda: seen.append('now'))
        assert seen[20:] == ['now']
        kept.close()
    asyncio.run(main())


@pytest.mark.parametrize('slow', [False, True])
def test_a_sync_that_held_the_loop_is_left_to_the_writer_for_a_while(tmp_path, monkeypatch, slow):
    monkeypatch.setattr(store, 'QUICK_S', 60.), monkeypatch.setattr(store, 'HELD_S', -1. if slow else 60.), monkeypatch.setattr(store, 'CALM', 3)
    kept, here = open_journal(f'sqlite:///{tmp_path}/journal.db'), []
    def put():
        kept.flush()
        while not kept._writing.acquire(blocking=False): pass # the writer rests
        kept._writing.release()
        t = kept.append('a', 'x', b'', ts_ns=0, durable=True, later=True)
        done = kept.at_once()
        here.append(done and t.settled and kept._sync_s[-1] >= 0)
        t.wait()
    for _ in range(8): kept.append('a', 'x', b'', ts_ns=0, durable=True).wait()
    calm = []
    while len(calm) < 5 or slow and (3, 2) not in calm and len(calm) < 500: # where the writer was quicker, once more
        before = kept._calm
        put()
        calm.append((before, kept._calm))
    kept.close()
    if slow: assert calm[0][1] in (0, 3) and any(b == 3 for b, _ in calm) and (3, 2) in calm
    else: assert all(x == (0, 0) for x in calm)
