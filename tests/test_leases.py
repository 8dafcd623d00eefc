"""The sole right to something over several machines: lent by every journal, by Redis and NATS to processes that stop, die and come back."""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from arbwork.market import ArbworkError, DataError
from arbwork.store.journal import Claim, open_journal


def eventually(what, seconds=30.):
    end = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < end, 'it did not come to pass'
        time.sleep(0.02)
    return found


def test_one_has_it_until_it_is_given_back(store):
    a, b = open_journal(store.url), open_journal(store.url)
    lease, other = a.lease('collector of binance'), b.lease('collector of bybit')
    with pytest.raises(ArbworkError, match='collector of binance: process .* has it in journal|collector of binance in journal .* has it'): b.lease('collector of binance')
    lease.check(), other.check()
    assert lease.held and a.append('s', 'k', b'1', ts_ns=1).wait() and b.append('s', 'k', b'2', ts_ns=1).wait()
    lease.release(), lease.release()
    assert not lease.held
    with pytest.raises(DataError, match='wanted the sole right to it'): lease.check()
    second = b.lease('collector of binance')
    assert second.held and a.append('s', 'k', b'3', ts_ns=1).wait() # without a lease anybody may append
    for x in (second, other): x.release()
    a.close(), b.close()


def test_it_goes_on_while_it_is_renewed(served):
    a, b = open_journal(served.url), open_journal(served.url)
    lease = a.lease('x', ttl_s=3.)
    for _ in range(8):
        time.sleep(0.5)
        with pytest.raises(ArbworkError, match='unless it is renewed it lapses in'): b.lease('x', ttl_s=3.)
    assert lease.held and a.append('s', 'k', b'1', ts_ns=1).wait()
    lease.release()
    a.close(), b.close()


def test_of_many_that_reach_for_it_one_has_it(served):
    journals, got, start = [open_journal(served.url) for _ in range(6)], [], threading.Barrier(6)
    def reach(j):
        start.wait()
        try: got.append(j.lease('x'))
        except ArbworkError: return
    threads = [threading.Thread(target=reach, args=(j,)) for j in journals]
    for t in threads: t.start()
    for t in threads: t.join()
    assert len(got) == 1
    got[0].release()
    for j in journals: j.close()


HOLD = '''
import sys, time
from arbwork.market import ArbworkError
from arbwork.store.journal import Claim, open_journal
journal, claim = open_journal(sys.argv[1]), Claim(sys.argv[2], 'x')
lease = journal.lease('x', float(sys.argv[3]), claim)
print('held', flush=True)
n = 0
while True:
    line = sys.stdin.readline()
    if not line: break
    try: print(journal.append('s', 'k', b'%d' % n, ts_ns=n).wait(), flush=True)
    except ArbworkError as e: print('refused', lease.held, e, flush=True)
    n += 1
'''


class Holder:
    "A process on a machine of its own: the folder of its locks is nobody else's."
    def __init__(self, url, lock, ttl_s=3.):
        self.process = subprocess.Popen([sys.executable, '-c', HOLD, url, str(lock), str(ttl_s)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout.readline() == 'held\n'

    def append(self):
        self.process.stdin.write('\n')
        self.process.stdin.flush()
        return self.process.stdout.readline().strip()

    def signal(self, which): os.kill(self.process.pid, which)

    def end(self):
        self.process.kill()
        self.process.wait()
        self.process.stdin.close(), self.process.stdout.close()


def test_one_that_is_held_up_is_followed_and_may_write_no_more(served, tmp_path):
    holder = Holder(served.url, tmp_path/'a.lock')
    try:
        first = int(holder.append())
        holder.signal(signal.SIGSTOP)
        b, claim = open_journal(served.url), Claim(tmp_path/'b.lock', 'x')
        def follow():
            try: return b.lease('x', 30., claim)
            except ArbworkError: return None
        lease = eventually(follow)
        assert [x.offset for x in b.read('s')] == [first] # what the first was told is kept is there for the second
        second = b.append('s', 'k', b'second', ts_ns=1).wait()
        holder.signal(signal.SIGCONT)
        said = eventually(holder.append)
        assert said.startswith('refused') and 'belongs to somebody else by now' in said, said
        assert lease.held and b.append('s', 'k', b'third', ts_ns=1).wait() > second
        if served.scheme == 'redis': assert [x.body for x in b.read('s')] == [b'0', b'second', b'third']
        lease.release()
        b.close()
    finally: holder.end()


def test_one_that_died_is_followed_at_once_on_its_machine_and_later_elsewhere(served, tmp_path):
    holder = Holder(served.url, tmp_path/'a.lock', 30.)
    holder.append()
    holder.end()
    b = open_journal(served.url)
    with pytest.raises(ArbworkError, match='it lapses in'): b.lease('x', 30.)
    with pytest.raises(ArbworkError, match='it lapses in'): b.lease('x', 30., Claim(tmp_path/'b.lock', 'x'))
    lease = b.lease('x', 30., Claim(tmp_path/'a.lock', 'x'))
    assert lease.held and b.append('s', 'k', b'1', ts_ns=1).wait()
    lease.release()
    b.close()


def test_a_server_that_starts_again_remembers_who_has_it(served):
    a, b = open_journal(served.url), open_journal(served.url)
    lease = a.lease('x', ttl_s=10.)
    served.kill()
    time.sleep(0.3)
    served.start()
    with pytest.raises(ArbworkError, match='x: process'): b.lease('x')
    assert a.append('s', 'k', b'1', ts_ns=1).wait()
    eventually(lambda: lease.held)
    lease.release()
    b.lease('x').release()
    a.close(), b.close()


def test_an_identity_is_of_the_lock_and_the_kernel(tmp_path):
    a, b = Claim(tmp_path/'a', 'a'), Claim(tmp_path/'b', 'b')
    assert a.identity and a.identity != b.identity and a.identity.count(':') == 2
    before = a.identity
    a.release()
    assert a.identity == '' and Claim(tmp_path/'a', 'a').identity == before
    assert json.dumps(before)
