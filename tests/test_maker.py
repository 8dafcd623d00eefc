"`maker`: what its orders leave, when they move, and what a backtest makes of them when others trade."
import asyncio
import threading
from decimal import Decimal

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from arbwork.clock import NS
from arbwork.decide import maker
from arbwork.decide.contract import (CANCEL_REST, HEDGE, INTENT, MAX_INTENTS, MAX_TRADES, MEMORY, OPEN_TRADE, POST_ONLY, R_CURRENCY, R_LIMIT, R_QUOTE, REPLACE, REST, RESTING,
                                     Universe, params_array)
from arbwork.decide.fill import PRINT
from arbwork.decide.maker import MakerParams, decide, hedge_walk, left_bps
from arbwork.feed.events import BOOK, INVALID, VALID
from arbwork.market import BUY, SELL, Listing
from arbwork.research.assume import Data
from arbwork.research.backtest import backtest, inventory_of, peeks, prepare
from arbwork.research.placebo import placebos
from arbwork.research.recorded import recorded
from arbwork.research.sweep import sweep
from arbwork.settings import load_settings, make_params
from arbwork.sim.scenarios import load_scenario
from arbwork.sim.server import World
from arbwork.store.collect import collect
from arbwork.store.tape import open_ticks, others

T0 = 1_704_067_200*NS
GRIDS = {'binance': ('0.01', '0.0001', '0.0001', '5'), 'bybit': ('0.1', '0.001', '0.001', '5')}
HOLDS = {v: {'ETH': 100., 'USDT': 200_000.} for v in GRIDS}


def universe(fees=(1., 5.), quote='USDT'):
    return Universe([Listing(v, f'ETH-{q}', f'ETH{q}', *map(Decimal, g)) for (v, g), q in zip(GRIDS.items(), ('USDT', quote))], {v: fees for v in GRIDS})


def fill_row(row, slot, bid, ask, ns, qty, step):
    row['slot'], row['state'], row['ts_venue_ns'], row['ts_recv_ns'] = slot, VALID, ns, ns
    row['bid_px'], row['ask_px'], row['bid_qty'], row['ask_qty'] = bid - step*np.arange(10), ask + step*np.arange(10), qty, qty


class Desk:
    "A kernel's arguments."
    def __init__(self, u=None, **wishes):
        self.u = u or universe()
        self.board, self.specs, self.trades = self.u.empty_board(), self.u.specs(), np.zeros(MAX_TRADES, OPEN_TRADE)
        self.inventory = inventory_of(self.u, HOLDS) if self.u.listings[1].quote == 'USDT' else self.u.empty_inventory() + [1e5, 0.]
        self.memory, self.out, self.wishes = np.zeros(MEMORY), np.zeros(MAX_INTENTS, INTENT), params_array(MakerParams(**dict(max_notional=5_000.) | wishes))
    def show(self, slot, bid, ask, qty=5., step=.1): fill_row(self.board[slot], slot, bid, ask, T0, qty, step)
    def say(self, now_ns=T0): return decide(now_ns, self.board, self.specs, self.inventory, self.trades, self.wishes, self.memory, self.out)
    def rest(self, px, qty, filled=0., side=BUY, slots=(0, 1)):
        x = self.trades[0]
        x['id'], x['legs'], x['resting'] = 3, 2, RESTING
        x['slot'][:2], x['side'][:2], x['qty'][:2], x['px'][:2], x['filled'][0] = slots, (side, -side), qty, px, filled


@settings(max_examples=300, deadline=None)
@given(px=st.floats(900., 1_100.), gap=st.floats(-60., 60.), spread=st.tuples(st.floats(.2, 5.), st.floats(.2, 5.)), depth=st.floats(.01, 20.), step=st.floats(.01, 2.),
       fees=st.tuples(st.floats(-2., 10.), st.floats(0., 20.)), edge=st.floats(0., 20.), notional=st.floats(50., 50_000.))
def test_what_rests_and_its_hedge_leave_at_least_what_is_wanted(px, gap, spread, depth, step, fees, edge, notional):
    d = Desk(universe(fees), min_edge_bps=edge, max_notional=notional)
    d.show(0, np.round(px, 2), np.round(px, 2) + np.round(spread[0], 2), depth, step)
    there = np.round(px*(1 + gap/1e4), 1)
    d.show(1, there, there + np.round(spread[1], 1), depth, step)
    n = d.say()
    if n <= 0: return
    a, b = d.out[0], d.out[1]
    assert n == 2 and (a['kind'], a['tif'], b['kind'], b['side'], a['group']) == (REST, POST_ONLY, HEDGE, -a['side'], 0) and a['qty'] == b['qty'] > 0
    side, r, h = int(a['side']), int(a['slot']), int(b['slot'])
    got, vwap = hedge_walk(d.board[h], side, float(a['qty']))
    assert got == pytest.approx(a['qty']) and vwap == pytest.approx(b['ref_px'])
    assert left_bps(side, float(a['limit_px']), vwap, *fees) >= edge - 1e-6
    assert side*(a['limit_px'] - (d.board[r]['ask_px'][0] if side == BUY else d.board[r]['bid_px'][0])) < 0, 'it would take'
    for x, spec in ((a, d.specs[r]), (b, d.specs[h])):
        assert abs(x['qty']/spec['lot'] - round(x['qty']/spec['lot'])) < 1e-6 and x['qty'] >= spec['min_qty']
    assert abs(a['limit_px']/d.specs[r]['tick'] - round(a['limit_px']/d.specs[r]['tick'])) < 1e-6
    assert maker.behind_bps(d.board[r], side, float(a['limit_px'])) <= d.wishes['reach_bps'][0] and a['qty']*vwap <= notional*1.01


def kinds(d, n): return [int(x['kind']) for x in d.out[:max(n, 0)]]


def test_a_resting_order_moves_when_it_must_and_not_before():
    d = Desk(min_edge_bps=2., reprice_bps=2., reach_bps=20.)
    d.show(0, 1_000., 1_002.)
    d.show(1, 1_002., 1_002.5)
    assert kinds(d, d.say()) == [REST, HEDGE] and d.out['limit_px'][0] == pytest.approx(1_000.01)
    d.rest(1_000.01, 2.)
    d.board[0]['bid_px'][0] = 1_000.01 # our own order is the best bid: it does not climb over itself
    assert d.say() == -R_QUOTE
    d.show(1, 1_000.9, 1_001.5)
    assert d.say() == -R_QUOTE, 'one tick of the hedge is within the step'
    d.show(1, 1_000.3, 1_001.)
    assert kinds(d, d.say()) == [REPLACE, HEDGE] and d.out['group'][0] == 3
    assert left_bps(BUY, float(d.out['limit_px'][0]), float(d.out['ref_px'][1]), 1., 5.) >= 2. - 1e-9
    d.show(1, 997., 998.)
    assert kinds(d, d.say()) == [CANCEL_REST]


@pytest.mark.parametrize('what', ['invalid', 'old', 'apart', 'thin', 'no base', 'currency'])
def test_it_withdraws_what_could_not_be_hedged(what):
    d = Desk(min_edge_bps=2., reach_bps=20., max_skew_s=1., max_age_s=10.)
    d.show(0, 1_000., 1_002.)
    d.show(1, 1_002., 1_002.5)
    d.rest(1_000.01, 2.)
    assert d.say() == -R_QUOTE
    now = T0
    if what == 'invalid': d.board[1]['state'] = INVALID
    if what == 'old': now += 11*NS
    if what == 'apart': d.board[0]['ts_recv_ns'] += 2*NS; d.board[0]['ts_venue_ns'] += 2*NS; now += 2*NS
    if what == 'thin': d.board[1]['bid_qty'] = .1
    if what == 'no base': d.inventory[1, 0, 0] = 1.
    if what == 'currency':
        d = Desk(universe(quote='USDC'), min_edge_bps=2.)
        d.show(0, 1_000., 1_002.)
        d.show(1, 1_002., 1_002.5)
        assert d.say() == -R_CURRENCY
        return
    assert kinds(d, d.say(now)) == [CANCEL_REST] and d.out['group'][0] == 3


def test_a_pair_with_an_open_trade_gets_no_second_one():
    d = Desk(min_edge_bps=2.)
    d.show(0, 1_000., 1_002.)
    d.show(1, 1_002., 1_002.5)
    d.rest(1_000.01, 2.)
    d.trades[0]['resting'] = 0
    assert d.say() == -R_LIMIT


def market(seed=3, seconds=900, pieces=False):
    "Two venues around one price, the second with the tighter book; others trade at the first, through its best price or in pieces just before it."
    rng = np.random.default_rng(seed)
    path = 1_000*np.exp(np.cumsum(rng.normal(0, 0. if pieces else .2e-4, 2*seconds)))
    rows, prints = np.zeros(2*seconds, BOOK), []
    for k in range(2*seconds):
        slot, ns = k % 2, T0 + k*NS//2
        half, tick = ((.8, .01), (.1, .1))[slot]
        mid = path[k]
        fill_row(rows[k], slot, np.round(np.floor((mid - half)/tick)*tick, 2), np.round(np.ceil((mid + half)/tick)*tick, 2), ns, rng.uniform(2., 8.), tick)
        if slot == 0 and rng.random() < .3:
            side = 1 if rng.random() < .5 else -1
            px = (rows[k]['ask_px'][0] if side == BUY else rows[k]['bid_px'][0]) - side*.01*pieces
            prints.append((ns + NS//10, 0, side, np.round(px, 2), rng.uniform(.2, 3.)*(.2 if pieces else 1.)))
    p = np.array(prints, PRINT)
    return Data(rows, universe(), p, HOLDS)


WISHES = make_params(dict(max_notional=3_000, risk_tolerance=1, min_edge_bps=.5, cooldown_s=0, trades_per_hour=1e6, max_skew_s=5, max_exposure=1e6, stop_bps=20, deadline_s=10))


@pytest.fixture(scope='module')
def runs():
    how = dict(latency_ns=5_000_000, seed=1)
    return {name: backtest('maker', data=market(pieces=pieces), params=WISHES if mult == 1 else make_params(dict(fee_mult=mult), WISHES), **{**how, **more})
            for name, pieces, mult, more in (('plain', False, 1, {}), ('again', False, 1, {}), ('pieces', True, 1, {}), ('dear', False, 1.3, {}), ('dearest', False, 3, {}), ('late', False, 1, dict(latency_ns=1_500_000_000)))}


def test_what_fills_is_hedged_and_money_is_conserved(runs):
    r = runs['plain']
    f, u = r.fills, r.universe
    assert r.funnel['trade'] > 20 and set(f['maker']) == {0, 1} and (f['maker'] == (f['slot'] == 0)).all()
    for t in r.trades: assert abs(t['done'][0] - t['done'][1]) < 2*float(u.listings[1].lot), 'a leg alone'
    made = f[f['maker'] == 1]
    assert np.allclose(made['fee'], made['notional']*1e-4) and np.allclose(f[f['maker'] == 0]['fee'], f[f['maker'] == 0]['notional']*5e-4)
    start = inventory_of(u, HOLDS)
    for asset in range(2): assert (r.inventory - start).sum(axis=(0, 2))[asset] == pytest.approx(r.residuals().get(u.assets[asset], 0.), abs=1e-6)
    assert r.inventory[..., 1].sum() == pytest.approx(0., abs=1e-6), 'something is still held back'
    assert r.pnl_quote == pytest.approx(float(r.trades['pnl'].sum()), abs=.5) and r.pnl_quote > 0


def test_the_same_seed_gives_the_same_bytes(runs):
    a, b = runs['plain'], runs['again']
    assert a.fills.tobytes() == b.fills.tobytes() and a.trades.tobytes() == b.trades.tobytes() and a.funnel == b.funnel


def test_a_part_is_hedged_as_a_part(runs):
    r = runs['pieces']
    per = {int(i): r.fills[r.fills['trade'] == i] for i in np.unique(r.fills['trade'])}
    parts = [f for f in per.values() if (f['maker'] == 1).sum() > 1]
    assert len(parts) > 5
    lot = float(r.universe.listings[1].lot)
    for f in parts:
        rested, hedged = (np.cumsum(np.where(f['maker'] == m, f['qty'], 0.)) for m in (1, 0))
        assert (hedged <= rested + 1e-9).all() and rested[-1] - hedged[-1] < max(2*lot, 5.1/900), 'hedged before it filled, or not at all'
        assert ((f['maker'] == 0).sum()) > 1


def test_twins_earn_less(runs):
    per = {k: r.pnl_quote for k, r in runs.items()}
    assert per['dear'] < per['plain'] and per['late'] < per['plain']
    assert runs['dearest'].funnel['trade'] == 0 and runs['dearest'].funnel['fee'] > 0


def test_it_knows_nothing_of_what_comes_later():
    d = market(seconds=200)
    assert peeks(lambda tape: 'maker', d.rows, d.universe, WISHES, inventory=inventory_of(d.universe, HOLDS)) == []


def test_a_short_cooldown_quotes_more():
    d, few = market(seconds=400), make_params(dict(cooldown_s=60.), WISHES)
    assert backtest('maker', data=d, params=few, latency_ns=5_000_000).quotes < backtest('maker', data=d, params=WISHES, latency_ns=5_000_000).quotes


def test_the_side_that_sells_by_resting_is_the_mirror():
    d = Desk(min_edge_bps=2.)
    d.show(0, 998., 1_000.)
    d.show(1, 997., 998.)
    assert kinds(d, d.say()) == [REST, HEDGE] and (d.out['side'][0], d.out['limit_px'][0]) == (SELL, pytest.approx(999.99))


def test_trades_of_a_tape_are_met_by_whoever_runs_it():
    d, how = market(seconds=300), dict(latency_ns=5_000_000)
    given, of_tape = backtest('maker', data=d, params=WISHES, **how), prepare(d.rows, d.universe, prints=d.prints)
    same = backtest('maker', of_tape, d.universe, WISHES, inventory=inventory_of(d.universe, HOLDS), **how)
    without = backtest('maker', d.rows, d.universe, WISHES, inventory=inventory_of(d.universe, HOLDS), **how)
    assert same.fills.tobytes() == given.fills.tobytes() and len(given.fills) > len(without.fills)
    assert backtest('maker', prepare(d.rows, d.universe), d.universe, WISHES, inventory=inventory_of(d.universe, HOLDS), prints=d.prints, **how).fills.tobytes() == given.fills.tobytes()
    grid, held = dict(min_edge_bps=[.5, 4.]), dict(base=WISHES, inventory=inventory_of(d.universe, HOLDS), **how)
    one, two = (sweep('maker', of_tape, d.universe, grid, workers=n, **held) for n in (1, 2))
    assert one.results[0].fills.tobytes() == given.fills.tobytes() and [r.fills.tobytes() for r in two.results] == [r.fills.tobytes() for r in one.results]
    false = placebos('maker', of_tape, d.universe, WISHES, delays_s=(1.,), inventory=inventory_of(d.universe, HOLDS), **how).set_index('placebo')
    assert false.loc['truth', 'trades'] == given.funnel['trade'] and false.loc['lag', 'trades'] > 0


ALL = {'binance': 'binance', 'bybit': 'bybit', 'okx': 'okx', 'kraken': 'kraken', 'ccxt:coinbase': 'coinbase'} # in settings, in the simulator


def settings_at(folder, ports):
    "Settings of one person for venues at these ports; makers pay nothing, so that much rests."
    folder.mkdir(exist_ok=True)
    lines = ''.join(f'[venue:{v}]\n' + ''.join(f'{k} = {"http" if k == "rest" else "ws"}://127.0.0.1:{port}\n' for k in ('rest', 'public_ws', 'private_ws', 'trade_ws'))
                    + 'maker_bps = 0\ntaker_bps = 1\nlatency_ms = 50\n' for v, port in ports.items())
    (folder/'settings.ini').write_text('[arbwork]\nvenues = ' + ', '.join(ports) + '\ninstruments = LINK-USDT\nvar = var\nstrategies = s\njournal = sqlite:///var/j.db\n'
                                       'ticks = lmdb://var/ticks\nboard = var/board.bin\nrecord = books, trades\n' + lines)
    (folder/'var').mkdir(exist_ok=True)
    return load_settings(folder/'settings.ini')


def test_trades_printed_by_simulated_venues_are_recorded_and_fill_what_rests(tmp_path):
    "Five wire formats, one recording, one tape."
    scenario = load_scenario('link-2021-08-20', minutes=120, venues=tuple(ALL.values()))
    async def record():
        world = World(list(ALL.values()), scenario, 0, 30., lead_s=0.)
        await world.start()
        try:
            s = settings_at(tmp_path, {v: world.ports[ALL[v]] for v in ALL})
            enough = threading.Event()
            def look(report): # until all have been heard for a while, however long one takes to connect
                if all(x['trades'] > 80 for x in report['venues'].values()): enough.set()
            report = await collect(s, world.clock, until_ns=world.last_ns, on_progress=look, stop_event=enough)
            return s, report['venues'], {v: {int(f.fill_id): f for f in world.venues[x].trades} for v, x in ALL.items()}
        finally: await world.stop()
    s, report, printed = asyncio.run(record())
    data, store = recorded(s), open_ticks(s)
    heard = others(store, [(x.venue, x.instrument) for x in data.universe.listings])
    store.close()
    for slot, about in enumerate(data.about):
        mine, was = heard[heard['slot'] == slot], printed[about['venue']]
        assert about['trades'] == len(mine) > 80 and len(set(mine['id'].tolist())) == len(mine), about
        for row in mine:
            f = was[int(row['id'])]
            assert (row['px'], row['qty'], row['side']) == (float(f.px), float(f.qty), f.side) and abs(int(row['ts_venue_ns']) - f.ts_venue_ns) < 1_000_000, (about['venue'], row, f)
        first, last = mine['id'].min(), mine['id'].max()
        assert report[about['venue']]['reconnects'] or len(mine) == sum(first <= k <= last for k in was), f'{about["venue"]} lost some in between'
    assert (np.diff(heard['ts_recv_ns']) >= 0).all() and (heard['ts_recv_ns'] >= heard['ts_venue_ns'] - 1_000_000).all()
    ask = dict(params=make_params(dict(min_edge_bps=0., max_notional=500., max_skew_s=5.), WISHES), inventory={v: {'LINK': 1e4, 'USDT': 1e6} for v in ALL}, latency_ns=50_000_000)
    met, alone = (backtest('maker', t, data.universe, **ask) for t in (data.tape, data.tape.rows))
    assert (met.fills['maker'] == 1).sum() > (alone.fills['maker'] == 1).sum()


def test_a_session_whose_orders_rest_hears_trades_and_its_journal_is_a_tape(tmp_path):
    "Paper accounts at two simulated venues: the day is journalled, decides the same again, and can be studied as it was heard."
    from arbwork.live import Desk, list_universe
    from arbwork.research.recorded import lived_tape
    from arbwork.store.journal import open_journal
    from arbwork.store.tables import TRADE
    from arbwork.trade.core import Core, SessionStart, replay
    from arbwork.trade.reconcile import session_entries
    from arbwork.trade.runner import Quiet, Runner
    from test_trade_live import until
    scenario = load_scenario('link-2021-08-20', minutes=120, venues=('binance', 'bybit'))
    async def live(strategy, enough):
        world = World(['binance', 'bybit'], scenario, 0, 30., lead_s=0.)
        await world.start()
        try:
            s = settings_at(tmp_path/strategy, {v: world.ports[v] for v in world.venues})
            desk = Desk(s, await list_universe(s), world.clock, Quiet())
            await desk.connect('paper', {'LINK': Decimal(5_000), 'USDT': Decimal(100_000)})
            journal = open_journal(s.journal)
            start = SessionStart('day', 'paper', strategy, make_params(dict(max_notional=500., min_edge_bps=0., cooldown_s=0., max_age_s=60., max_skew_s=60., trades_per_hour=1e4), s.params), desk.universe,
                                 {v: {'LINK': Decimal(5_000), 'USDT': Decimal(100_000)} for v in desk.links}, world.clock.now_ns())
            runner = Runner(Core(start), journal, desk.links, world.clock, world.clock)
            desk.attach(runner)
            runner.begin()
            def on_row(row):
                for link in desk.links.values(): link.row(row)
                runner.on_row(row)
            desk.listen(on_row, desk.met if runner.core.strategy.rests else None)
            await until(lambda: runner.failure or enough(journal, runner), 300)
            await desk.close()
            journal.flush()
            entries, printed = list(session_entries(journal, 'day')), [{int(f.fill_id): f for f in v.trades} for v in world.venues.values()]
            journal.close()
            assert runner.failure is None
            return entries, printed
        finally: await world.stop()
    def both(journal, runner):
        heard = [int(np.frombuffer(e.body, TRADE)['slot'][0]) for e in journal.read('session/day', 0, 10_000, kind='prints')]
        return min(heard.count(0), heard.count(1)) > 20 and runner.core.row_count > 60
    entries, printed = asyncio.run(live('maker', both))
    tape, universe = lived_tape(entries)
    begins = tape.prints[1]
    assert begins[1] > 20 and begins[2] > begins[1] + 20 and len(tape.rows) > 60
    of = {(int(x['slot']), float(x['px']), float(x['qty']), int(x['side'])) for x in tape.prints[0]}
    assert of <= {(k, float(f.px), float(f.qty), f.side) for k, fills in enumerate(printed) for f in fills.values()}
    again = replay(entries)
    assert again.identical == again.total > 0
    assert backtest('maker', tape, universe, WISHES, inventory={v: {'LINK': 1e4, 'USDT': 1e6} for v in universe.venues}).rows == len(tape.rows)
    entries, _ = asyncio.run(live('cross', lambda j, r: r.core.row_count > 60))
    assert not any(e.kind == 'prints' for e in entries)
