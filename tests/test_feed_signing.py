"Signatures: against the venues' own published examples, against an independent client, against public keys, and over a socket that is logged on to once."
import asyncio
import subprocess
from base64 import b64decode
from decimal import Decimal
from urllib.parse import parse_qsl, unquote, urlencode

import ccxt
import msgspec
import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from test_feed_wire import Venue, run, until

from arbwork.clock import WallClock
from arbwork.feed.binance import Binance
from arbwork.feed.bybit import Bybit
from arbwork.feed.codec import Keys, Signer, pem
from arbwork.feed.events import Fill, NewOrder, OrderUpdate
from arbwork.feed.kraken import Kraken, api_sign
from arbwork.feed.okx import Okx, signature
from arbwork.feed.wire import CODECS, TradeLink
from arbwork.market import BUY, ConfigError
from arbwork.serve.vault import Vault

MS = 10**6
NOW = 1_645_423_376_532*MS
PUBLISHED = '-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEIIJEYWtGBrhACmb9Dvy+qa8WEf0lQOl1s4CLIAB9m89u\n-----END PRIVATE KEY-----\n' # binance-spot-api-docs, fix-api.md, 21 July 2026
ORDER = NewOrder('s1-7-0-0', 'LINK-USDT', BUY, Decimal('3.5'), Decimal('26.84'))


def written(key, password=None):
    how = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, how).decode()


@pytest.fixture(scope='module')
def rsa_key(): return rsa.generate_private_key(65_537, 2_048)


# published examples

def test_binance_by_hmac():
    "SIGNED request example (HMAC), web-socket-api.md; HMAC Keys, rest-api.md; binance-spot-api-docs of 21 July 2026."
    sign = Signer(Keys('vmPUZE6mv9SD5VNHk4HlWFsOr6aKE2zvsw0MuIgwCIPy6utIco14y7Ju91duEh8A', 'NhqPtmdSJYdKjVHjA7PZj4Mge3R5YNiP1e3UZjInClVN65XAbvqqM6A7H5fATj0j')).sign
    head = 'apiKey=vmPUZE6mv9SD5VNHk4HlWFsOr6aKE2zvsw0MuIgwCIPy6utIco14y7Ju91duEh8A&price='
    assert sign(f'{head}52000.00&quantity=0.01000000&recvWindow=100&side=SELL&symbol=BTCUSDT&timeInForce=GTC&timestamp=1645423376532&type=LIMIT') == 'aa1b5712c094bc4e57c05a1a5c1fd8d88dcd628338ea863fec7b88e59fe2db24'
    assert sign(f'{head}0.10000000&quantity=1.00000000&recvWindow=5000&side=BUY&symbol=１２３４５６&timeInForce=GTC&timestamp=1645423376532&type=LIMIT') == 'b33892ae8e687c939f4468c6268ddd4c40ac1af18ad19a064864c47bae0752cd'
    assert sign('symbol=LTCBTC&side=BUY&type=LIMIT&timeInForce=GTC&quantity=1&price=0.1&recvWindow=5000&timestamp=1499827319559') == 'c8db56825ae71d6d79447849e617115f4a920fa2acdcab2b053c4b2838bd6b71'


def test_binance_by_ed25519():
    "The values for validating an implementation, fix-api.md; the only example of the venue that publishes its private key."
    text = '\x01'.join(['A', 'EXAMPLE', 'SPOT', '1', '20240627-11:17:25.223'])
    assert Signer(Keys('k', PUBLISHED)).sign(text) == '4MHXelVVcpkdwuLbl6n73HQUXUf1dse2PCgT1DYqW9w8AVZ1RACFGM+5UdlGPrQHrgtS3CvsRURC1oj73j8gCA=='


def test_kraken_by_its_example():
    "REST authentication, docs.kraken.com/api/docs/guides/spot-rest-auth, read November 2026."
    secret = 'kQH5HW/8p1uGOVjbgWA7FunAmGO8lsSUXNsu3eow76sz84Q18fWxnyRzBHCd3pd5nE9qa99HAZtuZuj6F1huXg=='
    sent = 'nonce=1616492376594&ordertype=limit&pair=XBTUSD&price=37500&type=buy&volume=1.25'
    assert api_sign(secret, '/0/private/AddOrder', '1616492376594', sent) == '4/dpxb3iT4tp/ZCVEwSnEsLxx0bqyhLpdfOpc6fn7OR8+UClSV5n9E6aSS8MPtnRfp32bAb0nmbRn6H8ndwLUQ=='


# against another client: OKX and Bybit publish no example that can be worked out, since the secret is missing

def frozen(name, **keys):
    x = getattr(ccxt, name)({'apiKey': 'public', 'secret': 'c2VjcmV0IG9mIG1hbnkgYnl0ZXM=', 'password': 'word', **keys})
    x.milliseconds = x.nonce = lambda: 1_645_423_376_532
    return x


def test_bybit_as_ccxt_signs():
    other, codec = frozen('bybit'), Bybit(None, Keys('public', 'c2VjcmV0IG9mIG1hbnkgYnl0ZXM='))
    for method, path, params in (('GET', 'v5/order/realtime', {'category': 'spot', 'symbol': 'LINKUSDT'}), ('POST', 'v5/order/create', {'category': 'spot', 'symbol': 'LINKUSDT', 'qty': '3.5'})):
        theirs = other.sign(path, ['private'], method, params)
        ours = codec._signed(method, '/' + path, params, NOW)
        assert ours.headers['X-BAPI-TIMESTAMP'] == theirs['headers']['X-BAPI-TIMESTAMP'] and ours.headers['X-BAPI-RECV-WINDOW'] == str(theirs['headers']['X-BAPI-RECV-WINDOW'])
        body = theirs['body'] or theirs['url'].partition('?')[2]
        assert codec.signing().sign(f'1645423376532public5000{body}') == theirs['headers']['X-BAPI-SIGN']
        if method == 'GET': assert ours.headers['X-BAPI-SIGN'] == theirs['headers']['X-BAPI-SIGN']


def test_okx_as_ccxt_signs():
    other, codec = frozen('okx'), Okx(None, Keys('public', 'c2VjcmV0IG9mIG1hbnkgYnl0ZXM=', 'word'))
    theirs = other.sign('account/balance', ['private'], 'GET', {'ccy': 'BTC'})
    ours = codec._signed('GET', '/api/v5/account/balance', {'ccy': 'BTC'}, NOW)
    for name in ('OK-ACCESS-KEY', 'OK-ACCESS-PASSPHRASE', 'OK-ACCESS-TIMESTAMP', 'OK-ACCESS-SIGN'): assert ours.headers[name] == theirs['headers'][name], name
    theirs = other.sign('trade/order', ['private'], 'POST', {'instId': 'LINK-USDT', 'sz': '3.5'})
    assert signature('c2VjcmV0IG9mIG1hbnkgYnl0ZXM=', '2022-02-21T06:02:56.532Z' + 'POST/api/v5/trade/order' + theirs['body']) == theirs['headers']['OK-ACCESS-SIGN']
    [login, *_] = codec.login(NOW)
    assert msgspec.json.decode(login)['args'][0]['sign'] == signature('c2VjcmV0IG9mIG1hbnkgYnl0ZXM=', '1645423376GET/users/self/verify')


def test_kraken_and_binance_as_ccxt_signs():
    other = frozen('kraken')
    theirs = other.sign('Balance', ['private'], 'POST', {'asset': 'XBT'})
    nonce = dict(parse_qsl(theirs['body']))['nonce']
    assert api_sign('c2VjcmV0IG9mIG1hbnkgYnl0ZXM=', '/0/private/Balance', nonce, theirs['body']) == theirs['headers']['API-Sign']
    theirs = frozen('binance').sign('order', ['private'], 'GET', {'symbol': 'LINKUSDT'})
    query, _, given = theirs['url'].partition('?')[2].partition('&signature=')
    assert Signer(Keys('public', 'c2VjcmV0IG9mIG1hbnkgYnl0ZXM=')).sign(query) == given


# private keys

def test_a_query_signed_with_a_private_key_verifies_with_the_public_one(rsa_key):
    ed = serialization.load_pem_private_key(PUBLISHED.encode(), None)
    for secret, verify in ((PUBLISHED, lambda sig, text: ed.public_key().verify(sig, text)),
                           (written(rsa_key), lambda sig, text: rsa_key.public_key().verify(sig, text, padding.PKCS1v15(), hashes.SHA256()))):
        codec = Binance(None, Keys('public', secret))
        query = codec.place_request(ORDER, NOW).path_with_query.partition('?')[2]
        text, _, quoted = query.partition('&signature=')
        assert not set(quoted) & set('+/=&'), 'base64 in a query is quoted'
        verify(b64decode(unquote(quoted)), text.encode())
        with pytest.raises(InvalidSignature): verify(b64decode(unquote(quoted)), text.encode() + b'0')
    bybit = Bybit(None, Keys('public', written(rsa_key)))
    r = bybit.order_request('LINK-USDT', 'x', NOW)
    rsa_key.public_key().verify(b64decode(r.headers['X-BAPI-SIGN']), f'1645423376532public5000{r.path_with_query.partition("?")[2]}'.encode(), padding.PKCS1v15(), hashes.SHA256())
    args = msgspec.json.decode(bybit.login(NOW)[0])['args']
    rsa_key.public_key().verify(b64decode(args[2]), f'GET/realtime{args[1]}'.encode(), padding.PKCS1v15(), hashes.SHA256())


def test_openssl_makes_the_same_signature(rsa_key, tmp_path):
    "The command of the venue's own page."
    (tmp_path/'key.pem').write_text(written(rsa_key))
    text = 'apiKey=public&timestamp=1645423376532'
    try: made = subprocess.run(['openssl', 'dgst', '-sha256', '-sign', str(tmp_path/'key.pem')], input=text.encode(), capture_output=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError) as e: pytest.skip(f'no openssl here: {e}')
    assert b64decode(Signer(Keys('public', written(rsa_key))).sign(text)) == made


@pytest.mark.parametrize('change', [lambda x: x, lambda x: x.strip(), lambda x: x.replace('\n', ' '), lambda x: x.replace('\n', '\\n'), lambda x: x.replace('\n', '\r\n')])
def test_a_pem_that_went_through_a_terminal(change):
    assert Signer(Keys('k', change(PUBLISHED))).sign('x') == Signer(Keys('k', PUBLISHED)).sign('x')
    assert pem(change(PUBLISHED)) == PUBLISHED.encode()


def test_keys_that_cannot_sign_are_refused_without_repeating_them(rsa_key):
    curve = written(ec.generate_private_key(ec.SECP256R1()))
    locked = written(rsa_key, b'a long enough word')
    assert Signer(Keys('k', locked, 'a long enough word')).kind == 'rsa', 'the passphrase opens the PEM'
    for codec, secret, words in ((Binance, PUBLISHED.replace('MC4C', 'MC5C'), 'is no private key that can be read'), (Binance, curve, 'wanted Ed25519 or RSA'), (Binance, locked, 'is no private key that can be read'),
                                 (Bybit, PUBLISHED, 'bybit: found a secret for ed25519, wanted one for hmac or rsa'), (Okx, written(rsa_key), 'okx: found a secret for rsa, wanted one for hmac'), (Kraken, PUBLISHED, 'kraken: found a secret for ed25519')):
        with pytest.raises(ConfigError, match=words) as e: codec(None, Keys('k', secret)).balances_request(NOW)
        assert secret.splitlines()[1][:16] not in str(e.value) and secret.splitlines()[1][:16] not in repr(codec(None, Keys('k', secret)).keys)


def test_a_private_key_lives_in_the_vault(tmp_path):
    vault = Vault(tmp_path/'vault.json', 'a long enough word')
    vault.put('binance', dict(key='public', secret=PUBLISHED.strip()))
    assert PUBLISHED.splitlines()[1] not in (tmp_path/'vault.json').read_text()
    assert Binance(None, Keys(**vault.get('binance'))).signing().kind == 'ed25519'


# one logon, then orders without signature

class Exchange(Venue):
    "A WebSocket API that lets in whoever's logon verifies, and then takes unsigned orders on that socket and no other."
    def __init__(self, key):
        super().__init__()
        self.owners, self.wrong = set(), []
        self.rest = {'/api/v3/time': lambda: (200, msgspec.json.encode({'serverTime': WallClock().now_ns()//MS}))}
        async def on_message(self, m, ws):
            p = m.get('params', {})
            def no(code, words): return [msgspec.json.encode({'id': m['id'], 'status': 400, 'error': {'code': code, 'msg': words}}).decode()]
            def yes(result): return [msgspec.json.encode({'id': m['id'], 'status': 200, 'result': result, 'rateLimits': [dict(rateLimitType='ORDERS', interval='SECOND', intervalNum=10, limit=100, count=1)]}).decode()]
            if m['method'] == 'session.logon':
                text = '&'.join(f'{k}={p[k]}' for k in sorted(p) if k != 'signature')
                try: key.public_key().verify(b64decode(p['signature']), text.encode())
                except InvalidSignature: return no(-1022, 'Signature for this request is not valid.')
                self.owners.add(ws)
                return yes({'apiKey': p['apiKey'], 'authorizedSince': 1, 'connectedSince': 1, 'returnRateLimits': False, 'serverTime': 1, 'userDataStream': False})
            if ws not in self.owners: return no(-2015, 'Invalid API-key, IP, or permissions for action.')
            if m['method'] == 'userDataStream.subscribe': return yes({'subscriptionId': 0})
            if m['method'] == 'order.place':
                if 'signature' in p or 'apiKey' in p or not p['timestamp']: self.wrong.append(p)
                return yes(dict(symbol='LINKUSDT', orderId=125, clientOrderId=p['newClientOrderId'], transactTime=1629417600105, origQty='3.50', executedQty='3.50', status='FILLED', side='BUY',
                                fills=[dict(price='26.83', qty='3.50', commission='0.0035', commissionAsset='LINK', tradeId=len(self.heard))]))
        self.on_message = on_message


def test_an_ed25519_key_logs_on_once_and_again_after_a_lost_line():
    async def main():
        venue, events, problems = Exchange(serialization.load_pem_private_key(PUBLISHED.encode(), None)), [], []
        async with venue.open():
            link = TradeLink(Binance(), venue.addresses, WallClock(), events.append, Keys('public', PUBLISHED), on_problem=lambda *x: problems.append(x), timeout_s=2.)
            await link.start()
            assert (await link.place(ORDER)).status == 'filled'
            await venue.sockets[0].close(1012, 'service restart')
            await until(lambda: 'reconnected' in [k for k, _ in problems] and link.live)
            assert (await link.place(msgspec.structs.replace(ORDER, client_id='s1-8-0-0'))).status == 'filled'
            assert [m['method'] for m in venue.heard] == ['session.logon', 'userDataStream.subscribe', 'order.place']*2 and not venue.wrong
            assert [type(x) for x in events] == [Fill, OrderUpdate]*2 and link.budget.counter('orders').most == 100
            await link.close()
            wrong = TradeLink(Binance(), venue.addresses, WallClock(), events.append, Keys('public', written(ed25519.Ed25519PrivateKey.generate())), timeout_s=2.)
            with pytest.raises(Exception, match='-1022') as e: await wrong.start()
            assert e.value.code == 'signature'
    run(main())
