"""What each venue's documented errors mean to us, every one of them.

The numbers and words are those of the venues' pages as of July 2026: *Error codes for Binance* (binance-spot-api-docs, 21 July), *Error Codes* (bybit-exchange/docs,
24 July; UTA and spot trade), *Error Code* (okx.com/docs-v5, 27 June; general, API and trade classes, WebSocket), *Error messages* (docs.kraken.com). What a page lists and no table
here names means `other`: a mistake in the request, or a part of the venue that arbwork does not use."""
import msgspec
import pytest

from arbwork.feed import binance, bybit, kraken, okx
from arbwork.feed.codec import Keys, http_code
from arbwork.feed.events import Notice, OrderUpdate
from arbwork.market import ERROR_CODES, VenueError
from arbwork.trade.workers import REFUSALS


def between(*spans): return [n for low, high in spans for n in range(low, high + 1)]


BINANCE = [-1000, -1001, -1002, -1003, -1006, -1007, -1008, -1013, -1014, -1015, -1016, -1020, -1021, -1022, -1033, -1034, -1035, *range(-1100, -1107, -1), -1108, -1111, -1112,
    *range(-1114, -1123, -1), -1125, -1127, -1128, -1130, -1134, -1135, -1139, -1145, -1151, -1152, -1153, -1155, -1158, -1160, -1161, -1165, -1166, *range(-1168, -1192, -1), -1194,
    *range(-1196, -1200, -1), -1210, -1211, *range(-1220, -1226, -1), -2010, -2011, -2013, -2014, -2015, -2016, -2021, -2022, -2026, -2035, -2036, -2039, -2042, -2043]
BINANCE_MEANS = {
    'unknown_outcome': [(-1000, 'An unknown error occurred while processing the request.'), (-1001, 'Internal error; unable to process your request. Please try again.'),
                        (-1006, 'An unexpected response was received from the message bus. Execution status unknown.'), (-1007, 'Timeout waiting for response from backend server. Send status unknown; execution status unknown.')],
    'rate': [(-1003, 'Too many requests queued.'), (-1003, 'Too much request weight used; current limit is 6000 request weight per 1 MINUTE. Please use WebSocket Streams for live updates to avoid polling the API.'),
             (-1015, 'Too many new orders; current limit is 50 orders per 10 SECOND.'), (-1034, 'Too many concurrent connections; current limit is 300.'), (-1181, 'Too many messages'),
             (-1191, 'Too many subscriptions.'), (-1013, 'Filter failure: MAX_NUM_ORDERS'), (-1013, 'Filter failure: EXCHANGE_MAX_NUM_ORDERS')],
    'banned': [(-1003, 'Way too much request weight used; IP banned until 1659146400000. Please use WebSocket Streams for live updates to avoid bans.')],
    'venue_down': [(-1008, 'Server is currently overloaded with other requests. Please try again in a few minutes.'), (-1016, 'This service is no longer available.')],
    'clock': [(-1021, "Timestamp for this request was 1000ms ahead of the server's time.")], 'signature': [(-1022, 'Signature for this request is not valid.')],
    'tick_or_lot': [(-1111, "Parameter 'quantity' has too much precision."), (-1013, 'Filter failure: PRICE_FILTER'), (-1013, 'Filter failure: LOT_SIZE'), (-1013, 'Filter failure: MARKET_LOT_SIZE')],
    'below_minimum': [(-1013, 'Filter failure: NOTIONAL'), (-1013, 'Filter failure: MIN_NOTIONAL'), (-2010, 'Price * QTY is zero or less.')],
    'duplicate_id': [(-2010, 'Duplicate order sent.')], 'insufficient_funds': [(-2010, 'Account has insufficient balance for requested action.')],
    'would_cross': [(-2010, 'Order would immediately match and take.')],
    'unknown_order': [(-2011, 'Unknown order sent.'), (-2011, 'CANCEL_REJECTED'), (-2013, 'Order does not exist.'), (-2026, 'Order was canceled or expired with no executed qty over 90 days ago and has been archived.')],
    'permission': [(-1002, 'You are not authorized to execute this request.'), (-2014, 'API-key format invalid.'), (-2015, 'Invalid API-key, IP, or permissions for action.'),
                   (-2010, 'This action is disabled on this account.'), (-2011, 'This account may not place or cancel orders.'), (-2010, 'This symbol is not permitted for this account.'),
                   (-2010, 'This symbol is restricted for this account.'), (-2010, 'WebSocket API trading is not enabled.')],
    'other': [(-2010, 'Market is closed.'), (-2011, 'Market is closed.'), (-2010, 'Market orders are not supported for this symbol.'), (-2010, 'Unsupported order combination'), (-2010, 'Order would trigger immediately.'),
              (-2011, 'Order was not canceled due to cancel restrictions.'), (-1013, 'Filter failure: PERCENT_PRICE'), (-1013, 'Filter failure: MAX_POSITION'), (-1121, 'Invalid symbol.'), (-1013, 'Invalid quantity.')]}

BYBIT = [0, -1, 429, -2015, 33004, *between((10000, 10010)), 10014, 10016, 10017, 10018, 10019, 10024, 10027, 10028, 10029, 10403, 10404, 10429, 20003, 20006, 30035, 30133, 30134, 30135, 30136, 30208, 30209,
    30228, 30256, 40004, 100028, 110001, *between((110003, 110080), (110082, 110083), (110085, 110090), (110092, 110121), (110123, 110125)), 110131, 110132, 110135, 110136, 110137, 3100181, 3100197,
    170001, 170005, 170007, 170010, 170011, 170019, *between((170031, 170037)), 170105, 170115, 170116, 170117, 170121, 170124, *between((170130, 170134), (170136, 170137), (170139, 170151)), 170157, 170159,
    *between((170190, 170204)), 170206, 170207, 170209, 170210, *between((170212, 170213), (170215, 170224), (170226, 170230)), 170234, 170241, *between((170310, 170313)), 170341, 170344, 170348, 170355,
    170358, 170359, 170371, 170372, 170381, 170382, 170709, 170810]
BYBIT_MEANS = {
    'clock': [10002, -1], 'signature': [10004], 'rate': [429, 10006, 10018, 10403, 10429, 20003, 110009, 110020, 170005, 170222, 170810], 'banned': [10008, 10027, 3100197], 'venue_down': [10019],
    'permission': [10003, 10005, 10007, 10009, 10010, 10024, 10028, -2015, 33004, 100028, 110018, 110066, 110067, 110069, 110088, 110123, 110124, 110125, 110132, 170031, 170157, 170201, 170209, 170219,
                   170224, 170227, 170241, 170348, 170355],
    'unknown_outcome': [10000, 10016, 110079, 170001, 170007, 170032, 170035, 170146, 170147, 170149, 170212, 170234, 170310], 'duplicate_id': [10014, 20006, 110072, 170141],
    'unknown_order': [110001, 110008, 110010, 170139, 170142, 170143, 170190, 170213],
    'insufficient_funds': [110004, 110006, 110007, 110012, 110014, 110044, 110045, 110051, 110052, 110053, 170033, 170131], 'below_minimum': [110017, 110094, 170133, 170136, 170140],
    'tick_or_lot': [170134, 170137, 170148], 'would_cross': [170218]}

OKX = [0, 1, 2, 50000, 50001, 50002, *between((50004, 50030), (50032, 50033), (50035, 50042), (50044, 50053), (50055, 50064)), 50067, 50069, 50071, 50072, 50075, 50076, 50077, *between((50100, 50116), (50118, 50122),
    (51000, 51012), (51014, 51044), (51046, 51059)), 51063, 51065, 51066, *between((51068, 51096), (51098, 51113), (51115, 51117), (51120, 51140), (51142, 51144), (51147, 51150), (51152, 51156)), 51158, 51159,
    *between((51162, 51171), (51173, 51182), (51185, 51187), (51192, 51197), (51201, 51207), (51209, 51214), (51220, 51226), (51250, 51265), (51267, 51295), (51298, 51300), (51302, 51313)), 51317, *between((51320, 51333),
    (51340, 51359)), 51370, *between((51380, 51413)), 51415, 51416, *between((51500, 51503), (51505, 51514), (51521, 51532), (51536, 51539)), 51543, *between((51600, 51608)), 51610, 51611, 51620, 51621, 51625, 52000,
    *between((60004, 60009), (60011, 60014), (60018, 60019), (60023, 60024), (60026, 60028), (60031, 60033)), 63999, 64000, 64001, 64002, 64003, 64004, 64007]
OKX_MEANS = {
    'clock': [50102, 50107, 50112, 50036, 50037, 60004, 60006], 'signature': [50106, 50113, 60007],
    'permission': [50008, 50012, 50027, 50028, 50029, 50030, 50032, 50033, 50035, 50041, 50051, 50052, 50059, 50060, 50075, 50101, 50103, 50104, 50105, 50110, 50111, 50114, 50118, 50119, 50120, 50121, 51009, 51010,
                   51024, 51037, 51155, 51411, 60005, 60008, 60009, 60011, 60024, 60026, 60028, 60031, 60032, 64003],
    'rate': [50011, 50040, 50061, 51025, 51102, 51103, 51174, 60014, 60023], 'banned': [50007, 50009, 50019, 50022, 50100], 'venue_down': [50001, 50005, 50046, 50062, 63999],
    'unknown_outcome': [50004, 50013, 50026, 51054, 51149, 51410, 51412, 64007], 'duplicate_id': [50042, 50071, 51011, 51016],
    'unknown_order': [51063, 51400, 51401, 51402, 51405, 51503, 51509, 51510, 51603], 'insufficient_funds': [51008, 51127, 51131, 51502], 'below_minimum': [50122, 51007, 51020, 51120],
    'tick_or_lot': [51121, 51150], 'would_cross': [51511]}

KRAKEN_MEANS = {
    'clock': ['EAPI:Invalid nonce', 'EService:Deadline elapsed'], 'signature': ['EAPI:Invalid signature'],
    'permission': ['EAPI:Invalid key', 'EGeneral:Permission denied', 'EAccount:Invalid permissions', 'EAccount:Invalid permissions:LINK trading restricted for GB.', 'EAuth:Account unconfirmed', 'EAPI:Feature disabled', 'EBM:limit exceeded:CAL',
                   'ESession:Invalid session', 'EOrder:Trading agreement required'],
    'rate': ['EAPI:Rate limit exceeded', 'EOrder:Rate limit exceeded', 'EOrder:Orders limit exceeded', 'EOrder:Domain rate limit exceeded', 'EOrder:Scheduled orders limit exceeded', 'EGeneral:Too many requests',
             'EAuth:Rate limit exceeded', 'EAuth:Too many requests', 'EService: Throttled: 1659146400', 'EService:Throttled: 1659146400'],
    'banned': ['EGeneral:Temporary lockout', 'EAuth:Account temporary disabled', 'ETrade:User Locked'],
    'venue_down': ['EService:Unavailable', 'EService:Busy', 'EService:Market in cancel_only mode', 'EService:Market in post_only mode', 'EService:Market in maintenance mode'],
    'unknown_outcome': ['EGeneral:Internal error', 'EGeneral:Internal error:DB-42', 'EService:Timeout', 'EGeneral:Unknown error'],
    'unknown_order': ['EOrder:Unknown order', 'EOrder:Invalid order', 'EQuery:Unknown order'], 'duplicate_id': ['EGeneral:Invalid arguments:cl_ord_id', 'EOrder:Duplicate order'],
    'insufficient_funds': ['EOrder:Insufficient funds', 'EOrder:Insufficient funds (insufficient user funds)', 'EOrder:Insufficient margin'],
    'below_minimum': ['EOrder:Order minimum not met', 'EOrder:Order minimum not met (volume too low)', 'EOrder:Cost minimum not met', 'EGeneral:Invalid arguments:volume minimum not met'],
    'tick_or_lot': ['EOrder:Invalid price', 'EOrder:Tick size check failed', 'EGeneral:Invalid arguments:price', 'EOrder:Invalid price:Invalid price argument'], 'would_cross': ['EOrder:Post only order'],
    'other': ['EGeneral:Invalid arguments', 'EGeneral:Invalid arguments:Index unavailable', 'EOrder:Cannot open opposing position', 'EOrder:Cannot open position', 'EOrder:Margin allowance exceeded', 'EOrder:Margin level too low',
              'EOrder:Margin position size exceeded', 'EOrder:Positions limit exceeded', 'EOrder:Reduce only:No position exists', 'ETrade:Invalid request', 'EQuery:Unknown asset', 'EQuery:Unknown asset pair',
              'EFunding:Max fee exceeded', 'EFunding:No funding method', 'EFunding:Too many addresses', 'EOrder:Something new', '', 'nonsense']}


def test_binance():
    for name, cases in BINANCE_MEANS.items():
        for code, words in cases: assert binance.error_code(code, words) == name, (code, words)
    named = {code for name, cases in BINANCE_MEANS.items() for code, _ in cases if name != 'other'}
    for code in set(BINANCE) - named: assert binance.error_code(code, 'any words') == 'other', code
    assert len(BINANCE) == 104 and named <= set(BINANCE)


@pytest.mark.parametrize('read, documented, means, count', [(bybit.error_code, BYBIT, BYBIT_MEANS, 253), (lambda n: okx.error_code(str(n)), OKX, OKX_MEANS, 425)], ids=['bybit', 'okx'])
def test_numbers(read, documented, means, count):
    expected = {n: name for name, numbers in means.items() for n in numbers}
    assert set(expected) <= set(documented) and len(set(documented)) == len(documented) >= count
    for n in documented: assert read(n) == expected.get(n, 'other'), n
    assert okx.error_code('51008_1000') == 'insufficient_funds', 'the number of a particular case stands behind'


def test_kraken():
    for name, texts in KRAKEN_MEANS.items():
        for text in texts: assert kraken.error_code(text) == name, text


def test_every_meaning_is_one_of_the_small_set():
    for means in (BINANCE_MEANS, BYBIT_MEANS, OKX_MEANS, KRAKEN_MEANS): assert set(means) <= set(ERROR_CODES)
    assert not REFUSALS & {'unknown_outcome', 'duplicate_id', 'venue_down', 'unknown_order'}, 'what is no refusal'


KEYS = Keys('key', 'c2VjcmV0', 'word')
CODECS = {'binance': binance.Binance(None, KEYS), 'bybit': bybit.Bybit(None, KEYS), 'okx': okx.Okx(None, KEYS), 'kraken': kraken.Kraken(None, KEYS)}


@pytest.mark.parametrize('venue', CODECS)
@pytest.mark.parametrize('status, code', [(500, 'unknown_outcome'), (502, 'unknown_outcome'), (503, 'unknown_outcome'), (504, 'unknown_outcome'), (429, 'rate'), (418, 'banned'), (401, 'permission'), (404, 'other')])
def test_an_answer_that_is_none_of_the_venues(venue, status, code):
    "A page of whatever stands between us and the venue: what it means follows from the status alone."
    codec = CODECS[venue]
    for read in (codec.place_reply, codec.balances_reply, codec.fills_reply, codec.order_reply, codec.cancel_reply):
        with pytest.raises(VenueError) as e: read(status, b'<html><body>502 Bad Gateway</body></html>')
        assert e.value.code == code, (read.__name__, str(e.value))
        assert '<html>' in str(e.value) and str(status) in str(e.value)


def test_a_status_of_500_goes_before_the_number_beside_it():
    assert http_code(599) == 'unknown_outcome'
    with pytest.raises(VenueError) as e: CODECS['binance'].place_reply(503, b'{"code":-2010,"msg":"Account has insufficient balance for requested action."}')
    assert e.value.code == 'unknown_outcome', 'execution status is unknown, whatever the body says'
    with pytest.raises(VenueError) as e: CODECS['okx'].balances_reply(503, b'{"code":"50001","msg":"Service temporarily unavailable. Please try again later."}')
    assert e.value.code == 'venue_down'
