"""Run in a network of its own: `arbwork sim --tls` on the venues' own names, and clients that are told nothing about it.

Started by test_sim_tls.py inside a new network and mount namespace; prints one JSON object of what each client saw."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from decimal import Decimal
from pathlib import Path

HERE = Path(sys.argv[1]) # hosts, ca.pem, sim.pem, sim.key
KEY, SECRET = 'simkey', 'YSBzZWNyZXQgZm9yIGFsbCB2ZW51ZXM=' # base64, as Kraken's are
PAIR, NAME = 'LINK/USDT', 'LINK-USDT'


def on_its_own():
    "Loopback and a hosts file, and nothing else of the network."
    subprocess.run(['ip', 'link', 'set', 'lo', 'up'], check=True)
    subprocess.run(['mount', '--bind', HERE/'hosts', '/etc/hosts'], check=True)


async def simulator():
    "The command as a person starts it."
    env = {**os.environ, 'PYTHONUNBUFFERED': '1'}
    p = await asyncio.create_subprocess_exec(sys.executable, '-m', 'arbwork', 'sim', '--venues', 'binance,bybit,okx,kraken,coinbase', '--tls', str(HERE/'sim.pem'), str(HERE/'sim.key'),
        '--port', '443', '--now', '--lead', '1', '--api-key', KEY, '--api-secret', SECRET, '--api-passphrase', 'words', '--json', stdout=subprocess.PIPE, env=env, limit=1 << 20)
    return p, json.loads(await asyncio.wait_for(p.stdout.readline(), 60))


async def by_ccxt(venue, secret):
    "Everything ccxt.pro knows of a venue is its own; it is given the authority's certificate and an account."
    import ccxt.pro as ccxtpro
    ex = getattr(ccxtpro, venue)({'apiKey': KEY, 'secret': secret, 'password': 'words'})
    ex.cafile = str(HERE/'ca.pem')
    try:
        await ex.load_markets()
        book = await ex.watch_order_book(PAIR)
        told, placed = set(), []
        async def listen():
            while True: told.update(str(o['id']) for o in await ex.watch_orders())
        ear = asyncio.ensure_future(listen())
        place = ex.create_order_ws if ex.has['createOrderWs'] else ex.create_order
        async with asyncio.timeout(25):
            while not told & set(placed): # a stream that is still being opened has not heard the first ones
                px = float(ex.price_to_precision(PAIR, (await ex.watch_order_book(PAIR))['asks'][0][0]*1.003))
                placed.append(str((await place(PAIR, 'limit', 'buy', 1, px, {'timeInForce': 'IOC'}))['id']))
                await asyncio.sleep(1)
        ear.cancel()
        await asyncio.gather(ear, return_exceptions=True)
        held = (await ex.fetch_balance())['LINK']['total']
        for _ in range(2): book = await ex.watch_order_book(PAIR)
        return {'markets': [s for s in ex.symbols if ex.markets[s]['spot']], 'bought': held - 2000, 'orders': len(placed), 'crossed': book['bids'][0][0] >= book['asks'][0][0]}
    finally: await ex.close()


async def by_arbwork(settings, venue, sockets):
    "Our own feed and order link at the addresses of the shipped settings."
    from arbwork.clock import WallClock
    from arbwork.feed.codec import Keys
    from arbwork.feed.events import VALID, NewOrder
    from arbwork.feed.sockets import client
    from arbwork.feed.wire import CODECS, Addresses, MarketFeed, TradeLink, fetch_listings
    from arbwork.market import BUY, round_px
    at, keys, rows = Addresses.of(settings.venues[venue]), Keys(KEY, SECRET, 'words'), []
    listing = (await fetch_listings(CODECS[venue](None, None), at, [NAME]))[NAME]
    feed = MarketFeed(CODECS[venue]({NAME: listing}, None), at, {NAME: 0}, WallClock(), rows.append, connect=client(sockets))
    task = asyncio.ensure_future(feed.run())
    link = TradeLink(CODECS[venue]({NAME: listing}, keys), at, WallClock(), lambda e: None, keys, connect=client(sockets))
    try:
        await link.start()
        while len([r for r in rows if r['state'] == VALID]) < 3: await asyncio.sleep(.05) # noqa: ASYNC110
        before = {b.asset: b.free for b in await link.balances()}
        order = NewOrder(f'tls-{sockets}', NAME, BUY, Decimal(1), round_px(Decimal(str(rows[-1]['ask_px'][0]))*Decimal('1.003'), listing.tick, BUY))
        await link.place(order)
        asked = await link.order(NAME, order.client_id)
        after = {b.asset: b.free for b in await link.balances()}
        return {'addresses': [at.rest, at.public_ws], 'filled': str(asked.filled_qty), 'gained': str(after['LINK'] - before['LINK']), 'gaps': feed.stats['gaps']}
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await link.close()


async def by_cryptofeed(name):
    "A feed of cryptofeed's, with its own addresses."
    from cryptofeed import exchanges
    from cryptofeed.defines import L2_BOOK
    books = []
    async def on_book(book, ts): books.append((book.exchange, max(book.book.bids.keys()) < min(book.book.asks.keys())))
    feed = await asyncio.to_thread(getattr(exchanges, name), symbols=[NAME], channels=[L2_BOOK], callbacks={L2_BOOK: on_book}, max_depth=10) # it asks REST without letting others run
    feed.start(asyncio.get_running_loop())
    try:
        async with asyncio.timeout(15):
            while len(books) < 3: await asyncio.sleep(.05) # noqa: ASYNC110
        return all(ok for _, ok in books)
    finally:
        feed.stop()
        await feed.shutdown()


async def by_python_binance():
    "python-binance as it is: REST, a socket, the account's stream and an order by the WebSocket API."
    from binance import AsyncClient, BinanceSocketManager
    client = await AsyncClient.create(KEY, SECRET)
    try:
        async with BinanceSocketManager(client).user_socket() as user:
            ask = float((await client.get_orderbook_ticker(symbol='LINKUSDT'))['askPrice'])
            placed = await client.ws_create_order(symbol='LINKUSDT', side='BUY', type='LIMIT', timeInForce='IOC', quantity='1', price=f'{ask*1.003:.3f}')
            told = await asyncio.wait_for(user.recv(), 8)
        return {'status': placed['status'], 'told': told['e'], 'same': told['i'] == placed['orderId']}
    finally: await client.close_connection()


async def main():
    import binance # noqa: F401 (all imports before anybody connects: they take seconds in which no socket is answered)
    import ccxt.pro # noqa: F401
    import cryptofeed.exchanges # noqa: F401

    import arbwork.feed.wire # noqa: F401
    from arbwork.settings import load_settings
    sim, ready = await simulator()
    out = {'ready': {k: ready[k] for k in ('venues', 'hints')}}
    try:
        settings = load_settings(HERE/'settings.ini') # as shipped, with OKX and Kraken named as well
        pem, feeds = ready['hints']['coinbase']['api_secret'], {'binance': 'Binance', 'bybit': 'Bybit', 'okx': 'OKX', 'kraken': 'Kraken'}
        async def visit(venue):
            "One client after the other, so that each knows what the account holds."
            jobs = {f'ccxt {venue}': lambda: by_ccxt(venue, pem if venue == 'coinbase' else SECRET)}
            if venue in feeds: jobs |= {f'arbwork {venue} by picows': lambda: by_arbwork(settings, venue, 'picows'), f'cryptofeed {feeds[venue]}': lambda: by_cryptofeed(feeds[venue])}
            if venue == 'bybit': jobs['arbwork bybit by websockets'] = lambda: by_arbwork(settings, venue, 'websockets')
            if venue == 'binance': jobs['python-binance'] = by_python_binance
            for name, job in jobs.items():
                try: out[name] = await asyncio.wait_for(job(), 90)
                except Exception as e: out[name] = f'{type(e).__name__}: {e}'[:300]
        await asyncio.gather(*(visit(v) for v in (*feeds, 'coinbase')))
    finally:
        sim.send_signal(signal.SIGINT)
        await sim.wait()
    print(json.dumps(out))


if __name__ == '__main__':
    on_its_own()
    asyncio.run(main())
