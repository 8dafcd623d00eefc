"OKX's codec and books against recorded frames with their checksums, and against frames that are broken on purpose."
import gzip
import random
from decimal import Decimal
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arbwork.feed.book import Book
from arbwork.feed.codec import Keys
from arbwork.feed.events import CROSSED, INVALID, VALID, Balance, BookUpdate, Fill, NewOrder, Notice, OrderUpdate, Quote, Trade
from arbwork.feed.okx import Okx, checksum, from_wire, signature, to_wire
from arbwork.market import BUY, SELL, DataError, Listing, VenueError

RECORDED = Path(__file__).parents[2]/'shared'/'data'/'real'/'raw_frames'/'cryptofeed'
recorded = pytest.mark.skipif(not (RECORDED/'OKX.ws.1.0.txt.gz').exists(), reason=f'no recordings in {RECORDED}')
NOW = 1_629_417_600_000*10**6


def lines(name):
    "What the venue sent, without the recorder's own lines."
    with gzip.open(RECORDED/name, 'rb') as f:
        for line in f:
            ts, _, raw = line.rstrip().partition(b': ')
            if ts.replace(b'.', b'').isdigit(): yield raw


@recorded
def test_every_recorded_frame_decodes_and_every_recorded_checksum_verifies():
    codec, books, counts, checked = Okx(), {}, {}, 0
    for raw in lines('OKX.ws.1.0.txt.gz'):
        for event in codec.public(raw):
            counts[type(event)] = counts.get(type(event), 0) + 1
            if type(event) is not BookUpdate: continue
            book = books.setdefault(event.instrument, Book('okx', event.instrument, lambda prev_seq, u: True))
            assert book.apply(event) == VALID, book.why
            assert checksum(book.bids[:25], book.asks[:25]) == event.checksum
            checked += 1
    assert checked == 290 and set(books) == {'BTC-USDT', 'BTC-USD-220527', 'UNI-USD-SWAP'}
    assert len(books['BTC-USDT'].bids) == len(books['BTC-USDT'].asks) == 400, 'the venue tells what leaves its four hundred levels'
    assert counts[Notice] > 40 and counts[Trade] > 0


@recorded
def test_a_recorded_stream_without_numbers_is_not_believed_beyond_its_snapshot():
    codec = Okx()
    book = Book('okx', 'BTC-USDT', codec.follows)
    updates = [u for raw in lines('OKX.ws.1.0.txt.gz') for u in codec.public(raw) if type(u) is BookUpdate and u.instrument == 'BTC-USDT']
    assert [book.apply(u) for u in updates[:2]] == [VALID, INVALID] and 'gap' in book.why


@recorded
def test_a_lost_frame_of_the_recording_breaks_the_checksum():
    codec = Okx()
    updates = [u for raw in lines('OKX.ws.1.0.txt.gz') for u in codec.public(raw) if type(u) is BookUpdate and u.instrument == 'BTC-USDT']
    book, wrong = Book('okx', 'BTC-USDT', lambda prev_seq, u: True), 0
    for i, u in enumerate(updates):
        if i == 5: continue
        book.apply(u)
        wrong += checksum(book.bids[:25], book.asks[:25]) != u.checksum
    assert wrong > 0


@recorded
def test_10_000_mutated_recorded_frames_never_bring_codec_or_book_down():
    rng, codec, books, refused = random.Random(20), Okx(), {}, 0
    frames = [raw for raw in lines('OKX.ws.1.0.txt.gz') if len(raw) < 4_000]
    for _ in range(10_000):
        raw = bytearray(rng.choice(frames))
        for _ in range(rng.randrange(1, 4)):
            i, what = rng.randrange(len(raw)), rng.randrange(4)
            if what == 0: raw[i] = rng.randrange(256)
            elif what == 1: del raw[i:i + rng.randrange(1, 9)]
            elif what == 2: raw[i:i] = raw[max(0, i - 7):i]
            elif i: del raw[i:]
        try:
            for u in codec.public(bytes(raw)):
                if type(u) is BookUpdate: books.setdefault(u.instrument, Book('okx', u.instrument, codec.follows)).apply(u)
        except DataError as e:
            assert 'okx' in str(e) and 'found' in str(e)
            refused += 1
    assert refused > 5_000 and all(b.state != VALID for b in books.values()), 'without numbers and a snapshot there is nothing to believe'


@recorded
def test_recorded_listings():
    with gzip.open(RECORDED/'OKX.0.txt.gz', 'rb') as f: first = f.readline().rstrip()
    found = Okx().listings_reply(200, first.partition(b': ')[2])
    x = found['BTC-USDT']
    assert (x.tick, x.lot, x.min_qty, x.min_notional) == (Decimal('0.1'), Decimal('0.00000001'), Decimal('0.00001'), 0) and len(found) > 100


def levels(pairs): return [[str(px), str(qty), '0', '1'] for px, qty in pairs]


def frame(seq, prev, bids=(), asks=(), ts=1_629_417_600_000, action='update'):
    d = dict(asks=levels(asks), bids=levels(bids), ts=str(ts), checksum=0, seqId=seq, prevSeqId=prev)
    return msgspec.json.encode(dict(arg=dict(channel='books', instId='LINK-USDT'), action=action, data=[d]))


def snapshot(seq, bids, asks, ts=1_629_417_600_000):
    return msgspec.json.encode(dict(code='0', msg='', data=[dict(asks=levels(asks), bids=levels(bids), ts=str(ts), seqId=seq)]))


def stream(seed, n=60):
    "Frames with numbers that jump, and the book that each number means."
    rng = random.Random(seed)
    bids, asks = {26.8 - i/10: 5. for i in range(12)}, {26.9 + i/10: 5. for i in range(12)}
    seq, frames, truth = 1_000, [], {1_000: (dict(bids), dict(asks))}
    start = snapshot(seq, bids.items(), asks.items())
    for i in range(1, n):
        side = rng.choice((bids, asks))
        px, qty = rng.choice(list(side)), rng.choice((0., 1.5, 2.25, 7.))
        if qty or len(side) < 4: side[px] = qty or 3.
        else: side.pop(px)
        prev, seq = seq, seq + rng.randrange(1, 40)
        level = [(px, side.get(px, 0))]
        frames.append(frame(seq, prev, *((level, ()) if side is bids else ((), level)), ts=1_629_417_600_000 + 100*i))
        truth[seq] = dict(bids), dict(asks)
    return start, frames, truth


def replay(start, frames):
    codec = Okx()
    book, out = Book('okx', 'LINK-USDT', codec.follows), []
    book.apply(codec.snapshot_reply('LINK-USDT', 200, start))
    for raw in frames:
        try:
            for u in codec.public(raw):
                if type(u) is BookUpdate: book.apply(u)
        except DataError: book.drop('unreadable')
        out.append((book.state, book.seq, dict(book.bids), dict(book.asks)))
    return book, out


@pytest.mark.parametrize('what', ['whole', 'drop', 'twice', 'swap', 'truncate', 'old', 'number', 'before'])
def test_a_book_over_damaged_frames_is_right_or_says_that_it_is_not(what):
    for seed in range(12):
        start, frames, truth = stream(seed)
        rng = random.Random(seed)
        hurt, i = list(frames), rng.randrange(10, 50)
        if what == 'drop': del hurt[i]
        if what == 'twice': hurt.insert(i, hurt[i])
        if what == 'swap': hurt[i], hurt[i + 1] = hurt[i + 1], hurt[i]
        if what == 'truncate': hurt[i] = hurt[i][:rng.randrange(1, len(hurt[i]))]
        if what == 'old': hurt.insert(i, hurt[i - 9])
        if what == 'number': hurt[i] = hurt[i].replace(b'"prevSeqId":', b'"prevSeqId":9')
        if what == 'before': hurt.insert(0, frame(1_000, 990, [(26.8, 99.)]))
        book, out = replay(start, hurt)
        for state, seq, bids, asks in out:
            if state == VALID: assert truth[seq] == (bids, asks), (what, seed)
        if what in ('drop', 'swap', 'truncate', 'number'): assert book.state == INVALID
        if what in ('whole', 'twice', 'old', 'before'): assert book.state == VALID and book.seq == max(truth)
        assert book.duplicates == (what in ('twice', 'old')) and book.early == (what == 'before')


@given(st.integers(0, 5), st.data())
@settings(max_examples=150, deadline=None)
def test_a_byte_changed_beside_the_levels_never_leaves_a_wrong_book_standing(seed, data):
    "Refused as unreadable, noticed as a gap by the next frame at the latest, or without effect on the levels."
    start, frames, truth = stream(seed, 12)
    i = data.draw(st.integers(0, len(frames) - 2))
    raw, seq = bytearray(frames[i]), msgspec.json.decode(frames[i])['data'][0]['seqId']
    j = data.draw(st.integers(0, len(raw) - 1).filter(lambda j: not raw.index(b'"data"') < j < raw.index(b'"ts"')))
    raw[j] = data.draw(st.integers(0, 255))
    try: mutated = Okx().public(bytes(raw))
    except DataError as e:
        assert 'okx' in str(e)
        mutated = []
    if any(u.instrument != 'LINK-USDT' for u in mutated if type(u) is BookUpdate): return # another book's frame; this one has a gap
    book, out = replay(start, [*frames[:i], bytes(raw), *frames[i + 1:]])
    for n, (state, at, bids, asks) in enumerate(out):
        if state == VALID and (n != i or at == seq): assert truth[at] == (bids, asks)


@pytest.mark.parametrize('prev, seq, taken', [(990, 1010, True), (1000, 1010, True), (1001, 1010, False), (1000, 1000, True), (1000, 7, True), (-1, 1010, False), (990, 995, False), (990, -1, False)])
def test_the_rule_of_what_follows(prev, seq, taken):
    "Reaching over the book's number, naming it, naming it without change, naming it as numbers begin again; not beyond it."
    assert Okx().follows(1000, BookUpdate('LINK-USDT', False, prev + 1, seq, prev, 1, [], [])) == taken


@pytest.mark.parametrize('px, qty', [('NaN', '1'), ('inf', '1'), ('0', '1'), ('-26.8', '1'), ('26.8', 'NaN'), ('26.8', '-1'), ('26.8', 'Infinity')])
def test_numbers_that_are_none_never_enter_a_book(px, qty):
    codec = Okx()
    book = Book('okx', 'LINK-USDT', codec.follows)
    book.apply(codec.snapshot_reply('LINK-USDT', 200, snapshot(5, [(26.8, 1)], [(26.9, 1)])))
    with pytest.raises(DataError, match='okx'): book.apply(codec.public(frame(6, 5, [(px, qty)]))[0])
    assert book.state in (INVALID, VALID) and (26.8, 1.) in book.bids


def test_a_crossed_book_is_a_state():
    codec = Okx()
    book = Book('okx', 'LINK-USDT', codec.follows)
    book.apply(codec.snapshot_reply('LINK-USDT', 200, snapshot(5, [(26.8, 1)], [(26.9, 1)])))
    assert book.apply(codec.public(frame(6, 5, [(26.9, 1)]))[0]) == CROSSED


BROKEN = [b'', b'null', b'[]', b'{}', b'1', b'"x"', b'ping', b'\xff\xfe\x00', b'{"arg":', b'{"arg":{"channel":"books"}}', b'{"arg":{"channel":"books","instId":"A-B"},"action":"update"}',
          b'{"arg":{"channel":"books","instId":"A-B"},"action":"update","data":[{"asks":[["1"]],"bids":[],"ts":"1","seqId":2,"prevSeqId":1}]}',
          b'{"arg":{"channel":"books","instId":"A-B"},"action":"update","data":[{"asks":[["1",null]],"bids":[],"ts":"1","seqId":2,"prevSeqId":1}]}',
          b'{"arg":{"channel":"books"},"action":"update","data":[{"asks":[],"bids":[],"ts":"1","seqId":2,"prevSeqId":1}]}',
          b'{"arg":{"channel":"trades","instId":"A-B"},"data":[{"instId":"A-B","tradeId":"1","px":"1","sz":"1","side":"up","ts":"1"}]}']


@pytest.mark.parametrize('raw', BROKEN, ids=range(len(BROKEN)))
def test_what_is_no_frame_is_a_data_error_that_names_venue_and_bytes(raw):
    with pytest.raises(DataError, match=r'okx .*found .* bytes'): Okx().public(raw)


@pytest.mark.parametrize('raw', [b'', b'null', b'[]', b'{}', b'ping', b'{"arg":{"channel":"orders"}}', b'{"arg":{"channel":"orders"},"data":[{}]}',
    b'{"arg":{"channel":"orders"},"data":[{"instId":"A-B","ordId":"1","side":"buy","state":"gone","sz":"1"}]}', b'{"arg":{"channel":"account"},"data":{}}'])
def test_what_is_no_account_frame(raw):
    with pytest.raises(DataError, match='okx'): Okx().private(raw)


@given(raw=st.binary(max_size=200) | st.text(max_size=80).map(lambda s: f'{{"arg":{{"channel":"{s}"}},"op":"{s}","event":"{s}"}}'.encode()))
@settings(max_examples=150, deadline=None)
def test_no_bytes_at_all_bring_the_codec_down(raw):
    for read in (Okx().public, Okx().private):
        try: assert isinstance(read(raw), list)
        except DataError: pass


@pytest.mark.parametrize('status, body, code', [
    (401, b'{"msg":"Invalid Sign","code":"50113"}', 'signature'), (401, b'{"msg":"Timestamp request expired","code":"50102"}', 'clock'),
    (401, b'{"msg":"Invalid OK-ACCESS-KEY","code":"50111"}', 'permission'), (429, b'{"msg":"Too Many Requests","code":"50011"}', 'rate'),
    (400, b'{"msg":"API endpoint request timeout","code":"50004"}', 'unknown_outcome'), (503, b'{"msg":"Service temporarily unavailable","code":"50001"}', 'venue_down'),
    (502, b'<html>', 'unknown_outcome'), (403, b'<html>', 'rate'), (200, b'{"code":"1","data":[{"sCode":"51008","sMsg":"no money"}],"msg":""}', 'insufficient_funds'),
])
def test_an_error_reply_is_a_venue_error_with_our_code(status, body, code):
    with pytest.raises(VenueError, match='okx') as e: Okx().place_reply(status, body)
    assert e.value.code == code


def test_bodies_that_are_none_are_data_errors():
    codec = Okx()
    for body in (b'', b'{}', b'{"code":"0"}', b'{"code":"0","data":[]}', b'{"code":"0","data":[{"bids":[],"asks":[],"ts":"1"}]}'):
        with pytest.raises(DataError, match='okx'): codec.snapshot_reply('LINK-USDT', 200, body)
    with pytest.raises(DataError): codec.time_reply(200, b'{"code":"0","data":[]}')


@given(st.text(alphabet='abXYZ019-', min_size=1, max_size=16))
def test_client_ids_go_there_and_back(client_id):
    wire = to_wire(client_id)
    assert wire.isalnum() and from_wire(wire) == client_id


@given(st.text(alphabet='aXYZ-', min_size=1, max_size=8), st.text(alphabet='aXYZ-', min_size=1, max_size=8))
def test_two_ids_are_never_one_on_the_wire(a, b): assert (to_wire(a) == to_wire(b)) == (a == b)


@pytest.mark.parametrize('bad', ['', 'x'*33, 'Z'*17, 'a_b', 'ä', 'a b'])
def test_ids_that_do_not_fit_are_refused_before_they_leave(bad):
    with pytest.raises(VenueError, match='okx client id') as e: to_wire(bad)
    assert e.value.code == 'permission'


def test_foreign_ids_stay_as_they_are():
    for x in ('', 'Y', 'aYb', 'byHand1'): assert from_wire(x) == x


def codec_with_a_listing():
    codec = Okx(keys=Keys('key', 'secret', 'words'))
    body = dict(code='0', data=[dict(instType='SPOT', instId='LINK-USDT', instIdCode=77, baseCcy='LINK', quoteCcy='USDT', tickSz='0.001', lotSz='0.001', minSz='0.1', state='live')])
    codec.listings_reply(200, msgspec.json.encode(body))
    return codec


def test_orders_by_socket_carry_the_number_of_the_instrument_and_an_expiry():
    codec = codec_with_a_listing()
    m = msgspec.json.decode(codec.place(NewOrder('s-1-0-0', 'LINK-USDT', BUY, Decimal('4.10'), Decimal('26.830')), 's-1-0-0', NOW))
    assert m['args'] == [dict(instIdCode=77, tdMode='cash', side='buy', sz='4.10', clOrdId='sZ1Z0Z0', ordType='ioc', px='26.830')] and m['id'].isdigit()
    assert m['expTime'] == str(NOW//10**6 + codec.recv_window_ms)
    market = msgspec.json.decode(codec.place(NewOrder('m', 'LINK-USDT', SELL, Decimal(4), None), 'm', NOW))
    assert (market['args'][0]['ordType'], market['args'][0]['tgtCcy'], 'px' in market['args'][0]) == ('market', 'base_ccy', False)
    stranger = Okx({'LINK-USDT': Listing('okx', 'LINK-USDT', 'LINK-USDT', *map(Decimal, ('0.001', '0.001', '0.1', '0')))})
    assert stranger.unlisted() == ['LINK-USDT'] and codec.unlisted() == []
    with pytest.raises(VenueError, match='instIdCode') as e: stranger.place(NewOrder('x', 'LINK-USDT', BUY, Decimal(1), Decimal(1)), 'x', NOW)
    assert e.value.code == 'venue_down', 'it never left'


@pytest.mark.parametrize('reply, status, code', [
    (dict(code='1', data=[dict(clOrdId='a', ordId='', sCode='51008', sMsg='funds')]), 'rejected', 'insufficient_funds'),
    (dict(code='1', data=[dict(clOrdId='a', ordId='', sCode='51150', sMsg='tick')]), 'rejected', 'tick_or_lot'),
    (dict(code='60013', msg='Invalid args', data=[]), 'rejected', 'other'),
    (dict(code='0', data=[dict(clOrdId='a', ordId='12', sCode='0', sMsg='')]), 'acked', ''),
])
def test_the_answer_to_an_order_is_its_first_word(reply, status, code):
    codec = codec_with_a_listing()
    sent = msgspec.json.decode(codec.place(NewOrder('a', 'LINK-USDT', BUY, Decimal(4), Decimal('26.83')), 'a', NOW))
    u = codec.private(msgspec.json.encode(dict(id=sent['id'], op='order', msg='', **{k: v for k, v in reply.items() if k != 'msg'}) | {'msg': reply.get('msg', '')}))[0]
    assert (type(u), u.client_id, u.status, u.code) == (OrderUpdate, 'a', status, code)


@pytest.mark.parametrize('number, code', [('51016', 'duplicate_id'), ('50004', 'unknown_outcome'), ('50026', 'unknown_outcome'), ('50001', 'venue_down')])
def test_an_answer_that_leaves_the_order_open_is_no_rejection(number, code):
    codec = codec_with_a_listing()
    sent = msgspec.json.decode(codec.place(NewOrder('a-1', 'LINK-USDT', BUY, Decimal(4), Decimal('26.83')), 'a-1', NOW))
    n, = codec.private(msgspec.json.encode(dict(id=sent['id'], op='order', code='1', msg='', data=[dict(sCode=number, sMsg='')])))
    assert (type(n), n.kind, n.code, n.request_id) == (Notice, 'error', code, 'a-1')


def test_a_cancel_of_what_is_gone_is_unknown_order():
    codec = codec_with_a_listing()
    sent = msgspec.json.decode(codec.cancel('LINK-USDT', 'a-1', 'x1-a-1', NOW))
    u, n = codec.private(msgspec.json.encode(dict(id=sent['id'], op='cancel-order', code='1', msg='', data=[dict(sCode='51400', sMsg='gone')])))
    assert (u.status, u.client_id, u.instrument, n.request_id) == ('unknown_order', 'a-1', 'LINK-USDT', 'x1-a-1')


def test_account_frames():
    codec = Okx()
    order = dict(instType='SPOT', instId='LINK-USDT', ordId='9', clOrdId='sZ1', side='sell', state='partially_filled', sz='4', accFillSz='1.5', uTime='5', tradeId='3', fillPx='26.8',
                 fillSz='1.5', fillFee='0.002', fillFeeCcy='USDT', execType='M', fillTime='4')
    fill, u = codec.private(msgspec.json.encode(dict(arg=dict(channel='orders', instType='SPOT'), data=[order])))
    assert isinstance(fill, Fill) and (fill.client_id, fill.qty, fill.fee, fill.fee_asset, fill.maker, fill.side, fill.ts_venue_ns) == ('s-1', Decimal('1.5'), Decimal('-0.002'), 'USDT', True, SELL, 4*10**6)
    assert (u.status, u.filled_qty, u.qty) == ('partly_filled', Decimal('1.5'), 4)
    done, = codec.private(msgspec.json.encode(dict(arg=dict(channel='orders'), data=[{**order, 'state': 'canceled', 'tradeId': '', 'fillSz': '0', 'cancelSource': '14'}])))
    assert (done.status, done.reason) == ('cancelled', 'cancelSource 14')
    assert codec.private(b'{"arg":{"channel":"account"},"data":[{"details":[{"ccy":"LINK","availBal":"9.5","frozenBal":"0.5"}]}]}') == [Balance('LINK', Decimal('9.5'), Decimal('0.5'))]


def test_signatures():
    "Against the written recipe, spelled out once more."
    import base64
    import hashlib
    import hmac
    codec = codec_with_a_listing()
    r = codec.order_request('LINK-USDT', 'a-1', NOW)
    assert r.path_with_query == '/api/v5/trade/order?instId=LINK-USDT&clOrdId=aZ1' and r.headers['OK-ACCESS-TIMESTAMP'] == '2021-08-20T00:00:00.000Z'
    text = f'2021-08-20T00:00:00.000ZGET{r.path_with_query}'
    assert r.headers['OK-ACCESS-SIGN'] == base64.b64encode(hmac.new(b'secret', text.encode(), hashlib.sha256).digest()).decode() == signature('secret', text)
    assert r.headers['OK-ACCESS-PASSPHRASE'] == 'words' and 'words' not in repr(codec.keys) and 'secret' not in repr(codec.keys)
    login = msgspec.json.decode(codec.login(NOW)[0])['args'][0]
    assert (login['timestamp'], login['sign']) == ('1629417600', signature('secret', '1629417600GET/users/self/verify'))


def test_quotes_and_trades():
    q, = Okx().public(b'{"arg":{"channel":"bbo-tbt","instId":"LINK-USDT"},"data":[{"asks":[["26.9","3","0","1"]],"bids":[["26.8","2","0","1"]],"ts":"7","seqId":55}]}')
    assert q == Quote('LINK-USDT', 26.8, 2., 26.9, 3., 55, 7*10**6)
    t, = Okx().public(b'{"arg":{"channel":"trades","instId":"LINK-USDT"},"data":[{"instId":"LINK-USDT","tradeId":"8","px":"26.9","sz":"2","side":"sell","ts":"7","count":"1"}]}')
    assert t == Trade('LINK-USDT', 26.9, 2., SELL, '8', 7*10**6)


def test_fills_come_in_pages_and_older_ones_from_another_list():
    codec = codec_with_a_listing()
    assert codec.fills_request('LINK-USDT', NOW - 10**9, NOW).path_with_query.startswith('/api/v5/trade/fills?')
    assert codec.fills_request('LINK-USDT', NOW - 4*86_400*10**9, NOW).path_with_query.startswith('/api/v5/trade/fills-history?')
    page = msgspec.json.encode(dict(code='0', data=[dict(billId=str(1000 - i)) for i in range(100)]))
    assert codec.fills_cursor(page) == '901' and codec.fills_cursor(b'{"code":"0","data":[{"billId":"5"}]}') == ''
    assert codec.fills_request('LINK-USDT', 0, NOW, '901').path_with_query.endswith('&after=901')
