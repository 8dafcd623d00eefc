"""Ten thousand mutated frames a venue: never a crash, never a book that is silently wrong.

What is *silently wrong*? A frame is changed, lost, repeated or out of order, and afterwards the book says VALID and holds other levels than the
venue's. What a feed lets one prove is not the same everywhere, and this test holds each book to all of it:

- Whatever a codec lets through, an independent reader (the standard library's JSON, a dictionary, and the venue's rule as its pages state it)
  reads as the same numbers, none of them NaN, infinite, negative or too long for a row; and the book is in everything the book that this reader
  keeps (`book_model`). So no frame is misread, and no venue's rule is applied more loosely than it is written.
- Where the levels of a frame are as they were sent, whatever else was done to it and its neighbours (sequence numbers, times, symbols, lost,
  twice, swapped, cut), a VALID book holds what the venue's did. This is what `U`/`u` (Binance), `u` (Bybit) and `prevSeqId`/`seqId` (OKX) prove.
- Where a *level* was changed into another sound level, or a difference into a snapshot, those three feeds prove nothing: such a frame is one that
  the venue might have sent. TLS and TCP stand for the bytes there, and the comparison by REST for the rest. These cases are counted as `lies`.
- Kraken's checksum runs over the very digits of all ten levels that are kept, so there no lie passes: a VALID book is the venue's, always.

Every refusal names the venue, the instrument and the number as far as the frame still shows them, what was found and what was wanted."""
import copy
import gzip
import json
import random
import re
from collections import Counter
from decimal import Decimal, InvalidOperation
from pathlib import Path
from zlib import crc32

import numpy as np
import pytest
from book_model import Model, same
from msgspec.structs import replace as replaced

from arbwork.feed.binance import Binance
from arbwork.feed.book import Book
from arbwork.feed.events import BOOK, CROSSED, EMPTY, INVALID, VALID, BookUpdate, Notice, Quote, Trade
from arbwork.feed.wire import CODECS
from arbwork.market import DataError
from arbwork.sim.inproc import Driver, open_venues
from arbwork.sim.scenarios import load_scenario

RECORDED = Path(__file__).parents[1]/'data'/'frames'/'binance_spot_btcusdt_20240808.jsonl.gz'
COUNT = 10_000


# ---- the independent reader

class Unreadable(Exception): pass


class Text(str):
    "A number as it was written."


def load(raw):
    "JSON whose numbers stay text; NaN and Infinity are none. Bytes that are no text may stand where nobody looks."
    def none(text): raise Unreadable(text)
    try: return json.loads(raw.decode('utf-8', 'surrogateescape'), parse_float=Text, parse_int=Text, parse_constant=none)
    except (ValueError, RecursionError) as e: raise Unreadable from e


NUMBER = re.compile(r'-?(0|[1-9]\d*)(\.\d+)?([eE][+-]?\d+)?', re.ASCII)


def real(x):
    "A number or the text of one; what such a text may say that is no number is left to the book."
    if isinstance(x, str) and x.lower().lstrip('-') in ('nan', 'inf', 'infinity'): return float(x)
    if not isinstance(x, str) or not NUMBER.fullmatch(x): raise Unreadable(x)
    return float(x) + 0. # minus zero is zero


def integer(x):
    "An integer, which JSON may also write as 5.0 or 5e0."
    if not isinstance(x, str) or not NUMBER.fullmatch(x): raise Unreadable(x)
    if re.fullmatch(r'-?\d+', x): return int(x)
    if not float(x).is_integer(): raise Unreadable(x)
    return int(float(x))


def word(x):
    if not isinstance(x, str) or isinstance(x, Text): raise Unreadable(x)
    return x


def member(x, name, read, *default):
    if not isinstance(x, dict): raise Unreadable(x)
    if name not in x and default: return default[0]
    if name not in x: raise Unreadable(name)
    return read(x[name])


def items(x, read):
    if not isinstance(x, list): raise Unreadable(x)
    return [read(i) for i in x]


def pair(x):
    if not isinstance(x, list) or len(x) < 2: raise Unreadable(x)
    return real(x[0]), real(x[1])


class Digits(float):
    "A quantity with the digits that Kraken's checksum runs over."


def digits(x):
    "A level of Kraken."
    def plain(t):
        if not isinstance(t, Text): raise Unreadable(t)
        try: t = format(Decimal(t), 'f') if len(t) < 60 and abs(Decimal(t).adjusted()) < 60 else none(t)
        except InvalidOperation as e: raise Unreadable from e
        if t.startswith('-'): raise Unreadable(t)
        return t

    def none(t): raise Unreadable(t)
    px, qty = (member(x, name, plain) for name in ('price', 'qty'))
    level = Digits(qty)
    level.text = px.replace('.', '').lstrip('0') + qty.replace('.', '').lstrip('0')
    return float(px), level


def kraken_sum(bids, asks): return crc32(''.join(x.text for x in [*asks[:10], *bids[:10]]).encode())


class Reader:
    "The book frames of a venue as its pages describe them; Kraken's are numbered by their order, a repeated one not twice."
    def __init__(self, venue): self.venue, self.seen = venue, {}

    def updates(self, raw):
        return [(name, BookUpdate('', *rest)) for name, *rest in getattr(self, self.venue)(load(raw), raw)]

    def binance(self, f, raw):
        d = member(f, 'data', lambda x: x)
        bids, asks = (member(d, k, lambda x: items(x, pair)) for k in 'ba')
        return [(member(d, 's', word), False, member(d, 'U', integer), member(d, 'u', integer), -1, member(d, 'E', integer)*10**6, bids, asks)]

    def bybit(self, f, raw):
        d = member(f, 'data', lambda x: x)
        kind, u = member(f, 'type', word), member(d, 'u', integer)
        if kind not in ('snapshot', 'delta'): raise Unreadable(kind)
        bids, asks = (member(d, k, lambda x: items(x, pair)) for k in 'ba')
        return [(member(d, 's', word), kind == 'snapshot', u, u, -1, (member(f, 'cts', integer, 0) or member(f, 'ts', integer))*10**6, bids, asks)]

    def okx(self, f, raw):
        kind, out = member(f, 'action', word), []
        if kind not in ('snapshot', 'update'): raise Unreadable(kind)
        for d in member(f, 'data', lambda x: items(x, lambda y: y)):
            bids, asks = (member(d, k, lambda x: items(x, pair)) for k in ('bids', 'asks'))
            seq, prev = member(d, 'seqId', integer, -1), member(d, 'prevSeqId', integer, -1)
            out.append((member(member(f, 'arg', lambda x: x), 'instId', word), kind == 'snapshot', seq if kind == 'snapshot' else prev + 1, seq, prev,
                        member(d, 'ts', integer)*10**6, bids, asks, member(d, 'checksum', integer, 0) or None))
        return out

    def kraken(self, f, raw):
        kind, out = member(f, 'type', word), []
        if kind not in ('snapshot', 'update'): raise Unreadable(kind)
        for d in member(f, 'data', lambda x: items(x, lambda y: y)):
            name = member(d, 'symbol', word)
            n, last = self.seen.get(name, (0, b''))
            if raw != last: self.seen[name] = n, _ = n + 1, raw
            bids, asks = (member(d, k, lambda x: items(x, digits)) for k in ('bids', 'asks'))
            out.append((name, kind == 'snapshot', n, n, -1, None, bids, asks, member(d, 'checksum', integer)))
        return out


SYMBOLS = {'binance': 'LINKUSDT', 'bybit': 'LINKUSDT', 'okx': 'LINK-USDT', 'kraken': 'LINK/USDT'}


# ---- what a venue sends, and where book and model stand before each frame

class Stream:
    "Frames of one book, other frames of the socket, and the state before each frame; after[i] are the levels when frame i was applied."
    def __init__(self, venue, symbol, instrument, first, frames, others):
        self.venue, self.symbol, self.instrument, self.frames, self.others = venue, symbol, instrument, frames, others
        self.codec, self.reader = CODECS[venue](), Reader(venue)
        self.codec.symbol(instrument)
        check = self.codec.checksum and kraken_sum
        book = Book(venue, instrument, self.codec.follows, self.codec.cut_at, self.codec.depth, self.codec.checksum)
        model = Model(venue, instrument, self.codec.follows, self.codec.cut_at, self.codec.depth, check)
        if first is not None:
            for b in (book, model): b.apply(first)
        self.before, self.after, self.said, self.ways = [], [], {}, {}
        for raw in frames:
            self.ways[raw] = list(leaves(load(raw)))
            self.before.append((book.copy(), model.copy(), self.remembered(), dict(self.reader.seen)))
            [u], [(_, w)] = self.codec.public(raw), self.reader.updates(raw)
            w = replaced(w, instrument=instrument, ts_venue_ns=u.ts_venue_ns if w.ts_venue_ns is None else w.ts_venue_ns) # Kraken's times are read by the codec alone
            assert u == w and book.apply(u) == model.apply(w) == VALID, book.why
            self.said[raw] = w.bids, w.asks
            assert book.bids == model.bids and book.asks == model.asks
            self.after.append((book.bids, book.asks))

    def remembered(self): return {k: dict(v) for k, v in vars(self.codec).items() if k in ('_frames', '_decimals')}

    def at(self, i):
        "Codec, reader, book and model as they were before frame i."
        book, model, codec, seen = self.before[i]
        self.reader.seen = dict(seen)
        vars(self.codec).update({k: dict(v) for k, v in codec.items()})
        return book.copy(), model.copy()


def simulated(venue):
    "Two minutes of recorded prices as the simulated venue tells them in today's format."
    world = load_scenario('link-2021-08-20', venues=tuple(CODECS), minutes=2)
    codec, d = CODECS[venue](), Driver(open_venues(world, [venue])[venue], world.start_ns - 1)
    s, first = d.open(codec.public_path(['LINK-USDT'])), None
    for f in codec.subscribe(['LINK-USDT'], ('book', 'quote', 'trade')): d.receive(s, f)
    if request := codec.snapshot_request('LINK-USDT'): first = codec.snapshot_reply('LINK-USDT', 200, d.rest(request.method, *request.path_with_query.split('?')).body)
    for _ in range(240): d.advance(0.5)
    frames = [bytes(f) for f in d.frames(s)]
    books = [f for f in frames if any(type(x) is BookUpdate for x in codec.public(f)) and not (first and b'"snapshot"' in f[:80])]
    return Stream(venue, SYMBOLS[venue], 'LINK-USDT', first, books[:60], [f for f in frames if f not in books and not (first and b'"snapshot"' in f[:80])])


def recorded(_):
    "Binance on the night of 8 August 2024, the book cut down to the levels near the touch, so that ten thousand copies are quick."
    codec = Binance()
    codec.symbol('BTC-USDT')
    first, books, others = None, [], []
    with gzip.open(RECORDED, 'rb') as f:
        for line in f:
            raw = line.rstrip().partition(b' ')[2]
            if raw.startswith(b'{"last'): first = codec.snapshot_reply('BTC-USDT', 200, raw)
            elif b'@depth' in raw[:60]: books.append(raw)
            else: others.append(raw)
    first = replaced(first, bids=first.bids[:40], asks=first.asks[:40])
    return Stream('binance', 'BTCUSDT', 'BTC-USDT', first, [x for x in books if codec.public(x)[0].last_seq > first.last_seq][:60], others)


# ---- mutations

def flip(b, i, rng): b[i] ^= 1 << rng.randrange(8)
def any_byte(b, i, rng): b[i] = rng.randrange(256)
def remove(b, i, rng): del b[i:i + rng.choice([1, 1, 2, 5, 30])]
def insert(b, i, rng): b[i:i] = bytes(rng.choice(b'0123456789".,[]{}:-eE \\\x00\xff\xc3') for _ in range(rng.randrange(1, 4)))
def double(b, i, rng): b[i:i] = b[max(0, i - rng.randrange(1, 30)):i]
def cut(b, i, rng): del b[i:]
def no_text(b, i, rng): b[i:i] = rng.choice([b'\xff', b'\xc3\x28', b'\xed\xa0\x80', b'\xf8\x88\x80\x80\x80'])


def digit(b, i, rng):
    places = [j for j, c in enumerate(b) if chr(c).isdigit()]
    for _ in range(rng.randrange(1, 3) if places else 0): b[rng.choice(places)] = ord(rng.choice('0123456789'))


def swap_digits(b, i, rng):
    places = [j for j in range(len(b) - 1) if chr(b[j]).isdigit() and chr(b[j + 1]).isdigit()]
    j = rng.choice(places or [0])
    b[j], b[j + 1] = b[j + 1], b[j]


def move_point(b, i, rng):
    j = rng.choice([j for j, c in enumerate(b) if c == ord('.')] or [0])
    del b[j]
    if rng.random() < .7: b.insert(max(0, j + rng.choice([-2, -1, 1, 2])), ord('.'))


BYTES = [flip, any_byte, remove, insert, double, cut, no_text, digit, swap_digits, move_point]
HOSTILE = ['NaN', '"NaN"', 'Infinity', '"-Infinity"', '"inf"', '-1', '"-26.8"', '0', '"0"', '"0.00"', '-0', '1e308', '"1e308"', '1e400', '1e999999999', '"1e-400"', '123456789012345678901234567890',
           '"99999999999999999999"', '9223372036854775807', '9223372036854775808', 'null', 'true', '""', '" 1"', '"1_0"', '"0x1A"', '"\\u0661"', '[]', '{}', '[[]]', '"x"', '1.5', '"26.8000"', '26.8',
           '"LINKUSDC"', '"snapshot"', '"delta"', '"update"', '"2021-08-20T00:00:05.5Z"', '"9999-12-31T23:59:59Z"', '"0001-01-01T00:00:00Z"', '['*3_000, '{"a":'*3_000, '['*40 + ']'*40]


def leaves(x, path=()):
    "The ways to all values of a tree."
    for k, v in x.items() if isinstance(x, dict) else enumerate(x) if isinstance(x, list) else ():
        yield (*path, k)
        yield from leaves(v, (*path, k))


def within(x, path):
    for k in path: x = x[k]
    return x


def written_out(x):
    "Compact, numbers as they were; a `Raw` as it stands."
    if isinstance(x, dict): return '{' + ','.join(f'{json.dumps(k) if not k.startswith("!") else json.dumps(k[1:])}:{written_out(v)}' for k, v in x.items()) + '}'
    if isinstance(x, list): return '[' + ','.join(map(written_out, x)) + ']'
    return str(x) if isinstance(x, (Text, Raw)) else json.dumps(x)


class Raw(str): "Text to be put into a frame as it stands."


def replace(tree, path, rng): within(tree, path[:-1])[path[-1]] = Raw(rng.choice(HOSTILE))
def delete(tree, path, rng): del within(tree, path[:-1])[path[-1]]


def add(tree, path, rng):
    "An unknown member, or one of these once more with another value."
    x = within(tree, path[:-1])
    if isinstance(x, dict): x['!' + rng.choice([path[-1], 'x', 'b', 'u'])] = Raw(rng.choice(HOSTILE[:40]))
    else: x.insert(rng.randrange(len(x) + 1), copy.deepcopy(x[path[-1]]))


def change_places(tree, path, rng):
    x = within(tree, path[:-1])
    other = rng.choice(list(x) if isinstance(x, dict) else range(len(x)))
    x[path[-1]], x[other] = x[other], x[path[-1]]


def count_on(tree, path, rng):
    "A whole number that is a little off, far off, or from the beginning."
    x = within(tree, path[:-1])
    if re.fullmatch(r'\d+', str(x[path[-1]])): x[path[-1]] = type(x[path[-1]])(max(0, rng.choice([0, 1, int(x[path[-1]]) + rng.choice([-1_000, -1, 1, 2, 1_000, 10**9])])))


def as_number(tree, path, rng):
    x = within(tree, path[:-1])
    v = x[path[-1]]
    if isinstance(v, Text): x[path[-1]] = str(v)
    elif isinstance(v, str) and NUMBER.fullmatch(v): x[path[-1]] = Text(v)


TREES = [replace, replace, delete, add, change_places, count_on, count_on, as_number]
AROUND = ['lost', 'twice', 'swapped', 'old', 'next twice', 'other book']


def hurt(s, i, rng):
    "What comes instead of frames i, i+1 and i+2, and the name of what was done."
    raw, rest = s.frames[i], s.frames[i + 1:i + 3]
    kind = rng.random()
    if kind < .15:
        what = rng.choice(AROUND)
        if what == 'lost': return what, rest
        if what == 'twice': return what, [raw, raw, *rest]
        if what == 'swapped': return what, [rest[0], raw, rest[1]]
        if what == 'old': return what, [s.frames[rng.randrange(i)], raw, *rest]
        if what == 'next twice': return what, [raw, rest[0], raw, rest[0], rest[1]]
        return what, [raw.replace(s.symbol.encode(), s.symbol.encode()[:-1] + b'C'), *rest]
    if kind < .55:
        b = bytearray(raw)
        for _ in range(rng.choice([1, 1, 1, 2, 3])):
            if len(b) > 2: rng.choice(BYTES)(b, rng.randrange(len(b)), rng)
        return 'bytes', [bytes(b), *rest]
    tree = load(raw)
    ways = s.ways[raw]
    near = [w for w in ways if len(w) <= 3] # the levels are many; the other members shall have their turn
    rng.choice(TREES)(tree, rng.choice(near if rng.random() < .6 else ways), rng)
    return 'tree', [written_out(tree).encode('utf-8', 'surrogateescape'), *rest]


# ---- the test

def check_words(text, s, raw=None):
    "What every refusal must say."
    assert text.startswith(s.venue) and 'found' in text and 'wanted' in text, text
    if raw is None:
        assert text.startswith(f'{s.venue} {s.instrument}: ') and ' at seq ' in text, text
        return
    symbol, number = (mark.search(raw) for mark in s.codec.marks)
    if symbol: assert text.startswith(f'{s.venue} {s.codec.instrument(symbol[1].decode())} market frame'), text
    if number: assert f' at seq {number[1].decode()}: ' in text, text


def check_row(book):
    "Every row fits into 64 bits, and a sound one holds sound numbers."
    r = np.frombuffer(book.packed(0, 2**62), BOOK)[0]
    if r['state'] != VALID: return
    for side in ('bid', 'ask'):
        px, qty = r[f'{side}_px'].tolist(), r[f'{side}_qty'].tolist()
        n = sum(x > 0 for x in px)
        assert all(0 < x < float('inf') for x in px[:n] + qty[:n]) and not any(px[n:] + qty[n:])
        assert px[:n] == sorted(set(px[:n]), reverse=side == 'bid')


def take(s, raw, book, model, seen):
    "One frame into book and model; False where it was refused, so that a feed would connect anew."
    try: events = s.codec.public(raw)
    except DataError as e:
        check_words(str(e), s, raw)
        seen['refused'] += 1
        return False
    assert isinstance(events, list)
    for x in events:
        if isinstance(x, Quote): assert all(0 < v < 1e300 for v in (x.bid_px, x.ask_px)) and -1 <= x.seq < 2**63
        if isinstance(x, Trade): assert 0 < x.px < 1e300 and 0 < x.qty < 1e300 and 0 <= x.ts_venue_ns < 2**63
    updates = [x for x in events if isinstance(x, BookUpdate)]
    if not updates: return True
    if raw in s.said: # as it was sent, and compared before
        read = [('', replaced(u, bids=s.said[raw][0], asks=s.said[raw][1])) for u in updates]
        s.reader.seen = {**s.reader.seen, s.symbol: (updates[0].last_seq, raw)}
    else: read = s.reader.updates(raw) # an Unreadable here is a frame that the codec should not have taken
    assert raw in s.said or [s.codec.instrument(name) for name, _ in read] == [u.instrument for u in updates]
    for u, (_, w) in zip(updates, read):
        w = replaced(w, instrument=u.instrument, ts_venue_ns=u.ts_venue_ns if w.ts_venue_ns is None else w.ts_venue_ns)
        assert u == w or seen_as(u) == seen_as(w), (u, w)
        assert -1 <= u.last_seq < 2**63 and 0 <= u.ts_venue_ns < 2**63
        if u.instrument != s.instrument: continue
        try: state = book.apply(u)
        except DataError as e:
            check_words(str(e), s)
            assert book.state == INVALID
            state = str(e)
        try: assert model.apply(w) == state
        except DataError as e: assert str(e) == state
        assert same(book, model)
        if book.state == INVALID: check_words(book.why, s)
        if book.state == CROSSED: assert f'{s.instrument}: crossed book, bid' in book.why and ' at seq ' in book.why
        check_row(book)
    return True


def seen_as(u):
    "An update for comparison: a NaN equals itself, and minus zero is zero."
    return repr(replaced(u, bids=[(px + 0., qty + 0.) for px, qty in u.bids], asks=[(px + 0., qty + 0.) for px, qty in u.asks]))


def told(s, raw):
    "What a frame says of our levels, or None where it says nothing of them."
    try: return [(u.snapshot, list(u.bids), list(u.asks)) for u in s.codec.public(raw) if isinstance(u, BookUpdate) and u.instrument == s.instrument] or None
    except DataError: return None


def lies(s, i, sent):
    "Whether a frame says something of our levels that the venue did not, as it well might have."
    return s.codec.checksum is None and any(told(s, raw) not in (None, told(s, s.frames[i])) for raw in sent if raw not in s.frames)


@pytest.mark.parametrize('venue, make', [*[(v, simulated) for v in SYMBOLS], ('binance', recorded)], ids=[*SYMBOLS, 'binance-recorded'])
def test_ten_thousand_mutated_frames(venue, make):
    s, seen, rng = make(venue), Counter(), random.Random(f'{venue} {make.__name__}')
    for n in range(COUNT):
        i = rng.randrange(10, len(s.frames) - 2)
        book, model = s.at(i)
        if n % 10 == 9: # a frame that is no book's
            b = bytearray(rng.choice(s.others))
            for _ in range(rng.choice([1, 1, 2])): rng.choice(BYTES[:7])(b, rng.randrange(len(b)), rng) if b else None
            what, sent = 'other', [bytes(b), *s.frames[i:i + 3]]
        else: what, sent = hurt(s, i, rng)
        for k, raw in enumerate(sent):
            if not take(s, raw, book, model, seen): break
            if book.state != VALID:
                seen[{INVALID: 'dropped', CROSSED: 'crossed', EMPTY: 'empty'}[book.state]] += 1
                continue
            held, last = (book.bids, book.asks), k == len(sent) - 1
            if held in (s.after[i + 2:i + 3] if last else s.after[i - 1:i + 3]): seen['right'] += last
            else:
                assert lies(s, i, sent), (what, sent[0])
                seen['lies'] += 1
    assert seen['refused'] > 2_500 and seen['dropped'] > 1_000 and seen['right'] > 500 and not seen['empty'], seen
    assert bool(seen['lies']) == (s.codec.checksum is None), seen


def test_frames_of_another_venue_are_refused_or_change_nothing():
    streams = {v: simulated(v) for v in SYMBOLS}
    for s in streams.values():
        for other in streams.values():
            if other.venue == s.venue: continue
            for raw in [*other.frames[:20], *other.others[:20]]:
                book, model = s.at(15)
                try: events = s.codec.public(raw)
                except DataError as e:
                    assert str(e).startswith(f'{s.venue} ')
                    continue
                assert all(isinstance(x, Notice) for x in events), (s.venue, raw)
