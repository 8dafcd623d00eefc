"What a backtest assumes is what it charges and waits for: tiers, fees in another asset, three parts of latency, refusals; and twins that fall as they must."
import numpy as np
import pytest

from arbwork.clock import NS
from arbwork.decide.contract import Universe
from arbwork.feed.events import BOOK, VALID
from arbwork.market import BUY, ConfigError
from arbwork.research.assume import Costs, FeeAsset, Latency
from arbwork.research.backtest import backtest
from arbwork.settings import make_params
from test_skip import GRID, T0, Listing, tape_of

DAY = 86_400*NS
FREE = dict(min_edge_bps=0., cooldown_s=0., trades_per_hour=1e6, max_exposure=1e8, max_loss_day=1e8, max_drawdown=1., max_notional=1_000., risk_tolerance=1., slippage_bps=0.,
            single_leg='cancel')


def universe_of(fee_bps=5., also=()):
    return Universe([Listing(v, 'LINK-USDT', 'LINKUSDT', *GRID) for v in ('binance', 'bybit')], {v: (fee_bps, fee_bps) for v in ('binance', 'bybit')}, also=list(also))


def holdings(link=1e5, usdt=1e7, **more): return {v: dict(LINK=link, USDT=usdt, **more) for v in ('binance', 'bybit')}


def steady(times_ns, above_bps=40.):
    "The second venue pays more at every one of these times: two rows each, a millisecond apart."
    rows = np.zeros(2*len(times_ns), BOOK)
    rows['slot'], rows['state'], rows['seq'] = np.arange(len(rows))%2, VALID, np.arange(len(rows))
    rows['ts_venue_ns'] = rows['ts_recv_ns'] = np.repeat(times_ns, 2) + rows['slot']*1_000_000
    px = np.where(rows['slot'] == 1, 25*(1 + above_bps/1e4), 25.)[:, None]
    rows['bid_px'], rows['ask_px'] = np.round(px - .001*np.arange(1, 11), 3), np.round(px + .001*np.arange(1, 11), 3)
    rows['bid_qty'] = rows['ask_qty'] = 50. + np.arange(len(rows))[:, None]%7
    return rows


def total(r): return r.inventory.sum(axis=2)


def test_tiers_follow_the_volume_of_thirty_days_fill_by_fill():
    tiers = {'bybit': [(0., 4., 9.), (20_000., 3., 7.), (35_000., -1., 2.)]}
    times = T0//DAY*DAY + np.concatenate([d*DAY + 3_600*NS*np.arange(1, 9) for d in (0, 1, 2, 5, 12, 29, 31, 40, 75)])
    u = universe_of(5.)
    r = backtest('cross', steady(times), u, make_params(FREE), inventory=holdings(), costs=Costs(tiers=tiers, volume={'binance': 0., 'bybit': 15_000.}))
    assert r.funnel['trade'] >= 60
    begun, days, seen = int(times[0])//DAY, {}, set()
    for f in r.fills:
        day = int(f['booked_ns'])//DAY
        if f['slot'] == 0:
            assert f['fee'] == pytest.approx(f['notional']*5/1e4, rel=1e-12)
            continue
        last = max(days, default=begun) # a fill sets the fee of the next: the thirty days end with it
        volume = 15_000/30*max(0, 30 - (last - begun)) + sum(v for d, v in days.items() if d > last - 30)
        known = [bps for least, _, bps in tiers['bybit'] if least <= volume][-1]
        assert f['fee'] == pytest.approx(f['notional']*known/1e4, rel=1e-9), (day - begun, volume)
        days[day] = days.get(day, 0.) + f['notional']
        seen.add(known)
    assert seen == {9., 7., 2.}


def test_a_fee_in_another_asset_is_paid_from_it_while_it_lasts():
    u, rows = universe_of(10., also=['BNB']), steady(T0 + 10*NS*np.arange(40))
    costs = Costs(fee_in={'binance': FeeAsset('BNB', 500., .25), 'bybit': 'quote'})
    r = backtest('cross', rows, u, make_params(FREE), inventory=holdings(BNB=.01), costs=costs)
    at_binance = r.fills[r.fills['slot'] == 0]
    paid = at_binance['other'] > 0
    assert paid.any() and (~paid).any() and not paid[np.argmin(paid):].any() # it ran out once and for all
    np.testing.assert_allclose(at_binance['fee'][paid], at_binance['notional'][paid]*7.5/1e4)
    np.testing.assert_allclose(at_binance['other'][paid]*500, at_binance['fee'][paid])
    np.testing.assert_allclose(at_binance['base_change'][paid], at_binance['qty'][paid])
    np.testing.assert_allclose(at_binance['base_change'][~paid], at_binance['qty'][~paid]*(1 - 10/1e4)) # then from what was bought
    held = total(r)
    assert 0 <= held[0, u.assets.index('BNB')] < at_binance['other'][paid].max() and held[1, u.assets.index('BNB')] == .01
    before = np.array([[1e5, 1e7, .01]]*2)
    for asset, change in (('LINK', r.fills['base_change']), ('USDT', r.fills['quote_change']), ('BNB', -r.fills['other'])):
        k = u.assets.index(asset)
        assert held[:, k].sum() - before[:, k].sum() == pytest.approx(change.sum(), abs=1e-6)


def test_latency_has_three_parts_and_each_is_waited_for():
    u, rows = universe_of(1.), steady(T0 + NS*np.arange(60))
    ms = 1_000_000
    how = dict(inventory=holdings(), seed=4)
    r = backtest('cross', rows, u, make_params(FREE), latency=Latency(entry_ns={'binance': 7*ms, 'bybit': 11*ms}, response_ns={'binance': 2*ms, 'bybit': 3*ms}, feed_ns=5*ms), **how)
    f, at = r.fills, r.fills['slot']
    assert len(f) > 50 and (f['filled_ns'] - f['sent_ns'] == np.where(at == 0, 7*ms, 11*ms)).all() and (f['booked_ns'] - f['filled_ns'] == np.where(at == 0, 2*ms, 3*ms)).all()
    assert np.isin(f['sent_ns'] - 5*ms, rows['ts_venue_ns']).all() # decided on what was read five milliseconds after the venue had it
    same = backtest('cross', rows, u, make_params(FREE), latency=Latency(entry_ns=9*ms), **how)
    assert (same.fills['booked_ns'] - same.fills['filled_ns'] == 9*ms).all() # the way back is as long as the way there

    drawn = Latency(entry_ns=np.array([4., 40.])*ms, response_ns={'binance': 1*ms, 'bybit': np.array([2., 20., 200.])*ms}, feed_ns=np.array([1., 3.])*ms)
    a, again, other = (backtest('cross', rows, u, make_params(FREE), latency=drawn, inventory=holdings(), seed=seed) for seed in (4, 4, 5))
    assert a.fills.tobytes() == again.fills.tobytes() != other.fills.tobytes()
    f = a.fills
    assert set(f['filled_ns'] - f['sent_ns']) == {4*ms, 40*ms} and set((f['booked_ns'] - f['filled_ns'])[f['slot'] == 1]) == {2*ms, 20*ms, 200*ms}
    with pytest.raises(ConfigError, match='latency entry_ns of bybit'): backtest('cross', rows, u, latency=Latency(entry_ns={'binance': 1, 'bybit': -1}), **how)


def test_what_is_refused_by_chance_or_for_its_number_fills_nothing_and_is_counted():
    u, rows = universe_of(1.), steady(T0 + NS//10*np.arange(600))
    run = lambda **costs: backtest('cross', rows, u, make_params(FREE), inventory=holdings(), costs=Costs(**costs), seed=3)
    free, none, some = run(), run(reject=1.), run(reject={'binance': .3})
    assert len(none.fills) == 0 and (total(none) == total(none)[:1]).all() and {v: x['by chance'] for v, x in none.refused.items()} == dict.fromkeys(u.venues, none.funnel['trade'])
    assert 0 == some.refused['bybit']['by chance'] < some.refused['binance']['by chance'] == some.funnel['trade'] - (some.fills['slot'] == 0).sum()
    assert .2 < some.refused['binance']['by chance']/some.funnel['trade'] < .4 and some.pnl_quote < free.pnl_quote
    slow = run(orders_per_s={'bybit': 2.})
    at = np.sort(slow.fills['filled_ns'][slow.fills['slot'] == 1])
    assert slow.refused['bybit']['too many'] > 0 == slow.refused['binance']['too many']
    assert max(np.searchsorted(at, t + 10*NS) - i for i, t in enumerate(at)) <= 22 < 100 # a burst of two, then two a second
    with pytest.raises(ConfigError, match='reject of binance: found 1.5'): run(reject=1.5)


TWINS = dict(min_edge_bps=1., cooldown_s=1., max_skew_s=30., max_age_s=30., trades_per_hour=1e6, max_exposure=1e8, max_loss_day=1e8, max_drawdown=1., risk_tolerance=1., slippage_bps=0.)


@pytest.mark.parametrize('seed', [1, 2, 3])
def test_twins_fall_as_they_must(seed):
    rows = tape_of(seed, 6_000, 2, 14., 0.)
    u, p = universe_of(2.), make_params(TWINS)
    run = lambda rows=rows, p=p, **how: backtest('cross', rows, u, p, **{'inventory': holdings(2e3, 5e4), 'latency_ns': 20_000_000, **how})
    base = run()
    assert base.pnl_quote > 0 and base.funnel['trade'] > 20
    dear = run(p=make_params(dict(fee_mult=2.), p))
    slow = [run(latency_ns=ns).pnl_quote for ns in (NS, 4*NS)]
    assert dear.pnl_quote < base.pnl_quote > slow[0] > slow[1]
    late = rows.copy() # one venue is heard of three seconds late; its own clock and its matching are as they were
    late['ts_venue_ns'] = late['ts_recv_ns'] - 10_000_000
    late['ts_recv_ns'] += np.where(late['slot'] == 1, 3*NS, 0)
    assert run(late[np.argsort(late['ts_recv_ns'], kind='stable')]).pnl_quote < base.pnl_quote


def test_swapped_labels_find_their_coins_at_the_wrong_venue():
    rows, u, p = steady(T0 + NS*np.arange(200)), universe_of(2.), make_params(TWINS)
    there = {'binance': dict(LINK=0., USDT=1e6), 'bybit': dict(LINK=1e4, USDT=0.)} # to buy at the first, to sell at the second
    base = backtest('cross', rows, u, p, inventory=there)
    swapped = rows.copy()
    swapped['slot'] = 1 - swapped['slot']
    wrong = backtest('cross', swapped, u, p, inventory=there)
    assert base.pnl_quote > 0 and base.fills['side'][base.fills['slot'] == 0].tolist() == [BUY]*int((base.fills['slot'] == 0).sum())
    assert wrong.funnel['trade'] == 0 < wrong.funnel['inventory'] and wrong.pnl_quote == 0
    right = backtest('cross', swapped, u, p, inventory={'binance': there['bybit'], 'bybit': there['binance']}) # coins swapped too: nothing but names
    assert right.pnl_quote == pytest.approx(base.pnl_quote, rel=1e-12) and right.funnel == base.funnel

