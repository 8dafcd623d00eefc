"""Feeds and links over venues in one process, on a clock that nobody waits for: a seed fixes every byte, and no socket is opened."""

import asyncio
import hashlib
import os
import random
import socket
import subprocess
import sys
from decimal import Decimal as D

import msgspec
import pytest
import websockets

from arbwork.clock import NS
from arbwork.feed.book import warm
from arbwork.feed.codec import Keys, Request
from arbwork.feed.events import NewOrder
from arbwork.feed.wire import CODECS, MarketFeed, TradeLink
from arbwork.market import BUY, VenueError
from arbwork.sim.coinbase import token_for
from arbwork.sim.faults import Fault
from arbwork.sim.inproc import VENUES, open_venues
from arbwork.sim.scenarios import load_scenario
from arbwork.sim.virtual import Lines, LoopClock, VirtualLoop

KEYS, NAME = Keys('sim-key', 'c2ltLXNlY3JldC1vZi1zaXh0ZWVu', 'sim-pass'), 'LINK-USDT'
SCENARIO = load_scenario('link-2021-08-20', minutes=2, venues=tuple(VENUES))


def world(go, seconds=None, **options):
    loop = VirtualLoop()
    clock = LoopClock(loop, SCENARIO.start_ns - NS)
    lines = Lines(open_venues(SCENARIO, None, KEYS, limits=False), loop, clock, **options)
    try: return loop.run_until_complete(go(lines, clock))
    finally: loop.close()


async def coinbase(lines, clock, heard):
    "No codec of ours speaks there: a raw socket, and an order by REST now and then."
    k = 0
    while True:
        try:
            async with lines.connect('ws://coinbase/') as ws:
                await ws.send(b'{"type":"subscribe","channel":"level2","product_ids":["LINK-USDT"]}')
                await ws.send(msgspec.json.encode({'type': 'subscribe', 'channel': 'user', 'jwt': token_for(Keys(KEYS.key, 'A'*43 + '='), clock.now_ns())}))
                while True:
                    heard.append(await ws.recv())
                    if len(heard) % 9 == 0:
                        k += 1
                        try: await lines.http('coinbase')(Request('GET', '/api/v3/brokerage/market/product_book?product_id=LINK-USDT&limit=3'))
                        except VenueError: k += 100
        except (websockets.WebSocketException, OSError): await asyncio.sleep(1.)


def life(seed, minutes=1.5):
    "All five venues for a while under faults of a seed; what went over the lines and came out of the feeds."
    rows, told = hashlib.sha256(), []
    async def go(lines, clock):
        tasks = []
        for name, v in lines.venues.items(): v.haunt(f'all:{seed}', clock.now_ns())
        tasks.append(asyncio.ensure_future(coinbase(lines, clock, [])))
        for i, name in enumerate(CODECS):
            more = dict(connect=lines.connect, http=lines.http(name))
            feed = MarketFeed(CODECS[name](None, None), lines.address(name), {NAME: i}, clock, lambda row: rows.update(row.tobytes()), lambda e: told.append(e),
                              rng=random.Random(f'{seed} {name}'), on_problem=lambda kind, detail: told.append((kind, detail)), **more)
            tasks.append(asyncio.ensure_future(feed.run()))
            tasks.append(asyncio.ensure_future(trade(name, lines, clock, more)))
        await asyncio.sleep(60*minutes)
        for t in tasks: t.cancel()
        ends = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(e, asyncio.CancelledError) for e in ends), ends
        return lines.hash.hexdigest(), rows.hexdigest(), repr(told), lines.frames, [len(v.happened) for v in lines.venues.values()]
    async def trade(name, lines, clock, more):
        "An order every few seconds, whatever becomes of it."
        k, codec = 0, CODECS[name]({NAME: SCENARIO.listings[name]}, KEYS)
        while True:
            link = TradeLink(codec, lines.address(name), clock, told.append, KEYS, rng=random.Random(f'{seed} {name} link'), **more)
            try:
                await link.start()
                while True:
                    await asyncio.sleep(2.)
                    k += 1
                    try: told.append(await link.place(NewOrder(f's-{k}-0-0', NAME, BUY, D(2), D('40'), 'IOC')))
                    except VenueError as e: told.append(str(e))
            except VenueError as e:
                told.append(str(e))
                await asyncio.sleep(1.)
            finally: await link.close()
    return world(go)


@pytest.fixture(scope='module', autouse=True)
def warmed(): warm()


def test_a_seed_fixes_every_byte_at_five_venues_and_another_is_another_world(monkeypatch):
    def never(*args, **more): raise AssertionError('a socket was opened')
    monkeypatch.setattr(socket, 'socket', never)
    monkeypatch.setattr(socket, 'socketpair', never)
    one, two, other = life(5), life(5), life(6)
    assert one == two
    assert not {one[0], one[1]} & {other[0], other[1]} and one[3] > 500 and all(one[4]), (one[3:], other[3:]) # frames, and faults at each venue


def test_a_process_with_other_hashes_lives_the_same():
    done = subprocess.run([sys.executable, '-c', 'from tests.test_sim_virtual import life; print(life(9, .4)[:2])'], env={**os.environ, 'PYTHONHASHSEED': '1'}, capture_output=True,
                          text=True, timeout=120)
    assert done.stdout == f'{life(9, .4)[:2]}\n', done.stderr


def test_what_has_left_arrives_though_its_sender_is_gone():
    async def go(lines, clock):
        v, codec = lines.venues['binance'], CODECS['binance']({NAME: SCENARIO.listings['binance']}, KEYS)
        link = TradeLink(codec, lines.address('binance'), clock, lambda e: None, KEYS, connect=lines.connect, http=lines.http('binance'))
        await link.start()
        placing = asyncio.ensure_future(link.place(NewOrder('k-1-0-0', NAME, BUY, D(2), D('40'), 'IOC')))
        await asyncio.sleep(.001)
        lines.hang_up()
        placing.cancel()
        await asyncio.sleep(1.)
        await link.close()
        return [f.client_id for f in v.engine.fills], len(v.lines), lines.loop.now
    fills, open_lines, seconds = world(go)
    assert set(fills) == {'k-1-0-0'} and open_lines == 0 and seconds < 10


def test_a_dead_line_is_noticed_and_a_silent_request_given_up():
    async def go(lines, clock):
        rows, problems = [], []
        feed = MarketFeed(CODECS['bybit'](None, None), lines.address('bybit'), {NAME: 0}, clock, rows.append, on_problem=lambda kind, detail: problems.append(kind),
                          connect=lines.connect, http=lines.http('bybit'))
        task = asyncio.ensure_future(feed.run())
        await asyncio.sleep(10.)
        lines.venues['bybit'].arm(Fault('half_open'), clock.now_ns())
        await asyncio.sleep(30.)
        assert 'silent' in problems and feed.stats['reconnects'] == 1 and rows[-1]['state'] == rows[5]['state']
        lines.venues['bybit'].arm(Fault('half_open', where='rest'), clock.now_ns())
        before = lines.loop.now
        with pytest.raises(VenueError) as e: await lines.http('bybit')(CODECS['bybit'](None, None).time_request())
        assert e.value.code == 'venue_down' and lines.loop.now - before == pytest.approx(5.)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    world(go)
