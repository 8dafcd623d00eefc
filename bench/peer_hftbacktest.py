"""The rule of `bench.peers` on hftbacktest, run by its own interpreter: QUOTES.npy TRADES.npy RULE; then a run for each line read."""

import json
import math
import sys
from importlib.metadata import version
from time import thread_time

import numpy as np
from hftbacktest import BacktestAsset, ROIVectorMarketDepthBacktest
from hftbacktest.order import IOC, LIMIT
from hftbacktest.types import BUY_EVENT, DEPTH_EVENT, EXCH_EVENT, LOCAL_EVENT, SELL_EVENT, event_dtype
from numba import njit

TRADE = np.dtype([('ts_ns', 'i8'), ('buy_slot', 'i8'), ('qty', 'f8'), ('bought', 'f8'), ('sold', 'f8')])


def events_of(rows: np.ndarray) -> np.ndarray: # of event_dtype
    "One venue's quotes as changes of depth: what is no longer best goes, what is new comes; a side that did not change says nothing."
    parts, order = [], []
    for name, flag in (('bid', BUY_EVENT), ('ask', SELL_EVENT)):
        px, qty = rows[f'{name}_px'], rows[f'{name}_qty']
        moved = np.flatnonzero(px[1:] != px[:-1]) + 1
        fresh = np.concatenate([[0], np.flatnonzero((px[1:] != px[:-1]) | (qty[1:] != qty[:-1])) + 1])
        for at, price, size, turn in ((moved, px[moved - 1], 0., 0), (fresh, px[fresh], qty[fresh], 1)):
            ev = np.zeros(len(at), event_dtype)
            ev['ev'] = DEPTH_EVENT | EXCH_EVENT | LOCAL_EVENT | flag
            ev['exch_ts'] = ev['local_ts'] = rows['ts_ns'][at]
            ev['px'], ev['qty'] = price, size
            parts.append(ev)
            order.append(at*2 + turn)
    return np.concatenate(parts)[np.argsort(np.concatenate(order), kind='stable')]


@njit
def floor_to(x, step):
    n = x/step
    near = np.rint(n)
    return (near if abs(n - near) <= 1e-7 else math.floor(n))*step


@njit('int64(UniTuple(int64, 2))') # what is given may be None; here it never is: there were prices on both sides
def received(times): return times[1]


@njit
def play(hbt, fee_bps, min_edge_bps, max_notional, cooldown_ns, max_age_ns, max_skew_ns, base, quote, lot, min_qty, min_notional, trades):
    n, last, fee, order_id = 0, np.int64(0), fee_bps/1e4, 1
    open_ids = np.zeros(2, np.int64)
    while hbt.wait_next_feed(False, 1_000_000_000_000_000) == 2:
        d0, d1 = hbt.depth(0), hbt.depth(1)
        for b in range(2):
            buy, sell = (d0, d1) if b == 0 else (d1, d0)
            ask, bid = buy.best_ask, sell.best_bid
            if not (bid*(1 - fee) - ask*(1 + fee))/ask*1e4 >= min_edge_bps: continue
            now, s, dearer = hbt.current_timestamp, 1 - b, 1 + fee
            if now - last < cooldown_ns: continue
            t0, t1 = received(hbt.feed_latency(0)), received(hbt.feed_latency(1))
            if now - min(t0, t1) > max_age_ns or abs(t0 - t1) > max_skew_ns: continue
            sb, ss = hbt.state_values(b), hbt.state_values(s)
            cash, have = quote + sb.balance - sb.fee, base + ss.position
            qty = floor_to(min(min(buy.best_ask_qty, sell.best_bid_qty), min(have, min(cash/dearer, max_notional)/ask)), lot)
            if qty*ask*dearer > cash: qty = floor_to(cash/(ask*dearer), lot)
            if qty < min_qty*(1 - 1e-9) or qty*ask < min_notional*(1 - 1e-9) or qty*bid < min_notional*(1 - 1e-9): continue
            if open_ids[0]: # the trade before this one ended long ago
                note(hbt, open_ids, trades, n - 1)
                hbt.clear_inactive_orders(0)
                hbt.clear_inactive_orders(1)
            hbt.submit_buy_order(b, order_id, ask, qty, IOC, LIMIT, False)
            hbt.submit_sell_order(s, order_id + 1, bid, qty, IOC, LIMIT, False)
            open_ids[b], open_ids[s] = order_id, order_id + 1
            order_id += 2
            trades[n].ts_ns, trades[n].buy_slot, trades[n].qty = now, b, qty
            n, last = n + 1, now
            break
    if open_ids[0]: note(hbt, open_ids, trades, n - 1)
    return n


@njit
def note(hbt, open_ids, trades, k):
    "What became of both orders."
    for a in range(2):
        x = hbt.orders(a).get(np.uint64(open_ids[a]))
        if x is None: continue
        filled = x.qty - x.leaves_qty
        if a == trades[k].buy_slot: trades[k].bought = filled
        else: trades[k].sold = filled


def main():
    quotes, out, p = np.load(sys.argv[1], mmap_mode='r'), sys.argv[2], json.loads(sys.argv[3])
    data = [events_of(np.array(quotes[quotes['slot'] == s])) for s in range(2)]
    low, high = (f(quotes[name]) for f, name in ((np.min, 'bid_px'), (np.max, 'ask_px')))
    trades = np.zeros(len(quotes)//50 + 1_000, TRADE)

    def asset(rows):
        return (BacktestAsset().data(rows).linear_asset(1.0).constant_order_latency(p['latency_ns'], p['latency_ns']).risk_adverse_queue_model()
                .partial_fill_exchange().trading_value_fee_model(p['fee_bps']/1e4, p['fee_bps']/1e4).tick_size(p['tick']).lot_size(p['lot'])
                .roi_lb(low - 10).roi_ub(high + 10).last_trades_capacity(0))
    print(json.dumps(dict(ready=True, events=sum(map(len, data)))), flush=True)
    for _ in sys.stdin:
        hbt = ROIVectorMarketDepthBacktest([asset(rows) for rows in data])
        trades[:] = 0
        begun = thread_time()
        n = play(hbt, p['fee_bps'], p['min_edge_bps'], p['max_notional'], int(p['cooldown_s']*1e9), int(p['max_age_s']*1e9), int(p['max_skew_s']*1e9),
                 p['base'], p['quote'], p['lot'], p['min_qty'], p['min_notional'], trades)
        seconds = thread_time() - begun
        np.save(out, trades[:n])
        states = [hbt.state_values(a) for a in range(2)]
        held = [[p['base'] + s.position, p['quote'] + s.balance - s.fee] for s in states]
        hbt.close()
        print(json.dumps(dict(seconds=seconds, held=held, version=version('hftbacktest'))), flush=True)


main()
