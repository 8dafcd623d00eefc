"""The venue's own matching against the fill model that backtest and paper use, and properties of the venue under any orders."""

from decimal import Decimal as D

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from arbwork.decide import fill
from arbwork.feed.events import BOOK, VALID
from arbwork.market import BUY, SELL, Listing
from arbwork.sim.engine import UNIT, Engine, levels, whole

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
