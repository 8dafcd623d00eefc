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
from arbwork.trade.core import Core, OrderState, SessionStart, replay
from arbwork.trade.fold import Fold, Folder, fold, foldable, resume, unfold
from arbwork.trade.reconcile import session_entries


@pytest.fixture(scope='module', autouse=True)
def warmed(): warm()


@pytest.fixture
def compared(monkeypatch):
    "Fold as often as can be; at every recovery lay the core beside one that has lived through everything."
    monkeypatch.setattr(folding, 'FOLD_TRADES', 1)
    monkeypatch.setattr(folding, 'FOLD_ROWS', 10)
    monkeypatch.setattr(folding, 'SLICE', 1)
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


def test_a_long_fold_is_written_in_slices_and_a_trade_that_changes_meanwhile_again(tmp_path, monkeypatch):
    journal, name = a_folded_session(tmp_path, monkeypatch)
    core = replay(session_entries(journal, name)).core
    monkeypatch.setattr(folding, 'SLICE', 2)
    folder, n = Folder(core), len(core.all_trades)
    assert n > 4
    folder.trades = folder.known = 0 # as if it had been there from the beginning
    folder.fills = list(core.ledger.seen)
    first, order = core.all_trades[1], next(iter(core.all_trades[1].orders))
    for k in range(1, 100):
        folder.step(journal, 'session/other', 0)
        if folder.waiting: break
        assert len(folder.written) <= 2*k
        if k == 1:
            assert 1 in folder.written
            first.why = 'heard of again'
            folder.heard('order', type('News', (), {'client_id': order.name})())
    assert k >= n//2 and not folder.written and not folder.touched
    start = journal.read(f'session/{name}', 0, 1)[0]
    again = unfold(Core(msgspec.msgpack.decode(start.body, type=SessionStart)), [msgspec.msgpack.decode(folder.waiting[1], type=Fold)])
    assert fold(again) == fold(core) and again.all_trades[1].why == 'heard of again'
    journal.close()
