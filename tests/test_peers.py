"""The rule that the benchmark gives to every engine, written out once more in plain Python: the kernel's trades are those."""

from types import SimpleNamespace

import numpy as np
import pytest

from bench import peers
from bench.peers import RULE, TRADE


def floor_to(x, step):
    near = round(x/step)
    return (near if abs(x/step - near) <= 1e-7 else np.floor(x/step))*step


def plainly(rows, p):
    "Every quote in turn; orders meet the quotes of their arrival; both answers come before the next trade may begin."
    fee, latency, held = p['fee_bps']/1e4, p['latency_ns'], np.array([[p['base'], p['quote']]]*2)
    of = [rows[rows['slot'] == s] for s in range(2)]
    times, last, made = [x['ts_ns'] for x in of], -10**19, []
    for row in rows:
        now = int(row['ts_ns'])
        at = [int(np.searchsorted(t, now, 'right')) - 1 for t in times]
        if min(at) < 0 or now - last < p['cooldown_s']*1e9: continue
        seen = [x[k] for x, k in zip(of, at)]
        for b in range(2):
            s, ask, bid = 1 - b, seen[b]['ask_px'], seen[1 - b]['bid_px']
            if (bid*(1 - fee) - ask*(1 + fee))/ask*1e4 < p['min_edge_bps'] or abs(int(seen[0]['ts_ns']) - int(seen[1]['ts_ns'])) > p['max_skew_s']*1e9: continue
            cash, have = held[b, 1], held[s, 0]
            qty = floor_to(min(seen[b]['ask_qty'], seen[s]['bid_qty'], have, min(cash/(1 + fee), p['max_notional'])/ask), p['lot'])
            if qty*min(ask, bid) < p['min_notional'] or qty < p['min_qty']: continue
            there = [x[int(np.searchsorted(t, now + latency, 'right')) - 1] for x, t in zip(of, times)]
            bought, sold = qty*(there[b]['ask_px'] <= ask), qty*(there[s]['bid_px'] >= bid)
            held[b] += bought, -bought*there[b]['ask_px']*(1 + fee)
            held[s] += -sold, sold*there[s]['bid_px']*(1 - fee)
            made.append((now, b, qty, bought, sold))
            last = now
            break
    return SimpleNamespace(trades=np.array(made, TRADE), held=held)


@pytest.mark.parametrize('base, quote', [(5., 100_000.), (.2, 6_000.)])
def test_the_kernel_trades_what_the_rule_says(monkeypatch, base, quote):
    monkeypatch.setitem(RULE, 'base', base)
    monkeypatch.setitem(RULE, 'quote', quote)
    rows = peers.quotes(20_000, 8.)
    ours = peers.Ours(rows)
    ours.run()
    said = plainly(rows, RULE)
    assert len(said.trades) > (50 if base > 1 else 5) and (said.trades['sold'] != said.trades['bought']).any()
    assert base > 1 or ours.result.funnel['inventory'] > 0
    assert peers.differ(ours, said) == ''


@pytest.mark.parametrize('name, by, wanted', [('qty', 1e-5, 'found qty'), ('bought', -.01, 'found bought'), ('ts_ns', 1_024, 'found ts_ns'), ('held', .01, 'held at the end')])
def test_a_difference_is_named(name, by, wanted):
    one = np.array([(peers.T0, 0, .05, .05, .05)], TRADE)
    ours, other = (SimpleNamespace(trades=one.copy(), held=np.ones((2, 2))) for _ in range(2))
    assert peers.differ(ours, other) == ''
    if name == 'held': other.held[1, 1] += by
    else: other.trades[name] += by
    assert wanted in peers.differ(ours, other)


def test_a_trade_less_is_a_difference():
    ours = SimpleNamespace(trades=np.zeros(2, TRADE), held=np.ones((2, 2)))
    assert peers.differ(ours, SimpleNamespace(trades=np.zeros(1, TRADE), held=ours.held)) == 'found 1 trades, wanted 2'
