"""The rule of `bench.peers` on nautilus_trader, run by its own interpreter: QUOTES.npy TRADES.npy RULE; then a run for each line read."""

import gc
import json
import math
import sys
from decimal import Decimal
from importlib.metadata import version
from time import thread_time

import numpy as np
from nautilus_trader.backtest.engine import BacktestEngine, BacktestEngineConfig
from nautilus_trader.backtest.models import LatencyModel
from nautilus_trader.config import LoggingConfig, RiskEngineConfig
from nautilus_trader.model.currencies import BTC, USDT
from nautilus_trader.model.data import QuoteTick
from nautilus_trader.model.enums import AccountType, OmsType, OrderSide, TimeInForce
from nautilus_trader.model.identifiers import InstrumentId, Symbol, Venue
from nautilus_trader.model.instruments import CurrencyPair
from nautilus_trader.model.objects import Money, Price, Quantity
from nautilus_trader.trading.strategy import Strategy

TRADE = np.dtype([('ts_ns', 'i8'), ('buy_slot', 'i8'), ('qty', 'f8'), ('bought', 'f8'), ('sold', 'f8')])
VENUES = [Venue('BINANCE'), Venue('BYBIT')]
IDS = [InstrumentId(Symbol('BTCUSDT'), v) for v in VENUES]
CHUNK = 1_000_000 # quotes in memory at once


def floor_to(x, step):
    n = x/step
    near = round(n)
    return (near if abs(n - near) <= 1e-7 else math.floor(n))*step


class Cross(Strategy):
    "Buy cheap, sell dear, both as taker."
    def __init__(self, p):
        super().__init__()
        self.p, self.fee, self.first, self.both = p, p['fee_bps']/1e4, IDS[0], False
        self.ask, self.bid, self.tick, self.last = [0., 0.], [0., 0.], [None, None], 0
        self.need, self.cooldown_ns, self.age_ns, self.skew_ns = p['min_edge_bps'], int(p['cooldown_s']*1e9), int(p['max_age_s']*1e9), int(p['max_skew_s']*1e9)
        self.made, self.side_of = [], {}

    def on_start(self):
        for x in IDS: self.subscribe_quote_ticks(x)

    def on_quote_tick(self, tick):
        k = 0 if tick.instrument_id == self.first else 1
        self.tick[k], self.ask[k], self.bid[k] = tick, tick.ask_price.as_double(), tick.bid_price.as_double()
        if not self.both:
            self.both = self.tick[0] is not None and self.tick[1] is not None
            if not self.both: return
        fee, need = self.fee, self.need
        for b in (0, 1):
            ask, bid = self.ask[b], self.bid[1 - b]
            if (bid*(1 - fee) - ask*(1 + fee))/ask*1e4 >= need and self.trade(b, ask, bid, tick.ts_event): return

    def trade(self, b, ask, bid, now):
        if now - self.last < self.cooldown_ns: return False
        p, s, dearer = self.p, 1 - b, 1 + self.fee
        buy, sell = self.tick[b], self.tick[s]
        if now - min(buy.ts_event, sell.ts_event) > self.age_ns or abs(buy.ts_event - sell.ts_event) > self.skew_ns: return False
        cash = self.portfolio.account(VENUES[b]).balance_free(USDT).as_double()
        have = self.portfolio.account(VENUES[s]).balance_free(BTC).as_double()
        qty = floor_to(min(buy.ask_size.as_double(), sell.bid_size.as_double(), have, min(cash/dearer, p['max_notional'])/ask), p['lot'])
        if qty*ask*dearer > cash: qty = floor_to(cash/(ask*dearer), p['lot'])
        if qty < p['min_qty']*(1 - 1e-9) or qty*ask < p['min_notional']*(1 - 1e-9) or qty*bid < p['min_notional']*(1 - 1e-9): return False
        self.last, k, size = now, len(self.made), Quantity(qty, 5)
        self.made.append([now, b, qty, 0., 0.])
        for slot, side, px, at in ((b, OrderSide.BUY, buy.ask_price, 3), (s, OrderSide.SELL, sell.bid_price, 4)):
            order = self.order_factory.limit(IDS[slot], side, size, px, time_in_force=TimeInForce.IOC)
            self.side_of[order.client_order_id] = k, at
            self.submit_order(order)
        # its venues look at orders under way when an event comes, after applying it; this alert makes them look when the orders arrive
        self.clock.set_time_alert_ns(f'arrival-{k}', now + p['latency_ns'], self.arrived)
        return True

    def arrived(self, event): pass

    def on_order_filled(self, event):
        k, at = self.side_of[event.client_order_id]
        self.made[k][at] += event.last_qty.as_double()


def ticks(rows):
    "Quotes as its own objects."
    return [QuoteTick(IDS[s], Price(b, 1), Price(a, 1), Quantity(bq, 5), Quantity(aq, 5), t, t) for t, s, b, bq, a, aq in rows.tolist()]


def engine_of(p):
    engine = BacktestEngine(BacktestEngineConfig(logging=LoggingConfig(bypass_logging=True), risk_engine=RiskEngineConfig(bypass=True), run_analysis=False))
    fee = Decimal(str(p['fee_bps']))/10_000
    for venue, name in zip(VENUES, IDS):
        engine.add_venue(venue=venue, oms_type=OmsType.NETTING, account_type=AccountType.CASH, base_currency=None, latency_model=LatencyModel(p['latency_ns']),
                         starting_balances=[Money(p['base'], BTC), Money(p['quote'], USDT)])
        engine.add_instrument(CurrencyPair(instrument_id=name, raw_symbol=name.symbol, base_currency=BTC, quote_currency=USDT, price_precision=1,
                                           size_precision=5, price_increment=Price(p['tick'], 1), size_increment=Quantity(p['lot'], 5), ts_event=0, ts_init=0,
                                           maker_fee=fee, taker_fee=fee))
    strategy = Cross(p)
    engine.add_strategy(strategy)
    return engine, strategy


def main():
    quotes, out, p = np.load(sys.argv[1], mmap_mode='r'), sys.argv[2], json.loads(sys.argv[3])
    first, kept = ticks(np.array(quotes[:1])), ticks(np.array(quotes[1:])) if len(quotes) <= CHUNK else None
    gc.collect()
    gc.freeze()
    print(json.dumps(dict(ready=True)), flush=True)
    for _ in sys.stdin:
        engine, strategy = engine_of(p)
        engine.add_data(first)
        engine.run(streaming=True) # starts all its parts
        seconds = 0.
        for i in range(1, len(quotes), CHUNK):
            engine.clear_data()
            engine.add_data(kept or ticks(np.array(quotes[i:i + CHUNK])))
            begun = thread_time()
            engine.run(streaming=True)
            seconds += thread_time() - begun
        engine.end()
        made = np.array([tuple(x) for x in strategy.made], TRADE)
        np.save(out, made)
        held = [[engine.cache.account_for_venue(v).balance_total(c).as_double() for c in (BTC, USDT)] for v in VENUES]
        engine.dispose()
        print(json.dumps(dict(seconds=seconds, held=held, version=version('nautilus_trader'))), flush=True)


main()
