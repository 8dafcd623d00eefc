"""The simulated Coinbase: tokens of three kinds of key, one count of frames a socket, and money that adds up to the last digit."""

import asyncio
import base64
import time
from decimal import Decimal as D

import aiohttp
import ccxt.pro as ccxtpro
import msgspec
import pytest
from hypothesis import given, settings, strategies as st

from arbwork.feed.codec import Keys
from arbwork.market import BUY, SELL, ConfigError
from arbwork.sim.coinbase import CoinbaseVenue, QuoteFees, pem_of, signing_key, token_for, uuid_number
from arbwork.sim.engine import UNIT, whole
from arbwork.sim.scenarios import load_scenario
from arbwork.sim.server import World
from arbwork.sim.wire import Fault

KEYS, NAME, V3 = Keys('organizations/1/apiKeys/2', 'sim-secret'), 'LINK-USDT', '/api/v3/brokerage/'
SCENARIO = load_scenario('link-2021-08-20', minutes=2, venues=('coinbase', 'bybit'))
NOW = SCENARIO.start_ns


def venue_of(keys=KEYS, fees=(60., 120.), rows=5, **balances):
    listing, shown = SCENARIO.listings['coinbase'], SCENARIO.rows['coinbase'][:rows]
    return CoinbaseVenue(QuoteFees('coinbase', [listing], fees, balances or {'LINK': D(2000), 'USDT': D(50_000)}), {NAME: (shown['ts_venue_ns'].tolist(), whole(shown, listing))}, keys)


def ask(venue, method, path, query='', now=NOW, keys=KEYS, **p):
    token = token_for(keys, now, f'{method} api.coinbase.com{V3}{path}')
    reply = venue.rest(method, V3 + path, query, msgspec.json.encode(p).decode() if p else '', {'Authorization': f'Bearer {token}', 'Host': 'api.coinbase.com'}, now)
    return reply.status, reply.body if reply.body == b'Unauthorized' else msgspec.json.decode(reply.body)


def order(venue, cid, kind='limit_limit_gtc', side='BUY', now=NOW, **fields):
    return ask(venue, 'POST', 'orders', now=now, client_order_id=cid, product_id=NAME, side=side, order_configuration={kind: fields})[1]


def say(venue, s, now=NOW, **m): return [msgspec.json.decode(x) for x in venue.receive(s, msgspec.json.encode(m), now)]


@pytest.mark.parametrize('keys', [KEYS, Keys('k', pem_of('other')), Keys('k', pem_of('other').replace('\n', '\\n')), Keys('k', base64.b64encode(bytes(range(64))).decode()),
                                  Keys('k', base64.b64encode(bytes(range(32))).decode())], ids=['any text', 'PEM', 'PEM on one line', 'Ed25519', 'Ed25519 seed'])
def test_a_token_of_each_kind_of_key_is_good_for_its_request_and_no_other(keys):
    venue, path = venue_of(keys), V3 + 'accounts'
    def status(token, path=path, now=NOW, host='api.coinbase.com', method='GET'):
        return venue.rest(method, path, '', '', {'Authorization': f'Bearer {token}', 'Host': host}, now).status
    good = token_for(keys, NOW, f'GET api.coinbase.com{path}')
    assert [status(good), status(good, now=NOW + 119*10**9)] == [200, 200]
    assert status(token_for(keys, NOW, f'GET 127.0.0.1:9105{path}'), host='127.0.0.1:9105') == 200
    head, claims, signature = good.split('.')
    none = base64.urlsafe_b64encode(msgspec.json.encode({'alg': 'none', 'kid': keys.key, 'nonce': '1'})).rstrip(b'=').decode()
    bad = [token_for(Keys(keys.key, 'not it'), NOW, f'GET api.coinbase.com{path}'), token_for(Keys('not it', keys.secret), NOW, f'GET api.coinbase.com{path}'),
           token_for(keys, NOW), token_for(keys, NOW, f'POST api.coinbase.com{path}'), token_for(keys, NOW, f'GET evil.example.com{path}'), token_for(keys, NOW, f'GET api.coinbase.com{path}', nonce=''),
           f'{head}.{claims}.', f'{none}.{claims}.', f'{none}.{claims}.{signature}', f'{head}.{head}.{signature}', '', 'a.b.c', f'{good}x', good[:-4] + 'AAAA']
    assert [status(t) for t in bad] == [401]*len(bad)
    assert [status(good, now=NOW + 121*10**9), status(good, now=NOW - 60*10**9), status(good, path=V3 + 'key_permissions')] == [401, 401, 401]
    assert venue.rest('GET', path, '', '', {'CB-ACCESS-KEY': keys.key, 'CB-ACCESS-SIGN': 'x', 'CB-ACCESS-TIMESTAMP': '1'}, NOW).status == 401 # HMAC keys ended in February 2025
    assert venue_of(None).rest('GET', path, '', '', {'Authorization': f'Bearer {good}'}, NOW).status == 401


def test_secrets_that_are_keys_of_another_kind_are_refused():
    from cryptography.hazmat.primitives.asymmetric import rsa
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
    pem = rsa.generate_private_key(65537, 1024).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
    for secret, words in ((pem, 'another kind'), ('-----BEGIN EC PRIVATE KEY-----\nnonsense', 'no PEM')):
        with pytest.raises(ConfigError, match=words): signing_key(secret)
    assert pem_of('a') == pem_of('a') != pem_of('b') and pem_of(pem_of('a')) == pem_of('a')


def test_market_limit_and_post_only_orders_and_their_money():
    venue = venue_of()
    e, ask_px = venue.engine, D(venue.tops(NAME)[2])
    bought = order(venue, 'a', 'market_market_ioc', quote_size='100')['success_response']
    o = ask(venue, 'GET', f'orders/historical/{bought["order_id"]}')[1]['order']
    assert (o['status'], o['order_configuration'], o['size_inclusive_of_fees']) == ('FILLED', {'market_market_ioc': {'quote_size': '100'}}, True)
    assert D(o['total_value_after_fees']) == 50_000 - e.free['USDT'] <= 100 and D(o['filled_size']) == e.free['LINK'] - 2000
    fills = ask(venue, 'GET', 'orders/historical/fills', f'order_ids={bought["order_id"]}')[1]['fills']
    assert sum(D(f['commission']) for f in fills) == D(o['total_fees']) == sum(f.fee for f in e.fills) and {f['liquidity_indicator'] for f in fills} == {'TAKER'}
    before = dict(e.free)
    rests = order(venue, 'b', base_size='2', limit_price='20', post_only=True)['success_response']['order_id']
    assert e.held['USDT'] == 2*20*D('1.012') and before['USDT'] - e.free['USDT'] == e.held['USDT']
    assert [x['order_id'] for x in ask(venue, 'GET', 'orders/historical/batch', 'order_status=OPEN')[1]['orders']] == [rests]
    assert order(venue, 'c', base_size='1', limit_price=str(ask_px), post_only=True)['error_response']['preview_failure_reason'] == 'PREVIEW_INVALID_LIMIT_PRICE_POST_ONLY'
    unknown, first = '00000000-0000-4000-8000-000000000000', bought['order_id']
    results = ask(venue, 'POST', 'orders/batch_cancel', order_ids=[rests, unknown, first])[1]['results']
    assert [(r['success'], r['failure_reason']) for r in results] == [(True, 'UNKNOWN_CANCEL_FAILURE_REASON'), (False, 'UNKNOWN_CANCEL_ORDER'), (False, 'ORDER_IS_FULLY_FILLED')]
    assert e.free == before and e.held['USDT'] == 0
    assert order(venue, 'd', 'limit_limit_fok', base_size='5000', limit_price=str(ask_px), side='SELL')['error_response']['error'] == 'INSUFFICIENT_FUND'
    fok = order(venue, 'e', 'limit_limit_fok', side='SELL', base_size='1999', limit_price='27.2')['success_response']['order_id']
    assert ask(venue, 'GET', f'orders/historical/{fok}')[1]['order']['status'] == 'CANCELLED' and e.free['LINK'] == before['LINK']
    accounts = {a['currency']: a for a in ask(venue, 'GET', 'accounts', 'limit=250')[1]['accounts']}
    assert D(accounts['USDT']['available_balance']['value']) == e.free['USDT'] and accounts['LINK']['hold']['value'] == '0'


def test_sending_an_order_again_finds_it_and_places_nothing():
    venue = venue_of()
    first, second = (order(venue, 'same', base_size='1', limit_price=px)['success_response'] for px in ('20', '21'))
    assert first == second and len(venue.engine.orders) == 1 and venue.engine.orders[int(uuid_number(first['order_id']))].px == 20


@pytest.mark.parametrize('change, error', [
    ({'side': 'HOLD'}, 'INVALID_SIDE'), ({'product_id': 'DOGE-USD'}, 'INVALID_PRODUCT_ID'), ({'leverage': '3'}, 'INVALID_ARGUMENT'), ({'client_order_id': None}, 'INVALID_ARGUMENT'),
    ({'order_configuration': None}, 'UNSUPPORTED_ORDER_CONFIGURATION'), ({'order_configuration': {'limit_limit_gtd': {'base_size': '1', 'limit_price': '20', 'end_time': 'x'}}}, 'UNSUPPORTED_ORDER_CONFIGURATION'),
    ({'order_configuration': {'market_market_ioc': {'base_size': '1', 'quote_size': '1'}}}, 'UNSUPPORTED_ORDER_CONFIGURATION'), ({'order_configuration': {'sor_limit_ioc': {'base_size': 'NaN', 'limit_price': '20'}}}, 'INVALID_ARGUMENT'),
    ({'order_configuration': {'sor_limit_ioc': {'base_size': '1e400', 'limit_price': '20'}}}, 'INVALID_ARGUMENT'), ({'order_configuration': {'sor_limit_ioc': {'base_size': '1', 'limit_price': '20', 'post_only': True}}}, 'UNSUPPORTED_ORDER_CONFIGURATION'),
    ({'order_configuration': {'limit_limit_gtc': {'base_size': '1', 'limit_price': '20', 'post_only': 'yes'}}}, 'INVALID_ARGUMENT'), ({'order_configuration': {'sor_limit_ioc': {'base_size': '0.001', 'limit_price': '2000'}}}, 'UNKNOWN_FAILURE_REASON'),
])
def test_an_order_that_is_not_understood_is_refused_in_words(change, error):
    venue = venue_of()
    body = {'client_order_id': 'a', 'product_id': NAME, 'side': 'BUY', 'order_configuration': {'sor_limit_ioc': {'base_size': '1', 'limit_price': '20'}}} | change
    status, said = ask(venue, 'POST', 'orders', **body)
    assert (said['error'] if status == 400 else said['error_response']['error']) == error and not venue.engine.orders


ORDERS = st.lists(st.tuples(st.sampled_from([BUY, SELL]), st.integers(1, 40_000), st.integers(26_500, 27_500), st.sampled_from(['GTC', 'IOC', 'FOK', 'POST_ONLY', 'market', 'cost', 'next'])), max_size=14)


@settings(max_examples=60, deadline=None)
@given(orders=ORDERS)
def test_no_account_goes_below_zero_and_what_is_paid_is_received(orders):
    venue = venue_of(rows=60, LINK=D(50), USDT=D(1_500))
    e, due = venue.engine, 1
    for i, (side, lots, ticks, kind) in enumerate(orders):
        qty, px = lots*D('0.001'), ticks*D('0.001')
        if kind == 'next': due = min(59, due + 7); venue.advance(int(venue.rows[NAME][0][due])) # noqa: E702
        elif kind == 'cost': e.place(NAME, BUY, D(0), None, 'IOC', f'o{i}', NOW, budget=qty*30)
        else: e.place(NAME, side, qty, None if kind == 'market' else px, 'IOC' if kind == 'market' else kind, f'o{i}', NOW)
        assert all(x >= 0 for x in (*e.free.values(), *e.held.values())), (e.free, e.held)
        assert e.held['USDT'] == sum(o.hold for o in venue.open_orders() if o.side == BUY) and e.held['LINK'] == sum(o.hold for o in venue.open_orders() if o.side == SELL)
    assert e.free['LINK'] + e.held['LINK'] - 50 == sum(f.side*f.qty for f in e.fills)
    assert e.free['USDT'] + e.held['USDT'] - 1_500 == -sum(f.side*f.px*f.qty + f.fee for f in e.fills)
    assert {f.fee_asset for f in e.fills} <= {'USDT'}


def test_one_socket_counts_its_own_frames_whatever_it_hears():
    venue = venue_of(rows=60)
    a, b = venue.open('/', ''), venue.open('', '')
    assert venue.open('/v2', '') is None
    told = say(venue, a, type='subscribe', channel='level2', product_ids=[NAME]) + say(venue, a, type='subscribe', channel='heartbeats') + say(venue, a, type='subscribe', channel='ticker', product_ids=[NAME])
    other = say(venue, b, type='subscribe', channel='ticker_batch', product_ids=[NAME])
    assert told[1]['events'] == [{'subscriptions': {'level2': [NAME]}}] and told[-1]['events'] == [{'subscriptions': {'heartbeats': ['heartbeats'], 'level2': [NAME], 'ticker': [NAME]}}]
    venue.advance(NOW + 30*10**9)
    heard = [msgspec.json.decode(x) for x in a.out]
    quiet = [msgspec.json.decode(x) for x in b.out]
    assert [m['sequence_num'] for m in told + heard] == list(range(len(told + heard))) and [m['sequence_num'] for m in other + quiet] == list(range(len(other + quiet)))
    assert {m['channel'] for m in heard} == {'l2_data', 'heartbeats', 'ticker'} and {m['channel'] for m in quiet} <= {'ticker_batch'} and 'best_bid' not in other[0]['events'][0]['tickers'][0]
    gone = say(venue, a, type='unsubscribe', channel='level2')
    assert gone[0]['events'] == [{'subscriptions': {'heartbeats': ['heartbeats'], 'ticker': [NAME]}}]
    assert [say(venue, a, **m)[0]['message'] for m in ({'type': 'subscribe', 'channel': 'heartbeat'}, {'type': 'subscribe', 'channel': 'user'}, {'type': 'subscribe', 'channel': 'level2', 'product_ids': ['DOGE-USD']}, {})] == \
        ['authentication failure', 'authentication failure', 'failure to subscribe', 'malformed message']


def book_of(frames):
    "The book that a client keeps from l2_data."
    book = {'bid': {}, 'offer': {}}
    for e in (e for m in frames if m.get('channel') == 'l2_data' for e in m['events']):
        if e['type'] == 'snapshot': book = {'bid': {}, 'offer': {}}
        for u in e['updates']:
            if D(u['new_quantity']): book[u['side']][D(u['price_level'])] = D(u['new_quantity'])
            else: book[u['side']].pop(D(u['price_level']), None)
    return book


def test_the_book_of_the_stream_is_the_venues_and_a_lost_frame_shows_in_the_count():
    venue = venue_of(rows=60)
    s, tick = venue.open('/', ''), SCENARIO.listings['coinbase'].tick
    frames = say(venue, s, type='subscribe', channel='level2', product_ids=[NAME])
    def hear():
        frames.extend(msgspec.json.decode(x) for x in s.out)
        s.out.clear()
    def shown(): return {side: {p*tick: D(q)/UNIT for p, q in x.visible().items()} for side, x in zip(('bid', 'offer'), venue.engine.books[NAME])}
    for i in range(1, 20):
        venue.advance(NOW + i*10**9)
        order(venue, f'x{i}', 'sor_limit_ioc', now=NOW + i*10**9, base_size='3', limit_price='28')
        hear()
        assert book_of(frames) == shown()
    numbers = [m['sequence_num'] for m in frames]
    assert numbers == list(range(len(numbers)))
    venue.faults.append(Fault('gap'))
    while venue.faults: venue.advance(venue.next_ns())
    venue.advance(venue.next_ns())
    hear()
    assert frames[-1]['sequence_num'] == frames[-2]['sequence_num'] + 2 and book_of(frames) != shown()
    venue.faults.append(Fault('swap'))
    while venue.faults: venue.advance(venue.next_ns())
    venue.advance(venue.next_ns())
    hear()
    assert frames[-1]['sequence_num'] == frames[-2]['sequence_num'] - 1


def test_the_account_is_told_of_each_step_and_only_of_the_product_that_was_asked_for():
    venue = venue_of()
    every, one = venue.open('/', ''), venue.open('/', '')
    snapshot, listed = say(venue, every, type='subscribe', channel='user', jwt=token_for(KEYS, NOW))
    say(venue, one, type='subscribe', channel='user', product_ids=[NAME], jwt=token_for(KEYS, NOW))
    assert snapshot['events'][0]['orders'] == [] and list(listed['events'][0]['subscriptions']) == ['user']
    assert say(venue, venue.open('/', ''), type='subscribe', channel='user', jwt=token_for(KEYS, NOW - 200*10**9))[0]['message'] == 'authentication failure'
    rests = order(venue, 'a', base_size='1', limit_price='20')['success_response']['order_id']
    order(venue, 'b', 'sor_limit_ioc', base_size='5', limit_price='28')
    ask(venue, 'POST', 'orders/batch_cancel', order_ids=[rests])
    told = [[(o['client_order_id'], o['status'], o['leaves_quantity']) for x in s.out for o in msgspec.json.decode(x)['events'][0]['orders']] for s in (every, one)]
    assert told[0] == told[1] and told[0][0] == ('a', 'OPEN', '1') and told[0][-1] == ('a', 'CANCELLED', '0') and ('b', 'FILLED', '0') in told[0]
    again = say(venue, venue.open('/', ''), type='subscribe', channel='user', jwt=token_for(KEYS, NOW))
    assert again[0]['events'][0]['orders'] == []


def test_lists_come_in_pages():
    venue = venue_of()
    ids = [order(venue, f'p{i}', base_size='1', limit_price='20', now=NOW + i*10**9)['success_response']['order_id'] for i in range(7)]
    first = ask(venue, 'GET', 'orders/historical/batch', 'limit=4')[1]
    second = ask(venue, 'GET', 'orders/historical/batch', f'limit=4&cursor={first["cursor"]}')[1]
    assert [o['order_id'] for o in first['orders'] + second['orders']] == ids[::-1] and (first['has_next'], second['has_next']) == (True, False)
    assert ask(venue, 'GET', 'orders/historical/batch', 'limit=many')[0] == 400 and ask(venue, 'GET', 'orders/historical/batch', 'start_date=yesterday')[0] == 400
    assert ask(venue, 'GET', f'orders/historical/{"0"*8}-0000-0000-0000-{"0"*12}')[0] == 404


def test_more_orders_than_the_venue_takes_in_a_second_are_turned_away():
    venue = venue_of()
    answers = [ask(venue, 'POST', 'orders', client_order_id=f'r{i}', product_id=NAME, side='BUY', order_configuration={'limit_limit_gtc': {'base_size': '1', 'limit_price': '20'}})[0] for i in range(venue.most_orders + 2)]
    assert answers == [200]*venue.most_orders + [429, 429]


@settings(max_examples=150, deadline=None)
@given(data=st.data(), body=st.recursive(st.none() | st.booleans() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=4) | st.sampled_from(['BUY', NAME, '1', '27', '-1', '1e9']),
    lambda x: st.lists(x, max_size=3) | st.dictionaries(st.sampled_from(['client_order_id', 'product_id', 'side', 'order_configuration', 'sor_limit_ioc', 'market_market_ioc', 'base_size', 'quote_size', 'limit_price', 'order_ids']), x, max_size=5), max_leaves=10),
    query=st.dictionaries(st.sampled_from(['limit', 'cursor', 'order_status', 'product_ids', 'start_date', 'order_ids']), st.text(max_size=6) | st.sampled_from(['OPEN', NAME, '3', '2024-01-01T00:00:00Z']), max_size=4))
def test_any_signed_request_gets_an_answer(data, body, query):
    from urllib.parse import urlencode
    venue = venue_of()
    method, path = data.draw(st.sampled_from(sorted(venue.routes)))
    token = token_for(KEYS, NOW, f'{method} api.coinbase.com{path}')
    reply = venue.rest(method, path, urlencode(query), msgspec.json.encode(body).decode(), {'Authorization': f'Bearer {token}'}, NOW)
    msgspec.json.decode(reply.body)
    assert reply.status in (200, 400, 404)


def test_over_real_sockets_a_key_of_the_other_kind_and_a_lost_answer():
    "ccxt signs with Ed25519 as well, and an order whose answer was lost is there for whoever asks."
    async def go():
        keys = Keys('ed', base64.b64encode(bytes(range(64))).decode())
        world = World(['coinbase'], SCENARIO, 0, 1., keys, lead_s=0., start_ns=time.time_ns(), wall=True)
        at = (await world.start())['venues']['coinbase']
        ex = ccxtpro.coinbase({'apiKey': keys.key, 'secret': keys.secret, 'enableRateLimit': False, 'timeout': 1_000})
        ex.urls['api']['rest'], ex.urls['api']['ws'] = at['rest'], at['public_ws']
        try:
            await ex.load_markets()
            assert (await ex.fetch_balance({'v3': True}))['LINK']['free'] == 2000
            async with aiohttp.ClientSession() as http: await http.post(at['rest'] + '/_sim/faults', json={'kind': 'drop_ack'})
            with pytest.raises(ccxtpro.NetworkError): await ex.create_order('LINK/USDT', 'limit', 'buy', 1, 20., {'client_order_id': 'lost'})
            found = await ex.fetch_open_orders('LINK/USDT')
            assert [o['clientOrderId'] for o in found] == ['lost']
            again = await ex.create_order('LINK/USDT', 'limit', 'buy', 1, 20., {'client_order_id': 'lost'})
            assert again['id'] == found[0]['id'] and len(await ex.fetch_orders('LINK/USDT')) == 1
        finally:
            await ex.close()
            await world.stop()
    asyncio.run(asyncio.wait_for(go(), 25))


def test_a_plain_secret_is_the_seed_of_a_key_that_the_server_shows():
    async def go(secret):
        world = World(['coinbase'], SCENARIO, 0, 1., Keys('k', secret), lead_s=0.)
        ready = await world.start()
        await world.stop()
        return ready.get('hints')
    assert asyncio.run(go('plain')) == {'coinbase': {'api_secret': pem_of('plain')}} and asyncio.run(go(pem_of('plain'))) is None
