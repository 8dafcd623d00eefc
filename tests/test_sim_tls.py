"""All venues on one port by host name over TLS: clients whose names resolve to loopback need no setting at all."""

import asyncio
import json
import os
import re
import shutil
import socket
import ssl
import subprocess
import sys
from datetime import datetime, timedelta, timezone
from pathlib import Path

import aiohttp
import pytest
import websockets
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from arbwork.feed.sockets import CLIENTS, client, open_socket
from arbwork.market import ConfigError
from arbwork.sim.scenarios import load_scenario
from arbwork.sim.server import HOSTS, NamedWorld, host_names, venue_at

ROOT = Path(__file__).resolve().parents[1]


def certificate(subject, key, signer, signer_key, names=()):
    "An authority where there are no names, otherwise a server's certificate."
    name = lambda text: x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)]) # noqa: E731
    now, ca = datetime.now(timezone.utc), not names
    b = x509.CertificateBuilder().subject_name(name(subject)).issuer_name(name(signer)).public_key(key.public_key()).serial_number(x509.random_serial_number())
    b = b.not_valid_before(now - timedelta(days=1)).not_valid_after(now + timedelta(days=2)).add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
    b = b.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False).add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer_key.public_key()), critical=False)
    b = b.add_extension(x509.KeyUsage(not ca, False, False, False, False, ca, ca, False, False), critical=True)
    if names: b = b.add_extension(x509.SubjectAlternativeName([x509.DNSName(x) for x in names]), critical=False).add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
    return b.sign(signer_key, hashes.SHA256())


@pytest.fixture(scope='module')
def papers(tmp_path_factory):
    "A folder with a throw-away authority, a certificate for the venues' names, and a hosts file."
    here = tmp_path_factory.mktemp('papers')
    ca_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    authority, names = certificate('arbwork test authority', ca_key, 'arbwork test authority', ca_key), [*host_names(), 'localhost', 'fapi.binance.com', 'dapi.binance.com']
    (here/'ca.pem').write_bytes(authority.public_bytes(Encoding.PEM))
    (here/'sim.pem').write_bytes(certificate('simulated venues', key, 'arbwork test authority', ca_key, names).public_bytes(Encoding.PEM) + authority.public_bytes(Encoding.PEM))
    (here/'sim.key').write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    (here/'hosts').write_text(''.join(f'127.0.0.1 {x}\n' for x in names))
    return here


class Loopback(aiohttp.abc.AbstractResolver):
    async def resolve(self, host, port=0, family=socket.AF_INET):
        return [{'hostname': host, 'host': '127.0.0.1', 'port': port, 'family': socket.AF_INET, 'proto': 0, 'flags': 0}]
    async def close(self): pass


def test_a_request_goes_to_the_venue_of_its_host_name(papers):
    async def go():
        world = NamedWorld(list(HOSTS), load_scenario('link-2021-08-20', minutes=1, venues=tuple(HOSTS)), 0, lead_s=.1, tls=(papers/'sim.pem', papers/'sim.key'))
        at = (await world.start())['venues']
        port = world.ports['kraken']
        assert set(world.ports.values()) == {port} and at['kraken']['private_ws'] == f'wss://ws-auth.kraken.com:{port}'
        trusted = ssl.create_default_context(cafile=papers/'ca.pem')
        try:
            async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(resolver=Loopback(), ssl=trusted)) as http:
                for venue, path in (('binance', '/api/v3/time'), ('bybit', '/v5/market/time'), ('okx', '/api/v5/public/time'), ('kraken', '/0/public/Time'), ('coinbase', '/v2/time')):
                    async with http.get(at[venue]['rest'] + path) as r: assert r.status == 200, await r.text()
                    async with http.get(at[venue]['rest'] + '/_sim/status') as r: assert (await r.json())['venue'] == venue
                for venue, path in (('binance', '/ws/linkusdt@bookTicker'), ('bybit', '/v5/public/spot'), ('okx', '/ws/v5/public'), ('kraken', '/v2'), ('coinbase', '')):
                    async with http.ws_connect(at[venue]['public_ws'] + path) as ws: assert not ws.closed
                async with http.post(at['okx']['rest'] + '/_sim/faults', json={'kind': 'gap'}) as r: assert r.status == 200
                assert [len(v.faults) for v in world.venues.values()] == [int(name == 'okx') for name in world.venues]
                async with http.get(f'https://localhost:{port}/') as r: assert r.status == 421 and 'wanted a name of binance' in await r.text()
            async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(resolver=Loopback())) as http:
                with pytest.raises(aiohttp.ClientConnectorCertificateError): await http.get(at['okx']['rest'] + '/api/v5/public/time')
        finally: await world.stop()
    asyncio.run(asyncio.wait_for(go(), 25))


@pytest.mark.parametrize('name', CLIENTS)
def test_our_sockets_check_who_signed_a_certificate_and_for_whom(papers, monkeypatch, name):
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(papers/'sim.pem', papers/'sim.key')
    async def serve(ws): await ws.send('{"u":1}')
    async def first(host, port):
        async with open_socket(client(name), f'wss://{host}:{port}/x') as ws: return await ws.recv(decode=False)
    async def go():
        async with websockets.serve(serve, '127.0.0.1', 0, ssl=tls) as server:
            port = server.sockets[0].getsockname()[1]
            with pytest.raises(ssl.SSLCertVerificationError, match='unable to get local issuer|self-signed'): await first('localhost', port)
            monkeypatch.setenv('SSL_CERT_FILE', str(papers/'ca.pem'))
            assert await first('localhost', port) == b'{"u":1}'
            with pytest.raises(ssl.SSLCertVerificationError, match='IP address mismatch'): await first('127.0.0.1', port)
    asyncio.run(asyncio.wait_for(go(), 25))


def test_names_are_matched_by_their_ending():
    assert {venue_at(x) for v in HOSTS for x in HOSTS[v].values()} == set(HOSTS) and all(venue_at(f'{x}:9443') == v for v in HOSTS for x in HOSTS[v].values())
    assert [venue_at(x) for x in ('', 'binance', 'binance.com.evil.org', 'okx.com.', '[::1]:443')] == ['', '', '', 'okx', '']


def test_files_that_are_no_certificate_and_a_port_that_is_taken_are_refused(papers, tmp_path):
    scenario = load_scenario('link-2021-08-20', minutes=1)
    (tmp_path/'x').write_text('no certificate')
    for tls in ((papers/'nowhere', papers/'sim.key'), (papers/'sim.pem', papers/'ca.pem'), (tmp_path/'x', tmp_path/'x')):
        with pytest.raises(ConfigError, match='wanted a certificate and its key'): NamedWorld(['binance'], scenario, 0, tls=tls)
    with socket.socket() as taken:
        taken.bind(('127.0.0.1', 0))
        taken.listen()
        async def go(): await NamedWorld(['binance'], scenario, taken.getsockname()[1], tls=(papers/'sim.pem', papers/'sim.key')).start()
        with pytest.raises(ConfigError, match='is in use'): asyncio.run(go())


@pytest.fixture(scope='module')
def seen(papers):
    "What clients saw that were told nothing, in a network where the venues' names are this machine."
    ways = [['unshare', '-Urnm'], *([['unshare', '-nm']] if os.geteuid() == 0 else []), *([['sudo', '-n', '-E', 'unshare', '-nm']] if os.environ.get('CI') else [])]
    if not all(map(shutil.which, ('unshare', 'ip', 'mount'))): pytest.skip('no unshare, ip or mount here, which a network of its own takes')
    tried = [(way, subprocess.run([*way, 'ip', 'link', 'set', 'lo', 'up'], capture_output=True, text=True)) for way in ways if shutil.which(way[0])]
    way = next((way for way, done in tried if done.returncode == 0), None)
    if way is None: pytest.skip(f'this machine forbids network namespaces ({tried[0][1].stderr.strip()}), without which the venues\' names cannot be its own')
    shipped = (ROOT/'settings.ini').read_text()
    (papers/'settings.ini').write_text(re.sub(r'(?m)^venues = .*$', 'venues = binance, bybit, okx, kraken', shipped, count=1))
    env = {**os.environ, 'PYTHONPATH': str(ROOT), 'SSL_CERT_FILE': str(papers/'ca.pem'), 'REQUESTS_CA_BUNDLE': str(papers/'ca.pem')}
    done = subprocess.run([*way, sys.executable, ROOT/'tests'/'named_clients.py', papers], capture_output=True, text=True, env=env, timeout=400)
    assert done.returncode == 0, done.stderr[-3_000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_the_command_says_where_everything_is(seen):
    venues = seen['ready']['venues']
    assert venues['binance']['rest'] == 'https://api.binance.com' and venues['coinbase']['public_ws'] == 'wss://advanced-trade-ws.coinbase.com' and list(venues) == list(HOSTS)


@pytest.mark.skipif(sys.version_info < (3, 11, 7), reason='in early releases of Python 3.11 (3.11.2 was tried) ccxt fails as it closes a TLS connection; take 3.11.7 or newer')
@pytest.mark.parametrize('venue', HOSTS)
def test_ccxt_pro_trades_without_any_override(seen, venue):
    got = seen[f'ccxt {venue}']
    assert isinstance(got, dict), got
    assert got['markets'] == ['LINK/USDT'] and not got['crossed'] and .99*got['orders'] < got['bought'] <= got['orders']


@pytest.mark.parametrize('venue,sockets', [('binance', 'picows'), ('bybit', 'picows'), ('okx', 'picows'), ('kraken', 'picows'), ('bybit', 'websockets')])
def test_our_own_connectors_trade_at_the_shipped_addresses(seen, venue, sockets):
    got = seen[f'arbwork {venue} by {sockets}']
    assert isinstance(got, dict), got
    assert float(got['filled']) == 1 and .99 < float(got['gained']) < 1 and got['gaps'] == 0


@pytest.mark.parametrize('name', ['cryptofeed Binance', 'cryptofeed Bybit', 'cryptofeed OKX', 'cryptofeed Kraken'])
def test_cryptofeed_builds_books_without_any_override(seen, name): assert seen[name] is True


def test_python_binance_trades_without_any_override(seen):
    assert seen['python-binance'] == {'status': 'FILLED', 'told': 'executionReport', 'same': True}
