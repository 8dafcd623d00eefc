"Limits of the parts: one rule, asked by a session, a backtest and a sweep; what a limit costs can be swept, and what is no limit is refused."
import pickle
from decimal import Decimal

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_kernel import market, rich, universe_of

from arbwork.decide.contract import REASONS, Params, make_params
from arbwork.decide.limits import CODES, Refusal, Stake, limited, tighter, with_limits
from arbwork.market import ConfigError
from arbwork.research.backtest import backtest, inventory_of, prepare
from arbwork.research.parity import Modelled, Paper
from arbwork.research.placebo import capacity
from arbwork.research.promote import Manifest, _signed_bytes
from arbwork.research.study import search, study_of
from arbwork.research.sweep import combinations, explore, sweep
from arbwork.research.trials import Trials
from arbwork.settings import RANGES, Limits
from arbwork.sim.scenarios import stress
from arbwork.trade.core import SessionStart

pytestmark = pytest.mark.timeout(900) # whichever comes first may have to compile, beside whatever else the machine does

BOLD = Params(cooldown_s=0., max_open_trades=8, trades_per_hour=1e6, min_edge_bps=1., slippage_bps=200., max_exposure=1e6, deadline_s=60., stop_bps=500.)
LATE_MS = (300, 1_500) # there, and as long back; so that orders are under way when the next ones are meant


def plenty(seed=3):
    "A market with enough behind the best price that whoever is late still fills whole."
    rows = market(seed, gap_bps=25., repeat=0.)
    for name in ('bid_qty', 'ask_qty'): rows[name] += 60
    return rows


def a_session(rows, params, limits):
    "The core of a session, its orders answered by the fill model: reasons, and what it began."
    u = universe_of()
    start = SessionStart('one', 'sim', 'cross', params, u, {v: {'LINK': Decimal(400), 'USDT': Decimal(10_000)} for v in u.venues}, int(rows['ts_recv_ns'][0]) - 1, limits=limits)
    m = Modelled(start, Paper(rows, 2, None), {v: ms*1_000_000 for v, ms in zip(u.venues, LATE_MS)})
    for r in rows: m.row(int(r['ts_recv_ns']), r)
    m.advance(int(rows['ts_recv_ns'][-1]) + 60*10**9)
    reasons = dict(zip(REASONS, m.core.reasons)) | {'trade': m.core.trade_count}
    return reasons, [(t.opened_ns, t.slots.tolist(), t.intents['qty'].tolist()) for t in m.core.all_trades.values()]


def run_over(rows, params, limits, **more):
    r = backtest('cross', rows, universe_of(), params, inventory=rich(universe_of()), latency_ns=[ms*1e6 for ms in LATE_MS], fee_in='received', limits=limits, **more)
    assert sum(r.funnel.values()) == len(rows)
    return r


@pytest.mark.parametrize('limits', [{}, dict(order_notional=501.), dict(instrument_notional=1_800.), dict(venue_notional=900.), dict(venue_drift=1_500.), dict(asset_exposure=300.),
                                    dict(orders_per_minute=12), dict(venue_drift=2_500., venue_notional=1_600., orders_per_minute=40)], ids=lambda x: '+'.join(x) or 'none')
def test_a_session_and_a_backtest_refuse_the_same_for_the_same_limit(limits):
    rows, limits = plenty(), Limits(**limits)
    reasons, began = a_session(rows, BOLD, limits)
    r = run_over(rows, BOLD, limits)
    assert reasons == r.funnel
    assert began == [(int(t['opened_ns']), t['slot'][:2].tolist(), t['qty'][:2].tolist()) for t in np.sort(r.trades, order='id')]
    free = run_over(rows, BOLD, Limits())
    if limits != Limits(): assert 0 < r.funnel['trade'] < free.funnel['trade'] and r.funnel['limit'] > free.funnel['limit'] # it binds, and not always


def test_limits_that_do_not_bind_change_nothing_to_the_bit():
    rows = plenty(4)
    free, loose = run_over(rows, BOLD, Limits()), run_over(rows, BOLD, Limits(*[1e8]*5, 1_000_000))
    assert (free.fills == loose.fills).all() and (free.equity == loose.equity).all() and (free.trades == loose.trades).all() and free.funnel == loose.funnel
    slow = run_over(rows, BOLD, Limits(venue_drift=1_500., orders_per_minute=12), skip=False)
    fast = run_over(rows, BOLD, Limits(venue_drift=1_500., orders_per_minute=12))
    assert (slow.fills == fast.fills).all() and slow.funnel == fast.funnel


@pytest.mark.parametrize('name, values', [('order_notional', [0, 503, 502, 501, 500.5]), ('instrument_notional', [0, 4_000, 2_500, 1_200]), ('venue_notional', [0, 2_000, 1_200, 700]),
                                          ('venue_drift', [0, 6_000, 3_000, 1_000]), ('asset_exposure', [0, 1_500, 800, 200]), ('orders_per_minute', [0, 60, 24, 6])])
def test_a_limit_can_be_swept_and_tightening_it_refuses_more(name, values):
    s = sweep('cross', plenty(), universe_of(), {name: values}, base=BOLD, inventory=rich(universe_of()), latency_ns=[ms*1e6 for ms in LATE_MS], fee_in='received')
    assert s.frame[name].tolist() == values and [getattr(r.limits, name) for r in s.results] == values
    trades, why = s.frame['trades'].to_numpy(), s.frame['why_limit'].to_numpy()
    assert (np.diff(trades) <= 0).all() and trades[0] > trades[-1] and (np.diff(why) >= 0).all() and why[-1] > why[0]
    for v, r in zip(values, s.results):
        alone = run_over(plenty(), BOLD, Limits(**{name: v}))
        assert (r.fills == alone.fills).all() and r.funnel == alone.funnel
    names = {n: [getattr(s.results[0].params, n)] for n in CODES}
    assert len(combinations(names, s.results[0].params)) == 1


@settings(max_examples=120, deadline=None)
@given(st.data())
def test_the_rule_by_numbers_is_the_rule_by_names(data):
    money = st.floats(1., 2_000.)
    stake = st.builds(Stake, st.sampled_from(['binance', 'bybit', 'kraken']), st.sampled_from(['LINK-USDT', 'LINK-USDC', 'BTC-USDT']), st.sampled_from([1, -1]), money)
    meant, under = data.draw(st.lists(stake, min_size=1, max_size=4)), data.draw(st.lists(stake, max_size=5))
    drift = data.draw(st.dictionaries(st.tuples(st.sampled_from(['binance', 'bybit', 'kraken']), st.sampled_from(['LINK', 'BTC'])), st.floats(-2_000, 2_000)))
    minute = data.draw(st.dictionaries(st.sampled_from(['binance', 'bybit']), st.integers(0, 40)))
    figure = st.one_of(st.just(0.), st.floats(10., 6_000.))
    limits = Limits(*(data.draw(figure) for _ in range(5)), data.draw(st.integers(0, 40)))
    a, b = limited(meant, under, drift, minute, limits), by_names(meant, under, drift, minute, limits)
    assert (a is None) == (b is None)
    if a is not None: assert (a.code, a.limit) == (b.code, b.limit) and a.found > a.limit and a.where
    if a is not None and a.where == b.where: assert a.found == pytest.approx(b.found)


def by_names(meant, under, drift, minute, l):
    "The same rule as one would write it down, with names and dicts."
    def total(stakes, field, name): return sum(s.notional for s in stakes if getattr(s, field) == name)
    for s in meant:
        if 0 < l.order_notional < s.notional: return Refusal('order_notional', f'{s.venue} {s.instrument}', s.notional, l.order_notional)
    for field, code in (('instrument', 'instrument_notional'), ('venue', 'venue_notional')):
        for name in dict.fromkeys(getattr(s, field) for s in meant):
            x = total(meant, field, name) + total(under, field, name)
            if 0 < getattr(l, code) < x: return Refusal(code, name, x, getattr(l, code))
    after = dict(drift)
    for s in meant:
        key = s.venue, s.instrument.partition('-')[0]
        after[key] = after.get(key, 0.) + s.side*s.notional
    for (venue, asset), x in after.items():
        if 0 < l.venue_drift < abs(x) and abs(x) > abs(drift.get((venue, asset), 0.)): return Refusal('venue_drift', f'{venue} {asset}', abs(x), l.venue_drift)
    for asset in dict.fromkeys(a for _, a in drift):
        x = abs(sum(x for (_, a), x in drift.items() if a == asset))
        if 0 < l.asset_exposure < x: return Refusal('asset_exposure', asset, x, l.asset_exposure)
    for venue in dict.fromkeys(s.venue for s in meant):
        n = minute.get(venue, 0) + sum(s.venue == venue for s in meant)
        if 0 < l.orders_per_minute < n: return Refusal('orders_per_minute', venue, n, l.orders_per_minute)
    return None


def test_what_is_no_limit_is_refused_by_name():
    u, rows = universe_of(), plenty()
    for grid, words in ((dict(order_notinal=[1.]), 'search space order_notinal: unknown, wanted a parameter .*or a limit .*order_notional'),
                        (dict(troubles=[1]), 'search space troubles: a limit of a session that counts faults'), (dict(venue_drift=[-1.]), 'parameter venue_drift: found -1'),
                        (dict(orders_per_minute=[2.5]), 'parameter orders_per_minute: found 2.5, wanted a number'), (dict(asset_exposure=['much']), 'parameter asset_exposure: found .much.')):
        with pytest.raises(ConfigError, match=words): sweep('cross', rows, u, grid, inventory=rich(u))
    with pytest.raises(ConfigError, match='search space venue_drfit: unknown'): explore('cross', rows, u, dict(venue_drfit=(1., 2.)), trials=1, seed=1, inventory=rich(u))


def test_optuna_searches_limits_too_and_they_travel_to_other_processes():
    u, rows = universe_of(), plenty()
    found = explore('cross', rows, u, dict(venue_drift=(500., 4_000.), orders_per_minute=(6, 30)), trials=4, seed=1, base=BOLD, inventory=rich(u), limits=Limits(order_notional=450.))
    assert len(found.results) == 4 and all(r.limits.order_notional == 450. and 500 <= r.limits.venue_drift <= 4_000 and isinstance(r.limits.orders_per_minute, int) for r in found.results)
    one = sweep('cross', rows, u, dict(venue_drift=[0., 900.], min_edge_bps=[1., 9.]), base=BOLD, inventory=rich(u), latency_ns=50_000_000)
    again = pickle.loads(pickle.dumps(one.results)) # as between processes
    assert [r.params for r in again] == [r.params for r in one.results] and type(again[0].params) is type(one.results[0].params)
    assert combinations(dict(min_edge_bps=[1.]), one.results[1].params)[0].venue_drift == 0.


def a_study(tmp_path, grid, limits, now_ns=0):
    world = stress(seed=3, hours=.5)
    holdings = {v: {'BTC': 50, 'USDT': 200_000} for v in world.universe.venues}
    return study_of('cross', world.tape(), world.universe, grid, inventory=inventory_of(world.universe, holdings), latency_ms={v: 50. for v in world.universe.venues}, seed=1,
                    base=Params(cooldown_s=5.), draws=100, now_ns=now_ns, ledger=Trials(tmp_path/'trials.db'), limits=limits)


def test_a_study_works_under_the_limits_a_session_will_have_and_says_so(tmp_path):
    free, _ = a_study(tmp_path, dict(min_edge_bps=[2., 4.]), Limits())
    bound, parts = a_study(tmp_path, dict(min_edge_bps=[2., 4.]), Limits(orders_per_minute=1, venue_drift=1_200.), 1)
    assert free.limits == Limits() and bound.limits == Limits(orders_per_minute=1, venue_drift=1_200.)
    assert free.trials == 2 and bound.trials == 4 # the same sets under other limits are other trials
    assert bound.reasons['limit'] > 0 and bound.winner_trades < free.winner_trades
    assert parts.doubts.twin_latency.limits == bound.limits == parts.doubts.twin_fees.limits
    sizes = capacity('cross', stress(seed=3, hours=.5).tape(), stress(seed=3, hours=.5).universe, bound.params, sizes=(1.,), inventory=inventory_of(bound.universe, {v: {'BTC': 50, 'USDT': 200_000} for v in bound.universe.venues}),
                     latency_ns=50_000_000, fee_in='received', limits=bound.limits, seed=1)
    assert sizes['trades'][0] == bound.winner_trades == parts.doubts.capacity['trades'][1]
    again, _ = a_study(tmp_path, dict(min_edge_bps=[2.], venue_drift=[0., 1_200.]), Limits(orders_per_minute=1), 2)
    assert again.limits.orders_per_minute == 1 and type(again.params) is Params # what was found among limits stands with the limits


def test_a_search_goes_on_in_finer_grids_of_a_limit():
    u = universe_of()
    swept, _ = search('cross', prepare(plenty(), u), u, dict(venue_drift=[500., 1_500., 4_500.]), base=BOLD, inventory=rich(u), latency_ms={v: 50. for v in u.venues}, seed=1, now_ns=1, refine=1,
                      limits=Limits(orders_per_minute=40))
    assert len(swept.results) > 3 and all(r.limits.orders_per_minute == 40 for r in swept.results) and len({r.limits.venue_drift for r in swept.results}) == len(swept.results)


def test_a_manifest_of_before_keeps_its_signature_and_a_new_one_signs_its_limits():
    u = universe_of()
    old = Manifest(version='1', commit='', strategy='cross', params=Params(), kernel_hash='k', snapshot='s', window=(1, 2), seed=1, trials=1, gates=[], latency_ms={'binance': 1.}, universe=u, oos_sharpe=1.,
                   created_ns=1, expires_ns=2)
    assert b'limits' not in _signed_bytes(old)
    new = msgspec.structs.replace(old, limits=Limits(venue_drift=5.))
    assert b'"venue_drift":5.0' in _signed_bytes(new) and old.id != new.id
    assert msgspec.json.decode(msgspec.json.encode(new), type=Manifest) == new
    assert tighter(Limits(order_notional=3.), new.limits) == Limits(order_notional=3., venue_drift=5.) and tighter(Limits(venue_drift=2., troubles=3), new.limits) == Limits(venue_drift=2., troubles=3)


@pytest.mark.parametrize('name, loose, tight', [
    ('risk_tolerance', 1., .1), ('max_notional', 1_000., 100.), ('cooldown_s', 0., 20.), ('trades_per_hour', 1e6, 20.), ('min_edge_bps', 1., 8.), ('min_profit_quote', 0., 1.), ('max_open_trades', 8, 1),
    ('max_exposure', 1e6, 50.), ('max_loss_day', 1e6, .01), ('max_drawdown', 1., 1e-6), ('stop_bps', 500., .1), ('slippage_bps', 200., 0.), ('max_age_s', 5., .05), ('max_skew_s', 5., .01),
    ('deadline_s', 60., .05), ('single_leg', 'proceed', 'reverse'), ('fee_mult', 1., 3.)])
def test_every_wish_is_a_parameter_of_the_kernel_that_changes_what_it_does(name, loose, tight):
    u, rows = universe_of(), market(5, gap_bps=25., repeat=.3)
    more = dict(single_leg='proceed', stop_bps=5.) if name == 'deadline_s' else {}
    base = make_params(dict(slippage_bps=1., max_loss_day=1e6, max_drawdown=1.) | more, BOLD)
    s = sweep('cross', rows, u, {name: [loose, tight]}, base=base, inventory=rich(u), latency_ns=[ms*1e6 for ms in LATE_MS], fee_in='received')
    a, b = s.results
    assert a.funnel['trade'] > 0 and (a.funnel != b.funnel or a.fills.tobytes() != b.fills.tobytes())
    if name not in ('stop_bps', 'slippage_bps', 'single_leg', 'deadline_s', 'max_open_trades', 'risk_tolerance', 'max_notional'): assert b.funnel['trade'] <= a.funnel['trade']


def test_every_parameter_is_tried_above():
    tried = next(m.args[1] for m in test_every_wish_is_a_parameter_of_the_kernel_that_changes_what_it_does.pytestmark if m.name == 'parametrize')
    assert {x[0] for x in tried} == {*RANGES, 'single_leg'} == set(Params.__struct_fields__)
    assert {*CODES} == set(Limits.__struct_fields__) - {'troubles', 'window_s', 'rest_s'} and set(with_limits(Params(), ['venue_drift']).__struct_fields__) == {*Params.__struct_fields__, *CODES}
