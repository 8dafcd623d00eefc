"Episodes and captures against plain loops over small random tapes."
from decimal import Decimal

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from arbwork.clock import NS
from arbwork.decide.contract import Universe
from arbwork.decide.edge import net_edge_bps
from arbwork.feed.events import BOOK, INVALID, VALID
from arbwork.market import ConfigError, Listing
from arbwork.research.backtest import prepare
from arbwork.research.lifetimes import LATENCIES_MS, Standing, captured, episodes, latency_value, with_fees, worth
from arbwork.settings import Params

TWO = Universe([Listing(v, 'BTC-USDT', 'BTCUSDT', *map(Decimal, ('0.01', '0.00001', '0.00001', '5'))) for v in ('binance', 'bybit')],
               {'binance': (1., 2.), 'bybit': (1., 3.)})


def tape(seed: int, n: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    rows = np.zeros(n, BOOK)
    rows['ts_recv_ns'] = NS + np.cumsum(rng.integers(0, 400, n))*1_000_000
    rows['ts_venue_ns'] = np.where(rng.random(n) < .2, 0, rows['ts_recv_ns'] - rng.integers(-5, 60, n)*1_000_000)
    rows['slot'], rows['state'] = rng.integers(0, 2, n), np.where(rng.random(n) < .1, INVALID, VALID)
    mid = 60_000 + rng.integers(-60, 61, n)
    for k in range(3):
        rows['bid_px'][:, k], rows['ask_px'][:, k] = mid - 5 - 3*k, mid + 5 + 3*k
        rows['bid_qty'][:, k], rows['ask_qty'][:, k] = rng.integers(1, 9, (2, n))/8
    return rows


def as_of(r) -> int: return int(min(r['ts_recv_ns'], r['ts_venue_ns']) if r['ts_venue_ns'] > 0 else r['ts_recv_ns'])


def plainly(rows, b, s, above, age_ns, skew_ns):
    "The definition, word for word."
    found, inside, last = [], None, {}
    for i, r in enumerate(rows):
        last[int(r['slot'])] = r
        if b not in last or s not in last: continue
        now, x, y = int(r['ts_recv_ns']), last[b], last[s]
        good = x['state'] == VALID and y['state'] == VALID and min(as_of(x), as_of(y)) >= now - age_ns
        if good and abs(as_of(x) - as_of(y)) > skew_ns: continue
        edge = net_edge_bps(y['bid_px'][0], x['ask_px'][0], *(TWO.fees_bps[TWO.listings[k].venue][1] for k in (b, s))) if good else -np.inf
        if inside is not None and not edge > above:
            found[-1][2:] = [now, 1 if good else 2]
            inside = None
        elif inside is None and edge > above:
            found.append([i, now, int(rows['ts_recv_ns'][-1]), 0])
            inside = i
    return found


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 60), st.sampled_from([-3., 0., 4.]), st.sampled_from([.05, .4, 5.]), st.sampled_from([.02, .2]))
def test_episodes_are_what_their_definition_says(seed, n, above, age_s, skew_s):
    rows = tape(seed, n)
    found = episodes(prepare(rows, TWO), above, age_s, skew_s)
    for b, s in ((0, 1), (1, 0)):
        mine = found[(found['buy'] == b) & (found['sell'] == s)]
        assert [[int(x[k]) for k in ('row', 'start_ns', 'end_ns', 'ended')] for x in mine] == plainly(rows, b, s, above, int(age_s*NS), int(skew_s*NS))
    assert (found['peak_bps'] >= found['first_bps']).all() and (found['first_bps'] > above).all() and (found['end_ns'] >= found['start_ns']).all()


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(5, 60), st.integers(0, 900))
def test_a_capture_takes_what_stands_on_arrival_and_no_more(seed, n, ms):
    rows = tape(seed, n)
    ready = prepare(rows, TWO)
    found, standing = episodes(ready, max_skew_s=.2), Standing(ready)
    got = captured(ready, found, ms*1_000_000, standing)
    for x, (profit, both, lone) in zip(found, got):
        when, fills = int(x['start_ns']) + ms*1_000_000, []
        for slot, px, qty, sign, limit in ((x['buy'], 'ask_px', 'ask_qty', 1, x['buy_limit_px']), (x['sell'], 'bid_px', 'bid_qty', -1, x['sell_limit_px'])):
            mine, high, here = rows[rows['slot'] == slot], 0, None
            for r in mine:
                high = max(high, as_of(r))
                if high <= when: here = r
            left, parts = x['qty'], []
            for p, q in zip(here[px], here[qty]) if here is not None and here['state'] == VALID else ():
                if p <= 0 or sign*(p - limit) > 0: break
                parts.append((p, min(q, left)))
                left -= min(q, left)
            fills.append(parts)
        sums = [sum(q for _, q in parts) for parts in fills]
        assert both == pytest.approx(min(sums)) and lone == pytest.approx(abs(sums[0] - sums[1]))
        money = 0.
        for parts, sign, fee in zip(fills, (-1, 1), (TWO.fees_bps[TWO.listings[x[k]].venue][1] for k in ('buy', 'sell'))):
            left = min(sums)
            for p, q in parts:
                money += sign*p*min(q, left)*(1 - sign*fee/1e4)
                left -= min(q, left)
        assert profit == pytest.approx(money, abs=1e-6)
        assert both <= x['qty']*(1 + 1e-12)


def test_tiers_and_latencies_that_are_not_there_are_refused():
    table = latency_value(tape(3, 80), TWO, Params(min_edge_bps=0., max_skew_s=.2), (0., 50.))
    assert len(table) and set(table['latency_ms']) == {0., 50.}
    with pytest.raises(ConfigError, match='20 ms'): worth(table, 50., 20.)
    with pytest.raises(ConfigError, match='kraken'): with_fees(TWO, {'binance': 1., 'kraken': 2.})
    assert (worth(table, 50., 0.)['gain'].to_numpy() == (table[table['latency_ms'] == 0]['captured'].to_numpy() - table[table['latency_ms'] == 50]['captured'].to_numpy())).all()


def test_dearer_fees_leave_fewer_and_smaller_opportunities():
    ready, before = prepare(tape(5, 2_000), TWO), None
    for bps in (0., 2., 5., 10., 40.):
        specs = with_fees(TWO, {'binance': bps, 'bybit': bps})
        found = episodes(ready, max_skew_s=.2, specs=specs)
        offered = found['profit'].sum()
        assert before is None or offered < before or offered == before == 0
        before = offered
    assert before == 0


def test_what_twenty_ms_buy_is_answered_for_every_tier_pair_and_latency():
    three = Universe([*TWO.listings, msgspec.structs.replace(TWO.listings[0], venue='okx')], {**TWO.fees_bps, 'okx': (0., 1.)})
    rows = tape(5, 240)
    more = tape(6, 120)
    more = more[more['slot'] == 0]
    more['slot'] = 2
    rows = np.concatenate([rows, more])
    rows = rows[np.argsort(rows['ts_recv_ns'], kind='stable')]
    table = latency_value(rows, three, Params(min_edge_bps=0., max_skew_s=.2), fee_tiers={'free': 0., 'published': 1.})
    assert set(LATENCIES_MS) >= {1., 5., 20., 50., 100., 300.}
    free = table[table['fees'] == 'free']
    assert free['pair'].nunique() > 4 and table.groupby(['fees', 'pair'])['latency_ms'].apply(tuple).map(set).eq(set(LATENCIES_MS)).all()
    assert set(worth(table, 50., 20.)['pair']) == set(table['pair'])
    at_once = table[table['latency_ms'] == 0]
    assert (at_once['captured'] <= at_once['offered'] + 1e-9).all() and (at_once['captured'] > 0).any()
