"""The venue's own matching against the fill model that backtest and paper use, and properties of the venue under any orders."""

from decimal import Decimal as D

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from arbwork.decide import fill
from arbwork.feed.events import BOOK, VALID
from arbwork.market import BUY, SELL, Listing
from arbwork.sim.engine import STP, UNIT, Engine, levels, whole

LINK = Listing(venue='binance', instrument='LINK-USDT', symbol='LINKUSDT', tick=D('0.001'), lot=D('0.001'), min_qty=D('0.001'), min_notional=D('0.001'))
NAME = LINK.instrument


def rows(seed, n):
    "Books that walk, with levels that often stay as they were."
    rng, out = np.random.default_rng(seed), np.zeros(n, BOOK)
    mid, sizes = 27_100, {}
    for row in out:
        mid += int(rng.integers(-2, 3))
        for p in range(mid - 30, mid + 31):
            if p not in sizes or rng.random() < .1: sizes[p] = int(rng.integers(1, 60_000))/1_000
        row['state'] = VALID
        for side, sign in (('bid', -1), ('ask', 1)):
            ticks = mid + sign*np.arange(1, 11)
            row[f'{side}_px'], row[f'{side}_qty'] = ticks/1_000, [sizes[int(p)] for p in ticks]
    return out


@pytest.mark.parametrize('seed', range(6))
def test_the_venue_and_the_fill_model_give_the_same_fills(seed):
    books, rng = rows(seed, 150), np.random.default_rng(seed + 100)
    venue, notes = Engine('binance', [LINK], balances={'LINK': D(10**7), 'USDT': D(10**9)}), np.zeros(1, fill.CONSUMED)
    shown = whole(books, LINK)
    for i in range(len(books)):
        venue.renew(NAME, levels(*shown[i][:2]), levels(*shown[i][2:]), i)
        fill.refresh(books, i, notes, 0)
        for k in range(int(rng.integers(0, 3))):
            side, qty = int(rng.choice([BUY, SELL])), D(int(rng.integers(1, 120_000)))/1_000
            best = books[i]['ask_px' if side == BUY else 'bid_px'][0]
            px = D(int(round(best*1_000)) + side*int(rng.integers(-1, 8)))/1_000
            o = venue.place(NAME, side, qty, px, 'IOC', f'{i}-{k}', i)[-1].order
            filled, notional = fill.take(books, i, notes, 0, side, float(qty), float(px))
            assert (float(o.filled), float(o.quote)) == (pytest.approx(filled, abs=1e-9), pytest.approx(notional, abs=1e-6)), (i, k)


ORDERS = st.lists(st.tuples(st.sampled_from([BUY, SELL]), st.integers(1, 90_000), st.integers(-12, 12), st.sampled_from(['IOC', 'GTC', 'FOK', 'POST_ONLY', 'MARKET']),
                            st.booleans()), min_size=1, max_size=25)


@settings(max_examples=60, deadline=None)
@given(orders=ORDERS, seed=st.integers(0, 50))
def test_money_is_conserved_and_the_published_book_is_what_stands(orders, seed):
    books = rows(seed, len(orders))
    venue, shown = Engine('binance', [LINK], balances={'LINK': D(120), 'USDT': D(3_000)}), whole(books, LINK)
    published = ({}, {})
    for i, (side, qty, away, tif, cancel) in enumerate(orders):
        venue.renew(NAME, levels(*shown[i][:2]), levels(*shown[i][2:]), i)
        px = None if tif == 'MARKET' else D(int(round(books[i]['ask_px'][0]*1_000)) + away)/1_000
        venue.place(NAME, side, D(qty)/1_000, px, 'IOC' if tif == 'MARKET' else tif, f'o{i}', i)
        if cancel:
            for o in [o for o in venue.orders.values() if o.open]: venue.cancel(o, i)
        before = venue.seq[NAME]
        new = venue.changes(NAME)
        if new:
            assert new[0] == before + 1 and new[1] == venue.seq[NAME]
            for side_book, changed in zip(published, new[2:]):
                for p, q in changed:
                    if q: side_book[p] = q
                    else: del side_book[p]
    for side_book, s in zip(published, venue.books[NAME]): assert side_book == dict(s.visible()) and all(q > 0 for q in side_book.values())
    fees = {a: sum((f.fee for f in venue.fills if f.fee_asset == a), D(0)) for a in ('LINK', 'USDT')}
    assert venue.free['LINK'] + venue.held['LINK'] == 120 + sum(f.side*f.qty for f in venue.fills) - fees['LINK']
    assert venue.free['USDT'] + venue.held['USDT'] == 3_000 - sum(f.side*f.px*f.qty for f in venue.fills) - fees['USDT']
    assert min([*venue.free.values(), *venue.held.values()]) >= 0
    resting = [o for o in venue.orders.values() if o.open]
    assert venue.held['LINK'] == sum((D(o.left)/UNIT for o in resting if o.side == SELL), D(0))
    assert venue.held['USDT'] == sum((D(o.left)/UNIT*o.px for o in resting if o.side == BUY), D(0))


QUEUE = st.lists(st.tuples(st.sampled_from(['trade', 'level', 'through']), st.integers(0, 30)), max_size=14)


@settings(max_examples=200, deadline=None)
@given(before=st.integers(1, 25), own=st.integers(1, 12), events=QUEUE, side=st.sampled_from([BUY, SELL]))
def test_a_place_in_the_queue_is_that_of_single_units_in_a_row(before, own, events, side):
    "Against a queue that is a list: a trade takes from its front, who leaves leaves from behind us as long as somebody is there, who comes comes last."
    venue, price = Engine('binance', [LINK], balances={'LINK': D(10**4), 'USDT': D(10**6)}), 27_100
    far = {price + side*(5 + k): UNIT for k in range(10)} # the other side of the book, out of reach

    def show(units):
        mine = {price: units*UNIT} if units else {}
        mine |= {price - side*(1 + k): UNIT for k in range(10 - len(mine))}
        book = (mine, far) if side == BUY else (far, mine)
        venue.renew(NAME, dict(sorted(book[0].items(), reverse=True)), dict(sorted(book[1].items())), 0)
    show(before)
    o = venue.place(NAME, side, D(own), D(price)/1_000, 'GTC', 'o', 0)[0].order
    o, queue = venue.find('o'), ['outer']*before + ['own']*own
    for what, n in events:
        outer = queue.count('outer')
        if what == 'trade':
            venue.hit(NAME, -side, price, n*UNIT, 0)
            del queue[:n]
        elif what == 'through': # a trade that went a tick further must have met all that stands here
            if n: venue.hit(NAME, -side, price - side, n*UNIT, 0)
            ours = min(n, queue.count('own'))
            for _ in range(ours): queue.remove('own')
        else:
            show(n)
            while queue.count('outer') > n: del queue[len(queue) - 1 - queue[::-1].index('outer')]
            queue += ['outer']*(n - queue.count('outer'))
        # what a trade took of the outer queue is gone from the next row as well, or was renewed
        if what != 'level': show(queue.count('outer'))
        assert o.filled == own - queue.count('own'), (what, n, outer)
        if o.open: assert o.ahead == queue.index('own')*UNIT
    assert venue.held['LINK' if side == SELL else 'USDT'] == (D(o.left)/UNIT*(o.px if side == BUY else 1) if o.open else 0)


STEPS = st.lists(st.tuples(st.sampled_from(['place', 'place', 'place', 'hit', 'renew', 'cancel', 'late']), st.sampled_from([BUY, SELL]), st.integers(1, 40), st.integers(-8, 8),
                           st.sampled_from(['GTC', 'GTC', 'IOC', 'FOK', 'POST_ONLY', 'MARKET']), st.sampled_from(STP)), min_size=1, max_size=40)


@settings(max_examples=120, deadline=None)
@given(steps=STEPS, seed=st.integers(0, 20))
def test_whatever_the_account_does_to_itself_money_and_queues_stay_right(steps, seed):
    books, late = rows(seed, len(steps)), []
    venue, shown = Engine('binance', [LINK], balances={'LINK': D(100), 'USDT': D(3_000)}, tiers=((0, 10, 10), (500, 2, 5), (2_000, -1, 4))), whole(books, LINK)
    venue.renew(NAME, levels(*shown[0][:2]), levels(*shown[0][2:]), 0)
    for i, (what, side, qty, away, tif, stp) in enumerate(steps):
        mid = int(round(books[i]['ask_px'][0]*1_000))
        resting = [o for o in venue.orders.values() if o.open]
        if what == 'renew': venue.renew(NAME, levels(*shown[i][:2]), levels(*shown[i][2:]), i)
        elif what == 'hit':
            events, others = venue.hit(NAME, side, mid + away, qty*UNIT, i)
            assert others + sum(int(e.fill.qty*UNIT) for e in events if e.fill) == qty*UNIT
        elif what == 'cancel' and resting: venue.cancel(resting[0], i)
        elif what == 'late' and resting:
            o = resting[-1]
            units = max(1, o.left//2)
            venue.cancel(o, i, late=units)
            late.append((o, units))
        elif what == 'place':
            n, px = len(venue.fills), None if tif == 'MARKET' else D(mid + away)/1_000
            events = venue.place(NAME, side, D(qty), px, 'IOC' if tif == 'MARKET' else tif, f'o{i}', i, stp=stp)
            makers = [e for e in events if e.fill and e.fill.maker]
            assert stp == 'none' or not makers, 'traded with itself'
            if tif == 'FOK' and events[0].what == 'new': assert events[-1].order.filled in (0, qty) or stp == 'none'
            if stp == 'maker' and any(e.what == 'prevented' for e in events): assert {e.order.client_id for e in events if e.what == 'prevented'} != {f'o{i}'}
            assert len(venue.fills) - n == sum(1 for e in events if e.fill)
        for s in venue.books[NAME]:
            free = dict(s.free())
            for o in s.own: assert o.open and o.left > 0 and (o.ahead is None or not o.ahead or o.ahead <= free.get(o.ticks, 10**18))
    for o, units in late:
        event = venue.late_fill(o, units, 0, len(steps))[0]
        assert event.order.status in ('filled', 'cancelled') and event.fill.maker and o.hold == 0
    fees = {a: sum((f.fee for f in venue.fills if f.fee_asset == a), D(0)) for a in ('LINK', 'USDT')}
    assert venue.free['LINK'] + venue.held['LINK'] == 100 + sum(f.side*f.qty for f in venue.fills) - fees['LINK']
    assert venue.free['USDT'] + venue.held['USDT'] == 3_000 - sum(f.side*f.px*f.qty for f in venue.fills) - fees['USDT']
    resting = [o for o in venue.orders.values() if o.open]
    assert venue.held['LINK'] == sum((D(o.left)/UNIT for o in resting if o.side == SELL), D(0))
    assert venue.held['USDT'] == sum((D(o.left)/UNIT*o.px for o in resting if o.side == BUY), D(0))
    assert venue.volume == sum(f.px*f.qty for f in venue.fills)
