"Codecs and books against frames that are broken on purpose; what is recorded is in `test_feed_frames`, ten thousand mutations a venue in `test_feed_mutations`."
import gzip
import random
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arbwork.feed.binance import Binance
from arbwork.feed.book import Book
from arbwork.feed.bybit import Bybit
from arbwork.feed.events import CROSSED, INVALID, LEVELS, VALID, BookUpdate
from arbwork.market import DataError, VenueError

RECORDED = Path(__file__).parents[1]/'data'/'frames'/'binance_spot_btcusdt_20240808.jsonl.gz'


def lines(path):
    with gzip.open(path, 'rb') as f:
        for line in f:
            ts, _, raw = line.rstrip().partition(b' ')
            yield int(ts), raw


def depth_updates(n=200):
    codec = Binance()
    codec.symbol('BTC-USDT')
    snapshot, frames = None, []
    for _, raw in lines(RECORDED):
        if raw.startswith(b'{"last'): snapshot = codec.snapshot_reply('BTC-USDT', 200, raw)
        elif b'@depth' in raw[:60]: frames.append(raw)
    after = [f for f in frames if codec.public(f)[0].last_seq > snapshot.last_seq]
    return codec, snapshot, after[:n]


def replay(codec, snapshot, frames):
    "Books after each frame: (state, seq, top) or the error's name."
    book, out = Book('binance', 'BTC-USDT', codec.follows, codec.cut_at), []
    book.apply(snapshot)
    for raw in frames:
        try: book.apply(codec.public(raw)[0])
        except DataError: book.drop('unreadable')
        out.append((book.state, book.seq, tuple(book.bids[:3]), tuple(book.asks[:3])))
    return book, out


def test_a_book_over_damaged_recordings_is_right_or_says_that_it_is_not():
    codec, snapshot, frames = depth_updates()
    _, truth = replay(codec, snapshot, frames)
    right = {seq: (bids, asks) for state, seq, bids, asks in truth if state == VALID}
    assert len(right) == len(frames)
    for seed in range(18):
        rng = random.Random(seed)
        hurt = list(frames[:120])
        what = rng.choice(['drop', 'twice', 'swap', 'truncate', 'bytes', 'old'])
        i = rng.randrange(10, 100)
        if what == 'drop': del hurt[i]
        if what == 'twice': hurt.insert(i, hurt[i])
        if what == 'swap': hurt[i], hurt[i + 1] = hurt[i + 1], hurt[i]
        if what == 'truncate': hurt[i] = hurt[i][:rng.randrange(1, len(hurt[i]))]
        if what == 'old': hurt.insert(i, hurt[i - 9])
        if what == 'bytes':
            j = hurt[i].index(b'"b":')
            hurt[i] = hurt[i][:j] + hurt[i][j:].replace(b'.', rng.choice([b'x', b',', b'']), 1)
        book, out = replay(codec, snapshot, hurt)
        for state, seq, bids, asks in out:
            if state == VALID and what != 'bytes': assert right[seq] == (bids, asks), (seed, what)
        if what in ('drop', 'truncate', 'swap'): assert book.state == INVALID
        if what in ('twice', 'old'): assert (book.state, book.duplicates) == (VALID, 1)


def bybit_frame(kind, u, b, a, cts=0):
    return msgspec.json.encode(dict(topic='orderbook.50.LINKUSDT', type=kind, ts=1_629_417_600_000 + cts, cts=1_629_417_600_000 + cts,
                                    data=dict(s='LINKUSDT', b=b, a=a, u=u, seq=u)))


BROKEN = [b'', b'null', b'[]', b'{}', b'1', b'"x"', b'{"stream":"linkusdt@depth@100ms"}', b'{"stream":"linkusdt@depth@100ms","data":{}}',
          b'{"stream":"linkusdt@bookTicker","data":{"u":1}}', b'{"topic":"orderbook.50.LINKUSDT","type":"delta"}', b'\xff\xfe\x00', b'{"topic":',
          b'{"topic":"publicTrade.LINKUSDT","ts":1,"data":[{"T":1,"s":"LINKUSDT","S":"Up","v":"1","p":"2","i":"x"}]}',
          b'{"stream":"linkusdt@depth@100ms","data":{"e":"depthUpdate","E":1,"s":"LINKUSDT","U":1,"u":2,"b":[["1"]],"a":[]}}',
          b'{"stream":"linkusdt@depth@100ms","data":{"e":"depthUpdate","E":1,"s":"LINKUSDT","U":1,"u":2,"b":[["1",null]],"a":[]}}']


@pytest.mark.parametrize('codec', [Binance(), Bybit()], ids=lambda c: c.venue)
@pytest.mark.parametrize('raw', BROKEN, ids=range(len(BROKEN)))
def test_what_is_no_frame_is_a_data_error_that_names_venue_and_bytes(codec, raw):
    for read in (codec.public,) if b'"topic"' in raw else (codec.public, codec.private):
        with pytest.raises(DataError, match=codec.venue): read(raw)


@pytest.mark.parametrize('codec', [Binance(), Bybit()], ids=lambda c: c.venue)
@given(raw=st.binary(max_size=200) | st.text(max_size=80).map(lambda s: f'{{"topic":"{s}","stream":"{s}"}}'.encode()))
@settings(max_examples=150, deadline=None)
def test_no_bytes_at_all_bring_a_codec_down(codec, raw):
    for read in (codec.public, codec.private):
        try: assert isinstance(read(raw), list)
        except DataError: pass


@pytest.mark.parametrize('px, qty', [('NaN', '1'), ('inf', '1'), ('0', '1'), ('-26.8', '1'), ('26.8', 'NaN'), ('26.8', '-1'), ('26.8', 'Infinity')])
def test_numbers_that_are_none_never_enter_a_book(px, qty):
    codec = Bybit()
    codec.symbol('LINK-USDT')
    book = Book('bybit', 'LINK-USDT', codec.follows)
    book.apply(codec.public(bybit_frame('snapshot', 5, [['26.8', '1']], [['26.9', '1']]))[0])
    for kind, u in (('delta', 6), ('snapshot', 9)):
        with pytest.raises(DataError, match='bybit LINK-USDT: found level'): book.apply(codec.public(bybit_frame(kind, u, [[px, qty]], [], u))[0])
        assert book.state == INVALID and 'found level' in book.why


@given(st.lists(st.tuples(st.integers(90, 110), st.integers(0, 3), st.booleans()), max_size=80), st.lists(st.sampled_from(['ok', 'twice', 'drop', 'late']), max_size=30))
@settings(max_examples=150, deadline=None)
def test_a_valid_book_is_the_book_of_the_frames_it_counts(changes, faults):
    "Against a plain dictionary, whatever is lost, repeated or late."
    codec = Bybit()
    codec.symbol('LINK-USDT')
    book, truth = Book('bybit', 'LINK-USDT', codec.follows), {1: ({80: 1}, {120: 1})}
    updates = [BookUpdate('LINK-USDT', True, 1, 1, -1, 10**15, [(80., 1.)], [(120., 1.)])]
    for n, (px, qty, bid) in enumerate(changes, 2):
        sides = tuple(dict(x) for x in truth[n - 1])
        sides[0 if bid else 1].pop(px, None)
        if qty: sides[0 if bid else 1][px] = qty
        truth[n] = sides
        level = [(float(px), float(qty))]
        updates.append(BookUpdate('LINK-USDT', False, n, n, -1, 10**15 + n*10**6, level if bid else [], [] if bid else level))
    sent = []
    for i, u in enumerate(updates):
        fault = faults[i] if i < len(faults) else 'ok'
        if fault == 'drop': continue
        if fault == 'late' and sent: sent.insert(len(sent) - 1, u)
        else: sent += [u, u] if fault == 'twice' else [u]
    for u in sent:
        state = book.apply(u)
        if state in (VALID, CROSSED):
            bids, asks = truth[book.seq]
            assert dict(book.bids) == bids and dict(book.asks) == asks
            assert (state == CROSSED) == bool(bids and asks and max(bids) >= min(asks))
            assert book.bids == sorted(book.bids, reverse=True) and book.asks == sorted(book.asks)


def test_a_book_that_walks_out_of_a_cut_snapshot_says_so():
    codec = Binance()
    book = Book('binance', 'LINK-USDT', codec.follows, cut_at=20)
    levels = [[(26 - i/100, 1.) for i in range(20)], [(26.01 + i/100, 1.) for i in range(20)]]
    assert book.apply(BookUpdate('LINK-USDT', True, 7, 7, -1, 0, *levels)) == VALID
    for n, (px, _) in enumerate(levels[0][:20 - LEVELS], 8):
        assert book.apply(BookUpdate('LINK-USDT', False, n, n, -1, n, [(px, 0.), (20., 5.)], [])) == VALID
    assert 20. not in dict(book.bids), 'a level beyond the snapshot is not known in full'
    assert book.apply(BookUpdate('LINK-USDT', False, n + 1, n + 1, -1, n + 1, [(levels[0][10][0], 0.)], [])) == INVALID
    assert 'walked out of the snapshot' in book.why


@pytest.mark.parametrize('codec, status, body, code', [
    (Binance(), 400, b'{"code":-1121,"msg":"Invalid symbol."}', 'other'),
    (Binance(), 400, b'{"code":-1021,"msg":"Timestamp for this request is outside of the recvWindow."}', 'clock'),
    (Binance(), 401, b'{"code":-2015,"msg":"Invalid API-key, IP, or permissions for action."}', 'permission'),
    (Binance(), 429, b'{"code":-1003,"msg":"Too much request weight used"}', 'rate'),
    (Binance(), 418, b'{"code":-1003,"msg":"Way too much; IP banned until 1629417600000"}', 'banned'),
    (Binance(), 503, b'<html>Service Unavailable</html>', 'unknown_outcome'),
    (Bybit(), 200, b'{"retCode":10002,"retMsg":"invalid request, please check your server timestamp"}', 'clock'),
    (Bybit(), 200, b'{"retCode":10006,"retMsg":"Too many visits!"}', 'rate'),
    (Bybit(), 403, b'<html>', 'rate'),
    (Bybit(), 502, b'<html>', 'unknown_outcome'),
])
def test_an_error_reply_is_a_venue_error_with_our_code(codec, status, body, code):
    with pytest.raises(VenueError, match=codec.venue) as e: codec.balances_reply(status, body)
    assert e.value.code == code
