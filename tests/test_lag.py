"What shortens the way from a price to an order, and must change nothing else: room in the log, orders signed while the disk works."
import asyncio
import sqlite3
import subprocess
import sys
from decimal import Decimal

import pytest

from arbwork.feed.events import NewOrder
from arbwork.feed.wire import DRAFT_NS, TradeLink
from arbwork.store.journal import ROOM, open_journal
from arbwork.trade.start import Tail, pages_of

KILLED = '''
import os, signal, sys
from arbwork.store.journal import open_journal
journal = open_journal(sys.argv[1])
for i in range(20): journal.append('session/a', 'intent', b'%d' % i, ts_ns=i, durable=True).wait()
if sys.argv[2] == 'room': journal.make_room()
for i in range(20, 40): journal.append('session/a', 'intent', b'%d' % i, ts_ns=i, durable=True).wait()
os.kill(os.getpid(), signal.SIGKILL)
'''


@pytest.mark.parametrize('how', ['room', 'none'])
def test_room_in_the_log_is_no_entry_and_no_torn_end(tmp_path, how):
    url = f'sqlite:///{tmp_path}/journal.db'
    subprocess.run([sys.executable, '-c', KILLED, url, how], check=False, timeout=300)
    log = tmp_path/'journal.db-wal'
    assert (log.stat().st_size == ROOM) == (how == 'room') and 0 < pages_of(tmp_path/'journal.db') < ROOM//4096
    tail = Tail(url)
    journal = open_journal(url)
    assert tail.lost() == 0 and [x.body for x in journal.read('session/a')] == [b'%d' % i for i in range(40)]
    journal.close()


def test_an_end_that_is_torn_inside_the_room_is_told(tmp_path):
    url = f'sqlite:///{tmp_path}/journal.db'
    subprocess.run([sys.executable, '-c', KILLED, url, 'room'], check=False, timeout=300)
    pages = pages_of(tmp_path/'journal.db')
    with open(tmp_path/'journal.db-wal', 'r+b') as f:
        f.seek(32 + (pages - 1)*(24 + 4096) + 24 + 100)
        f.write(b'torn')
    tail = Tail(url)
    journal = open_journal(url)
    assert tail.lost() > 0 and [x.body for x in journal.read('session/a')] == [b'%d' % i for i in range(39)]
    journal.close()


def test_room_is_made_while_others_write_and_loses_nothing(tmp_path):
    ours, theirs = open_journal(f'sqlite:///{tmp_path}/journal.db'), open_journal(f'sqlite:///{tmp_path}/journal.db')
    tickets = []
    for i in range(200):
        tickets += [j.append('a', 'x', str(i).encode(), ts_ns=i, durable=not i%20) for j in (ours, theirs)]
        if i in (50, 120): ours.make_room()
    for t in tickets: t.wait()
    assert len({t.offset for t in tickets}) == 400
    ours.close()
    theirs.close()
    with sqlite3.connect(tmp_path/'journal.db') as db:
        assert db.execute('select count(*) from entry').fetchone() == (400,) and db.execute('pragma integrity_check').fetchone() == ('ok',)


def test_what_is_done_meanwhile_is_done_once_in_the_loop_that_asked(tmp_path):
    async def main():
        seen, journal = [], open_journal(f'sqlite:///{tmp_path}/journal.db')
        for _ in range(5):
            ticket = journal.append('a', 'x', b'', ts_ns=0, durable=True)
            ticket.meanwhile(lambda: seen.append(asyncio.get_running_loop()))
            await ticket.done()
        await asyncio.sleep(0.01)
        assert len(seen) <= 5 and set(seen) <= {asyncio.get_running_loop()}
        journal.close()
    asyncio.run(main())


class Codec:
    signed = 0
    def place(self, order, request_id, now_ns):
        self.signed += 1
        return f'{request_id} {self.signed}'.encode()


def a_link():
    link = TradeLink.__new__(TradeLink)
    link.codec, link._drafts, link.trade, link.now = Codec(), {}, type('Channel', (), {'ws': object()})(), 10**18
    link.venue_ns = lambda: link.now
    return link


ORDER = NewOrder('s-1-0-0', 'LINK-USDT', 1, Decimal(1), Decimal(27))


def test_a_draft_is_sent_once_and_only_while_it_is_good():
    link = a_link()
    link.prepare(ORDER)
    assert link._draft_of(ORDER, link.now + DRAFT_NS - 1) == b's-1-0-0 1' and link._draft_of(ORDER, link.now) is None
    for spoil in ('old', 'the clock was set back', 'another socket', 'another order'):
        link = a_link()
        link.prepare(ORDER)
        if spoil == 'another socket': link.trade.ws = object()
        now_ns = link.now + (DRAFT_NS if spoil == 'old' else -1 if 'back' in spoil else 0)
        assert link._draft_of(NewOrder('s-1-0-0', 'LINK-USDT', 1, Decimal(2), Decimal(27)) if spoil == 'another order' else ORDER, now_ns) is None, spoil
    link = a_link()
    link.trade.ws = None
    link.prepare(ORDER)
    assert link.codec.signed == 0 and link._draft_of(ORDER, link.now) is None
