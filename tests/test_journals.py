"""One contract for every journal, on real servers: Redis and NATS, killed and started again, beside SQLite."""

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from arbwork.feed.events import BOOK
from arbwork.market import ArbworkError, ConfigError, DataError
from arbwork.store.journal import open_journal, rows_of, server_at, without_secret
from bench.servers import PASSWORD, QUOTED

@pytest.fixture
def journal(store):
    journal = open_journal(store.url)
    yield journal
    journal.close()


def bodies(journal, stream): return [x.body for x in journal.read(stream, limit=10**7)]


def test_entries_come_back_in_order_as_they_were(journal):
    odd = bytes(range(256)) + 'žluťoučký\r\n'.encode()
    given = [('intent', odd, 1_629_417_600_123_456_789, 'a.b > c'), ('fill', b'', -5, None), ('in.tent >', b'x', 2**62, ''), ('fill', b'y', 0, 'k'*400)]
    tickets = [journal.append('session/7f: a.*', kind, body, ts_ns=ts, key=key) for kind, body, ts, key in given]
    offsets = [t.wait() for t in tickets]
    assert offsets == sorted(set(offsets)) and all(type(x) is int and x > 0 for x in offsets)
    found = journal.read('session/7f: a.*')
    assert [(x.kind, x.body, x.ts_ns, x.key) for x in found] == given
    assert [x.offset for x in found] == offsets and {x.stream for x in found} == {'session/7f: a.*'}
    assert journal.read('session/7f: a.*', after=offsets[1], limit=1) == [found[2]] and journal.read('session/7f: a.*', limit=0) == []
    assert journal.read('session/7f: a.*', after=offsets[-1]) == [] == journal.read('session/7f: a') == journal.read('other')


def test_kinds_and_the_newest_entry(journal):
    assert journal.last('s') is None and journal.last('s', kind='a') is None
    offsets = [journal.append('s', 'ab'[i%7 == 0], str(i).encode(), ts_ns=i, key=f'k{i}' if i%5 == 0 else None).wait() for i in range(60)]
    journal.append('t', 'a', b'elsewhere', ts_ns=0).wait()
    assert [int(x.body) for x in journal.read('s', kind='b', limit=4)] == [0, 7, 14, 21]
    assert [int(x.body) for x in journal.read('s', kind='b', after=offsets[21])] == [28, 35, 42, 49, 56]
    assert [x.offset for x in journal.read('s', kind='a')] == [o for i, o in enumerate(offsets) if i%7]
    assert journal.last('s').offset == offsets[-1] and journal.last('s', kind='none') is None
    for before in (offsets[0], offsets[1], offsets[30], offsets[56], offsets[57], offsets[-1] + 100):
        below = [i for i, o in enumerate(offsets) if o < before]
        assert getattr(journal.last('s', before=before), 'offset', None) == (offsets[below[-1]] if below else None)
        of_b = [i for i in below if i%7 == 0]
        assert getattr(journal.last('s', kind='b', before=before), 'offset', None) == (offsets[of_b[-1]] if of_b else None)
    assert journal.last('s', kind='b').body == b'56' and journal.streams() == ['s', 't']


def test_a_key_is_kept_once_also_in_one_batch_and_by_two_writers(store):
    first, second = open_journal(store.url), open_journal(store.url)
    assert first.id == second.id
    tickets = [j.append('s', kind, kind.encode(), ts_ns=1, key='7f-1-0-0', durable=True) for j, kind in ((first, 'a'), (first, 'b'))]
    assert tickets[0].wait() == tickets[1].wait() and [t.duplicate for t in tickets] == [False, True]
    late = second.append('s', 'c', b'c', ts_ns=2, key='7f-1-0-0')
    assert late.wait() == tickets[0].offset and late.duplicate
    other = second.append('t', 'c', b'c', ts_ns=2, key='7f-1-0-0')
    assert other.wait() != tickets[0].offset and not other.duplicate
    assert bodies(first, 's') == [b'a'] and bodies(second, 't') == [b'c']
    for j in (first, second): j.close()


def test_rows_are_merged_and_keep_their_place(journal):
    rows = np.zeros(6_000, BOOK)
    rows['seq'] = np.arange(6_000)
    for i, row in enumerate(rows[:3_000]):
        journal.append_rows('market/binance', 'rows', row, i)
        if i == 1_000: between = journal.append('market/binance', 'slots', b'!', ts_ns=i)
        if i%100 == 0: journal.append_rows('market/bybit', 'rows', row, i)
    journal.append_rows('market/binance', 'rows', rows[3_000:], 3_000)
    journal.flush()
    entries = journal.read('market/binance', limit=10_000)
    assert np.array_equal(np.concatenate([rows_of(x, BOOK) for x in entries if x.kind == 'rows']), rows)
    before = [x for x in entries if x.offset < between.offset]
    assert sum(len(rows_of(x, BOOK)) for x in before) == 1_001
    assert len(entries) < 1_500 and sum(len(rows_of(x, BOOK)) for x in journal.read('market/bybit', limit=10_000)) == 30


def test_positions_pruning_and_offsets_after_a_restart(store):
    journal = open_journal(store.url)
    offsets = [journal.append('s', 'k', b'x', ts_ns=i, key=f'k{i}').wait() for i in range(1_200)]
    kept = journal.append('t', 'k', b'y', ts_ns=0).wait()
    for offset in (offsets[3], offsets[1]): journal.ack('reader', 's', offset).wait()
    assert (journal.position('reader', 's'), journal.position('other', 's'), journal.position('reader', 't')) == (offsets[3], 0, 0)
    assert journal.prune('s', offsets[-3]) == 1_197 and [x.offset for x in journal.read('s')] == offsets[-3:]
    assert journal.last('s', kind='k', before=offsets[-3]) is None and journal.prune('s', offsets[-3]) == 0 == journal.prune('never', 10**6)
    again = [journal.append('s', 'k', b'z', ts_ns=0, key=k) for k in ('k5', 'k1199')]
    assert again[0].wait() > kept and not again[0].duplicate and again[1].wait() == offsets[-1] and again[1].duplicate
    assert journal.prune('s', again[0].offset + 1) == 4 and journal.prune('t', kept + 1) == 1
    assert journal.last('s') is None and journal.streams() == []
    journal.sync()
    journal.close()
    if store.process: store.kill(); store.start()
    reopened = open_journal(store.url)
    assert reopened.id == journal.id and reopened.position('reader', 's') == offsets[3]
    assert reopened.append('s', 'k', b'y', ts_ns=9).wait() > again[0].offset
    reopened.close()


def test_tickets_from_coroutines_and_closing(store):
    journal = open_journal(store.url)
    async def run(): return await asyncio.gather(*(journal.append('s', 'k', b'%d' % i, ts_ns=i, durable=i%2 == 0).done() for i in range(300)))
    offsets = asyncio.run(run())
    assert offsets == sorted(set(offsets)) and [int(x) for x in bodies(journal, 's')] == list(range(300))
    for i in range(2_000): journal.append('u', 'k', b'%d' % i, ts_ns=i)
    journal.close()
    journal.close()
    with pytest.raises(ArbworkError, match='closed'): journal.append('s', 'k', b'', ts_ns=0)
    again = open_journal(store.url)
    assert [int(x) for x in bodies(again, 'u')] == list(range(2_000)), 'closing has not written what waited'
    again.close()


def child(code, *args):
    return subprocess.Popen([sys.executable, '-c', code, *map(str, args)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


WRITER = '''
import sys
import numpy as np
from arbwork.feed.events import BOOK
from arbwork.store.journal import open_journal
url, first = sys.argv[1], int(sys.argv[2])
journal, row = open_journal(url), np.zeros(1, BOOK)[0]
for i in range(first, first + 1_000_000):
    row['seq'] = i
    journal.append_rows('market/binance', 'rows', row, i)
    ticket = journal.append('session/a', 'intent', str(i).encode(), ts_ns=i, key=f'a-{i}', durable=i%3 == 0)
    if i%7: continue
    ticket.wait()
    print(i, flush=True)
'''


def test_killed_client_loses_nothing_acknowledged_and_doubles_nothing(store):
    acked = -1
    for wanted in (60, 400, 777):
        writer = child(WRITER, store.url, max(0, acked - 5))
        for line in writer.stdout:
            acked = int(line)
            if acked > wanted: break
        os.kill(writer.pid, signal.SIGKILL)
        acked = max([acked, *(int(x) for x in writer.stdout.read().split('\n')[:-1] if x)])
        writer.wait()
        writer.stdout.close(), writer.stderr.close()
        time.sleep(0.1)  # what had left the client when it died may still arrive at a server
        journal = open_journal(store.url)
        entries = journal.read('session/a', limit=10**6)
        found = [int(x.body) for x in entries]
        assert found == list(range(len(found))), 'an intent is missing, doubled, or out of place'
        assert len(found) > acked
        offsets = [x.offset for x in entries]
        assert offsets == sorted(set(offsets))
        rows = [s for x in journal.read('market/binance', limit=10**6) for s in rows_of(x, BOOK)['seq'].tolist()]
        assert set(range(acked + 1)) <= set(rows), 'a row appended before an acknowledged entry is missing'
        journal.close()


@pytest.mark.parametrize('durable', [True, False])
def test_killed_server_loses_nothing_acknowledged_and_doubles_nothing(served, durable):
    journal, kept, stop = open_journal(served.url), {}, threading.Event()
    row, errors = np.zeros(1, BOOK)[0], []
    def write():
        i, waiting = 0, []
        try:
            while not stop.is_set():
                row['seq'] = i
                journal.append_rows('market/binance', 'rows', row, i)
                waiting.append((i, journal.append('session/a', 'intent', b'%d' % i, ts_ns=i, key=f'a-{i}' if i%2 else None, durable=durable)))
                i += 1
                if len(waiting) == 50:
                    for n, t in waiting:
                        kept[n] = t.wait()
                        assert not t.duplicate, 'told of its own entry as if another had written it'
                    waiting.clear()
            for n, t in waiting: kept[n] = t.wait()
        except BaseException as e: errors.append(e)
    writer = threading.Thread(target=write)
    writer.start()
    for _ in range(5):
        before = len(kept)
        while len(kept) < before + 150 and writer.is_alive(): time.sleep(0.003)
        served.kill()
        served.start()
    stop.set()
    writer.join()
    assert not errors, errors
    entries = journal.read('session/a', limit=10**6)
    found = [int(x.body) for x in entries]
    assert found == list(range(len(kept))), 'an intent is missing, doubled, or out of place'
    assert {n: x.offset for n, x in enumerate(entries)} == kept
    rows = [s for x in journal.read('market/binance', limit=10**6) for s in rows_of(x, BOOK)['seq'].tolist()]
    assert rows == list(range(len(kept)))
    assert len(kept) > 700
    journal.close()


def test_a_server_that_stays_away_is_an_error_everywhere(served, monkeypatch):
    journal = open_journal(served.url)
    monkeypatch.setattr(f'arbwork.store.journal_{served.scheme}.RETRY_S', 0.3)
    journal.append('s', 'k', b'1', ts_ns=1).wait()
    served.kill()
    lost = journal.append('s', 'k', b'2', ts_ns=2)
    with pytest.raises(DataError, match='no answer'): lost.wait()
    with pytest.raises(DataError, match='acknowledged before is safe'): journal.append('s', 'k', b'3', ts_ns=3)
    with pytest.raises(DataError, match='no answer'): journal.read('s')
    with pytest.raises(DataError, match='no answer'): journal.close()
    with pytest.raises(DataError, match='cannot be opened'): open_journal(served.url)
    served.start()
    again = open_journal(served.url)
    assert bodies(again, 's') == [b'1']
    again.close()


def test_a_server_with_another_data_set_is_not_written_to(served, tmp_path):
    journal = open_journal(served.url)
    journal.append('s', 'k', b'1', ts_ns=1).wait()
    served.kill()
    other = tmp_path/'empty'
    other.mkdir()
    served.folder = other
    served.start()
    with pytest.raises(DataError, match='another data set'): journal.append('s', 'k', b'2', ts_ns=2).wait()
    with pytest.raises(DataError, match='another data set'): journal.close()


@pytest.mark.parametrize('scheme', ['redis', 'nats'])
def test_passwords_are_used_and_never_shown(scheme, server, caplog, capfd):
    store, said = server(scheme, secret=True), []
    journal = open_journal(store.url)
    journal.append('s', 'k', b'1', ts_ns=1).wait()
    said += [repr(journal), journal.where, repr(server_at(store.url, 1)), without_secret(store.url)]
    wrong = [store.url.replace(QUOTED, 'wr0ng-s3cr'), store.url.replace(QUOTED, PASSWORD), store.url + '?pasword=' + QUOTED]
    for url, kind in zip(wrong, (ConfigError, ConfigError, ConfigError)):
        with pytest.raises(kind) as e: open_journal(url)
        said += [str(e.value), repr(e.value), repr(e.value.__cause__)]
    journal.close()
    store.kill()
    with pytest.raises(DataError) as e: open_journal(store.url)
    said += [str(e.value), repr(e.value.__cause__)]
    with pytest.raises(ConfigError) as e: open_journal(store.url.replace(scheme, 'mysql'))
    out = capfd.readouterr()
    for text in (*said, str(e.value), caplog.text, out.out, out.err):
        assert 's3cr' not in text and 'wr0ng' not in text, text


@pytest.mark.parametrize('scheme, options, wanted', [
    ('redis', ('--appendonly', 'no'), 'CONFIG SET appendonly yes'),
    ('redis', ('--appendonly', 'yes', '--appendfsync', 'no'), 'CONFIG SET appendfsync always'),
    ('redis', ('--appendonly', 'yes', '--appendfsync', 'always', '--maxmemory', '50mb', '--maxmemory-policy', 'allkeys-lru'), 'noeviction'),
    ('nats', ('--name', 'plain'), '-js -sd')])
def test_a_server_that_would_forget_is_refused_with_the_way_out(scheme, options, wanted, server):
    store = server(scheme, *options)
    with pytest.raises(ConfigError, match=wanted): open_journal(store.url)


def test_memory_that_runs_out_is_an_error(server):
    store = server('redis', '--appendonly', 'yes', '--appendfsync', 'always', '--maxmemory', '4mb')
    journal, kept = open_journal(store.url), 0
    with pytest.raises(DataError, match='refused'):
        for kept in range(1_000): journal.append('s', 'k', bytes(50_000), ts_ns=kept).wait()
    with pytest.raises(DataError, match='refused'): journal.append('s', 'k', b'', ts_ns=0)
    with pytest.raises(DataError, match='refused'): journal.close()
    assert kept > 3


def test_an_entry_too_large_for_nats_harms_no_other(server):
    store = server('nats')
    journal = open_journal(store.url)
    with pytest.raises(DataError, match='max_payload'): journal.append('s', 'k', bytes(2_000_000), ts_ns=0)
    assert journal.append('s', 'k', bytes(1_000_000), ts_ns=0).wait() == 1
    journal.append_rows('s', 'rows', np.zeros(9_000, BOOK), 0)
    journal.flush()
    assert sum(len(rows_of(x, BOOK)) for x in journal.read('s', kind='rows')) == 9_000
    journal.close()


def test_clients_are_imported_on_use_only(tmp_path):
    code = '''
import sys
from arbwork.store.journal import open_journal
open_journal(sys.argv[1]).close()
assert not {'redis', 'nats'} & set(sys.modules), 'a client was imported'
'''
    writer = child(code, f'sqlite:///{tmp_path}/j.db')
    assert writer.wait(timeout=60) == 0, writer.stderr.read()
