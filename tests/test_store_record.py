"""What is recorded beside books: whole books rebuilt to the last level, own orders, retention, the layout's number, and workers in processes."""

import asyncio
import json
import os
import random
import signal
import sys
import time
from contextlib import nullcontext
from decimal import Decimal
from types import SimpleNamespace

import msgspec
import numpy as np
import pandas as pd
import pytest
from test_store_collect import Venue, settings_for
from test_store_ticks import S, T0, books

from arbwork.clock import ScaledClock, VirtualClock, WallClock
from arbwork.feed.board import BoardPart, BoardReader, BoardWriter
from arbwork.feed.book import Book
from arbwork.feed.events import INVALID, VALID, BookUpdate, Fill, NewOrder, OrderUpdate, Quote, Trade
from arbwork.market import ArbworkError, ConfigError, DataError
from arbwork.settings import Recording, load_settings
from arbwork.store.collect import QUALITY, Recorder, append_problem, append_slots, collect, market
from arbwork.store.journal import MERGED_BYTES, SqliteJournal, open_journal
from arbwork.store.tables import FEEDS, FIRST, HEAD, PROBLEMS, TABLES, VERSION, Problem, level_rows, rebuilt, words_text
from arbwork.store.ticks import SCHEMA, Ticks, to_frame, utc_index
from arbwork.store.worker import Tap, Worker, stream

encode = msgspec.msgpack.encode


def told(journal):
    return [msgspec.msgpack.decode(x.body, type=Problem) for x in journal.read(QUALITY, limit=10**6)]


def a_tap(journal, name='binance', recording=Recording(), board=None):
    wrong = []
    tap = Tap(name, {'LINK-USDT': 0}, journal, board, lambda: T0, wrong.append, recording)
    tap.feed = SimpleNamespace(heard_ns=0)
    return tap, wrong


@pytest.mark.parametrize('cut_at,depth', [(0, 0), (40, 0), (0, 10)], ids=['whole', 'cut', 'ten levels'])
@pytest.mark.parametrize('seed', [1, 2])
def test_every_instant_of_a_book_can_be_rebuilt(tmp_path, cut_at, depth, seed):
    rng, journal = random.Random(seed), SqliteJournal(tmp_path/'j.db')
    tap, wrong = a_tap(journal, recording=Recording(snapshot_s=rng.choice((2, 30))))
    book, seq, truth = Book('binance', 'LINK-USDT', lambda seq, u: u.first_seq == seq + 1, cut_at, depth), 0, []
    px = lambda side, far: round(27 + (-1 if side == 0 else 1)*rng.randint(1, far)/1000, 3)

    def levels(n, far, whole=False): return [list({px(side, far): 0. if not whole and rng.random() < .3 else rng.randint(1, 10**6)/100 for _ in range(n)}.items()) for side in (0, 1)]
    for i in range(400):
        now, seq = T0 + i*S//10, seq + 1
        gap = book.state == VALID and rng.random() < .02
        if book.state != VALID:
            if rng.random() < .5: continue
            side = sorted({k/1000 for k in range(1, 61)})[:cut_at or 60]
            u = BookUpdate('LINK-USDT', True, seq, seq, -1, now, [(round(27 - x, 3), 5.) for x in side], [(round(27 + x, 3), 7.) for x in side])
        else: u = BookUpdate('LINK-USDT', False, seq + gap, seq + gap, -1, now, *levels(rng.choice((0, 1, 5)), 80))
        seq += gap
        if book.apply(u) == INVALID and cut_at: book.drop('walked out' if not gap else 'gap')
        tap.row(np.frombuffer(book.packed(0, now), TABLES['books'].dtype)[0])
        tap.depth((book, u, now))
        truth.append((now, book.state, book.bids, book.asks, book.seq))
        if rng.random() < .1: tap.drain()
    tap.drain()
    journal.flush()
    rows = level_rows([x.body for x in journal.read(stream('depth', 'binance'), limit=10**6)])
    heads = rows['ts_recv_ns'][rows['mark'] & (HEAD | FIRST) == HEAD | FIRST]
    assert not wrong and len(heads) > 3 and (np.diff(rows['ts_recv_ns']) >= 0).all()
    checked = 0
    for now, state, bids, asks, seq in truth:
        begin = np.searchsorted(rows['ts_recv_ns'], heads[heads <= now][-1])
        got = rebuilt(rows[begin:np.searchsorted(rows['ts_recv_ns'], now, 'right')])
        assert got[3] == (state not in (0, INVALID))
        if not got[3]: continue
        assert [tuple(x) for x in got[0]] == bids and [tuple(x) for x in got[1]] == asks and got[2] == seq
        checked += 1
    assert checked > 200
    journal.close()


def test_a_large_snapshot_travels_in_parts_and_half_of_one_is_refused(tmp_path):
    journal = SqliteJournal(tmp_path/'j.db')
    tap, wrong = a_tap(journal)
    book = Book('coinbase', 'LINK-USDT', lambda seq, u: True)
    u = BookUpdate('LINK-USDT', True, 1, 1, -1, T0, [(27 - i/10**4, 1. + i) for i in range(9_001)], [(28 + i/10**4, 2. + i) for i in range(5)])
    book.apply(u)
    tap.depth((book, u, T0))
    tap.drain()
    journal.flush()
    bodies = [x.body for x in journal.read(stream('depth', 'binance'))]
    bids, asks, *_ = rebuilt(level_rows(bodies))
    assert len(bids) == 9_001 and len(asks) == 5 and not wrong
    rows = level_rows(bodies)
    with pytest.raises(DataError, match='found 4005 levels of a snapshot, wanted 9006'): rebuilt(rows[:4_007])
    journal.close()


def test_a_burst_of_differences_travels_in_entries_that_every_journal_takes(store):
    journal, rng = open_journal(store.url), random.Random(3)
    tap, wrong = a_tap(journal)
    book, levels = Book('okx', 'LINK-USDT', lambda seq, u: True), lambda n, px: list({round(px + rng.randint(1, 60_000)/1000, 3): rng.choice((0., rng.randint(1, 999)/10)) for _ in range(n)}.items())
    for seq, n in enumerate((50, *[90]*200, 9_000, 3, 5_000, *[700]*30), 1):
        u = BookUpdate('LINK-USDT', seq == 1, seq, seq, -1, T0 + seq, [x for x in levels(n, 20.) if x[1] or seq > 1], [x for x in levels(n//2, 90.) if x[1] or seq > 1])
        book.apply(u)
        tap.depth((book, u, T0 + seq))
    tap.drain()
    journal.flush()
    bodies = [x.body for x in journal.read(stream('depth', 'binance'), limit=10**6)]
    assert not wrong and 4 < len(bodies) < 60 and max(map(len, bodies)) <= MERGED_BYTES
    bids, asks, seq, good = rebuilt(level_rows(bodies))
    assert [tuple(x) for x in bids] == book.bids and [tuple(x) for x in asks] == book.asks and (seq, good) == (book.seq, True) and len(bids) > 3_000
    assert (level_rows(bodies)['mark'] & FIRST).astype(bool).sum() == 234
    with pytest.raises(DataError, match='max_payload') if store.scheme == 'nats' else nullcontext(): journal.append_rows('s', 'rows', memoryview(bytes(2**21)), T0)
    journal.close()


def heard(journal, n=300):
    "Quotes, trades, depth and books of one instrument, through a tap."
    tap, wrong = a_tap(journal)
    for of in FEEDS: append_slots(journal, 'binance', {'LINK-USDT': 0}, T0, of)
    book, rows = Book('binance', 'LINK-USDT', lambda seq, u: True), books(n)
    for i, row in enumerate(rows):
        now = tap.feed.heard_ns = int(row['ts_recv_ns'])
        u = BookUpdate('LINK-USDT', i == 0, i, i, -1, now, [(27.0 + i%7/1000, 5. + i)], [(27.1, 4.)])
        book.apply(u)
        tap.row(row), tap.depth((book, u, now)), tap.event(Quote('LINK-USDT', 27., 1. + i, 27.1, 2., i, now))
        if i%3 == 0: tap.event(Trade('LINK-USDT', 27.05, 1., 1, f't-{i}', now))
        if i%50 == 0: tap.drain()
    tap.drain()
    journal.flush()
    assert not wrong
    return rows


def test_every_table_is_stored_once_though_the_recorder_dies_between_them(store, tmp_path):
    class Crash(Exception): pass
    class Dying(Ticks):
        def write(self, of, *args):
            if of == self.dies_at: raise Crash
            return super().write(of, *args)
    journal, uri = open_journal(store.url), f'lmdb://{tmp_path}/ticks?map_size=1GB'
    rows, streams = heard(journal), [stream(of, 'binance') for of in FEEDS]
    for of in FEEDS:
        dying = Dying(uri)
        dying.dies_at = of
        with pytest.raises(Crash): Recorder(journal, dying, streams).step()
        dying.close()
    ticks = Ticks(uri)
    recorder = Recorder(journal, ticks, streams)
    recorder.drain()
    assert ticks.rows('binance', 'LINK-USDT').tobytes() == rows.tobytes()
    assert ticks.read('quotes', 'binance', 'LINK-USDT')['seq'].tolist() == list(range(300))
    assert len(ticks.read('trades', 'binance', 'LINK-USDT')) == 100 and len(np.unique(ticks.read('trades', 'binance', 'LINK-USDT')['id'])) == 100
    assert np.unique(ticks.read('depth', 'binance', 'LINK-USDT')['seq']).tolist() == list(range(300))
    again = Recorder(journal, ticks, streams)
    heard(journal)                                          # the venue tells the same trades once more
    again.drain()
    assert len(ticks.read('trades', 'binance', 'LINK-USDT')) == 100 and len(ticks.read('quotes', 'binance', 'LINK-USDT')) == 600
    fresh = Recorder(journal, ticks, streams)
    heard(journal)                                          # also to a recorder that was started anew
    fresh.drain()
    assert len(ticks.read('trades', 'binance', 'LINK-USDT')) == 100
    assert {x: n for x, n in zip(ticks.contents()['table'], ticks.contents()['rows'])}['books'] == 900
    ticks.close(), journal.close()


def test_levels_beyond_those_wanted_are_not_stored(tmp_path):
    journal, ticks = SqliteJournal(tmp_path/'j.db'), Ticks(f'lmdb://{tmp_path}/ticks', map_size='1GB')
    rows = heard(journal, 20)
    Recorder(journal, ticks, [market('binance')], recording=Recording(levels=3)).drain()
    kept = ticks.rows('binance', 'LINK-USDT')
    assert (kept['bid_px'][:, :3] == rows['bid_px'][:, :3]).all() and not kept['ask_qty'][:, 3:].any()
    ticks.close(), journal.close()


def test_own_orders_and_fills_of_sessions_that_run_side_by_side(store, tmp_path):
    journal, ticks = open_journal(store.url), Ticks(f'lmdb://{tmp_path}/ticks', map_size='1GB')
    n = 0

    def say(session, kind, body):
        nonlocal n
        n += 1
        return journal.append(f'session/{session}', kind, encode(body), ts_ns=T0 + n)

    def fill(session, k, id): return msgspec.structs.asdict(Fill(f'{session}-{k}-0-0', f'v{k}', id, 'LINK-USDT', 1, Decimal('27.1'), Decimal('2'), Decimal('0.02'), 'LINK', True, T0)) | dict(venue='bybit')
    for session in ('a', 'b'): say(session, 'start', {})
    for k in range(40):
        for session in ('a', 'b') if k%2 else ('b', 'a'):
            order = NewOrder(f'{session}-{k}-0-0', 'LINK-USDT', -1, Decimal('2'), Decimal('27.1'))
            say(session, 'intent', dict(trade=k, leg=0, slot=0, venue='bybit', order=order, why='open'))
            journal.append(f'session/{session}', 'steps', b'x'*1_000, ts_ns=T0)
            say(session, 'sent', dict(client_id=order.client_id))
            say(session, 'order', msgspec.structs.asdict(OrderUpdate(order.client_id, f'v{k}', 'LINK-USDT', -1, 'rejected' if k == 7 else 'acked', Decimal('2'), Decimal('0'), T0, 'rate' if k == 7 else '')) | dict(venue='bybit'))
            say(session, 'fill', fill(session, k, f'{session}{k}'))
        if k%10 == 0:
            journal.flush()
            Recorder(journal, ticks, [], sessions=True).drain()     # a new one each time
    for session in ('a', 'b'):
        for k in (0, 39): say(session, 'fill', fill(session, k, f'{session}{k}'))   # told again
        say(session, 'silence', dict(client_id=f'{session}-3-0-0', about='ask', code='venue_down'))
        say(session, 'stop', {})
    journal.flush()
    recorder = Recorder(journal, ticks, [], sessions=True)
    recorder.drain()
    orders, fills = ticks.read('orders', 'bybit', 'LINK-USDT'), ticks.read('fills', 'bybit', 'LINK-USDT')
    assert len(orders) == 2*(40*3 + 1) and len(fills) == 80
    assert sorted(words_text(fills['fill_id'])) == sorted(f'{s}{k}' for s in 'ab' for k in range(40))
    assert np.bincount(orders['step']).tolist() == [80, 80, 2, 78, 0, 0, 0, 2]
    assert len(np.unique(orders['ts_recv_ns'])) == len(orders) and (orders['code'] >= 0).sum() == 4
    assert len(journal.read('session/a', limit=10**6, kind='steps')) == 40, 'a session may never be pruned'
    recorder.prune()
    assert len(journal.read('session/a', limit=10**6)) == 40*5 + 5
    ticks.close(), journal.close()


def test_intents_are_looked_for_once_however_many_steps_name_none(tmp_path, monkeypatch):
    journal, ticks, asked = SqliteJournal(tmp_path/'j.db'), Ticks(f'lmdb://{tmp_path}/ticks', map_size='1GB'), []
    journal.append('session/a', 'intent', encode(dict(venue='bybit', order=NewOrder('a-1', 'LINK-USDT', 1, Decimal(2), None), why='open')), ts_ns=T0).wait()
    Recorder(journal, ticks, [], sessions=True).drain()
    for i in range(200): journal.append('session/a', 'sent', encode(dict(client_id='a-1' if i%50 == 0 else f'none-{i}')), ts_ns=T0 + 1 + i)
    journal.flush()
    read = journal.read
    monkeypatch.setattr(journal, 'read', lambda *args, kind=None, **how: (asked.append(kind), read(*args, kind=kind, **how))[1])
    assert Recorder(journal, ticks, [], sessions=True).drain() == 4, 'only what is known of is recorded'
    assert asked.count('intent') < 8
    ticks.close(), journal.close()


# the layout


def as_version_1(uri):
    "A store as the first layout had it: books and problems, and nothing that says so."
    ticks = Ticks(uri)
    ticks._migrated = True
    ticks.write_rows('binance', 'LINK-USDT', books(100), 7, 'j')
    texts = [f'LINK-USDT\x1f{kind}\x1f{kind} at seq 9'.encode().ljust(256, b'\0') for kind in ('gap', 'walked', 'odd')]
    words = np.frombuffer(b''.join(texts), '<i8').reshape(-1, 32)
    frame = pd.DataFrame({'kind': np.array([1, 0, 0]), **{f'text_{i}': words[:, i].copy() for i in range(32)}}, index=utc_index([T0, T0 + S, T0 + 2*S]))
    ticks.library.write('quality/binance', frame, metadata={'offsets': {'j': 5}})
    ticks.library.snapshot('study-1')
    ticks.close()


def test_a_store_of_the_first_layout_is_read_and_brought_up_to_date_by_the_first_writer(tmp_path):
    uri = f'lmdb://{tmp_path}/ticks?map_size=1GB'
    as_version_1(uri)
    ticks = Ticks(uri)
    before = ticks.quality('binance')
    assert ticks.version() == 1 and before['kind'].tolist() == ['gap', 'walked', 'odd'] and before['until_ns'].tolist() == [0]*3
    assert ticks.write_rows('binance', 'LINK-USDT', books(10, 100), 8, 'j') == 10
    assert ticks.version() == VERSION and ticks.migrate() == (VERSION, VERSION)
    stored = ticks._read('quality/binance', None, None, None)
    assert stored['kind'].tolist() == [PROBLEMS.index('gap'), PROBLEMS.index('walked'), 0] and 'until_ns' in stored
    assert ticks.quality('binance').equals(before) and ticks.quality_offset('binance', 'j') == 5
    assert ticks.rows('binance', 'LINK-USDT').tobytes() == np.concatenate([books(100), books(10, 100)]).tobytes()
    assert ticks.quality('binance', as_of='study-1').equals(before) and len(ticks.rows('binance', 'LINK-USDT', as_of='study-1')) == 100
    assert ticks.write_quality('binance', [Problem(T0 + 3*S, 'binance', '', 'stale', 'x', T0 + 4*S)], 6, 'j') == 1
    ticks.close()


def test_a_newer_layout_is_refused_by_name(tmp_path):
    uri = f'lmdb://{tmp_path}/ticks?map_size=1GB'
    ticks = Ticks(uri)
    ticks.library.write(SCHEMA, pd.DataFrame({'kept': [1]}), metadata={'version': VERSION + 1})
    ticks.close()
    with pytest.raises(DataError, match=f'found layout {VERSION + 1}, wanted at most {VERSION}'): Ticks(uri)


def test_a_snapshot_keeps_every_table_bit_for_bit(tmp_path):
    journal, ticks = SqliteJournal(tmp_path/'j.db'), Ticks(f'lmdb://{tmp_path}/ticks', map_size='1GB')
    streams = [*(stream(of, 'binance') for of in FEEDS), QUALITY]
    heard(journal)
    append_problem(journal, Problem(T0, 'binance', '', 'lost', 'a'))
    say = lambda kind, body: journal.append('session/a', kind, encode(body), ts_ns=T0)
    say('intent', dict(venue='binance', order=NewOrder('a-1-0-0', 'LINK-USDT', 1, Decimal(1), None), why='open'))
    say('fill', msgspec.structs.asdict(Fill('a-1-0-0', 'v', 'f1', 'LINK-USDT', 1, Decimal(27), Decimal(1), Decimal(0), 'LINK', True, T0)) | dict(venue='binance'))
    journal.flush()
    recorder = Recorder(journal, ticks, streams, sessions=True)
    recorder.drain()
    read = lambda as_of: {x: ticks.read(x, 'binance', 'LINK-USDT', as_of=as_of).tobytes() for x in TABLES if x != 'quality'} | {'quality': ticks.quality('binance', as_of=as_of).to_json()}
    then = read(None)
    assert all(then.values()) and ticks.snapshot('study') == 'study'
    for _ in range(8):
        heard(journal)
        append_problem(journal, Problem(T0, 'binance', '', 'gap', 'b')).wait()
        say('sent', dict(client_id='a-1-0-0')).wait()
        recorder.drain()
    assert ticks.compact(after=0) >= 4 and ticks.tidy(after=0) == ''
    recorder.prune()
    assert read('study') == then and all(read(None)[x] != then[x] for x in ('books', 'quotes', 'depth', 'orders', 'quality'))
    ticks.close(), journal.close()


# room and retention


def test_a_store_that_fills_up_says_so_before_it_is_full_and_grows_when_opened_anew(tmp_path):
    journal, ticks = SqliteJournal(tmp_path/'j.db'), Ticks(f'lmdb://{tmp_path}/ticks', map_size='4MB')
    append_slots(journal, 'binance', {'LINK-USDT': 0}, T0)
    recorder, rows, n = Recorder(journal, ticks, [market('binance')]), books(2_000), 0
    warned = []
    with pytest.raises(DataError, match=r'map is full.*may grow to 0.00390625 GB.*map_size'):
        while n < 40:
            rows['ts_recv_ns'] = T0 + n*10**10 + np.arange(2_000)
            rows['bid_qty'] = np.random.default_rng(n).random((2_000, 10))
            journal.append_rows(market('binance'), 'rows', rows, T0)
            journal.flush()
            n += 1
            recorder.drain()
            recorder.look_around()
            if recorder.warnings.get('store') not in (None, *warned): warned.append(recorder.warnings['store'])
    assert warned and all('4 MB' in x or 'GB' in x for x in warned)
    assert [p.kind for p in told(journal)] == ['store']*len(warned)
    stored = len(ticks.rows('binance', 'LINK-USDT'))
    assert stored == 2_000*(n - 1)
    ticks.close()
    del ticks, recorder
    larger = Ticks(f'lmdb://{tmp_path}/ticks', map_size='1GB')
    assert Recorder(journal, larger, [market('binance')]).drain() == 2_000 and len(larger.rows('binance', 'LINK-USDT')) == 2_000*n
    larger.close(), journal.close()


def test_the_journal_keeps_what_is_recorded_by_age_and_size(tmp_path, monkeypatch):
    journal, ticks = SqliteJournal(tmp_path/'j.db'), Ticks(f'lmdb://{tmp_path}/ticks', map_size='1GB')
    recorder = Recorder(journal, ticks, [market('binance')], recording=Recording(journal_hours=1, journal_mb=1, status_days=1))
    clock = [1_700_000_000.]
    monkeypatch.setattr(time, 'time', lambda: clock[0])
    monkeypatch.setattr(time, 'time_ns', lambda: int(clock[0]*1e9))
    for i in range(8):
        append_slots(journal, 'binance', {'LINK-USDT': 0}, T0)
        journal.append(market('binance'), 'rows', books(100, 100*i).tobytes(), ts_ns=T0)
        for k in range(3): journal.append('status', 'status', b'', ts_ns=int((clock[0] + k)*1e9))
        journal.flush()
        recorder.drain()
        recorder.prune()
        clock[0] += 1_200
    left = lambda: len(journal.read(market('binance'), limit=10**6, kind='rows'))
    assert left() == 4, 'an hour of three an hour, and the last'
    assert len(journal.read('status', limit=10**6)) == 24
    clock[0] += 86_400 - 4*1_200 + 5
    recorder.prune()
    assert left() == 1 and len(journal.read('status', limit=10**6)) == 9, 'a day of sayings, and whatever has the meaning of the slots before it'
    monkeypatch.undo()
    for i in range(8, 50):
        append_slots(journal, 'binance', {'LINK-USDT': 0}, T0)
        journal.append(market('binance'), 'rows', books(100, 100*i).tobytes(), ts_ns=T0).wait()
        recorder.drain()
    recorder.prune()
    assert 25 <= left() <= 30, 'a megabyte of 35 kB each'
    assert len(ticks.rows('binance', 'LINK-USDT')) == 5_000
    ticks.close(), journal.close()


# what only shows when one looks


def test_steps_of_clocks_and_silence_are_told_once_and_with_their_time(tmp_path):
    journal, clock = SqliteJournal(tmp_path/'j.db'), VirtualClock(T0)
    worker = Worker(SimpleNamespace(name='okx'), {'LINK-USDT': 0}, clock, None, journal, random.Random(1), pytest.fail, Recording(stale_s=5))
    floors, rows = [], books(1)

    def look(steady, late_s=0.02, hear=True):
        clock._now += S
        if hear:
            rows['ts_recv_ns'], rows['ts_venue_ns'] = clock._now, clock._now - int(late_s*1e9)
            worker.tap._look(rows)
        return worker.watch(steady[0], steady[1], floors)
    for _ in range(25): look((0, 0))
    look((0, -90_000_000)), look((-90_000_000, -90_000_000))
    for _ in range(25): look((0, 0), late_s=-0.9 if _ > 3 else 0.02)
    for _ in range(9): look((0, 0), hear=False)
    for _ in range(3): look((0, 0), late_s=-0.9)
    journal.flush()
    said = told(journal)
    assert [p.kind for p in said] == ['clock', 'clock', 'stale'], said
    assert 'moved by -90 ms' in said[0].detail and said[0].until_ns - said[0].ts_ns == S
    assert 'its clock moved by +920 ms' in said[1].detail and said[1].until_ns > said[1].ts_ns
    assert 'LINK-USDT: no row for 6.0 s, wanted one in 5 s' in said[2].detail
    journal.close()


def test_slots_of_a_board_are_shared_out_and_guarded(tmp_path):
    path, row = tmp_path/'board', books(1)[0]
    whole = BoardWriter(path, 4, ring=8)
    part, other = BoardPart(path, 0, 2), BoardPart(path, 2, 4)
    reader = BoardReader(path)
    for slot, writer in ((1, part), (2, other)):
        row['slot'] = slot
        for seq in range(20):
            row['seq'] = seq
            writer.write(row)
    assert [reader.count(i) for i in range(4)] == [0, 20, 20, 0] and reader.latest(2)['seq'] == 19
    with pytest.raises(DataError, match='slot 2, wanted 0 to 1'): part.write(row)
    with pytest.raises(ArbworkError, match='slots 0 to 1'): BoardPart(path, 0, 2)
    with pytest.raises(DataError, match='slot 4'): BoardPart(path, 2, 5)
    part.close()
    again = BoardPart(path, 0, 2)
    row['slot'], row['seq'] = 1, 77
    again.write(row)
    assert reader.count(1) == 21 and reader.latest(1)['seq'] == 77
    for x in (again, other, whole): x.close()


# workers in processes


def test_a_worker_s_process_that_is_killed_is_started_again_and_disturbs_nobody(tmp_path):
    async def run():
        async with Venue(10**6, pause_s=0.002) as bybit:
            settings = settings_for(tmp_path, {'bybit': bybit.port, 'okx': 1})
            stop, reports, killed = asyncio.Event(), [], []
            def watch(report):
                reports.append(report)
                heard = report['venues']['bybit']['rows']
                if heard > 100 and not killed:
                    pids = [int(x) for x in os.popen(f'pgrep -f "arbwork.store.worker.*{settings.path}.*--venue bybit"').read().split()]
                    killed.extend([heard, *[pid for pid in pids if pid != os.getpid()]])
                    for pid in killed[1:]:
                        try: os.kill(pid, signal.SIGKILL)
                        except ProcessLookupError: continue
                if killed and report['venues']['bybit']['restarts'] and heard > killed[0] + 100: stop.set()
            report = await asyncio.wait_for(collect(settings, WallClock(), stop_event=stop, on_progress=watch, workers='process'), 100)
            return settings, report, killed
    settings, report, killed = asyncio.run(run())
    assert len(killed) > 1 and report['venues']['bybit']['restarts'] == 1 and '127.0.0.1:1' in report['venues']['okx']['failed']
    ticks = Ticks(settings.ticks)
    rows, depth = ticks.rows('bybit', 'LINK-USDT'), ticks.read('depth', 'bybit', 'LINK-USDT')
    assert report['stored'] == len(rows) >= report['rows'] > 200
    assert len(np.unique(rows['seq'])) >= len(rows) - 2 and (np.diff(rows['ts_recv_ns']) >= 0).all()
    ledger = ticks.quality('bybit')
    assert ledger['kind'].tolist().count('restart') == 2 and 'ended by signal 9' in ' '.join(ledger['detail'])
    heads = np.flatnonzero(depth['mark'] & (HEAD | FIRST) == HEAD | FIRST)
    assert len(heads) == 2 and rebuilt(depth[heads[1]:])[2] == rows['seq'][-1]
    ticks.close()


def test_clocks_of_one_process_and_odd_orders_are_refused(tmp_path):
    settings = settings_for(tmp_path, {'bybit': 1})
    with pytest.raises(ConfigError, match='VirtualClock'): asyncio.run(collect(settings, VirtualClock(T0), workers='process'))
    with pytest.raises(ConfigError, match="found 'thread', wanted one of task, process"): asyncio.run(collect(settings, WallClock(), workers='thread'))
    text = settings.path.read_text()
    for line, says in (('record = books, news', 'wanted some of books, quotes, trades, depth'), ('levels = 11', 'a whole number from 1 to 10'),
                       ('map_size = 32', 'a size such as 32GB'), ('quiet = 25-3', 'hours of the day'), ('snapshot_s = nan', 'a number from 1 to 86400')):
        settings.path.write_text(text.replace('[arbwork]\n', f'[arbwork]\n{line}\n'))
        with pytest.raises(ConfigError, match=says): load_settings(settings.path)


def test_a_clock_that_was_set_back_is_written_down_with_the_time_that_is_there_twice(tmp_path):
    async def run(start_ns):
        async with Venue(200) as venue:
            settings = settings_for(tmp_path, {'bybit': venue.port})
            stop = asyncio.Event()
            async def watch():
                await asyncio.wait_for(venue.ended.wait(), 60)
                await asyncio.sleep(0.3)
                stop.set()
            watching = asyncio.create_task(watch())
            try: return settings, await collect(settings, ScaledClock(start_ns, 1.), stop_event=stop)
            finally: watching.cancel()
    settings, _ = asyncio.run(run(T0))
    ticks = Ticks(settings.ticks)
    first, last, _ = ticks.span('bybit', 'LINK-USDT')
    ticks.close()
    begun = (first + last)//2
    asyncio.run(run(begun))
    ticks = Ticks(settings.ticks)
    ledger = ticks.quality('bybit')
    back = ledger[ledger['kind'] == 'clock'].iloc[0]
    assert back['until_ns'] == last and begun <= back['ts_ns'] < last and 'it was set back' in back['detail']
    assert len(ticks.rows('bybit', 'LINK-USDT')) == 400
    from arbwork.store.tape import ticks as read
    frame = read('bybit', 'LINK-USDT', settings=settings)
    assert (~frame['valid']).sum() > 2 and frame['valid'].iloc[[0, -1]].all() and not frame['valid'][frame.index.asi8 == last].any()
    ticks.close()
