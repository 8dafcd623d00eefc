"A session taken up from a fold knows what a replay of all of it knows: wherever it was killed, whatever went wrong in it."
import struct

import msgspec
import pytest

from arbwork.feed.book import warm
from arbwork.sim import chaos
from arbwork.sim.chaos import schedule
from arbwork.store.journal import open_journal
from arbwork.trade import fold as folding
from arbwork.trade import runner
from arbwork.trade.core import OrderState, replay
from arbwork.trade.fold import fold, foldable, resume
from arbwork.trade.reconcile import session_entries


@pytest.fixture(scope='module', autouse=True)
def warmed(): warm()


@pytest.fixture
def compared(monkeypatch):
    "Fold as often as can be; at every recovery lay the core beside one that has lived through everything."
    monkeypatch.setattr(folding, 'FOLD_TRADES', 1)
    monkeypatch.setattr(folding, 'FOLD_ROWS', 10)
    seen = []
    def both(journal, session, log=None):
        short, whole = resume(journal, session, log), replay(session_entries(journal, session))
        seen.append((fold(short.core) == fold(whole.core), short.core.open.keys() == whole.core.open.keys(), short.first, short.total, whole.total, short.last_ns == whole.last_ns))
        return short
    monkeypatch.setattr(runner, 'resume', both)
    return seen


@pytest.mark.parametrize('seed', range(4))
def test_wherever_it_was_killed_the_short_way_leads_to_the_same_core(compared, seed):
    v = schedule(seed, kills=3)
    assert (v.wrong, v.parity) == ([], 1.) and len(compared) >= v.kills > 0
    assert all(same and opened and not first and at for same, opened, first, _, _, at in compared)
    assert any(short < whole for _, _, _, short, whole, _ in compared)


def a_folded_session(tmp_path, monkeypatch):
    "A journal that a schedule left behind, and its longest session."
    monkeypatch.setattr(folding, 'FOLD_TRADES', 1)
    judge = chaos.judge
    def kept(w):
        w.disk.keep(tmp_path/'kept.db')
        return judge(w)
    monkeypatch.setattr(chaos, 'judge', kept)
    schedule(2, kinds=(), kills=0)
    journal = open_journal(f'sqlite:///{tmp_path}/kept.db')
    return journal, next(s.removeprefix('fold/') for s in journal.streams() if s.startswith('fold/'))


def test_a_fold_that_does_not_fit_means_the_whole_way(tmp_path, monkeypatch):
    journal, name = a_folded_session(tmp_path, monkeypatch)
    whole = replay(session_entries(journal, name))
    assert resume(journal, name).total < whole.total and fold(resume(journal, name).core) == fold(whole.core)
    last = journal.last(f'fold/{name}')
    mark = msgspec.msgpack.decode(last.body[8:])
    mark[4]['board'] = mark[4]['board'][:-8]
    for body in (msgspec.msgpack.encode(mark), b'\xc1', msgspec.msgpack.encode([1, 2])):
        journal.append(f'fold/{name}', 'fold', struct.pack('>q', last.offset) + body, ts_ns=0).wait()
        again = resume(journal, name)
        assert again.total == whole.total and fold(again.core) == fold(whole.core)
    journal.close()


def test_what_a_fold_does_not_know_is_not_folded(tmp_path, monkeypatch):
    journal, name = a_folded_session(tmp_path, monkeypatch)
    core = replay(session_entries(journal, name)).core
    assert foldable(core)
    core.novelty = 1
    assert not foldable(core)
    del core.novelty
    monkeypatch.setattr(folding, 'OrderState', type('OrderState', (), {'__slots__': (*OrderState.__slots__, 'novelty')}))
    assert not foldable(core)
    journal.close()
