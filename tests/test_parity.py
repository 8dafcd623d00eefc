"Sessions written to real journals, lived again and held against their model."
from decimal import Decimal

import msgspec
import numpy as np
import pytest

from arbwork.clock import NS
from arbwork.decide.contract import Params, Universe
from arbwork.feed.events import BOOK, LEVELS, VALID, INVALID
from arbwork.market import ConfigError, Listing
from arbwork.research import parity as pa
from arbwork.settings import make_params
from arbwork.sim.scenarios import triangles
from arbwork.store.journal import open_journal
from arbwork.store.tables import TRADE
from arbwork.trade.core import STEP, Command, SessionStart

T0 = 1_704_067_200*NS
LISTINGS = [Listing(v, 'BTC-USDT', 'BTCUSDT', *map(Decimal, ('0.01', '0.00001', '0.00001', '5'))) for v in ('binance', 'bybit')]
START = SessionStart('s1', 'sim', 'cross', Params(cooldown_s=2., max_notional=2_000., slippage_bps=5.), Universe(LISTINGS, {'binance': (10., 10.), 'bybit': (10., 10.)}),
                     {v: {'BTC': Decimal(2), 'USDT': Decimal(40_000)} for v in ('binance', 'bybit')}, T0)


def books(seed, n=600):
    rng, rows = np.random.default_rng(seed), np.zeros(n, BOOK)
    common = 20_000*np.exp(np.cumsum(rng.normal(0, 1e-4, n)))
    ahead = np.convolve(rng.exponential(60., n)*(rng.random(n) < .03), np.exp(-np.arange(60)/20))[:n]
    for k, r in enumerate(rows):
        slot = k % 2
        px = common[k]*(1 + slot*ahead[k]/1e4)
        r['ts_venue_ns'], r['slot'], r['seq'], r['state'] = T0 + k*NS//2, slot, k, VALID if rng.random() > .01 else INVALID
        r['ts_recv_ns'] = r['ts_venue_ns'] + int(rng.exponential(5)*1e6)
        step = px*1e-4*np.cumsum(rng.exponential(.4, (2, LEVELS)), axis=1)
        r['bid_px'], r['ask_px'] = np.round(px - 1 - step[0], 2), np.round(px + 1 + step[1], 2)
        r['bid_qty'], r['ask_qty'] = np.round(rng.lognormal(-3.5, .8, (2, LEVELS)), 5) + .00001
    return rows[np.argsort(rows['ts_recv_ns'], kind='stable')]


class Rough(pa.Modelled):
    "Venues that are late by chance, and one that charges more than its schedule."
    def __init__(self, *args, seed=0):
        super().__init__(*args)
        self.rng = np.random.default_rng(seed)
    def _later(self, at_ns, what, *args): super()._later(at_ns + int(self.rng.exponential(self.late_ms)*1e6), what, *args)
    def give(self, kind, now_ns, body):
        if kind == 'fill' and body.venue == 'bybit': body = msgspec.structs.replace(body, fee=body.fee*self.dear)
        super().give(kind, now_ns, body)


def write(journal, rows, start=START, late_ms=0., dear=Decimal(1), latency_ms=60, commands=(), seed=0, prints=None):
    stream = f'session/{start.session}'
    def on(kind, now_ns, body):
        if kind != 'steps': return journal.append(stream, kind, msgspec.msgpack.encode(body), ts_ns=now_ns)
        step = np.zeros(1, STEP)
        step['now_ns'], step['row'], step['code'], step['n'] = now_ns, *body
        journal.append_rows(stream, 'steps', step, now_ns)
    journal.append(stream, 'start', msgspec.msgpack.encode(start), ts_ns=start.started_ns)
    if prints is not None: journal.append_rows(stream, 'prints', prints, start.started_ns)
    Rough.late_ms, Rough.dear = late_ms, dear
    u, todo = start.universe, list(commands)
    s = Rough(start, pa.Paper(rows, len(u.listings), prints), {v: int(latency_ms*1e6) for v in u.venues}, on, seed=seed)
    for r in rows:
        now_ns = int(r['ts_recv_ns'])
        while todo and todo[0].ts_ns <= now_ns: s.advance(todo[0].ts_ns); s.give('command', todo[0].ts_ns, todo.pop(0))
        s.row(now_ns, r)
    s.advance(int(rows['ts_recv_ns'][-1]) + 30*NS)
    journal.flush()
    return s


@pytest.fixture
def journal(tmp_path):
    j = open_journal(f'sqlite:///{tmp_path}/journal.db')
    yield j
    j.close()


COMMANDS = [Command('a', 'set_params', {'min_edge_bps': 5}, ts_ns=T0 + 60*NS), Command('b', 'pause', ts_ns=T0 + 120*NS), Command('c', 'resume', ts_ns=T0 + 150*NS),
            Command('d', 'set_params', {'min_egde_bps': 5}, ts_ns=T0 + 200*NS)]


@pytest.mark.parametrize('seed', range(4))
def test_a_model_of_itself_has_no_difference(journal, seed):
    s = write(journal, books(seed), commands=COMMANDS)
    assert len(s.trades) > 5
    same, total, first = pa.decision_parity(journal)
    assert (same, first) == (total, '')
    found = pa.outcome_parity(journal, latency_ms={'binance': 60, 'bybit': 60})
    assert abs(found.difference) < 1e-9 and len(found.pairs) == len(s.trades)
    assert all(abs(x) < 1e-9 for x in found.causes.values())


@pytest.mark.parametrize('seed', range(4))
def test_causes_add_up_whatever_went_wrong(journal, seed):
    s = write(journal, books(seed), late_ms=600., dear=Decimal('1.5'), commands=COMMANDS, seed=seed)
    same, total, first = pa.decision_parity(journal)
    assert (same, first) == (total, '')
    found = pa.outcome_parity(journal, latency_ms={'binance': 60, 'bybit': 60})
    assert sum(found.causes.values()) == pytest.approx(found.difference, abs=1e-9)
    for p in found.pairs: assert sum(p.causes.values()) == pytest.approx((p.live_quote or 0.) - (p.model_quote or 0.), abs=1e-9) and set(p.causes) <= set(pa.CAUSES)
    assert found.causes['fee'] < 0 and found.causes['latency'] != 0
    assert all(p.why for p in found.pairs if abs((p.live_quote or 0.) - (p.model_quote or 0.)) > 1e-6)
    assert len([p for p in found.pairs if p.live_quote is not None]) == len(s.trades)


def test_the_fee_part_is_what_was_overcharged(journal):
    write(journal, books(1), dear=Decimal('1.5'))
    found = pa.outcome_parity(journal)
    overcharged = sum(x.fee_quote/3 for t in pa.lived(pa.session_entries(journal)).trades.values() for x in t.legs if x.venue == 'bybit')
    assert found.causes['fee'] == pytest.approx(-overcharged, rel=1e-9)


def test_one_altered_price_is_found(journal):
    write(journal, books(2))
    entries = pa.session_entries(journal)
    k = next(i for i, e in enumerate(entries) if e.kind == 'decision') - 1
    steps = np.frombuffer(entries[k].body, STEP).copy()
    steps['row']['bid_px'][-1] *= .99
    steps['row']['ask_px'][-1] *= 1.01
    spoiled = [*entries[:k], msgspec.structs.replace(entries[k], body=steps.tobytes()), *entries[k + 1:]]
    lived = pa.replay(spoiled)
    assert lived.identical < lived.total and f'offset {entries[k].offset}' in lived.first


def test_sessions_are_found_by_name_or_by_age(journal, tmp_path):
    with pytest.raises(ConfigError, match='holds no session'): pa.decision_parity(journal)
    write(journal, books(3, 40))
    write(journal, books(3, 40), start=msgspec.structs.replace(START, session='s2', started_ns=T0 + 1))
    assert pa.last_session(journal) == 's2'
    with pytest.raises(ConfigError, match="no session 's3', wanted one of s1, s2"): pa.outcome_parity(journal, 's3')
    report = pa.parity_report(f'sqlite:///{tmp_path}/journal.db', 's1')
    assert report['session'] == 's1' and report['decision'] == 1.0 and set(report['causes']) == set(pa.CAUSES)
    msgspec.json.encode(report)


def test_a_session_without_a_row_has_parity(journal):
    journal.append('session/s1', 'start', msgspec.msgpack.encode(START), ts_ns=T0).wait()
    report = pa.parity_report(f'sqlite:///{journal.path}', 's1')
    assert (report['decision'], report['outcome_quote'], report['pairs']) == (1.0, 0.0, [])


def cycles(legs, seed):
    "A session of `cycle` whose trades have so many legs, priced in two currencies or three, and its books."
    w = triangles(seed=seed, hours=.25, step_s=2.)
    named = {'ETH-USDT': 'ETH-USDC'} if legs == 4 else {}
    listings = [msgspec.structs.replace(x, instrument=named.get(x.instrument, x.instrument)) for x in w.universe.listings]
    wishes = Params(min_edge_bps=1., cooldown_s=5., max_notional=5_000., slippage_bps=20., max_exposure=1e6, max_age_s=30., max_skew_s=10.)
    return SessionStart('s1', 'sim', 'cycle', wishes, Universe(listings, {v: (1., 1.) for v in w.venues}), w.balances, w.start_ns), w.tape()


@pytest.mark.parametrize('legs', [3, 4])
def test_a_trade_of_several_legs_is_split_as_one_of_two(journal, legs):
    start, rows = cycles(legs, 2)
    s = write(journal, rows, start)
    opened = [x for t in s.trades.values() for x in t.legs if x.ref_px]
    assert len(s.trades) > 5 and len(opened) == legs*len(s.trades) and len({x.instrument.partition('-')[2] for x in opened}) == legs - 1
    assert pa.decision_parity(journal)[2] == ''
    found = pa.outcome_parity(journal, latency_ms={'binance': 60, 'bybit': 60})
    assert abs(found.difference) < 1e-9 and all(abs(x) < 1e-9 for x in found.causes.values()) and len(found.pairs) == len(s.trades)
    assert all(p.direction.count(' > ') == legs - 1 for p in found.pairs)


@pytest.mark.parametrize('legs', [3, 4])
def test_causes_of_several_legs_are_valued_in_one_currency(journal, legs):
    start, rows = cycles(legs, 2)
    s = write(journal, rows, start, late_ms=600., dear=Decimal('1.5'))
    same, total, first = pa.decision_parity(journal)
    assert (same, first) == (total, '')
    found, u = pa.outcome_parity(journal, latency_ms={'binance': 60, 'bybit': 60}), start.universe
    assert sum(found.causes.values()) == pytest.approx(found.difference, abs=1e-9) and abs(found.causes['marking']) < 1.
    for p in found.pairs: assert sum(p.causes.values()) == pytest.approx((p.live_quote or 0.) - (p.model_quote or 0.), abs=1e-9)
    twins = {p.opened_ns for p in found.pairs if p.live_quote is not None and p.model_quote is not None}
    worth = {a: s.core.marks[u.assets.index(a)] for a in u.assets}
    overcharged = sum(x.fee_quote/3*worth[x.instrument.partition('-')[2]] for t in s.trades.values() if t.opened_ns in twins for x in t.legs if x.venue == 'bybit')
    assert overcharged > 1. and found.causes['fee'] == pytest.approx(-overcharged, rel=.02)
    late = [p for p in found.pairs if p.opened_ns in twins and p.why.startswith('a leg arrived')]
    assert late and sum(abs(p.causes['fill']) for p in late) < .05*sum(abs(p.causes['latency']) for p in late)


def test_two_ways_round_one_triangle_are_not_twins():
    start, rows = cycles(3, 2)
    s = pa.modelled(pa.Lived(start, np.array([], STEP), []), {'binance': 0, 'bybit': 0})
    for r in rows: s.row(int(r['ts_recv_ns']), r)
    s.advance(int(rows['ts_recv_ns'][-1]) + 60*NS)
    there = next(iter(s.trades.values()))
    back = msgspec.structs.replace(there, legs=[msgspec.structs.replace(x, side=-x.side) for x in there.legs])
    assert (there.buy_venue, there.sell_venue, there.instrument, there.opened_ns) == (back.buy_venue, back.sell_venue, back.instrument, back.opened_ns)
    assert pa._twins({1: there}, {1: there}, 0) == [(there, there)] and pa._twins({1: there}, {1: back}, 10**12) == [(there, None), (None, back)]


@pytest.mark.parametrize(('late_ms', 'dear', 'heard'), [(0., '1', False), (150., '1.5', False), (0., '1', True), (150., '1', True)])
def test_a_session_whose_orders_rest_has_both_parities(journal, late_ms, dear, heard):
    from test_maker_live import FUNDS, UNIVERSE, WISHES
    rng, rows, px = np.random.default_rng(3), np.zeros(1_600, BOOK), 26.7
    for k in range(len(rows)): # one venue's book is wide, and the price of both jumps through it now and then
        if k % 8 == 0: px = 26.7*(1 + rng.uniform(-40, 40)/1e4)
        slot = k % 2
        half = (.03, .001)[slot]
        rows[k]['slot'], rows[k]['state'], rows[k]['ts_recv_ns'] = slot, VALID, T0 + k*NS//4
        rows[k]['bid_px'][:5], rows[k]['ask_px'][:5] = np.round(px - half - .001*np.arange(5), 3), np.round(px + half + .001*np.arange(5), 3)
        rows[k]['bid_qty'][:5] = rows[k]['ask_qty'][:5] = rng.uniform(5, 30)
    start = SessionStart('maker', 'sim', 'maker', make_params(WISHES), UNIVERSE, FUNDS, T0)
    there = rows[(rows['slot'] == 0)][::3]
    prints = np.zeros(len(there), TRADE) if heard else None # others sell to the bids of the wide venue, not always as far as ours
    if heard:
        prints['ts_venue_ns'], prints['side'], prints['qty'] = there['ts_recv_ns'] + NS//8, -1, rng.uniform(1, 80, len(there))
        prints['px'] = there['bid_px'][:, 0] + .001*rng.integers(0, 2, len(there))
    s = write(journal, rows, start, late_ms, Decimal(dear), latency_ms=5, commands=[Command('a', 'set_params', {'min_edge_bps': 1.}, ts_ns=T0 + 100*NS)], prints=prints)
    same, total, first = pa.decision_parity(journal)
    assert (same, first) == (total, '') and len(s.trades) > 10
    found = pa.outcome_parity(journal, latency_ms={'binance': 5, 'bybit': 5})
    assert sum(found.causes.values()) == pytest.approx(found.difference, abs=1e-9)
    for p in found.pairs: assert sum(p.causes.values()) == pytest.approx((p.live_quote or 0.) - (p.model_quote or 0.), abs=1e-9)
    if not late_ms: assert found.difference == 0. and all(p.live_quote == p.model_quote for p in found.pairs) and len(found.pairs) == len(s.trades)
    elif dear != '1': assert found.causes['fee'] < 0
    resting = [x for t in s.trades.values() for x in t.legs if s.core.orders[x.client_id].rests]
    assert resting and all(x.fee_quote == pytest.approx(float(dear if x.venue == 'bybit' else 1)*x.px*float(x.filled_qty)*1e-4) for x in resting)
