"Kraken's books proved by their checksums: recorded frames of 2021, and frames of today's format that are lost, doubled or swapped."
import gzip
import itertools
import random
from decimal import Decimal
from pathlib import Path
from uuid import UUID

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arbwork.feed.book import Book
from arbwork.feed.codec import Keys
from arbwork.feed.events import CROSSED, INVALID, VALID, BookUpdate, Fill, NewOrder, OrderUpdate, Quote, Trade
from arbwork.feed.kraken import Kraken, book_checksum, error_code, written
from arbwork.market import BUY, SELL, DataError, VenueError
from arbwork.sim.engine import Engine, whole
from arbwork.sim.kraken import KrakenVenue
from arbwork.sim.scenarios import load_scenario

RECORDED = Path(__file__).parents[2]/'shared'/'data'/'real'/'raw_frames'/'cryptofeed'/'KRAKEN.ws.50.0.txt.gz'
recorded = pytest.mark.skipif(not RECORDED.exists(), reason=f'no recording at {RECORDED}')
PAIR = 'LINK-USDT'


def version_1_updates():
    "The book frames of a recording of version 1, as pair and update; checksums came with updates only."
    with gzip.open(RECORDED, 'rt') as f:
        for line in f:
            _, _, raw = line.partition(': ')
            if not raw.startswith('['): continue
            _, *parts, channel, pair = msgspec.json.decode(raw)
            if not channel.startswith('book-'): continue
            m = {k: v for part in parts for k, v in part.items()}
            bids, asks = ([written(x[0].encode(), x[1].encode()) for x in m.get(k + 's', m.get(k, []))] for k in 'ba')
            yield pair, BookUpdate(pair, 'as' in m or 'bs' in m, 0, 0, -1, 0, bids, asks, int(m['c']) if 'c' in m else None)


@recorded
def test_every_recorded_checksum_is_found():
    books, numbers, seen = {}, itertools.count(1), 0
    for pair, u in version_1_updates():
        book = books.setdefault(pair, Book('kraken', pair, lambda prev_seq, u: True, depth=1000, checksum=book_checksum))
        n = next(numbers)
        assert book.apply(msgspec.structs.replace(u, first_seq=n, last_seq=n)) == VALID, book.why
        seen += u.checksum is not None
    assert seen > 2_000 and len(books) == 10 and not any(b.gaps for b in books.values())


@recorded
def test_a_recorded_frame_that_is_lost_or_altered_is_found_out():
    updates = [u for pair, u in version_1_updates() if pair == 'ETH/CHF' or pair == 'XMR/USD']
    name = max({u.instrument for u in updates}, key=lambda x: sum(u.instrument == x for u in updates))
    updates = [u for u in updates if u.instrument == name][:160]
    found = 0
    for lost in range(1, len(updates) - 30, 7):
        book, states = Book('kraken', name, lambda prev_seq, u: True, depth=1000, checksum=book_checksum), []
        truth = Book('kraken', name, lambda prev_seq, u: True, depth=1000)
        for n, u in enumerate(updates):
            u = msgspec.structs.replace(u, first_seq=n, last_seq=n)
            truth.apply(u)
            if n == lost: continue
            states.append(book.apply(u))
            if states[-1] == VALID and n > lost: assert (book.bids[:10], book.asks[:10]) == (truth.bids[:10], truth.asks[:10])
        found += INVALID in states
    assert found > 10


@pytest.fixture(scope='module')
def stream():
    "A depth of ten levels as the simulated venue tells it over two recorded minutes: a snapshot, then updates."
    part = load_scenario('link-2021-08-20', venues=('kraken', 'bybit'), minutes=2)
    listing, rows = part.listings['kraken'], part.rows['kraken']
    venue = KrakenVenue(Engine('kraken', [listing]), {PAIR: (rows['ts_venue_ns'].tolist(), whole(rows, listing))})
    s = venue.open('/v2', '')
    s.out.clear()
    frames = venue.receive(s, Kraken().subscribe([PAIR])[0], part.start_ns - 1)[1:]
    for t in rows['ts_venue_ns'].tolist(): venue.advance(t)
    return frames + [f for f in s.out if b'heartbeat' not in f]


def new_book(codec): return Book('kraken', PAIR, codec.follows, codec.cut_at, codec.depth, codec.checksum)


def top(book): return tuple(book.bids[:10]), tuple(book.asks[:10])


def along(stream):
    "What the book holds after each frame."
    codec = Kraken()
    book, after = new_book(codec), []
    for raw in stream:
        assert book.apply(codec.public(raw)[0]) == VALID, book.why
        after.append(top(book))
    return after


def test_a_lost_doubled_or_swapped_frame_never_gives_a_book_that_is_silently_wrong(stream):
    after = along(stream)
    for seed in range(60):
        rng, frames = random.Random(seed), list(stream)
        what, i = rng.choice(['lost', 'twice', 'swapped', 'old']), rng.randrange(12, 60)
        if what == 'lost': del frames[i]
        if what == 'twice': frames.insert(i, frames[i])
        if what == 'swapped': frames[i], frames[i + 1] = frames[i + 1], frames[i]
        if what == 'old': frames.insert(i, frames[i - 9])
        codec = Kraken()
        book, states = new_book(codec), []
        for raw in frames:
            states.append(book.apply(codec.public(raw)[0]))
            if states[-1] == VALID: assert top(book) in after
        if states[-1] == VALID: assert top(book) == after[-1]
        if what == 'twice': assert (book.state, book.duplicates, book.gaps) == (VALID, 1, 0)
        else: assert book.state == INVALID or what in ('swapped', 'lost', 'old')


def test_a_resubscription_mends_a_book(stream):
    codec = Kraken()
    book = new_book(codec)
    for raw in stream[:5] + stream[6:9]: book.apply(codec.public(raw)[0])
    assert book.state == INVALID and 'found checksum' in book.why and book.gaps == 1
    again = codec.public(stream[0])[0]
    assert book.apply(again) == VALID and book.why == ''
    assert [msgspec.json.decode(x)['method'] for x in (*codec.unsubscribe([PAIR]), *codec.subscribe([PAIR]))] == ['unsubscribe', 'subscribe']


BROKEN = [b'', b'null', b'[]', b'{}', b'1', b'"x"', b'{"channel":"book"}', b'{"channel":"book","type":"update","data":[{}]}', b'{"channel":"executions"}', b'\xff\xfe\x00',
          b'{"channel":"book","type":"update","data":[{"symbol":"LINK/USDT","bids":[{"price":1e999,"qty":1}],"asks":[],"checksum":1}]}',
          b'{"channel":"book","type":"update","data":[{"symbol":"LINK/USDT","bids":[{"price":true,"qty":1}],"asks":[],"checksum":1}]}',
          b'{"channel":"book","type":"update","data":[{"symbol":"LINK/USDT","bids":[],"asks":[],"checksum":-1}]}', b'{"channel":"trade","type":"update","data":[{"price":1}]}',
          b'{"channel":"executions","type":"update","data":[{"exec_type":"trade","order_id":"O","timestamp":"2026-11-20T10:00:00Z"}]}',
          b'{"channel":"executions","type":"update","data":[{"exec_type":"eaten","order_id":"O","timestamp":"2026-11-20T10:00:00Z"}]}']


@pytest.mark.parametrize('raw', BROKEN)
def test_what_is_no_frame_is_refused(raw):
    for read in (Kraken().public, Kraken().private):
        try: events = read(raw)
        except DataError as e: assert 'kraken' in str(e)
        else:
            assert not any(isinstance(x, (OrderUpdate, Fill)) for x in events)
            book = new_book(Kraken())
            for u in events:
                if isinstance(u, BookUpdate):
                    with pytest.raises(DataError): book.apply(msgspec.structs.replace(u, snapshot=True))


def test_quotes_trades_and_names():
    codec = Kraken()
    codec.symbol('BTC-USD')
    [q] = codec.public(b'{"channel":"ticker","type":"update","data":[{"symbol":"BTC/USD","bid":45283.5,"bid_qty":0.1,"ask":45285.2,"ask_qty":0.001,"timestamp":"2026-11-20T10:00:00.5Z"}]}')
    [t] = codec.public(b'{"channel":"trade","type":"update","data":[{"symbol":"BTC/USD","side":"sell","price":45283.5,"qty":0.02,"ord_type":"market","trade_id":4665906,"timestamp":"2026-11-20T10:00:00.123456Z"}]}')
    assert isinstance(q, Quote) and (q.instrument, q.bid_px, q.ask_px) == ('BTC-USD', 45283.5, 45285.2)
    assert isinstance(t, Trade) and (t.side, t.trade_id, t.ts_venue_ns % 10**9) == (SELL, '4665906', 123_456_000)
    assert [codec.instrument(x) for x in ('BTC/USD', 'XBT/USD', 'XXBTZUSD', 'XBTUSD', 'ETH/XBT', 'LINKUSDT')] == ['BTC-USD']*4 + ['ETH-BTC', 'LINK-USDT']


@settings(max_examples=150, deadline=None)
@given(session=st.text('-0123456789ABCXYZabcxyz', min_size=1, max_size=16), trade=st.integers(0, 70_000), leg=st.integers(0, 40), attempt=st.integers(0, 40))
def test_client_ids_fit_the_venue_and_come_back(session, trade, leg, attempt):
    name = f'{session}-{trade}-{leg}-{attempt}'
    codec = Kraken()
    sent = codec.wire_id(name)
    assert (len(sent) <= 18 and sent == name) or len(sent) == 32 and UUID(sent).hex == sent
    assert codec.our_id(sent) == codec.our_id(str(UUID(sent)) if len(sent) == 32 else sent) == name
    if trade < 2**16 and leg < 32 and attempt < 32: assert Kraken().our_id(sent) == name


def test_requests_carry_a_growing_nonce_and_errors_their_meaning():
    codec = Kraken(keys=Keys('key', 'c2VjcmV0'))
    order = NewOrder('20261123-0717-ab-17-1-0', PAIR, BUY, Decimal('1.50'), Decimal('26.1000'))
    requests = [codec.balances_request(10**18), codec.place_request(order, 10**18), codec.order_request(PAIR, order.client_id, 10**18 - 10**9), codec.token_request(2*10**18)]
    nonces = [int(r.body.split(b'&')[0].removeprefix(b'nonce=')) for r in requests]
    assert nonces == sorted(set(nonces)) and b'volume=1.50' in requests[1].body and b'price=26.1000' in requests[1].body
    assert codec.wire_id(order.client_id).encode() in requests[1].body and codec.wire_id(order.client_id).encode() in requests[2].body
    for body, code in ((b'{"error":["EAPI:Invalid nonce"]}', 'clock'), (b'{"error":["EOrder:Insufficient funds"]}', 'insufficient_funds'), (b'{"error":["EGeneral:Temporary lockout"]}', 'banned')):
        with pytest.raises(VenueError) as e: codec.place_reply(200, body)
        assert e.value.code == code
    with pytest.raises(VenueError) as e: codec.balances_reply(503, b'<html>')
    assert e.value.code == 'unknown_outcome' and error_code('EOrder:Something new') == 'other'
    with pytest.raises(DataError): codec.balances_reply(200, b'{"error":[],"result":[]}')
    assert codec.order_reply(200, b'{"error":[],"result":{"open":{}}}', PAIR, 'x').status == 'unknown_order'
