"""Recordings that others made: each fault by its name, the same file once, a kill anywhere, and frames heard as the feed would have."""

import asyncio
import gzip
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from arbwork.cli import main
from arbwork.clock import NS
from arbwork.feed.binance import Binance
from arbwork.feed.events import BOOK, CROSSED, INVALID, VALID
from arbwork.feed.wire import Addresses, MarketFeed
from arbwork.market import ConfigError, DataError
from arbwork.sim.scenarios import BOOKS, read_books
from arbwork.store import importing
from arbwork.store.bars import BAR
from arbwork.store.examine import FINDINGS, KINDS, UNITS, About, Examination, examine, instrument_in, to_ns, unit_of
from arbwork.store.importing import Reading, import_files
from arbwork.store.ticks import Ticks

NOW = 1_795_000_000*NS
T0 = 1_629_417_600*NS
REAL = Path(__file__).resolve().parents[2]/'shared/data/real'
LINK = BOOKS/'link-usdt_binance_l10_1s_20210820.csv.gz'
recorded = pytest.mark.skipif(not REAL.exists(), reason='the larger recordings are not here')


@pytest.fixture
def ticks(tmp_path):
    store = Ticks(f'lmdb://{tmp_path}/ticks', map_size='512MB')
    yield store
    store.close()


def one(ticks, path, reading=Reading(), accept=()):
    return import_files(ticks, [Path(path)], reading, NOW, accept)[0]


def names(report): return [f.name for s in report.series for f in s.findings]


def books(ticks, venue='binance', instrument='LINK-USDT'): return ticks.rows(venue, instrument)


# the same content once


def test_recorded_books_arrive_as_they_are_and_once(ticks, tmp_path):
    report = one(ticks, LINK)
    found, expected = books(ticks), read_books(LINK, 0)
    assert (report.status, report.rows, report.series[0].suspect_share) == ('imported', 7_200, 0)
    assert (found['ts_recv_ns'] == expected['ts_recv_ns']).all() and (found['ts_venue_ns'] == 0).all() and (found['state'] == VALID).all()
    for name in ('bid_px', 'bid_qty', 'ask_px', 'ask_qty'): assert np.allclose(found[name], expected[name], rtol=0, atol=1e-8), name
    before = ticks.library.read('ticks/binance/LINK-USDT').version
    plain = tmp_path/LINK.stem
    plain.write_bytes(gzip.decompress(LINK.read_bytes()))
    moved = tmp_path/'link-usdt_binance_again.csv.gz'
    moved.write_bytes(gzip.compress(plain.read_bytes(), 1))
    assert [one(ticks, p).status for p in (LINK, plain, moved)] == ['there already']*3
    assert ticks.library.read('ticks/binance/LINK-USDT').version == before and len(ticks.imports()) == 1


def test_a_longer_recording_of_the_same_adds_what_is_new(ticks, tmp_path):
    lines = gzip.decompress(LINK.read_bytes()).splitlines(True)
    part, rest = tmp_path/'link-usdt_binance_a.csv', tmp_path/'link-usdt_binance_b.csv'
    part.write_bytes(b''.join(lines[:1] + lines[2_000:4_001]))
    rest.write_bytes(b''.join(lines[:1] + lines[1_000:3_001]))
    one(ticks, part)
    series = one(ticks, rest).series[0]
    assert (series.rows, series.written, series.there, series.differing) == (2_001, 1_000, 1_001, 0)
    assert one(ticks, LINK).series[0].there == 3_001
    found = books(ticks)
    assert len(found) == 7_200 and (np.diff(found['ts_recv_ns']) == NS).all()


IMPORT = '''
import sys
from pathlib import Path
from arbwork.store import importing
from arbwork.store.ticks import Ticks
importing.PART = 150
ticks = Ticks(sys.argv[1], map_size='512MB')
keep = importing._keep_part
def slowly(*args):
    keep(*args)
    print('part', flush=True)
importing._keep_part = slowly
print([r.status for r in importing.import_files(ticks, [Path(x) for x in sys.argv[2:]], importing.Reading(), 1_795_000_000*10**9)], flush=True)
ticks.close()
'''


def frames_file(folder, name, n=900, first=1, snapshot=True, lost=()):
    "A capture of Binance: a snapshot, then differences a tenth of a second apart, now and then a trade."
    rng, at, lines = random.Random(3), T0 + first*NS//10, []
    levels = dict(bids=[[f'{27.10 - i/100:.2f}', '40'] for i in range(50)], asks=[[f'{27.11 + i/100:.2f}', '25'] for i in range(50)])
    if snapshot: lines += [(at - 2, depth(first - 1, first - 1, '27.10', '7')), (at - 1, dict(lastUpdateId=first - 1, **levels))]
    for u in range(first, first + n):
        px, qty = f'{27.10 - rng.randrange(40)/100:.2f}', f'{rng.randrange(1, 90)}'
        if u not in lost: lines.append((T0 + u*NS//10, depth(u, u, px, qty)))
        if u % 5 == 0: lines.append((T0 + u*NS//10 + 1, {'stream': 'linkusdt@trade', 'data': {'e': 'trade', 'E': 1, 's': 'LINKUSDT', 't': u, 'p': '27.11', 'q': '3', 'T': (T0 + u*NS//10)//10**6, 'm': False}}))
    path = folder/name
    path.write_text(''.join(f'{t} {json.dumps(x)}\n' for t, x in lines))
    return path


def depth(first, last, px, qty, **more):
    return {'stream': 'linkusdt@depth@100ms', 'data': {'e': 'depthUpdate', 'E': (T0 + last*NS//10)//10**6, 's': 'LINKUSDT', 'U': first, 'u': last, 'b': [[px, qty]], 'a': [], **more}}


def test_a_killed_import_goes_on_and_doubles_nothing(tmp_path):
    csv = tmp_path/'link-usdt_binance.csv'
    csv.write_bytes(b''.join(gzip.decompress(LINK.read_bytes()).splitlines(True)[:3_001]))
    files = [csv, frames_file(tmp_path, 'okay_binance.jsonl', 1_500)]
    files[1] = shutil.move(files[1], tmp_path/'binance_spot.jsonl')
    rng, url = random.Random(5), f'lmdb://{tmp_path}/killed'
    for _ in range(3):
        child = subprocess.Popen([sys.executable, '-c', IMPORT, url, *map(str, files)], stdout=subprocess.PIPE, text=True)
        for _ in range(rng.randrange(1, 14)):
            if 'imported' in child.stdout.readline(): break
        time.sleep(rng.random()*0.02)
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
        child.stdout.close()
    killed, whole = Ticks(url, map_size='512MB'), Ticks(f'lmdb://{tmp_path}/whole', map_size='512MB')
    for store in (killed, whole): assert all(r.status != 'refused' for r in import_files(store, [Path(f) for f in files], Reading(), NOW))
    for symbol in ('ticks/binance/LINK-USDT', 'trades/binance/LINK-USDT'):
        a, b = (s.library.read(symbol).data for s in (killed, whole))
        pd.testing.assert_frame_equal(a, b, check_freq=False)
    assert len(whole.library.read('ticks/binance/LINK-USDT').data) > 4_400
    for s in (killed, whole): s.close()


# frames, as the feed would have heard them


class Wire:
    "A socket and a REST interface out of a recording, for `MarketFeed`."
    def __init__(self, lines):
        self.lines, self.now, self.asked, self.replied, self.over = iter(lines), T0, asyncio.Event(), asyncio.Queue(), asyncio.Event()
        self.first = True

    def __call__(self, *args, **kwargs): return self
    async def __aenter__(self): return self
    async def __aexit__(self, *_): return None
    async def send(self, raw, text=True): return None
    def now_ns(self): return self.now

    async def http(self, request):
        self.asked.set()
        return 200, await self.replied.get()

    async def recv(self, decode=False):
        if self.first:
            self.first = False
            return b'{"result":null,"id":1}'
        for t, raw in self.lines:
            if not raw.startswith(b'{"lastUpdateId"'):
                self.now = t
                return raw
            await self.asked.wait()
            self.now = t
            self.replied.put_nowait(raw)
            for _ in range(20): await asyncio.sleep(0)
        self.over.set()
        await asyncio.Event().wait()


def heard_live(path, instrument):
    "What `MarketFeed` makes of the frames of a file."
    with (gzip.open if path.suffix == '.gz' else open)(path, 'rb') as f: lines = [(int(t), raw) for t, _, raw in (x.rstrip().partition(b' ') for x in f)]
    rows = []
    async def run():
        wire = Wire(lines)
        feed = MarketFeed(Binance(None, None), Addresses.local(1), {instrument: 0}, wire, rows.append, connect=wire, http=wire.http, silence_s=1e4, resync_s=1e4)
        task = asyncio.create_task(feed.run())
        await asyncio.wait([asyncio.ensure_future(wire.over.wait()), task], return_when=asyncio.FIRST_COMPLETED)
        assert wire.over.is_set(), task
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    asyncio.run(run())
    return np.array(rows, BOOK)


@pytest.mark.parametrize('lost', [(), (300,)])
def test_frames_make_the_rows_that_the_feed_makes(ticks, tmp_path, lost):
    path = frames_file(tmp_path, 'binance.jsonl', 900, lost=lost)
    report = one(ticks, path)
    live = heard_live(path, 'LINK-USDT')
    assert books(ticks).tobytes() == live.tobytes() and len(live) == (301 if lost else 901)
    assert (live['state'] == INVALID).sum() == len(lost) and ('invalid' in names(report)) == bool(lost)
    if lost:
        said = ticks.quality('binance')
        assert 'invalid' in set(said['kind']) and 0.6 < next(s for s in report.series if s.kind == 'books').suspect_share < 0.7
    trades = ticks.library.read('trades/binance/LINK-USDT').data
    assert len(trades) == 180 and (trades['side'] == 1).all()


@recorded
def test_recorded_frames_make_the_rows_that_the_feed_makes(ticks, tmp_path):
    path = tmp_path/'binance_spot_btcusdt.jsonl'
    with gzip.open(REAL/'raw_frames/binance_10min_btc/binance_spot_btcusdt_20240808.jsonl.gz', 'rb') as f: path.write_bytes(b''.join(next(f) for _ in range(6_000)))
    report = one(ticks, path)
    found, live = books(ticks, instrument='BTC-USDT'), heard_live(path, 'BTC-USDT')
    assert found.tobytes() == live.tobytes() and len(found) > 400 and (found['state'] == VALID).all()
    behind = [f for s in report.series for f in s.findings if f.name == 'clock']
    assert behind and all('1.27' in f.found and 'the recorder was behind' in f.found for f in behind)
    assert 'clock' in set(ticks.quality('binance')['kind'])
    assert {s.kind for s in report.series} == {'books', 'quotes', 'trades'} and ticks.listing('binance', 'BTC-USDT').tick.as_tuple().exponent == -2


def test_a_capture_in_two_files_is_heard_as_one(ticks, tmp_path):
    whole = frames_file(tmp_path, 'binance_whole.jsonl', 600)
    lines = whole.read_text().splitlines(True)
    a, b = tmp_path/'binance_a.jsonl', tmp_path/'binance_b.jsonl'
    a.write_text(''.join(lines[:300]))
    b.write_text(''.join(lines[300:]))
    alone = one(ticks, b)
    assert 'import it together with the file before it' in str(alone.findings[0]) and {s.kind for s in alone.series} == {'trades'}
    first, second = import_files(ticks, [a, b], Reading(), NOW)
    assert second.id != alone.id and next(s for s in second.series if s.kind == 'trades').there == next(s for s in second.series if s.kind == 'trades').rows
    assert books(ticks).tobytes() == heard_live(whole, 'LINK-USDT').tobytes()
    again = import_files(ticks, [a, b], Reading(), NOW)
    assert [r.status for r in again] == ['there already']*2


@recorded
@pytest.mark.parametrize('file, why', [
    ('binance_10min_btc/binance_usdm_btcusdt_20240808.jsonl.gz', "Binance's futures"), ('binance_10min_btc/binance_cm_btcusd_perp_20240809.jsonl.gz', "Binance's futures"),
    ('cryptofeed/KRAKEN.ws.50.0.txt.gz', "version 1 of Kraken's socket"), ('cryptofeed/BYBIT.ws.25.0.txt.gz', 'before version 5'),
    ('cryptofeed/BITFINEX.ws.11.0.txt.gz', 'no codec for them'), ('cryptofeed/HUOBI.ws.44.0.txt.gz', 'no codec for them')])
def test_frames_of_another_interface_are_refused_with_the_reason(ticks, tmp_path, file, why):
    short = tmp_path/Path(file).name.removesuffix('.gz')
    with gzip.open(REAL/'raw_frames'/file, 'rb') as f: short.write_bytes(b''.join(line for _, line in zip(range(300), f)))
    report = one(ticks, short)
    assert report.status == 'refused' and why in report.why and not ticks.library.list_symbols()


@recorded
def test_captures_with_their_replies_and_what_still_decodes(ticks):
    folder = REAL/'raw_frames/cryptofeed'
    found = {Path(r.path).name: r for r in import_files(ticks, sorted([*folder.glob('BINANCE*'), *folder.glob('OKX*')]), Reading(), NOW)}
    assert found['BINANCE.http.0.0.txt.gz'].status == found['OKX.0.txt.gz'].status == 'read beside'
    binance, okx = found['BINANCE.ws.1.0.txt.gz'], found['OKX.ws.1.0.txt.gz']
    assert {s.instrument for s in binance.series if s.kind == 'books'} == {'NKN-USDT', 'BLZ-ETH', 'LRC-BTC', 'RUNE-EUR'} and not binance.findings
    rows = books(ticks, instrument='NKN-USDT')
    assert (rows['state'] == VALID).all() and rows['seq'][0] == 499869752 and len(rows) == 150 # joined with the snapshot of the other file
    assert [(s.kind, s.instrument, s.rows) for s in okx.series] == [('trades', 'BTC-USDT', 69)]
    assert 'seqId' in okx.findings[0].found and any('not of a spot market' in f.found for f in okx.findings)


# what can be wrong, each by its name


def link_csv(folder, change, n=400, name='link-usdt_binance.csv'):
    "Some recorded books, spoilt."
    table = pd.read_csv(LINK, nrows=n)
    table = change(table) if change(table.copy()) is not None else table
    table.to_csv(folder/name, index=False)
    return folder/name


def put(table, column, at, value):
    if isinstance(value, str): table[column] = table[column].astype(object)
    table.loc[at, column] = value
    return table


def stamps(table, unit, name='timestamp'):
    table['timestamp'] = pd.to_datetime(table['timestamp']).astype('datetime64[ns]').astype('i8')//UNITS[unit]
    return table.rename(columns={'timestamp': name})


SPOILT = {
    'a hole': (lambda t: t.drop(index=range(100, 140)), 'holes', 'mark', 'the longest 41.0 s'),
    'milliseconds for nanoseconds': (lambda t: stamps(t, 'ms', 'ts_ns'), 'units', 'refuse', 'which is a time in ms'),
    'seconds for milliseconds': (lambda t: stamps(t, 's', 'ts_ms'), 'units', 'refuse', '1,629,417,600, which is a time in s, wanted a time in ms'),
    'rows in no order': (lambda t: t.sample(frac=1, random_state=1), 'unsorted', 'refuse', 'wanted rows by time'),
    'a clock set back': (lambda t: put(t, 'timestamp', [200, 201], ['2021-08-20 00:03:10', '2021-08-20 00:03:11']), 'backwards', 'mark', 'by 9.000 s at most'),
    'a price of zero': (lambda t: put(t, 'b1', 57, 0), 'prices', 'drop', 'at line 59'),
    'a negative price': (lambda t: put(t, 'a3', 57, -27.1), 'prices', 'drop', 'at line 59'),
    'a price that is missing': (lambda t: put(t, 'a1', 12, np.nan), 'prices', 'drop', 'at line 14'),
    'a price that is no number': (lambda t: put(t, 'b2', 7, 'n/a'), 'prices', 'drop', 'at line 9'),
    'zeros everywhere': (lambda t: put(t, 'b1', range(0, 400, 3), 0), 'prices', 'refuse', '134 of 400 rows'),
    'a crossed book': (lambda t: put(t, 'b1', 33, 28.), 'crossed', 'mark', 'at line 35'),
    'the same book all the time': (lambda t: t.assign(**{c: t[c].iloc[0] for c in t.columns[2:]}), 'constant', 'refuse', '400 rows that all say the same'),
    'a book that stands still': (lambda t: t.assign(**{c: np.where((t.index > 100) & (t.index < 200), t[c].iloc[100], t[c]) for c in t.columns[2:]}), 'stale', 'mark', 'up to 98 s'),
    'rows that come twice': (lambda t: pd.concat([t.iloc[:50], t.iloc[49:]]), 'duplicates', 'drop', 'at line 52'),
    "another venue's name": (lambda t: t.assign(symbol='LINKUSDT.HB'), 'label', 'refuse', 'the name of huobi'),
    'another currency': (lambda t: t.assign(symbol='LINKUSDC.BNC'), 'currency', 'refuse', 'found LINK-USDC, wanted LINK-USDT'),
}


@pytest.mark.parametrize('what', SPOILT)
def test_a_spoilt_book_is_found_by_name_and_refused_or_marked(ticks, tmp_path, what):
    change, name, severity, says = SPOILT[what]
    report = one(ticks, link_csv(tmp_path, change), Reading(venue='binance', instrument='LINK-USDT'))
    if severity == 'refuse':
        assert report.status == 'refused' and f'{name}' in report.why and says in report.why and report.why.startswith('link-usdt_binance.csv')
        assert not ticks.symbols() and not ticks.imports()
        return
    finding = next(f for s in report.series for f in s.findings if f.name == name)
    assert (report.status, finding.severity) == ('imported', severity) and says in str(finding)
    said = ticks.quality('binance')
    assert name in set(said['kind']) and said['detail'].str.contains('link-usdt_binance.csv').all()
    rows = books(ticks)
    assert len(rows) == report.rows - report.series[0].left_out and (rows['bid_px'][:, 0] > 0).all()
    assert (rows['state'] == CROSSED).sum() == (name == 'crossed')
    assert (report.series[0].suspect_share > 0) == (name in ('holes', 'stale', 'backwards'))


def test_what_is_accepted_by_name_is_kept_and_marked(ticks, tmp_path):
    path, reading = link_csv(tmp_path, SPOILT['rows in no order'][0]), Reading(venue='binance', instrument='LINK-USDT')
    assert one(ticks, path, reading).status == 'refused'
    report = one(ticks, path, reading, ('unsorted',))
    rows = books(ticks)
    assert report.status == 'imported' and len(rows) == 400 and (np.diff(rows['ts_recv_ns']) == NS).all() and 'unsorted' in set(ticks.quality('binance')['kind'])
    newest_first = link_csv(tmp_path, lambda t: t.iloc[::-1], name='link-usdt_kucoin.csv')
    report = one(ticks, newest_first, Reading(venue='kucoin'), ('alias', 'label'))
    assert report.status == 'imported' and (books(ticks, 'kucoin')['ts_recv_ns'] == rows['ts_recv_ns']).all()
    with pytest.raises(ConfigError, match='--accept: found .sins., wanted one of units'): one(ticks, path, reading, ('sins',))


def bars(n=600, seed=1):
    rng, rows = np.random.default_rng(seed), np.zeros(n, BAR)
    rows['ts_ns'], rows['volume'], rows['trades'] = 1_677_628_800*NS + np.arange(n)*60*NS, rng.lognormal(0, 1, n), 3
    rows['close'] = 23_000*np.exp(np.cumsum(rng.standard_normal(n)*1e-4))
    rows['open'], rows['high'], rows['low'] = rows['close']*0.9999, rows['close']*1.0002, rows['close']*0.9998
    return rows


def bars_csv(folder, rows, name='kraken_btc-usd.csv', unit='ms', **columns):
    table = pd.DataFrame({k: rows[k] for k in BAR.names if k != 'ts_ns'} | columns)
    table.insert(0, 'timestamp', rows['ts_ns']//UNITS[unit])
    table.to_csv(folder/name, index=False)
    return folder/name


SPOILT_BARS = {
    'a hole': (lambda r: np.delete(r, slice(100, 130)), {}, 'holes', 'mark', '30 missing bars'),
    'minutes without a trade left out': (lambda r: np.delete(r, [100, 205, 318]), {}, 'holes', 'note', '3 missing bars'),
    'minutes without a trade': (lambda r: _set(r, 'volume', slice(100, 160), 0), {}, 'stale', 'mark', '60 of 600 bars (10 %) without a trade, up to 60'),
    'a close above the high': (lambda r: _set(r, 'close', 5, 30_000), {}, 'prices', 'drop', 'at line 7'),
    'a price of zero': (lambda r: _set(r, 'low', 5, 0), {}, 'prices', 'drop', 'at line 7'),
    'two bars of a minute': (lambda r: _set(r, 'ts_ns', 6, r['ts_ns'][5]), {}, 'conflict', 'drop', 'at line 8'),
    'bars too near': (lambda r: _set(r, 'ts_ns', slice(None), r['ts_ns'][0] + np.arange(600)*60*10**6), {}, 'spacing', 'refuse', 'bars 0.06 s apart'),
    'bars of an hour': (lambda r: _set(r, 'ts_ns', slice(None), r['ts_ns'][0] + np.arange(600)*3_600*NS), dict(timeframe='1m'), 'spacing', 'refuse', 'bars 3600 s apart, wanted 1m'),
    'times that are none': (lambda r: _set(r, 'ts_ns', slice(None), 20_230_301*10**6 + np.arange(600)*10**6), {}, 'units', 'refuse', 'wanted times between 2009 and now'),
    'one time far off': (lambda r: _set(r, 'ts_ns', 50, 5*NS), {}, 'units', 'refuse', 'at line 52'),
}


def _set(rows, name, at, value):
    rows = rows.copy()
    rows[name][at] = value
    return rows


@pytest.mark.parametrize('what', SPOILT_BARS)
def test_spoilt_bars_are_found_by_name(ticks, tmp_path, what):
    change, reading, name, severity, says = SPOILT_BARS[what]
    report = one(ticks, bars_csv(tmp_path, change(bars())), Reading(**reading))
    if severity == 'refuse':
        assert report.status == 'refused' and says in report.why and not ticks.bar_series()
        return
    finding = next(f for f in report.series[0].findings if f.name == name)
    assert finding.severity == severity and says in str(finding) and ticks.bar_series() == [('kraken', 'BTC-USD', '1m')]
    assert (name in set(ticks.quality('kraken')['kind'])) == (severity != 'note')
    assert len(ticks.bars('kraken', 'BTC-USD')) == report.rows - report.series[0].left_out


def test_a_copy_under_another_name_is_an_alias(ticks, tmp_path):
    assert one(ticks, bars_csv(tmp_path, bars())).status == 'imported'
    report = one(ticks, bars_csv(tmp_path, bars(), 'coinbase_btc-usd.csv'))
    assert report.status == 'refused' and 'alias at kraken BTC-USD 1m: found 599 of 599 common rows' in report.why
    later = _set(bars(), 'close', slice(0, 300), bars()['close'][:300]*1.00001) # half of it is somebody else's
    assert one(ticks, bars_csv(tmp_path, later, 'coinbase_btc-usd.csv')).status == 'imported'
    fresh = one(ticks, bars_csv(tmp_path, bars(seed=2), 'bitstamp_btc-usd.csv'))
    assert fresh.status == 'imported' and not names(fresh)


@recorded
def test_real_bars_of_three_venues(ticks):
    "Three layouts, one of them a venue that others call by another name and that publishes bars without a trade."
    folder = REAL/'bars_1m'
    found = {Path(r.path).name.partition('_1m')[0]: r for r in import_files(ticks, sorted(folder.glob('*btc-usd*')), Reading(), NOW)}
    assert {k: (r.status, r.rows) for k, r in found.items()} == {
        'binanceus_btc-usdc': ('imported', 30_240), 'binanceus_btc-usdt': ('imported', 30_240), 'coinbase_btc-usd': ('imported', 29_950),
        'coinbase_btc-usdt': ('imported', 24_478), 'kraken_btc-usd': ('imported', 30_179), 'kraken_btc-usdc': ('imported', 15_719), 'kraken_btc-usdt': ('imported', 20_442)}
    stale = next(f for f in found['binanceus_btc-usdc'].series[0].findings if f.name == 'stale')
    assert '12,971 of 30,240 bars (42.9 %)' in stale.found and len(stale.windows) == 181
    us = ticks.bars('binanceus', 'BTC-USDC')
    assert 0.42 < (~us['traded']).mean() < 0.44 and len(ticks.bars('kraken', 'BTC-USDC')) == 15_719
    hole = next(f for f in found['coinbase_btc-usd'].series[0].findings if f.name == 'holes')
    assert len(hole.windows) == 1 and hole.severity == 'mark'
    name = next(folder.glob('binanceus_btc-usdt*'))
    called = one(ticks, name, Reading(venue='binance'))
    assert called.status == 'refused' and 'found the name of binanceus, wanted binance' in called.why and 'alias at binanceus BTC-USDT 1m' in called.why
    mixed = one(ticks, name, Reading(instrument='BTC-USD'))
    assert mixed.status == 'refused' and 'currency' in mixed.why and 'found BTC-USDT, wanted BTC-USD' in mixed.why


# other layouts


def test_quotes_and_trades_in_other_peoples_layouts(ticks, tmp_path):
    n = 300
    at, rng = T0//1_000 + np.arange(n)*250_000, np.random.default_rng(2)
    px = 27 + np.cumsum(rng.standard_normal(n))*0.001
    quotes = pd.DataFrame(dict(exchange='x', symbol='LINKUSDT', timestamp=at, local_timestamp=at + 7_000, ask_amount=5., ask_price=px + 0.001, bid_price=px, bid_amount=3.))
    trades = pd.DataFrame(dict(Zeit=(at//1_000), Preis=px, Menge=1.5, Seite=np.where(rng.random(n) > 0.5, 'BUY', 'sell'), id=np.arange(n) + 10**12))
    quotes.to_csv(tmp_path/'binance_quotes.csv.gz', index=False)
    trades.to_csv(tmp_path/'handel.csv', sep=';', index=False)
    assert one(ticks, tmp_path/'binance_quotes.csv.gz', Reading(columns={'ts_venue': 'timestamp'})).status == 'imported'
    kept = ticks.library.read('quotes/binance/LINK-USDT').data
    assert (kept.index.asi8 == (at + 7_000)*1_000).all() and (kept['ts_venue_ns'] == at*1_000).all() and (kept['bid_px'] == px).all()
    unsaid = one(ticks, tmp_path/'handel.csv')
    assert unsaid.status == 'refused' and 'say which is which with --map' in unsaid.why and 'Preis' in unsaid.why
    reading = Reading('bybit', 'LINK-USDT', columns=dict(ts='Zeit', px='Preis', qty='Menge', side='Seite'))
    assert one(ticks, tmp_path/'handel.csv', reading).status == 'imported'
    kept = ticks.library.read('trades/bybit/LINK-USDT').data
    assert len(kept) == n and set(kept['side']) == {1, -1} and (kept['id'] == trades['id'].to_numpy()).all()


def test_a_file_with_several_symbols_becomes_several_series(ticks, tmp_path):
    a, b = (pd.DataFrame(dict(time=T0//10**6 + np.arange(100)*1_000, symbol=s, price=p + np.arange(100)*0.01, amount=1., side='buy', id=np.arange(100))) for s, p in (('LINK/USDT', 27), ('BTC/USDC', 47_000)))
    pd.concat([a, b]).sort_values('time', kind='stable').to_csv(tmp_path/'okx_trades.csv', index=False)
    report = one(ticks, tmp_path/'okx_trades.csv')
    assert [(s.instrument, s.written) for s in report.series] == [('LINK-USDT', 100), ('BTC-USDC', 100)]
    mixed = one(ticks, tmp_path/'okx_trades.csv', Reading(instrument='LINK-USDT'))
    assert mixed.status == 'refused' and '2 symbols: LINK/USDT, BTC/USDC' in mixed.why


@pytest.mark.parametrize('name, content, says', [
    ('gone.csv', None, 'not there'), ('empty.csv', b'', 'empty'), ('binance_link-usdt.csv', b'timestamp,b1,bv1,a1,av1\n', 'empty'),
    ('x.csv', b'timestamp,open,high,low,close,volume\n1,2,3,4,5,6\n', 'venue unknown'), ('kraken.csv', b'timestamp,open,high,low,close,volume\n1,2,3,4,5,6\n', 'instrument unknown'),
    ('kraken_btc-usd.csv', b'timestamp,open,high,low,close,volume\n1677628800,1,1,1,1,1\n1677628860,1,1,1,1,1,7,8\n', 'line 3'),
    ('kraken_btc-usd.csv', b'\xff\xfe\x00timestamp\n1', 'kraken_btc-usd.csv'), ('kraken_btc-usd.json', b'{"bids": []}', 'JSON without a time'),
    ('kraken_btc-usd.parquet', b'PAR1' + b'x'*50, 'whole Parquet file'), ('kraken_btc-usd.csv.gz', gzip.compress(b'timestamp,price,amount\n' + b'1677628800,1,1\n'*9_000)[:-300], 'damaged after line'),
    ('binance_link-usdt.jsonl', b'1629417600000000000 {"stream":"linkusdt@depth@100ms","data":{}}\n', 'binance market frame')])
def test_a_file_that_is_none_is_refused_in_one_line(ticks, tmp_path, name, content, says):
    if content is not None: (tmp_path/name).write_bytes(content)
    report = one(ticks, tmp_path/name)
    assert report.status == 'refused' and says in report.why and '\n' not in report.why, report.why
    assert not ticks.library.list_symbols()


def test_a_torn_line_is_told_and_the_rest_is_kept(ticks, tmp_path):
    path = frames_file(tmp_path, 'binance.jsonl', 100)
    path.write_text(path.read_text()[:-40])
    report = one(ticks, path)
    assert report.status == 'imported' and report.findings[0].name == 'frames' and 'market frame' in report.findings[0].found


# looking in parts, and at anything


def test_parts_give_the_same_findings_as_the_whole():
    rows = bars(2_000)
    rows['volume'][500:560], rows['low'][700] = 0, 0
    rows = np.r_[rows[:900], rows[960:1_500], rows[1_499:1_500], rows[1_501:1_502], rows[1_500:1_501], rows[1_502:]]
    about = About('kraken', 'BTC-USD', 'candles', NOW)
    whole = examine(rows, about)
    for size in (7, 100, 555):
        looked = Examination(about)
        for i in range(0, len(rows), size): looked.take(rows[i:i + size])
        assert [(f.name, f.severity, f.count, f.windows) for f in looked.findings()] == [(f.name, f.severity, f.count, f.windows) for f in whole]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_anything_can_be_looked_at(data):
    kind = data.draw(st.sampled_from(list(KINDS)))
    dtype = KINDS[kind]
    raw = data.draw(hnp.arrays('u1', data.draw(st.integers(0, 12))*dtype.itemsize))
    rows = np.frombuffer(raw.tobytes(), dtype)
    looked = Examination(About('binance', 'BTC-USDT', kind, NOW))
    keep = looked.take(rows)
    assert keep.shape == (len(rows),) and all(f.name in FINDINGS and str(f) for f in looked.findings())


@given(st.integers(1_230_940_800*NS, NOW), st.sampled_from(list(UNITS)))
def test_a_unit_gives_itself_away(ts_ns, unit):
    value = ts_ns//UNITS[unit]
    if value*UNITS[unit] >= 1_230_940_800*NS: assert unit_of(value, NOW) == unit
    assert to_ns(np.array([value]), unit)[0] == value*UNITS[unit]


# the command


def settings_file(folder):
    text = '[arbwork]\nvenues = binance\ninstruments = LINK-USDT\nvar = var\njournal = sqlite:///var/j.db\nticks = lmdb://var/ticks?map_size=512MB\nboard = var/board.bin\n'
    text += '[venue:binance]\nrest = http://127.0.0.1:1\npublic_ws = ws://127.0.0.1:1\nprivate_ws = ws://127.0.0.1:1\ntrade_ws = ws://127.0.0.1:1\nmaker_bps = 10\ntaker_bps = 10\n'
    (folder/'settings.ini').write_text(text)
    return str(folder/'settings.ini')


def test_the_command_says_what_became_of_each_file(tmp_path, capsys):
    where = settings_file(tmp_path)
    bad = link_csv(tmp_path, SPOILT['the same book all the time'][0])
    assert main(['import', str(LINK), str(bad), '--settings', where, '--json']) == 3
    said = json.loads(capsys.readouterr().out)
    assert (said['rows'], said['written'], said['refused']) == (7_600, 7_200, 1)
    assert [f['status'] for f in said['files']] == ['imported', 'refused'] and 'constant' in said['files'][1]['why']
    assert main(['import', str(LINK), '--settings', where, '--json']) == 0
    assert json.loads(capsys.readouterr().out)['written'] == 0
    assert main(['import', str(bad), '--settings', where]) == 3
    assert 'refused' in capsys.readouterr().out


@pytest.mark.parametrize('args, says', [
    (['--map', 'ts'], 'wanted MEANING=COLUMN'), (['--map', 'when=timestamp'], 'wanted one of ts'), (['--map', 'ts=nowhere'], 'no such column'), (['--unit', 'min'], '--unit'),
    (['--kind', 'tea'], '--kind'), (['--timeframe', '7m'], 'timeframe'), (['--accept', 'all'], '--accept'), (['--instrument', 'btc/usd'], 'BASE-QUOTE in capitals')])
def test_odd_wishes_are_refused_in_a_line(tmp_path, capsys, args, says):
    assert main(['import', str(LINK), '--settings', settings_file(tmp_path), *args]) in (2, 3)
    text = ''.join(capsys.readouterr())
    assert says in text and 'Traceback' not in text
