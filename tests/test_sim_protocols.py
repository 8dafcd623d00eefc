"""What no client should send: truncated, foreign and absurd requests are answered with an error and change nothing."""

import msgspec
import pytest
from hypothesis import given, settings, strategies as st

from arbwork.feed.codec import Keys
from arbwork.sim.engine import Engine, whole
from arbwork.sim.scenarios import load_scenario
from arbwork.sim.server import VENUES

WORLD = load_scenario('link-2021-08-20', minutes=1, venues=tuple(VENUES))
PATHS = {'binance': ['/ws/linkusdt@depth', '/stream', '/ws-api/v3'], 'bybit': ['/v5/public/spot', '/v5/private', '/v5/trade'],
         'okx': ['/ws/v5/public', '/ws/v5/private', '/ws/v5/business'], 'kraken': ['/v2', '/', '/v2'], 'coinbase': ['/', '/', '']}
NAMES = ['event', 'pair', 'subscription', 'name', 'id', 'method', 'params', 'op', 'args', 'reqId', 'req_id', 'header', 'symbol', 'side', 'quantity', 'qty', 'price', 'timestamp', 'signature', 'apiKey', 'category', 'limit', 'channel', 'instId', 'sz', 'px', 'req_id', 'token', 'depth', 'order_qty', 'cl_ord_id', 'nonce', 'txid', 'start', 'end', 'ofs', 'count', 'pair', 'type', 'product_ids', 'jwt']
WORDS = ['SUBSCRIBE', 'LIST_SUBSCRIPTIONS', 'order.place', 'order.create', 'depth', 'exchangeInfo', 'subscribe', 'auth', 'ping', 'LINKUSDT', 'NaN', '1e999', '-1', '', 'key', 'orderbook.50.LINKUSDT', 'book', 'books', 'executions', 'add_order', 'cancel_order', 'login', 'LINK/USDT', 'LINK-USDT', 'level2', 'unsubscribe', 'user']
LEAF = st.none() | st.booleans() | st.integers(-10**20, 10**20) | st.floats(allow_nan=False, allow_infinity=False) | st.sampled_from(WORDS) | st.text(max_size=5)
TREE = st.recursive(LEAF, lambda x: st.lists(x, max_size=3) | st.dictionaries(st.sampled_from(NAMES), x, max_size=4), max_leaves=12)
REQUEST = st.fixed_dictionaries({}, optional={'id': LEAF, 'method': st.sampled_from(WORDS) | LEAF, 'op': st.sampled_from(WORDS) | LEAF, 'event': st.sampled_from(WORDS), 'pair': TREE, 'subscription': TREE, 'type': st.sampled_from(WORDS), 'channel': st.sampled_from(WORDS) | TREE, 'product_ids': TREE, 'params': TREE, 'args': TREE, 'reqId': LEAF, 'header': TREE})


def venue_of(name):
    listing = WORLD.listings[name]
    rows = WORLD.rows[name][:3]
    return VENUES[name](Engine(name, [listing], balances=WORLD.balances[name]), {listing.instrument: (rows['ts_venue_ns'].tolist(), whole(rows, listing))}, Keys('key', 'secret'))


@pytest.mark.parametrize('name', VENUES)
@settings(max_examples=120, deadline=None)
@given(raw=st.binary(max_size=60) | (REQUEST | TREE).map(msgspec.json.encode), which=st.integers(0, 2))
def test_any_frame_gets_an_answer(name, raw, which):
    venue = venue_of(name)
    s = venue.open(PATHS[name][which], '')
    money = venue.engine.balances()
    for frame in venue.receive(s, raw, WORLD.start_ns): msgspec.json.decode(frame)
    assert venue.engine.balances() == money and not venue.engine.orders


@pytest.mark.parametrize('name', VENUES)
@settings(max_examples=120, deadline=None)
@given(data=st.data(), query=st.text(max_size=30) | st.dictionaries(st.sampled_from(NAMES), st.sampled_from(WORDS), max_size=5).map(lambda d: '&'.join(f'{k}={v}' for k, v in d.items())),
       body=st.text(max_size=30) | TREE.map(lambda x: msgspec.json.encode(x).decode()))
def test_any_request_gets_an_answer(name, data, query, body):
    venue = venue_of(name)
    method, path = data.draw(st.sampled_from([*venue.routes, ('GET', '/'), ('PUT', '/api/v3/order')]))
    reply = venue.rest(method, path, query, body, {}, WORLD.start_ns)
    if reply.body != b'Unauthorized': msgspec.json.decode(reply.body) # the bare word, at Coinbase
    assert reply.status in (200, 400, 401, 404, 408, 418, 429, 503) and not venue.engine.orders


def test_a_trade_is_refused_until_the_signature_and_the_time_fit():
    import hmac
    venue = venue_of('bybit')
    now = WORLD.start_ns
    body = '{"category":"spot","symbol":"LINKUSDT","side":"Buy","orderType":"Market","marketUnit":"baseCoin","qty":"1","orderLinkId":"a"}'
    def ask(ts, secret='secret', key='key'):
        sign = hmac.digest(secret.encode(), f'{ts}{key}5000{body}'.encode(), 'sha256').hex()
        headers = {'X-BAPI-API-KEY': key, 'X-BAPI-TIMESTAMP': str(ts), 'X-BAPI-RECV-WINDOW': '5000', 'X-BAPI-SIGN': sign}
        return msgspec.json.decode(venue.rest('POST', '/v5/order/create', '', body, headers, now).body)['retCode']
    ms = now//10**6
    assert [ask(ms - 6_000), ask(ms + 2_000), ask(ms, secret='other'), ask(ms, key='other'), ask(ms), ask(ms)] == [10002, 10002, 10004, 10003, 0, 170141]
