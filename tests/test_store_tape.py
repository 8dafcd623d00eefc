"""What a notebook reads: beside a running recorder, at the edges of a recording, with and without its mask."""

import asyncio
import math
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from test_store_collect import Venue, collected, settings_for
from test_store_record import heard
from test_store_ticks import S, T0, books

from arbwork.feed.book import Book
from arbwork.feed.events import BOOK, INVALID, VALID, BookUpdate
from arbwork.market import DataError
from arbwork.store.collect import QUALITY, Recorder, append_problem, append_slots, market
from arbwork.store.journal import open_journal
from arbwork.store.quality import DAY_NS, Window, days, windows
from arbwork.store.tables import FEEDS, LOST, Problem
from arbwork.store.tape import as_ns, book_at, coverage, latest, replay, ticks
from arbwork.store.ticks import Ticks
from arbwork.store.worker import Tap, stream

READER = '''
import sys, time
import numpy as np
from arbwork.market import DataError
from arbwork.store.tape import book_at, latest, ticks
seen, books, end = 0, 0, time.monotonic() + 100
while time.monotonic() < end:
    try: frame, board = ticks('bybit', 'LINK-USDT', settings=sys.argv[1]), latest(sys.argv[1])
    except DataError as e:
        if seen: sys.exit(f'after {seen} rows: {e}')
        time.sleep(0.05)
        continue
    if len(frame) < seen: sys.exit(f'found {len(frame)} rows after {seen}')
    if not (np.diff(frame.index.asi8) >= 0).all() or not frame['valid'].all(): sys.exit('out of order or invalid')
    seen = len(frame)
    at = frame.index[-1]
    try: b = book_at('bybit', 'LINK-USDT', at, settings=sys.argv[1])
    except DataError as e:
        if 'recorded from' not in str(e) and 'no whole books' not in str(e): sys.exit(str(e)) # the other table may be a step behind
        continue
    if not b.checked or b.seq != frame['seq'].iloc[-1]: sys.exit(f'{b}, wanted seq {frame["seq"].iloc[-1]}')
    books += 1
    if books == 1: print('ready', flush=True)
    if seen >= 1_500: break
print(seen, books)
'''


def test_a_notebook_reads_beside_a_running_recorder(tmp_path):
    async def run():
        async with Venue(2_500, pause_s=0.002) as venue:
            settings = settings_for(tmp_path, {'bybit': venue.port})
            reader = await asyncio.create_subprocess_exec(sys.executable, '-c', READER, str(settings.path), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
            await collected(settings, venue, seconds=60)
            out, err = await asyncio.wait_for(reader.communicate(), 100)
            return settings, reader.returncode, out.decode(), err.decode()
    settings, code, out, err = asyncio.run(run())
    assert code == 0, err
    assert out.startswith('ready\n') and int(out.split()[1]) >= 1_500 and int(out.split()[2]) >= 1
    frame = ticks('bybit', 'LINK-USDT', settings=settings)
    assert frame['seq'].tolist() == list(range(1, 2_501)) and frame['valid'].all()
    board = latest(settings).iloc[0]
    assert (board['seq'], board['state'], board['rows']) == (2_500, 'valid', 2_500)
    c = coverage(settings=settings)
    assert c.table['trusted'].tolist() == [1.] and not len(c.windows)


@pytest.fixture(scope='module')
def recorded(tmp_path_factory):
    "Two runs: the first one was killed, the second one told to stop; a gap in the first."
    folder = tmp_path_factory.mktemp('tape')
    settings = settings_for(folder, {'kraken': 1})
    journal, store, truth = open_journal(settings.journal), Ticks(settings.ticks), {}
    for begin, n, gap in ((0, 120, 60), (300, 120, None)):
        append_problem(journal, Problem(T0 + begin*S - 1, 'kraken', '', 'restart', 'kraken: recording begins'))
        tap = Tap('kraken', {'LINK-USDT': 0}, journal, None, lambda: T0, pytest.fail)
        for of in FEEDS: append_slots(journal, 'kraken', {'LINK-USDT': 0}, T0, of)
        book = Book('kraken', 'LINK-USDT', lambda seq, u: u.first_seq == seq + 1, 0, 10)
        for i in range(n):
            now, whole = T0 + (begin + i)*S, i == 0 or gap is not None and i == gap + 5
            if gap is not None and gap < i < gap + 5: continue
            levels = [[(27 - k/1000, 5. + i) for k in range(10)], [(27.1 + k/1000, 4.) for k in range(10)]] if whole else [[(27 - i%9/1000, 7. + i)], []]
            u = BookUpdate('LINK-USDT', whole, i + (i == gap), i + (i == gap), -1, now, *levels)
            if book.apply(u) == INVALID: append_problem(journal, Problem(now, 'kraken', 'LINK-USDT', 'gap', book.why))
            tap.row(np.frombuffer(book.packed(0, now), BOOK)[0])
            tap.depth((book, u, now))
            truth[begin + i] = (book.state, book.bids, book.asks)
        tap.drain()
    append_problem(journal, Problem(T0 + 420*S, 'kraken', '', 'stop', 'kraken: recording ends as asked'))
    journal.flush()
    Recorder(journal, store, [*(stream(of, 'kraken') for of in FEEDS), QUALITY]).drain()
    store.close(), journal.close()
    return settings, truth


def test_the_book_of_every_second_or_why_there_is_none(recorded):
    settings, truth = recorded
    at = lambda second: book_at('kraken', 'LINK-USDT', T0 + int(second*S), settings=settings)
    for second, (state, bids, asks) in truth.items():
        if state != VALID or second%4: continue
        b = at(second)
        assert b.checked and [tuple(x) for x in b.bids] == bids and [tuple(x) for x in b.asks] == asks
    for second, says in ((-1, 'whole books are recorded from 2021-08-20T00:00:00.000Z'), (420, 'to 2021-08-20T00:06:59.000Z'), (60, 'gap at seq 59'), (64.9, 'until its next snapshot'),
                         (119.5, 'not recorded from 2021-08-20T00:01:59.000Z to 2021-08-20T00:05:00.000Z'), (299.99, 'the recorder was started again')):
        with pytest.raises(DataError, match=says): at(second)
    assert at(119).seq == 119 and at(65).updates == 0 and at(66.5).updates == 1
    with pytest.raises(DataError, match=r'no whole books of it are recorded, found \[\(.kraken., .LINK-USDT.\)\]'): book_at('okx', 'LINK-USDT', T0, settings=settings)


def test_a_book_that_disagrees_with_its_row_is_an_error(recorded, tmp_path):
    settings, _ = recorded
    store = Ticks(settings.ticks)
    rows = store.rows('kraken', 'LINK-USDT')
    spoiled = rows[10:11].copy()
    spoiled['bid_qty'][0, 0] += 1
    try:
        frame = store.frame('books', 'kraken', 'LINK-USDT', T0 + 10*S, T0 + 11*S)
        store.library.update('ticks/kraken/LINK-USDT', frame.assign(bid_qty_0=frame['bid_qty_0'] + 1))
        with pytest.raises(DataError, match='rebuilt bids differ from the row that was recorded'): book_at('kraken', 'LINK-USDT', T0 + 10*S, settings=settings)
        store.library.update('ticks/kraken/LINK-USDT', frame)
        assert book_at('kraken', 'LINK-USDT', T0 + 10*S, settings=settings).checked
    finally: store.close()


def test_windows_of_a_recording_are_bounded_and_have_their_cause(recorded):
    settings, _ = recorded
    c = coverage(settings=settings)
    second = lambda t: (t.value - T0)/S
    assert [(second(w.start), second(w.end), w.cause) for w in c.windows.itertuples()] == [(60, 65, 'gap'), (119, 300, 'restart')]
    row = c.table.iloc[0]
    assert (row['recorded_h'], row['suspect_s']) == (419/3600, 186.) and math.isclose(row['trusted'], 1 - 186/419)
    assert [(t.name, list(t.y)) for t in c.figure.data] == [('recorded', ['kraken LINK-USDT']), ('gap', ['kraken LINK-USDT']), ('restart', ['kraken LINK-USDT'])]
    assert coverage('2021-08-20T00:00:10', '2021-08-20T00:00:50', settings=settings).table['trusted'].tolist() == [1.]
    with pytest.raises(DataError, match='no books from 2021-08-21'): coverage('2021-08-21', settings=settings)


def test_frames_arrow_and_numpy_say_the_same(recorded):
    settings, _ = recorded
    frame = ticks('kraken', 'LINK-USDT', '2021-08-20T00:00:55', '2021-08-20T00:01:10', settings=settings)
    rows, valid = ticks('kraken', 'LINK-USDT', T0 + 55*S, T0 + 70*S, as_='numpy', settings=settings)
    table = ticks('kraken', 'LINK-USDT', pd.Timestamp('2021-08-20 00:00:55'), pd.Timestamp('2021-08-20 00:01:10', tz='UTC'), as_='arrow', settings=settings)
    assert len(frame) == len(rows) == table.num_rows == 11
    assert frame['valid'].tolist() == valid.tolist() == table['valid'].to_pylist() == [True]*5 + [False] + [True]*5
    assert (frame['bid_px_0'].to_numpy() == rows['bid_px'][:, 0]).all() and table['ts_recv'].to_pandas().dt.tz_convert('UTC').astype('i8').tolist() == rows['ts_recv_ns'].tolist()
    depth = ticks('kraken', 'LINK-USDT', what='depth', settings=settings)
    assert (~depth['valid']).sum() == 1 and depth['mark'][~depth['valid']].iloc[0] & LOST
    for wrong in (dict(as_='polars'), dict(what='candles'), dict(start=1_629_417_600), dict(start=3.5), dict(start='yesterday'), dict(end='2021-08-19')):
        with pytest.raises(Exception, match='wanted|it holds'): ticks('kraken', 'LINK-USDT', **wrong, settings=settings)


def test_quotes_and_trades_that_cannot_be_are_marked(tmp_path):
    settings = settings_for(tmp_path, {'binance': 1})
    journal, store = open_journal(settings.journal), Ticks(settings.ticks)
    heard(journal, 30)
    Recorder(journal, store, [stream(of, 'binance') for of in FEEDS]).drain()
    quotes, trades = store.read('quotes', 'binance', 'LINK-USDT')[:4].copy(), store.read('trades', 'binance', 'LINK-USDT')[:3].copy()
    for rows in (quotes, trades): rows['ts_recv_ns'] += 100*S
    quotes['ask_px'][0], quotes['bid_px'][1], quotes['bid_qty'][2] = quotes['bid_px'][0], np.nan, -1
    trades['px'][0], trades['qty'][1] = 0, np.inf
    trades['id'] += 1
    for name, rows in (('quotes', quotes), ('trades', trades)): store.write(name, 'binance', 'LINK-USDT', rows, 10**9, 'x')
    store.close(), journal.close()
    assert ticks('binance', 'LINK-USDT', what='quotes', settings=settings)['valid'].tolist() == [True]*30 + [False]*3 + [True]
    assert ticks('binance', 'LINK-USDT', what='trades', settings=settings)['valid'].tolist() == [True]*10 + [False]*2 + [True]


def test_a_stretch_is_played_in_order_in_parts_and_at_its_pace(recorded):
    settings, _ = recorded
    want = ticks('kraken', 'LINK-USDT', settings=settings, as_='numpy')[0]
    for part_s in (7., 1_000.):
        events = list(replay(speed=math.inf, part_s=part_s, settings=settings))
        assert [int(e.row['seq']) for e in events] == want['seq'].tolist() and [e.ts_ns for e in events] == want['ts_recv_ns'].tolist()
    async def run():
        began, out = asyncio.get_running_loop().time(), []
        async for e in replay([('kraken', 'LINK-USDT')], '2021-08-20', '2021-08-20T00:00:20', speed=40., what=('books', 'depth'), settings=settings):
            out.append((e.ts_ns, asyncio.get_running_loop().time() - began))
        return out
    played = asyncio.run(run())
    assert len(played) == 20*2 + 21 and all(at >= (ts - T0)/S/40 - 0.002 for ts, at in played)
    for wrong in (dict(speed=0), dict(speed=-1), dict(of=[('okx', 'LINK-USDT')])):
        with pytest.raises(DataError, match='wanted above 0|nothing of'): replay(settings=settings, **wrong)


def test_windows_by_hand():
    ts, good = T0 + np.arange(10)*S, np.full(10, VALID)
    assert windows(ts, good) == [] and windows(ts[:0], good[:0]) == []
    assert windows(ts, np.where(np.arange(10) == 9, 2, 1)) == [], 'the last row alone stood for no time'
    restart = Problem(T0 - S, 'x', '', 'restart', '')
    assert windows(ts, good, [restart]) == [], 'nothing was recorded before the first start'
    twice = [Problem(T0 + 3*S + i, 'x', '', 'restart', '') for i in (1, 2)]
    assert {(w.start_ns, w.end_ns) for w in windows(ts, good, twice)} == {(T0 + 3*S, T0 + 4*S)}
    stopped = [Problem(T0 + 3*S + 1, 'x', '', 'stop', ''), Problem(T0 + 3*S + 2, 'x', '', 'restart', '')]
    w, = windows(ts, good, stopped)
    assert w.cause == 'stop'
    lost = windows(np.append(ts[:5], ts[5:] + 100*S), good, [Problem(T0 + 5*S, 'x', '', 'silent', 'gone')])
    assert [(w.cause, w.start_ns, w.end_ns) for w in lost] == [('silent', T0 + 4*S, T0 + 105*S)]
    first, last = days(T0, T0 + DAY_NS, [Window(T0 + DAY_NS - S, T0 + DAY_NS + S, 'lost'), Window(T0 + 2*S, T0 + 5*S, 'gap'), Window(T0 + 3*S, T0 + 9*S, 'stop')])
    assert (first.recorded_s, first.suspect_s) == (86_394., 2.) and math.isnan(last.trusted)


def test_instants_are_read_exactly():
    assert as_ns(np.datetime64('2021-08-20T00:00:00.123456789')) == T0 + 123_456_789
    assert as_ns(pd.Timestamp('2021-08-20 00:00:00.000001')) == T0 + 1_000 and as_ns(None) is None
    for wrong in (True, 1.5e18, [1], b'2021'):
        with pytest.raises(DataError, match='wanted'): as_ns(wrong)
