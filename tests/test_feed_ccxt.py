"What watching over ccxt adds: nothing silent, nothing altered behind our back, nothing sent elsewhere, nothing paid for where it is not used."
import asyncio
import contextlib
import decimal
import json
import os
import random
import socket
import subprocess
import sys
import time
from decimal import Decimal

import ccxt
import ccxt.pro
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arbwork.clock import NS
from arbwork.decide.contract import Universe
from arbwork.decide.cross import KERNELS, kernel_hash
from arbwork.feed import ccxt_any
from arbwork.feed.ccxt_any import CcxtFeed, Client, contradictions, error_code, exchange_class, placed
from arbwork.feed.ccxt_link import STATUS, CcxtLink, fill_of, update_of
from arbwork.feed.codec import Keys
from arbwork.feed.connect import by_ccxt
from arbwork.feed.events import INVALID, VALID, Fill, NewOrder, OrderUpdate
from arbwork.market import BUY, ERROR_CODES, ConfigError, VenueError, round_px
from arbwork.research.promote import Study, load_key, make_key, manifest_of, sign, write_manifest
from arbwork.settings import Params, VenueSettings, load_settings
from arbwork.sim.scenarios import load_scenario
from arbwork.sim.server import World
from arbwork.sim.wire import Fault
from arbwork.store.ticks import Ticks

PAIR, KEYS = 'LINK-USDT', Keys('sim-key', 'sim-secret')


@pytest.fixture(scope='module')
def recording(): return load_scenario('link-2021-08-20', minutes=40)


def run(work, seconds=40): return asyncio.run(asyncio.wait_for(work, seconds))


async def until(true, seconds=20, what=''):
    try:
        async with asyncio.timeout(seconds):
            while not true(): await asyncio.sleep(.005)  # noqa: ASYNC110
    except TimeoutError: raise AssertionError(f'not within {seconds} s {what() if what else ""}') from None


def venue_at(id, at): return VenueSettings(f'ccxt:{id}', at['rest'], at['public_ws'], at['private_ws'], at['trade_ws'], 10, 10, 50)


@contextlib.asynccontextmanager
async def world(id, scenario, speed=30., lead_s=0.):
    w = World([id], scenario, 0, speed, KEYS, None, lead_s, limits=False)
    at = (await w.start())['venues'][id]
    try: yield w.doors[id], venue_at(id, at), w.clock
    finally: await w.stop()


@contextlib.asynccontextmanager
async def feeding(venue, clock, on_row=None, instruments=(PAIR,), **more):
    rows, problems = [], []
    feed = CcxtFeed(venue, {x: i for i, x in enumerate(instruments)}, clock, on_row or rows.append, on_problem=lambda *x: problems.append(x), rng=random.Random(1), **more)
    task = asyncio.create_task(feed.run())
    try: yield feed, rows, problems
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@contextlib.asynccontextmanager
async def trading(venue, clock, on_event=None, **more):
    client = await Client(venue).open()
    listings = await client.listed([PAIR])
    await client.close()
    told, problems = [], []
    link = CcxtLink(venue, listings, clock, on_event or told.append, KEYS, on_problem=lambda *x: problems.append(x), **more)
    await link.start()
    try: yield link, listings[PAIR], told, problems
    finally: await link.close()


def limit(sim, listing, side, cross_bps, qty='4', tif='IOC', id='s1-1-0-0'):
    bids, asks = sim.sides(PAIR, 5)
    px = Decimal(str((asks if side == BUY else bids)[0][0]))*(1 + side*Decimal(cross_bps)/10_000)
    return NewOrder(id, PAIR, side, Decimal(qty), round_px(px, listing.tick, side), tif)


# frames


def test_a_burst_of_60_000_frames_is_read_to_the_last(recording):
    "Some pairs of ccxt and aiohttp fall silent after some 2,000 queued frames, without an error; the pinned pair must not."
    async def main():
        async with world('binance', recording, lead_s=3_000.) as (door, venue, clock), feeding(venue, clock, check_s=0) as (feed, rows, problems):
            sim = door.venue
            sim._show(PAIR, 0)
            await until(lambda: feed.books[PAIR].state == VALID, what=lambda: problems)
            [topic] = [t for t in sim.listeners if 'depth' in t]
            first, best = sim.engine.seq[PAIR] + 1, feed.books[PAIR].bids[0][0]
            for i in range(60_000):
                sim.send(topic, b'{"stream":"linkusdt@depth@100ms","data":{"e":"depthUpdate","E":%d,"s":"LINKUSDT","U":%d,"u":%d,"b":[["%.8f","%d.00000000"]],"a":[]}}' % (
                    1_629_417_600_000 + i, first + i, first + i, best, i + 1))
            door.wake()
            await until(lambda: feed.books[PAIR].bids[0] == (best, 60_000.), 110, lambda: (feed.stats, problems))
            assert feed.books[PAIR].seq == first + 59_999 and {int(r['state']) for r in rows} == {VALID} and not problems
    run(main(), 120)


def test_a_frame_that_cannot_be_read_breaks_the_connection_instead_of_the_stream(recording):
    "In ccxt an exception in its reader ends in a callback of the loop, and the stream is silent for good."
    async def main():
        async with world('okx', load_scenario('link-2021-08-20', minutes=40, venues=('okx', 'binance'))) as (door, venue, clock), feeding(venue, clock) as (feed, rows, problems):
            await until(lambda: len(rows) > 1)
            door.venue.faults.append(Fault('truncate'))
            await until(lambda: problems and rows[-1]['state'] == VALID)
            assert [k for k, _ in problems] == ['frame'] and 'JSONDecodeError' in problems[0][1] and feed.stats['reconnects'] == 1
            assert [int(r['state']) for r in rows if r['state'] != VALID] == [INVALID]
    run(main())


def test_silence_makes_a_book_invalid_and_a_confirmed_one_stays(recording):
    async def main():
        async with world('binance', recording, speed=.001) as (door, venue, clock):
            async with feeding(venue, clock, stale_s=1., check_s=0) as (feed, rows, problems):
                await until(lambda: len(rows) >= 3, what=lambda: (rows, problems))
                assert [int(r['state']) for r in rows[:3]] == [VALID, INVALID, VALID] and problems[0][0] == 'silent' and 'nothing new for 1 s' in problems[0][1]
            async with feeding(venue, clock, stale_s=1., check_s=.2, settle_s=.02) as (feed, rows, problems):
                await until(lambda: feed.stats['checks'] > 8)
                assert [int(r['state']) for r in rows] == [VALID] and not problems
    run(main())


def test_what_rest_contradicts_again_and_again_is_dropped_and_mended_alone(recording, monkeypatch):
    "A lost frame that nothing in the stream gives away: the witness is taken away, so that Bybit is as ccxt leaves it."
    second = 'UNI-USDT'
    listing, shown = recording.listings['bybit'], recording.rows['bybit']
    other = msgspec.structs.replace(listing, instrument=second, symbol='UNIUSDT')
    two = msgspec.structs.replace(recording, listings=recording.listings | {f'bybit {second}': other}, rows={k: v[:2] for k, v in recording.rows.items()} | {f'bybit {second}': shown[:2]})
    monkeypatch.setattr(ccxt_any, 'witness', lambda *x: None)
    async def main():
        async with world('bybit', two, speed=1.) as (door, venue, clock), feeding(venue, clock, instruments=(PAIR, second), check_s=.3, settle_s=.05) as (feed, rows, problems):
            await until(lambda: [b.state for b in feed.books.values()] == [VALID, VALID], what=lambda: problems)
            await until(lambda: feed.stats['checks'] > 2)
            await until(lambda: door.venue.ended) # no further row mends what is spoiled now
            assert not problems
            sim = door.venue
            sim.faults.append(Fault('gap'))
            sim.engine.books[PAIR][0].outer = {p: q + 1_00_000_000 for p, q in sim.engine.books[PAIR][0].outer.items()}
            sim.publish(PAIR, clock.now_ns()) # the frame that is lost
            await until(lambda: problems and rows[-1]['state'] == VALID and feed.books[PAIR].state == VALID, what=lambda: (feed.stats, problems))
            assert [k for k, _ in problems] == ['check'] and f'ccxt:bybit {PAIR}: bid' in problems[0][1] and 'wanted' in problems[0][1]
            assert feed.stats['disagreements'] == feed.stats['resyncs'] == 1 and feed.stats['reconnects'] == 0
            assert feed.books[PAIR].bids[0][1] == pytest.approx(sim.engine.books[PAIR][0].visible()[next(iter(sim.engine.books[PAIR][0].visible()))]/1e8)
            assert {int(r['state']) for r in rows if r['slot'] == 1} == {VALID} # the other book never heard of it
    run(main())


class Lines:
    "A line between a client and a server that can go dead without a word."
    def __init__(self, port): self.port, self.dead, self.tasks = port, False, set()
    async def open(self):
        self.server = await asyncio.start_server(self.serve, '127.0.0.1', 0)
        return self.server.sockets[0].getsockname()[1]
    async def serve(self, reader, writer):
        there, back = await asyncio.open_connection('127.0.0.1', self.port)
        for a, b in ((reader, back), (there, writer)):
            task = asyncio.create_task(self.carry(a, b))
            self.tasks.add(task)
    async def carry(self, a, b):
        with contextlib.suppress(OSError):
            while data := await a.read(65_536):
                if not self.dead: b.write(data)
            b.close()
    async def close(self):
        for t in self.tasks: t.cancel()
        self.server.close()


def test_a_dead_line_is_noticed_by_its_pings(recording, monkeypatch):
    "Binance's own setting in ccxt would take six minutes."
    monkeypatch.setattr(ccxt_any, 'KEEP_ALIVE_MS', 250)
    async def main():
        async with world('binance', recording) as (door, venue, clock):
            line = Lines(int(venue.rest.rpartition(':')[2]))
            through = f'ws://127.0.0.1:{await line.open()}'
            async with feeding(msgspec.structs.replace(venue, public_ws=through), clock) as (feed, rows, problems):
                await until(lambda: len(rows) > 1)
                line.dead = True
                await until(lambda: rows[-1]['state'] == INVALID)
                assert problems[0][0] == 'lost' and 'ping-pong' in problems[0][1]
                line.dead = False
                await until(lambda: rows[-1]['state'] == VALID)
            await line.close()
    run(main())


def test_what_ccxt_alters_later_was_copied(recording):
    async def main():
        async with world('binance', recording) as (door, venue, clock), feeding(venue, clock) as (feed, rows, problems):
            await until(lambda: len(rows) > 1)
            held = feed._clients[PAIR].ex.orderbooks['LINK/USDT']
            before, row = feed.books[PAIR].bids, rows[-1].copy()
            held['bids'].clear()
            held['asks'][0][1] = -5.
            assert feed.books[PAIR].bids == before and (rows[-1] == row)
    run(main())


def test_whoever_listens_ends_the_feed_with_its_own_error(recording):
    async def main():
        async with world('binance', recording) as (door, venue, clock):
            def full(row): raise OSError(28, 'No space left on device')
            with pytest.raises(OSError, match='No space left'): await asyncio.wait_for(CcxtFeed(venue, {PAIR: 0}, clock, full).run(), 20)
            with pytest.raises(ConfigError, match='DOGE-USDT is not traded there'): await CcxtFeed(venue, {'DOGE-USDT': 0}, clock, print).run()
            async with trading(venue, clock, full) as (link, listing, told, problems):
                await link.place(limit(door.venue, listing, BUY, 30))
                await until(lambda: not link.live)
                assert [p for p in problems if p[0] == 'failed'] == [('failed', "OSError(28, 'No space left on device')")]
                with pytest.raises(VenueError, match='not sent') as e: await link.place(limit(door.venue, listing, BUY, 30, id='s1-2-0-0'))
                assert e.value.code == 'venue_down'
    run(main())


def test_our_sums_round_as_before(recording):
    "ccxt sets the rounding of the Decimal context whenever it formats a number."
    async def main():
        async with world('binance', recording) as (door, venue, clock):
            seen = []
            def on_event(e): seen.append(decimal.getcontext().rounding)
            with decimal.localcontext(decimal.Context(rounding=decimal.ROUND_HALF_EVEN)):
                async with trading(venue, clock, on_event) as (link, listing, told, problems):
                    await link.place(limit(door.venue, listing, BUY, 30))
                    await until(lambda: len(seen) > 2)
                    assert link.rest.context[next(k for k in link.rest.context if k.name == 'decimal_context')].rounding == decimal.ROUND_HALF_UP
                    assert {decimal.getcontext().rounding, *seen} == {decimal.ROUND_HALF_EVEN}
    run(main())


# orders


def test_events_that_are_lost_are_asked_for_and_told_once(recording):
    async def main():
        async with world('bybit', recording) as (door, venue, clock), trading(venue, clock) as (link, listing, told, problems):
            door.venue.faults.append(Fault('lose_private', n=100))
            await link.place(limit(door.venue, listing, BUY, 30))
            await until(lambda: [e for e in told if isinstance(e, OrderUpdate) and e.status == 'filled'] and sum(e.qty for e in told if isinstance(e, Fill)) == 4)
            await asyncio.gather(*(link._ask(f) for f in link.followed.values()), link.fills(PAIR, 0))
            ids = [e.fill_id for e in told if isinstance(e, Fill)]
            assert len(ids) == len(set(ids)) and [e.status for e in told if isinstance(e, OrderUpdate)].count('filled') == 1
            assert {e.fill_id for e in told if isinstance(e, Fill)} == {f.fill_id for f in door.venue.engine.fills}
    run(main())


def test_a_price_leaves_exactly_as_it_was_decided(recording):
    fine = {k: msgspec.structs.replace(x, tick=Decimal('0.00000001'), lot=Decimal('0.00000001'), min_qty=Decimal('0.00000001'), min_notional=Decimal('0.00001')) for k, x in recording.listings.items()}
    async def main():
        async with world('binance', msgspec.structs.replace(recording, listings=fine), speed=1.) as (door, venue, clock), trading(venue, clock) as (link, listing, told, problems):
            for i, (qty, px) in enumerate([('1234.56789012', '0.10000001'), ('0.00012345', '17.30000003'), ('999.99999999', '1.00000007')]):
                await link.place(NewOrder(f's1-{i}-0-0', PAIR, BUY, Decimal(qty), Decimal(px), 'GTC'))
                o = door.venue.engine.by_client[f's1-{i}-0-0']
                assert (o.qty, o.px) == (Decimal(qty), Decimal(px))
                assert [(u.qty, u.filled_qty) for u in await link.open_orders() if u.client_id == f's1-{i}-0-0'] == [(Decimal(qty), 0)]
                assert await link.cancel(PAIR, f's1-{i}-0-0')
    run(main())


def test_a_balance_that_is_old_is_asked_for_before_an_order_is_refused(recording):
    async def main():
        async with world('binance', recording) as (door, venue, clock), trading(venue, clock) as (link, listing, told, problems):
            link._free['USDT'] = (Decimal(1), Decimal(0))
            assert (await link.place(limit(door.venue, listing, BUY, -200, tif='GTC'))).status == 'acked'
            sent = len(door.venue.engine.orders)
            u = await link.place(limit(door.venue, listing, BUY, -200, '9000', 'GTC', 's1-2-0-0'))
            assert (u.status, u.code) == ('rejected', 'insufficient_funds') and 'USDT free, wanted' in u.reason and len(door.venue.engine.orders) == sent
    run(main())


@pytest.mark.parametrize('name, code', [('key', 'permission'), ('secret', 'signature')])
def test_keys_that_the_venue_refuses_stop_the_start(recording, name, code):
    async def main():
        async with world('binance', recording) as (door, venue, clock):
            link = CcxtLink(venue, {}, clock, print, msgspec.structs.replace(KEYS, **{name: 'wrong'}))
            with pytest.raises(VenueError) as e: await link.start()
            assert e.value.code == code, e.value
    run(main())


# words


def classes(c=ccxt.BaseError): return [c, *(x for s in c.__subclasses__() for x in classes(s))]


@pytest.mark.parametrize('error', classes(), ids=lambda c: c.__name__)
def test_every_error_of_ccxt_has_a_code_and_no_broken_wire_is_a_failure(error):
    assert {error_code(error('words')), error_code(error('words'), sent=True)} <= set(ERROR_CODES)
    refused = ccxt.RateLimitExceeded, ccxt.DDoSProtection, ccxt.InvalidNonce
    if issubclass(error, ccxt.OperationFailed) and not issubclass(error, refused): assert error_code(error('words'), sent=True) == 'unknown_outcome'


def caused(error, cause):
    error.__cause__ = cause
    return error


def test_where_the_wire_broke_decides():
    import aiohttp
    class Refused(aiohttp.ClientConnectorError):
        def __init__(self): pass
    for error, asked, sent in [
        (caused(ccxt.ExchangeNotAvailable('x'), Refused()), 'venue_down', 'venue_down'), # it never left
        (caused(ccxt.ExchangeNotAvailable('x'), aiohttp.ServerDisconnectedError()), 'venue_down', 'unknown_outcome'),
        (caused(ccxt.ExchangeError('x'), aiohttp.ClientPayloadError()), 'venue_down', 'unknown_outcome'),
        (caused(ccxt.RequestTimeout('x'), TimeoutError()), 'venue_down', 'unknown_outcome'),
        (KeyError('status'), 'other', 'unknown_outcome'), # ccxt fell over the answer
        (ccxt.ExchangeError('nobody has put this into a class'), 'other', 'unknown_outcome'),
        (ccxt.BadRequest('binance {"code":-1016,"msg":"This service is no longer available."}'), 'venue_down', 'unknown_outcome'),
        (ccxt.InvalidOrder('bybit {"retCode":170218,"retMsg":"The LIMIT-MAKER order is rejected due to invalid price."}'), 'would_cross', 'would_cross'),
        (ccxt.InvalidOrder('okx 51016 Client order ID already exists.'), 'duplicate_id', 'duplicate_id'),
    ]: assert (error_code(error), error_code(error, sent=True)) == (asked, sent), error


def test_an_order_is_read_for_what_it_says():
    o = NewOrder('s1-1-0-0', PAIR, BUY, Decimal('5'), Decimal('27'))
    def read(order=o, **words): return (u := update_of(words, 's1-1-0-0', PAIR, order)) and (u.status, u.qty, u.filled_qty)
    assert read(status='closed', filled='5') == ('filled', 5, 5) and read(status='closed', filled='2') == ('cancelled', 5, 2)
    assert read(status='canceled', filled='5') == ('filled', 5, 5) and read(status='open', filled='0') == ('acked', 5, 0) and read(status='open', filled='1') == ('partly_filled', 5, 1)
    assert read(status=None, filled='1') is None and read(status='open', filled=None) is None and read(status='canceled', filled=None) is None
    assert read(status='closed', filled=None) == ('filled', 5, 5) and read(status='canceled', filled=None, info={'cum_qty': 1.5}) == ('cancelled', 5, Decimal('1.5'))
    assert read(None, status='open', amount='2', filled='2', remaining='3') == ('partly_filled', 5, 2) # Coinbase: ccxt takes the filled for the ordered
    assert set(STATUS.values()) <= {'acked', 'filled', 'cancelled', 'rejected'}


def test_a_fill_without_its_fee_is_no_fill_yet():
    t = dict(id='7', order='70', side='buy', price='27', amount='2', timestamp=1, takerOrMaker='taker')
    assert fill_of(t, 's', PAIR, 'gate') is None and fill_of(t | {'fee': {'cost': None, 'currency': 'LINK'}}, 's', PAIR, 'gate') is None
    assert fill_of(t | {'fee': {'cost': '0.002', 'currency': 'LINK'}, 'price': None}, 's', PAIR, 'gate') is None
    assert fill_of(t | {'fee': None, 'fees': [{'cost': '0.002', 'currency': 'LINK'}]}, 's', PAIR, 'gate').fee == Decimal('0.002')
    assert fill_of(t | {'fee': {'cost': '-0.002', 'currency': 'LINK'}, 'info': {'fillFee': '-0.002'}}, 's', PAIR, 'okx').fee == Decimal('0.002')


def leaves(x): return [y for v in x.values() for y in leaves(v)] if isinstance(x, dict) else [x] if isinstance(x, str) else []


@pytest.mark.parametrize('id', ['binance', 'bybit', 'okx', 'kraken', 'coinbase', 'bitstamp', 'kucoin', 'gate', 'bitfinex', 'htx', 'mexc', 'bitget'])
def test_no_address_of_a_real_venue_is_left_where_others_are_given(id):
    at = VenueSettings(f'ccxt:{id}', 'http://127.0.0.1:1', 'ws://127.0.0.1:2', 'ws://127.0.0.1:3', 'ws://127.0.0.1:4', 1, 1, 1)
    ours, theirs = (leaves(placed(getattr(ccxt.pro, id)().urls['api'], x, id)) for x in (at, VenueSettings(f'ccxt:{id}', '', '', '', '', 1, 1, 1)))
    assert len(ours) == len(theirs) and all(x.startswith(('http://127.0.0.1:1', 'ws://127.0.0.1:')) for x in ours) and all(x.startswith(('https://', 'wss://')) for x in theirs)
    assert {x.partition('://')[0] for x in ours} == {'http', 'ws'}


def test_a_name_that_ccxt_does_not_know():
    with pytest.raises(ConfigError, match='streams no exchange .binnance.; did you mean ccxt:binance'): exchange_class('ccxt:binnance')
    with pytest.raises(ConfigError, match='or ccxt:NAME'): by_ccxt('mars')


books = st.lists(st.tuples(st.integers(1, 12), st.integers(1, 5)), min_size=3, max_size=8).map(lambda x: {float(p): float(q) for p, q in x})


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(books, books), min_size=1, max_size=4), st.data())
def test_a_snapshot_of_any_moment_agrees_and_an_altered_level_that_stood_still_does_not(seen, data):
    bids, asks = data.draw(st.sampled_from(seen))
    assert contradictions(seen, (bids, asks)) == []
    worst = max(min(s[0]) for s in [*seen, (bids, asks)])
    still = [p for p in bids if p > worst and len({s[0].get(p) for s in seen}) == 1]
    if still:
        px = data.draw(st.sampled_from(still))
        assert contradictions(seen, (bids | {px: bids[px] + 1}, asks)) == [('bid', px, bids[px], bids[px] + 1)]
        assert contradictions(seen, (bids | {px: bids[px] + .0004}, asks), rounding=.0006) == []


# as a person uses it


def command(*args):
    module = args[0] if args[0] == 'arbwork.live' else 'arbwork'
    return [sys.executable, '-m', module, *map(str, args[module == 'arbwork.live':])]


def done(*args, code=0, stdin='', seconds=90):
    env = {k: v for k, v in os.environ.items() if not k.startswith('ARBWORK_')}
    p = subprocess.run(command(*args), input=stdin, capture_output=True, text=True, timeout=seconds, env={**env, 'COLUMNS': '120', 'NO_COLOR': '1'})
    assert 'Traceback' not in p.stderr + p.stdout, p.stderr
    assert p.returncode == code or code is None, (p.returncode, p.stdout, p.stderr)
    return p.stdout, p.stderr


def free_ports(n):
    "A port with n - 1 free ones after it."
    for _ in range(100):
        with contextlib.ExitStack() as held:
            first = held.enter_context(socket.socket())
            first.bind(('127.0.0.1', 0))
            port = first.getsockname()[1]
            try:
                for i in range(1, n): held.enter_context(socket.socket()).bind(('127.0.0.1', port + i))
            except OSError: continue
            return port
    raise AssertionError('no free ports')


NAMES, SPEED = ['ccxt:binance', 'bybit'], 10


@pytest.fixture(scope='module')
def person(tmp_path_factory):
    "Somebody who reaches Binance through ccxt and Bybit by arbwork's own codec, both simulated in a process of their own."
    folder, port = tmp_path_factory.mktemp('person'), free_ports(2)
    text = f'[arbwork]\nvenues = {", ".join(NAMES)}\ninstruments = {PAIR}\nvar = var\nstrategies = strategies\njournal = sqlite:///var/journal.db\nticks = lmdb://var/ticks\nboard = var/board.bin\n'
    for i, name in enumerate(NAMES):
        text += f'[venue:{name}]\nrest = http://127.0.0.1:{port + i}\n' + ''.join(f'{k} = ws://127.0.0.1:{port + i}\n' for k in ('public_ws', 'private_ws', 'trade_ws')) + 'maker_bps = 0\ntaker_bps = 0\n'
    (folder/'settings.ini').write_text(text)
    p = subprocess.Popen(command('sim', '--port', port, '--speed', SPEED, '--lead', 0, '--api-key', 'k', '--api-secret', 's', '--balance', 'LINK=500', '--balance', 'USDT=20000', '--json'),
                         stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert p.stdout.readline(), p.stderr.read()
        s = load_settings(folder/'settings.ini')
        done('vault', 'init', '--settings', s.path)
        for name in NAMES: done('vault', 'put', name, '--key', 'k', '--settings', s.path, stdin='s\n')
        make_key(s.keys)
        yield s
    finally:
        p.terminate()
        p.communicate(timeout=10)


def test_the_doctor_asks_the_venues(person):
    out, _ = done('doctor', '--venues', '--json', '--settings', person.path, code=None)
    found = {c['what']: c for c in json.loads(out)['checks']}
    for name in NAMES: assert found[f'venue {name}']['ok'] and f'open: {PAIR}' in found[f'venue {name}']['found'] and 'answers in' in found[f'venue {name}']['found']
    broken = person.path.with_name('broken.ini')
    broken.write_text(person.path.read_text().replace('ccxt:binance', 'ccxt:binnance'))
    out, _ = done('doctor', '--venues', '--json', '--settings', broken, code=1)
    assert 'did you mean ccxt:binance?' in next(c for c in json.loads(out)['checks'] if c['what'] == 'venue ccxt:binnance')['found']


def test_collecting_through_ccxt(person):
    out, _ = done('collect', '--minutes', 1, '--clock-speed', SPEED, '--settings', person.path, '--json')
    report = json.loads(out)
    assert report['stored'] == report['rows'] and all(report['venues'][name]['rows'] > 10 for name in NAMES), report
    ticks = Ticks(person.ticks)
    try: rows, native = (ticks.rows(name, PAIR) for name in NAMES)
    finally: ticks.close()
    assert set(rows['state']) == {VALID} and (rows['bid_px'][:, 0] < rows['ask_px'][:, 0]).all() and (rows['ts_recv_ns'][1:] >= rows['ts_recv_ns'][:-1]).all()
    assert abs(len(rows) - len(native)) < .5*len(native)


@pytest.mark.parametrize('mode', ['paper', 'sim'])
def test_trading_through_ccxt(person, mode):
    "Without fees the recorded gap between the two venues is wide enough; a leg goes through ccxt, the other does not."
    recorded = load_scenario('link-2021-08-20')
    listings = [msgspec.structs.replace(recorded.listings[name.removeprefix('ccxt:')], venue=name) for name in NAMES]
    universe = Universe(listings, {name: (0., 0.) for name in NAMES})
    study = Study(scenario='made by hand', strategy='cross', snapshot='none', window=(0, NS), seed=1, rows=1, trials=1, params=Params(min_edge_bps=.5, max_notional=400., cooldown_s=2., max_age_s=60., max_skew_s=30.),
                  kernel_hash=kernel_hash(KERNELS['cross']), universe=universe, latency_ms=dict.fromkeys(NAMES, 50.), bucket_s=60., trades=3, pnl_quote=1., oos_sharpe=1., oos_low=0., oos_high=2., dsr=None, pbo=.1,
                  folds=4, folds_positive=1., suspect_share=0., twin_fees_pnl=0., twin_latency_pnl=0., winner_pnl=1., winner_trades=3, best_gross_bps=9., gross_share=.1, reasons={}, stage=mode)
    person.promoted.mkdir(parents=True, exist_ok=True)
    write_manifest(sign(manifest_of(study, version='0', created_ns=time.time_ns(), override='a rehearsal'), load_key(person.keys)), person.promoted/'cross.json')
    at = ['--clock-speed', SPEED] if mode == 'sim' else ['--balance', 'USDT=20000', '--balance', 'LINK=500']
    out, err = done('arbwork.live', '--mode', mode, *at, '--seconds', 8 if mode == 'sim' else 4, '--settings', person.path, '--json', seconds=120)
    told = json.loads(out)
    assert told['reconciled'] and told['open_trades'] == 0 and told['rows'] > 5, (told, err)
    if mode == 'sim': assert told['trades'] > 0 and told['fills'] >= 2, (told, err)


def test_nobody_pays_for_ccxt_who_does_not_name_it():
    script = '''
import sys, arbwork.live, arbwork.cli, arbwork.store.collect
from arbwork.clock import WallClock
from arbwork.feed.connect import market_feed, trade_link
from arbwork.feed.codec import Keys
from arbwork.settings import VenueSettings
at = VenueSettings('binance', 'http://127.0.0.1:9', *['ws://127.0.0.1:9']*3, 10, 10, 50)
market_feed(at, None, {'LINK-USDT': 0}, WallClock(), print), trade_link(at, {}, WallClock(), print, Keys('k', 's'))
print([m for m in ('ccxt', 'arbwork.feed.ccxt_any') if m in sys.modules])'''
    out = subprocess.run([sys.executable, '-c', script], capture_output=True, text=True, timeout=60)
    assert out.stdout.strip() == '[]', out.stderr
