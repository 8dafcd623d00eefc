"""Every real frame there is of the venues we speak: decoded, or refused for the reason that is true of it.

Excerpts ship in `data/frames`; the whole recordings lie beside the repository in `../shared`, and without them those tests are skipped.
Binance's are of spot in 2021 and 2024 and of futures, which are refused; OKX's of v5 in 2022, with checksums and without sequence numbers;
Bybit's and Kraken's of 2021, in formats that both venues have left since."""
import bisect
import gzip
import itertools
import re
from collections import Counter
from pathlib import Path

import msgspec
import numpy as np
import pytest

from arbwork.feed.binance import Binance
from arbwork.feed.book import Book
from arbwork.feed.events import BOOK, EMPTY, INVALID, VALID, BookUpdate, Notice, Quote
from arbwork.feed.kraken import book_checksum, written
from arbwork.feed.okx import checksum as okx_checksum
from arbwork.feed.wire import CODECS
from arbwork.market import DataError

HERE = Path(__file__).parents[1]/'data'/'frames'
THERE = Path(__file__).parents[2]/'shared'/'data'/'real'/'raw_frames'
MINUTES, CRYPTOFEED = THERE/'binance_10min_btc', THERE/'cryptofeed'


def there(path):
    return pytest.param(path, id=f'whole-{path.name.partition(".t")[0].partition(".j")[0]}', marks=pytest.mark.skipif(not path.exists(), reason=f'no recording in {path.parent}'))


def here(name): return pytest.param(HERE/name, id=f'excerpt-{name.partition(".t")[0].partition(".j")[0]}')


def lines(path):
    "Receive time and frame, without what the recorder itself had to say."
    mark = b' ' if path.name.endswith('.jsonl.gz') else b': '
    with gzip.open(path, 'rb') as f:
        for line in f:
            ts, _, raw = line.rstrip(b'\n').partition(mark)
            if ts.replace(b'.', b'').isdigit(): yield float(ts), raw


def replies(path):
    "Address and body of what REST answered."
    with gzip.open(path, 'rb') as f:
        for line in f:
            address, _, rest = line.rstrip(b'\n').partition(b' -> ')
            if rest: yield address.decode(), rest.partition(b': ')[2]


FUTURES, OLD_BYBIT = 'which only futures send, wanted a frame of spot', 'which is not asked for here or older than v5, wanted orderbook or publicTrade'
LIST, EVENT = 'found a list, as version 1 has them, wanted an object of version 2', 'as version 1 has them, wanted a channel or a reply of version 2'
BEFORE_V5, SNAPSHOT = 'found a reply that repeats its request, as before v5, wanted one with op', 'wanted a stream or a reply'

COUNTS = [
    (here('binance_spot_btcusdt_20240808.jsonl.gz'), 'binance', dict(BookUpdate=246, Quote=1_931, Trade=422, **{SNAPSHOT: 1})),
    (here('BINANCE.ws.1.0.txt.gz'), 'binance', dict(BookUpdate=177, Quote=84, aggTrade=2, kline=2)),
    (here('BYBIT.ws.26.0.txt.gz'), 'bybit', {OLD_BYBIT: 241, BEFORE_V5: 4}),
    (here('KRAKEN.ws.48.0.txt.gz'), 'kraken', {LIST: 8, EVENT: 41}),
    (here('KRAKEN.ws.49.0.txt.gz'), 'kraken', {LIST: 18, EVENT: 42}),
    (here('KRAKEN.ws.50.0.txt.gz'), 'kraken', {LIST: 339, EVENT: 42}),
    (here('OKX.ws.1.0.txt.gz'), 'okx', dict(BookUpdate=290, Trade=74, tickers=28, subscribe=18)),
    (there(MINUTES/'binance_spot_btcusdt_20240808.jsonl.gz'), 'binance', dict(BookUpdate=3_451, Quote=28_040, Trade=9_757, **{SNAPSHOT: 1})),
    (there(MINUTES/'binance_spot_btcusdt_20240809.jsonl.gz'), 'binance', dict(BookUpdate=3_044, Quote=45_134, Trade=10_147)),
    (there(MINUTES/'binance_usdm_btcusdt_20240808.jsonl.gz'), 'binance', {FUTURES: 93_953, SNAPSHOT: 1}),
    (there(MINUTES/'binance_cm_btcusd_perp_20240808.jsonl.gz'), 'binance', {FUTURES: 48_269, SNAPSHOT: 1}),
    (there(MINUTES/'binance_cm_btcusd_perp_20240809.jsonl.gz'), 'binance', {FUTURES: 50_116}),
    (there(CRYPTOFEED/'BYBIT.ws.25.0.txt.gz'), 'bybit', {OLD_BYBIT: 3_326, BEFORE_V5: 16}),
    (there(CRYPTOFEED/'BYBIT.ws.26.0.txt.gz'), 'bybit', {OLD_BYBIT: 1_094, BEFORE_V5: 4}),
    (there(CRYPTOFEED/'KRAKEN.ws.50.0.txt.gz'), 'kraken', {LIST: 4_279, EVENT: 42}),
]


@pytest.mark.parametrize('path, venue, counts', [pytest.param(p.values[0], venue, counts, id=p.id, marks=p.marks) for p, venue, counts in COUNTS])
def test_every_frame_decodes_or_is_refused_for_the_true_reason(path, venue, counts):
    codec, found = CODECS[venue](), Counter()
    reasons = re.compile('|'.join(re.escape(x) for x in (FUTURES, OLD_BYBIT, LIST, EVENT, BEFORE_V5, SNAPSHOT)))
    for _, raw in lines(path):
        try: events = codec.public(raw)
        except DataError as e:
            assert str(e).startswith(f'{venue} ') and '; found ' in str(e)
            found[reasons.search(str(e))[0]] += 1
        else:
            assert len(events) == 1
            found[events[0].detail if type(events[0]) is Notice else type(events[0]).__name__] += 1
    assert found == counts


SPOT = [here('binance_spot_btcusdt_20240808.jsonl.gz'), there(MINUTES/'binance_spot_btcusdt_20240808.jsonl.gz')]


@pytest.mark.parametrize('path', SPOT)
def test_a_recorded_book_joins_its_snapshot_misses_nothing_and_agrees_with_every_quote(path):
    """One snapshot, on the night of 8 August 2024, then differences only. The sequence has no hole, in both files of it; the best prices are
    those of bookTicker, an independent stream, until the price has walked out of the snapshot's thousand levels, and then the book says so."""
    codec = Binance()
    codec.symbol('BTC-USDT')
    paths = [path, path.with_name(path.name.replace('0808', '0809'))] if path.parent == MINUTES else [path]
    book, whole = (Book('binance', 'BTC-USDT', codec.follows, cut_at) for cut_at in (codec.cut_at, 0))
    waiting, quotes, seqs, seen, compared = [], [], [], -1, 0
    for ts, raw in (x for p in paths for x in lines(p)):
        assert ts >= seen
        seen = ts
        if raw.startswith(b'{"lastUpdateId"'):
            snap = codec.snapshot_reply('BTC-USDT', 200, raw)
            for b in (book, whole):
                assert b.apply(snap) == VALID and len(b.bids) == len(b.asks) == 1_000
                for u in waiting: b.apply(u)
            assert book.early == sum(u.last_seq <= snap.last_seq for u in waiting) > 0
            continue
        [event] = codec.public(raw)
        if type(event) is Quote and (not seqs or event.seq > seqs[-1]): seqs.append(event.seq), quotes.append(event)
        if type(event) is not BookUpdate: continue
        if whole.state == EMPTY: waiting.append(event)
        else: assert whole.apply(event) == VALID, whole.why
        if whole.state == EMPTY or book.apply(event) != VALID: continue
        r = np.frombuffer(book.packed(0, int(ts)), BOOK)[0]
        q = quotes[bisect.bisect_right(seqs, book.seq) - 1]
        assert (r['bid_px'][0], r['bid_qty'][0], r['ask_px'][0], r['ask_qty'][0]) == (q.bid_px, q.bid_qty, q.ask_px, q.ask_qty)
        compared += 1
    assert (whole.gaps, whole.duplicates, book.gaps, book.duplicates) == (0, 0, 0, 0)
    if path.parent == HERE: assert compared == 243 and book.state == VALID
    else: assert compared > 2_400 and book.state == INVALID and 'bids walked out of the snapshot' in book.why


@pytest.mark.parametrize('path, symbols', [(HERE, 2), pytest.param(CRYPTOFEED, 4, marks=pytest.mark.skipif(not CRYPTOFEED.exists(), reason=f'no recordings in {CRYPTOFEED}'))])
def test_snapshots_of_2021_join_their_differences_and_agree_with_every_quote(path, symbols):
    codec, updates, quotes = Binance(), {}, {}
    for _, raw in lines(path/'BINANCE.ws.1.0.txt.gz'):
        for x in codec.public(raw):
            if type(x) in (BookUpdate, Quote): (updates if type(x) is BookUpdate else quotes).setdefault(x.instrument, []).append(x)
    joined = 0
    for address, body in replies(path/'BINANCE.http.0.0.txt.gz'):
        name = codec.instrument(re.search('symbol=([A-Z]+)', address)[1])
        book = Book('binance', name, codec.follows, codec.cut_at)
        book.apply(codec.snapshot_reply(name, 200, body))
        for u in updates.get(name, []):
            assert book.apply(u) == VALID, book.why
            best = [q for q in quotes.get(name, []) if book.joined_seq < q.seq <= book.seq]
            if best: assert (book.bids[0], book.asks[0]) == ((best[-1].bid_px, best[-1].bid_qty), (best[-1].ask_px, best[-1].ask_qty))
        joined += 1
        assert (book.gaps, book.duplicates) == (0, 0)
    assert joined == symbols


@pytest.mark.parametrize('path', [there(MINUTES/f'binance_{x}_20240808.jsonl.gz') for x in ('usdm_btcusdt', 'cm_btcusd_perp')])
def test_a_snapshot_of_futures_is_refused(path):
    body = next(raw for _, raw in lines(path) if raw.startswith(b'{"lastUpdateId"'))
    with pytest.raises(DataError, match=FUTURES): Binance().snapshot_reply('BTC-USDT', 200, body)


def test_every_recorded_checksum_of_okx_verifies():
    codec, books = CODECS['okx'](), {}
    for _, raw in lines(HERE/'OKX.ws.1.0.txt.gz'):
        for u in codec.public(raw):
            if type(u) is not BookUpdate: continue
            book = books.setdefault(u.instrument, Book('okx', u.instrument, lambda prev_seq, u: True))
            assert book.apply(u) == VALID and okx_checksum(book.bids[:25], book.asks[:25]) == u.checksum
    assert sorted(books) == ['BTC-USD-220527', 'BTC-USDT', 'UNI-USD-SWAP'] and len(books['BTC-USDT'].bids) == 400


@pytest.mark.parametrize('path, pairs, checked', [(HERE/'KRAKEN.ws.50.0.txt.gz', 2, 337), pytest.param(CRYPTOFEED/'KRAKEN.ws.50.0.txt.gz', 10, 4_269, marks=pytest.mark.skipif(
    not CRYPTOFEED.exists(), reason=f'no recordings in {CRYPTOFEED}'))])
def test_every_recorded_checksum_of_kraken_verifies(path, pairs, checked):
    "Version 1 is refused by the codec and read here; its checksum is that of version 2."
    books, numbers, seen = {}, itertools.count(1), 0
    for _, raw in lines(path):
        if raw[:1] != b'[': continue
        _, *parts, channel, pair = msgspec.json.decode(raw)
        m = {k: v for part in parts for k, v in part.items()}
        bids, asks = ([written(x[0].encode(), x[1].encode()) for x in m.get(k + 's', m.get(k, []))] for k in 'ba')
        n = next(numbers)
        u = BookUpdate(pair, 'as' in m or 'bs' in m, n, n, -1, 0, bids, asks, int(m['c']) if 'c' in m else None)
        book = books.setdefault(pair, Book('kraken', pair, lambda prev_seq, u: True, depth=1_000, checksum=book_checksum))
        assert channel == 'book-1000' and book.apply(u) == VALID, book.why
        seen += u.checksum is not None
    assert (len(books), seen) == (pairs, checked) and not any(b.gaps for b in books.values())
