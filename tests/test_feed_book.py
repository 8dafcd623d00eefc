"The compiled book against a plain one, update by update, and the short way of reading levels against the long one."
import json
import random
import struct

import msgspec
import numpy as np
import pytest
from book_model import FIELDS, Model, same
from hypothesis import given, settings
from hypothesis import strategies as st

from arbwork.feed.binance import Binance
from arbwork.feed.book import Book
from arbwork.feed.bybit import Bybit
from arbwork.feed.events import BOOK, CROSSED, INVALID, LEVELS, VALID, BookUpdate
from arbwork.feed.kraken import book_checksum, written
from arbwork.feed.levels import Levels, _decimal, two_lists
from arbwork.feed.okx import Okx
from arbwork.market import DataError

HOSTILE = [float('nan'), float('inf'), -1., 0., -0., 5e-324, 1e308]


def levels(rng, low, high, hostile):
    out = [(rng.randrange(low, high)/4, rng.randrange(6)*.5) for _ in range(rng.randrange(31))]
    if hostile and out and rng.random() < .3:
        i, x = rng.randrange(len(out)), rng.choice(HOSTILE)
        out[i] = (x, out[i][1]) if rng.random() < .5 else (out[i][0], x)
    return out


def updates(rng, hostile):
    "Snapshots and differences near the last number: in order, repeated, from before, with a hole, without time, sorted or not."
    sort, out, seq, ts = rng.random() < .5, [], 100, 10**15
    for _ in range(rng.randrange(1, 15)):
        snapshot = not out or rng.random() < .15
        seq, ts = seq + rng.choice([1, 1, 1, 1, 1, 0, -1, -5, 2]), ts + rng.choice([1, 1, 0, -1])
        bids, asks = levels(rng, 360, 404, hostile), levels(rng, 396, 440, hostile)
        if snapshot and sort: bids, asks = [sorted({px: (px, qty or 1.) for px, qty in x}.values(), key=lambda p: s*p[0]) for x, s in ((bids, -1), (asks, 1))]
        out.append(BookUpdate('LINK-USDT', snapshot, seq - rng.choice([0, 0, 2]), seq, -1, rng.choice([ts, ts, 0]), bids, asks))
    return out


def both(cut_at, depth):
    def follows(prev_seq, u): return u.first_seq <= prev_seq + 1 <= u.last_seq
    return Book('binance', 'LINK-USDT', follows, cut_at, depth), Model('binance', 'LINK-USDT', follows, cut_at, depth)


def step(book, u):
    try: return book.apply(u)
    except DataError as e: return str(e)


def as_table(u):
    table = np.array([*u.asks, *u.bids], 'f8').reshape(-1, 2)
    return msgspec.structs.replace(u, bids=Levels(table, len(u.asks), len(table)), asks=Levels(table, 0, len(u.asks)))


@pytest.mark.parametrize('hostile', [False, True], ids=['sane', 'hostile'])
def test_a_book_says_what_a_plain_one_says(hostile):
    seen = set()
    for seed in range(600):
        rng = random.Random(seed)
        book, model = both(rng.choice([0, 3, 12, 20]), rng.choice([0, 0, 3, 10]))
        for u in updates(rng, hostile):
            if rng.random() < .5: u = as_table(u)
            found = step(book, u)
            assert found == step(model, u), seed
            assert same(book, model), (seed, [(x, getattr(book, x), getattr(model, x)) for x in FIELDS])
            seen.add(found if isinstance(found, int) else 'refused')
        if 'found level' not in model.why: check_row(book, model)
        fork = book.copy()
        assert same(fork, model) and fork.packed(3, 7) == book.packed(3, 7)
    assert seen == {VALID, INVALID, CROSSED} | ({'refused'} if hostile else set())


def check_row(book, model):
    r = np.frombuffer(book.packed(3, 77), BOOK)[0]
    assert (r['slot'], r['ts_recv_ns'], r['seq'], r['state'], r['ts_venue_ns']) == (3, 77, model.seq, model.state, model.ts_venue_ns)
    for name, side in (('bid', model.bids), ('ask', model.asks)):
        best = side[:LEVELS] + [(0., 0.)]*(LEVELS - len(side))
        assert list(zip(r[f'{name}_px'].tolist(), r[f'{name}_qty'].tolist())) == best


def test_a_book_grows_as_far_as_it_must():
    book, model = both(0, 0)
    far = [(1 + i/100, 1. + i) for i in range(5_000)], [(100 + i/100, 2. + i) for i in range(3_000)]
    for u in (BookUpdate('LINK-USDT', True, 1, 1, -1, 1, [], []), BookUpdate('LINK-USDT', False, 2, 2, -1, 2, *far), BookUpdate('LINK-USDT', True, 3, 3, -1, 3, *far)):
        assert book.apply(u) == model.apply(u) == VALID and same(book, model)


def test_a_checked_book_remembers_digits_as_a_plain_one():
    "Kraken's checksum over ten levels, of which the book keeps a few; some are wrong."
    wrong = 0
    for seed in range(300):
        rng = random.Random(seed)
        depth = rng.choice([2, 10])
        book, model, truth = (kind('kraken', 'LINK-USD', lambda prev_seq, u: True, 0, depth, check) for kind, check in ((Book, book_checksum), (Model, book_checksum), (Model, None)))
        for n in range(1, rng.randrange(2, 40)):
            sides = [[written(b'%d.50' % rng.randrange(*span), b'%d.00' % rng.randrange(4)) for _ in range(rng.randrange(8))] for span in ((80, 101), (101, 122))]
            u = BookUpdate('LINK-USD', n == 1 or rng.random() < .1, n, n, -1, n, *sides)
            truth.apply(u)
            right = book_checksum(*([truth.sides[side][px] for px in truth.keys(side)[:LEVELS]] for side in (0, 1)))
            u = msgspec.structs.replace(u, checksum=rng.choice([right]*12 + [None, 7]))
            assert book.apply(u) == model.apply(u) and same(book, model), seed
        wrong += book.gaps
    assert wrong > 100


@given(st.decimals(0, 10**12, allow_nan=False, allow_infinity=False) | st.integers(0, 10**19) | st.floats(0, 1e17).map(repr)
       | st.from_regex(r'\A[0-9]{0,12}\.?[0-9]{0,12}\Z') | st.tuples(st.integers(0, 10**9), st.integers(0, 10**9)).map(lambda x: f'{x[0]}.{x[1]:09d}'))
@settings(max_examples=500, deadline=None)
def test_a_number_read_the_short_way_is_the_float_that_it_is(x):
    raw = f'{x}'.encode()
    value, end = _decimal(raw + b'"}', 0)
    if end != len(raw): return # left to the long way, as every exponent is
    assert struct.pack('d', value) == struct.pack('d', float(raw))


def plain(n, px, qty): return [[f'{px + i/100:.2f}', qty] for i in range(n)]


FRAMES = {
    'binance': (Binance, lambda b, a: dict(stream='linkusdt@depth@100ms', data=dict(e='depthUpdate', E=1_629_417_600_000, s='LINKUSDT', U=7, u=9, b=b, a=a))),
    'bybit': (Bybit, lambda b, a: dict(topic='orderbook.50.LINKUSDT', type='delta', ts=1_629_417_600_000, data=dict(s='LINKUSDT', b=b, a=a, u=9, seq=70), cts=1_629_417_600_000)),
    'okx': (Okx, lambda b, a: dict(arg=dict(channel='books', instId='LINK-USDT'), action='update', data=[dict(
        asks=[[*x, '0', '1'] for x in a], bids=[[*x, '0', '1'] for x in b], ts='1629417600000', checksum=-5, prevSeqId=6, seqId=9)])),
}


@pytest.mark.parametrize('venue', FRAMES)
def test_usual_frames_are_read_the_short_way_and_all_alike(venue):
    kind, frame = FRAMES[venue]
    for b, a in (((), ()), (plain(1, 26.8, '75.00000000'), ()), (plain(40, 26, '0'), plain(40, 27, '12345678.5'))):
        raw = msgspec.json.encode(frame(b, a))
        (short,), (long,) = kind().public(raw), kind().public(bytearray(raw))
        assert short == long and type(short.bids) is Levels and type(long.bids) is list
        assert short.bids == [(float(px), float(qty)) for px, qty in b] and len(short.asks) == len(a)
    spaced = raw.replace(b',"', b', "')
    assert kind().public(spaced) == [long], 'unusual, and right all the same'


def test_no_cut_of_a_frame_is_read_in_part():
    raw = b'{"u":1,"b":[["26.82","75"],["26.81","40"]],"a":[["26.84","30"]]}'
    for tail in (b'', b'}', b'}}', b']}', b'"}', b',}', b']]}', b'1"]]}'):
        for n in range(len(raw)):
            found = two_lists(raw[:n] + tail, b',"b":', b',"a":')
            if found is None: continue
            try: whole = json.loads(raw[:n] + tail)
            except ValueError: # then what is left is no JSON either, and the codec's decoder says so
                with pytest.raises(ValueError): json.loads(found[0])
            else:
                assert [found[1], found[2]] == [[(float(px), float(qty)) for px, qty in whole[k]] for k in 'ba'] and json.loads(found[0]) == {'u': 1}
