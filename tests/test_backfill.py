"""Bars and trades of the past from simulated venues over their own REST interfaces, through an unmodified ccxt: stopped, killed, turned away, forgetful."""

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from arbwork.cli import main
from arbwork.clock import NS, ScaledClock, utc
from arbwork.feed.events import Trade
from arbwork.market import ConfigError, VenueError
from arbwork.sim.scenarios import load_scenario, stress
from arbwork.sim.server import World
from arbwork.store.backfill import MS, backfill, candle_pages, joined, missing, trade_pages
from arbwork.store.tables import TRADE, trade_rows
from arbwork.store.ticks import Ticks

HOURS = 14
VENUES = ('binance', 'bybit', 'kraken')
STRESS = stress(seed=1, hours=HOURS, step_s=10, venues=VENUES)
FIRST = STRESS.start_ns


class Running:
    "A world in a loop of its own, fourteen hours on."
    def __enter__(self):
        self.loop = asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever, daemon=True).start()
        self.world = World(list(VENUES), STRESS, port=0, lead_s=0.)
        return self.run(self.start())

    def run(self, what): return asyncio.run_coroutine_threadsafe(what, self.loop).result(30)

    async def start(self):
        ready = await self.world.start()
        for door in self.world.doors.values():
            door.clock = ScaledClock(FIRST + HOURS*3_600*NS, 1.)
            door.venue.advance(FIRST + HOURS*3_600*NS)
        return {v: ready['venues'][v]['rest'] for v in VENUES}

    def __exit__(self, *_):
        self.run(self.world.stop())
        self.loop.call_soon_threadsafe(self.loop.stop)


@pytest.fixture(scope='module')
def world():
    "Three venues that have shown fourteen hours; the address of each."
    with Running() as rest: yield rest


@pytest.fixture
def ticks(tmp_path):
    store = Ticks(f'lmdb://{tmp_path}/ticks', map_size='256MB')
    yield store
    store.close()


def hours(a, b): return FIRST + int(a*3_600*NS), FIRST + int(b*3_600*NS)


def expected(minutes, side=0):
    "Bars of the world, from its rows."
    rows = STRESS.rows[VENUES[side]]
    mid = (rows['bid_px'][:, 0] + rows['ask_px'][:, 0])/2
    bars = pd.Series(mid, pd.to_datetime(rows['ts_venue_ns'], utc=True)).resample('1min').ohlc()
    return bars.iloc[minutes[0]:minutes[1]]


@pytest.mark.parametrize('venue', ['binance', 'bybit'])
def test_bars_of_the_past_arrive_once(world, ticks, venue):
    done = backfill(ticks, venue, 'BTC-USDT', *hours(1, 4), rest=world[venue])
    assert (done.rows, done.written, done.there, done.not_given) == (180, 180, 0, [])
    kept, wanted = ticks.bars(venue, 'BTC-USDT'), expected((60, 240), VENUES.index(venue))
    assert (kept.index.asi8 == wanted.index.as_unit('ns').asi8).all() and kept['traded'].all()
    for name in ('open', 'high', 'low', 'close'): assert np.allclose(kept[name], wanted[name], rtol=1e-7), name
    again = backfill(ticks, venue, 'BTC-USDT', *hours(1, 4), rest=world[venue])
    assert (again.rows, again.written) == (0, 0) and again.asked <= 3 # the markets and the time
    wider = backfill(ticks, venue, 'BTC-USDT', *hours(0, 5), rest=world[venue])
    assert (wider.rows, wider.written) == (120, 120) and len(ticks.bars(venue, 'BTC-USDT')) == 300
    assert ticks.fetched('candles', venue, 'BTC-USDT') == [hours(0, 5)]


def test_a_venue_that_keeps_only_the_newest_is_said_to(world, ticks):
    done = backfill(ticks, 'kraken', 'BTC-USDT', *hours(0, HOURS), rest=world['kraken'])
    assert done.written == 720 and done.not_given == [hours(0, 2)]
    assert [(f.name, f.severity) for f in done.findings if f.name == 'holes'] == [('holes', 'mark')] and 'kraken gave nothing' in done.findings[-1].found
    said = ticks.quality('kraken')
    assert said['kind'].tolist() == ['holes'] and said['ts_ns'].tolist() == [FIRST]
    assert ticks.bars('kraken', 'BTC-USDT').index[0].value == hours(2, 3)[0]


FETCH = '''
import sys
from arbwork.store import backfill as b
from arbwork.store.ticks import Ticks
ticks = Ticks(sys.argv[1], map_size='256MB')
stretch = b.Ticks.mark_fetched
def slowly(self, *args):
    print('page', flush=True)
    stretch(self, *args)
b.Ticks.mark_fetched = slowly
b.backfill(ticks, 'binance', 'BTC-USDT', int(sys.argv[3]), int(sys.argv[4]), timeframe='1s', rest=sys.argv[2])
print('done', flush=True)
'''


def test_killed_anywhere_it_goes_on_and_doubles_nothing(world, tmp_path):
    rng, url, span = random.Random(4), f'lmdb://{tmp_path}/killed', hours(0, HOURS)
    child = subprocess.Popen([sys.executable, '-c', FETCH, url, world['binance'], *map(str, span)], stdout=subprocess.PIPE, text=True)
    for _ in range(rng.randrange(2, 5)): child.stdout.readline()
    time.sleep(rng.random()*0.01)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    child.stdout.close()
    killed, whole = Ticks(url, map_size='256MB'), Ticks(f'lmdb://{tmp_path}/whole', map_size='256MB')
    before = killed.fetched('candles', 'binance', 'BTC-USDT', '1s')
    rest = backfill(killed, 'binance', 'BTC-USDT', *span, timeframe='1s', rest=world['binance'])
    done = backfill(whole, 'binance', 'BTC-USDT', *span, timeframe='1s', rest=world['binance'])
    assert before and before[0][1] < span[1] and rest.rows < done.rows == HOURS*360
    a, b = (x.library.read('bars/binance/BTC-USDT/1s').data for x in (killed, whole))
    pd.testing.assert_frame_equal(a, b, check_freq=False)
    for x in (killed, whole): x.close()


# a venue that does not answer as one wishes


class Gate:
    "Stands before a venue and lets through what `says` has no other answer to."
    def __init__(self, target, says):
        gate, self.target, self.says, self.asked = self, target, list(says), []
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                gate.asked.append(self.path)
                answer = gate.says.pop(0) if 'klines' in self.path and gate.says else None
                if answer is None:
                    with urllib.request.urlopen(gate.target + self.path, timeout=10) as r: answer = (r.status, dict(r.headers), r.read())
                status, headers, body = answer
                self.send_response(status)
                for k in ('Retry-After', 'Content-Type'):
                    if k in headers: self.send_header(k, headers[k])
                self.send_header('Content-Length', str(len(body)))
                self.end_headers()
                self.wfile.write(body)
            def log_message(self, *args): return None
        self.server = ThreadingHTTPServer(('127.0.0.1', 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.rest = f'http://127.0.0.1:{self.server.server_port}'

    def __enter__(self): return self
    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()


TOO_MANY = (429, {'Retry-After': '7'}, b'{"code":-1003,"msg":"Too many requests."}')
BANNED = (418, {'Retry-After': '90'}, b'{"code":-1003,"msg":"Way too many requests; IP banned."}')
DOWN = (503, {}, b'upstream')


def test_a_venue_that_wishes_to_be_left_alone_is(world, ticks):
    slept = []
    with Gate(world['binance'], [TOO_MANY, BANNED, DOWN]) as gate:
        done = backfill(ticks, 'binance', 'BTC-USDT', *hours(1, 2), rest=gate.rest, sleep=slept.append)
        assert slept[:2] == [7., 90.] and len(slept) == 3 and done.waited_s == sum(slept)
        assert done.written == 60 and sum('klines' in x for x in gate.asked) == 4


def test_a_venue_that_never_answers_is_given_up_and_what_came_is_kept(world, ticks):
    backfill(ticks, 'binance', 'BTC-USDT', *hours(1, 2), rest=world['binance'])
    with Gate(world['binance'], [DOWN]*20) as gate:
        with pytest.raises(VenueError, match='no answer in 8 tries.*the same command goes on') as e: backfill(ticks, 'binance', 'BTC-USDT', *hours(1, 3), rest=gate.rest, sleep=lambda s: None)
        assert e.value.code == 'venue_down' and len(ticks.bars('binance', 'BTC-USDT')) == 60
        with pytest.raises(VenueError) as e:
            gate.says[:] = [BANNED]*20
            backfill(ticks, 'binance', 'BTC-USDT', *hours(1, 3), rest=gate.rest, sleep=lambda s: None)
        assert e.value.code == 'rate'
        gate.says.clear()
        assert backfill(ticks, 'binance', 'BTC-USDT', *hours(1, 3), rest=gate.rest).written == 60


# trades


def test_trades_of_the_past_and_those_that_were_recorded(tmp_path):
    "2,500 trades, many of them in one millisecond; half a minute had been recorded, under other numbers."
    async def run():
        start = time.time_ns()//MS*MS
        world = World(['binance', 'kraken'], load_scenario('link-2021-08-20', minutes=2, venues=('binance', 'kraken')), port=0, speed=1., lead_s=0., start_ns=start)
        ready = await world.start()
        from decimal import Decimal

        from arbwork.feed.events import Fill
        at = start - 3_000*NS
        for venue in ('binance', 'kraken'):
            rng, told, t = random.Random(1), world.doors[venue].venue.trades, at
            for i in range(2_500):
                t += rng.choice((0, 0, 40, 900, 2_500))*MS
                told.append(Fill(f'c{i}', f'v{i}', str(10_000 + i), 'LINK-USDT', 1 - 2*(i % 2), Decimal('27.1') + i % 7, Decimal(1 + i % 5), Decimal(0), 'USDT', False, t))
        try: return await asyncio.to_thread(fetch, {v: ready['venues'][v]['rest'] for v in ('binance', 'kraken')}, at, t + NS, [f.ts_venue_ns for f in told])
        finally: await world.stop()

    def fetch(rest, start_ns, end_ns, times):
        out, ticks = {}, Ticks(f'lmdb://{tmp_path}/ticks', map_size='256MB')
        heard = trade_rows([(start_ns + 15*NS + i, 0, Trade('LINK-USDT', 27., 1., 1, str(10**9 + i), start_ns + i*NS)) for i in range(30)])
        ticks.write('trades', 'binance', 'LINK-USDT', heard, 1, 'a journal')
        for venue in rest:
            done = backfill(ticks, venue, 'LINK-USDT', start_ns, end_ns, 'trades', rest=rest[venue])
            again = backfill(ticks, venue, 'LINK-USDT', start_ns, end_ns, 'trades', rest=rest[venue])
            out[venue] = done, again, ticks.library.read(f'trades/{venue}/LINK-USDT').data
        ticks.close()
        return out, start_ns, times
    out, start_ns, times = asyncio.run(run())
    done, again, kept = out['kraken']
    assert done.rows == done.written == len(kept) == 2_500 and again.rows == 0 and kept['id'].is_unique
    assert sorted(kept['ts_venue_ns']) == sorted(t//1_000_000*1_000_000 for t in times) and set(kept['side']) == {1, -1}
    done, again, kept = out['binance']
    recorded = sum(start_ns <= t < start_ns + 30*NS for t in times)
    assert 0 < recorded < 200 and done.rows == 2_500 and done.written == 2_500 - recorded and done.there == recorded
    assert len(kept) == 2_530 - recorded and kept['id'].is_unique and again.rows == 0


# what a person may get wrong


@pytest.mark.parametrize('args, code, says', [
    (['binanse', 'BTC-USDT', '--from', '2024-01-01'], 2, 'did you mean'), (['binance', 'BTC/USDT', '--from', '2024-01-01'], 2, 'BASE-QUOTE in capitals'),
    (['binance', 'BTC-USDT', '--from', 'yesterday'], 2, 'yesterday'), (['binance', 'BTC-USDT', '--from', '2024-01-02', '--to', '2024-01-01'], 2, 'later than --from'),
    (['binance', 'BTC-USDT', '--from', '2024-01-01', '--kind', 'books'], 2, 'wanted candles or trades'), (['binance', 'BTC-USDT', '--from', '2024-01-01', '--timeframe', '7m'], 3, 'wanted one of 1s'),
    (['binance', 'DOGE-USDT', '--from', '2024-01-01', '--to', '2024-01-02'], 2, 'not traded there'), (['binance', 'BTC-USDT', '--from', '2031-01-01', '--to', '2031-01-02'], 2, 'is over at the venue')])
def test_what_cannot_be_is_said_in_a_line(world, tmp_path, capsys, args, code, says):
    assert main(['backfill', *args, '--settings', settings_file(tmp_path, world)]) == code
    text = ''.join(capsys.readouterr())
    assert says in text and 'Traceback' not in text and len(text.strip().splitlines()) == 1, text


def settings_file(folder, world):
    text = '[arbwork]\nvenues = binance\ninstruments = BTC-USDT\nvar = var\njournal = sqlite:///var/j.db\nticks = lmdb://var/ticks?map_size=256MB\nboard = var/board.bin\n'
    text += f'[venue:binance]\nrest = {world["binance"]}\n' + ''.join(f'{k} = ws://127.0.0.1:1\n' for k in ('public_ws', 'private_ws', 'trade_ws')) + 'maker_bps = 10\ntaker_bps = 10\n'
    (folder/'settings.ini').write_text(text)
    return str(folder/'settings.ini')


def test_the_command_uses_the_address_of_the_settings(world, tmp_path, capsys):
    args = ['backfill', 'binance', 'BTC-USDT', '--from', utc(hours(1, 2)[0]), '--to', utc(hours(1, 2)[1]), '--settings', settings_file(tmp_path, world)]
    assert main([*args, '--json']) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said['rows'], said['written'], said['timeframe']) == (60, 60, '1m')
    assert main(args) == 0 and '0 written' in capsys.readouterr().out


# stretches and pages


SPANS = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)).map(lambda x: tuple(sorted(x))), max_size=8)


@given(SPANS, st.integers(0, 60), st.integers(0, 60))
def test_stretches_are_sets_of_instants(spans, a, b):
    have, (a, b) = joined(spans), sorted((a, b))
    points = lambda some: {x for lo, hi in some for x in range(lo, hi)}
    assert points(have) == points(spans) and all(x[1] < y[0] for x, y in zip(have, have[1:]))
    assert points(missing(have, a, b)) == set(range(a, b)) - points(spans)


class Model:
    "A venue with bars and trades at some minutes, that answers in one of three ways."
    id, has = 'model', {}

    def __init__(self, minutes, how, limit):
        self.minutes, self.how, self.asked = sorted(minutes), how, 0
        self.features = {'spot': {'fetchOHLCV': {'limit': limit}}}
        self.limit = limit

    def some(self, since, step):
        self.asked += 1
        assert self.asked < 500, 'it does not end'
        found = self.minutes[-self.limit:] if self.how == 'newest' else self.minutes
        found = [m for m in found if m*60_000 >= since]
        if self.how == 'window': found = [m for m in found if m*60_000 < since + step]
        return found

    def fetch_ohlcv(self, symbol, timeframe, since, limit): return [[m*60_000, 1., 1., 1., 1., 1.] for m in self.some(since, limit*60_000)[:limit]]

    def fetch_trades(self, symbol, since, limit, params):
        return [dict(timestamp=m*60_000, id=str(k), side='buy', price=1., amount=1.) for m in self.some(since, 3_600_000) for k in (2*m, 2*m + 1)][:2*self.limit]


@given(st.sets(st.integers(0, 300)), st.sampled_from(['next', 'window', 'newest']), st.integers(1, 40), st.integers(0, 200), st.integers(1, 100))
def test_pages_end_and_give_each_row_once(minutes, how, limit, start, length):
    venue, end = Model(minutes, how, limit), start + length
    known, got = start*60*NS, []
    for rows, at in candle_pages(venue, 'X/Y', '1m', start*60*NS, end*60*NS, lambda call: call()):
        assert at > known and (rows['ts_ns'] < at).all()
        known, got = at, got + (rows['ts_ns']//(60*NS)).tolist()
    had = sorted(minutes)[-limit:] if how == 'newest' else sorted(minutes)
    assert known == end*60*NS and got == [m for m in had if start <= m < end]


@given(st.sets(st.integers(0, 300)), st.sampled_from(['next', 'window']), st.integers(2, 40), st.integers(0, 200), st.integers(1, 100))
def test_pages_of_trades_end_and_give_each_once(minutes, how, limit, start, length):
    venue, end, got = Model(minutes, how, limit), start + length, []
    for rows, _ in trade_pages(venue, 'X/Y', start*60*NS, end*60*NS, lambda call: call()): got += rows['id'].tolist()
    assert sorted(got) == [k for m in sorted(minutes) if start <= m < end for k in (2*m, 2*m + 1)]
    assert TRADE.names[2] == 'id'
