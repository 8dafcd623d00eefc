"What keys may do, and the dead man's switch, asked by our links at each simulated venue."
import asyncio
import time
from decimal import Decimal

import pytest

from arbwork.clock import WallClock
from arbwork.feed.codec import Keys
from arbwork.feed.events import NewOrder
from arbwork.feed.rights import Rights
from arbwork.feed.wire import CODECS, Addresses, TradeLink
from arbwork.market import BUY
from arbwork.sim.scenarios import cast, load_scenario
from arbwork.sim.server import World

KEYS = Keys('sim-key', 'c2ltLXNlY3JldC1vZi1rcmFrZW4tYW5kLW90aGVycw==', 'word')


@pytest.mark.parametrize('venue', ['binance', 'bybit', 'okx', 'kraken'])
def test_rights_and_the_switch(venue):
    async def main():
        scenario = load_scenario('stress', seed=3, venues=cast([venue]), hours=0.2)
        w = World([venue], scenario, 0, 1., KEYS, None, 0., start_ns=time.time_ns())
        await w.start()
        try:
            at = w.place_of(venue, w.ports[venue])
            link = TradeLink(CODECS[venue]({x.instrument: x for x in scenario.universe.listings if x.venue == venue}, KEYS), Addresses(**at), WallClock(), lambda e: None, KEYS)
            try:
                await link.start()
                seen = []
                for r in (Rights(True, False), Rights(False, False), Rights(True, True)):
                    w.venues[venue].rights = r
                    said = await link.rights()
                    seen.append((said.trade, said.withdraw))
                assert seen == [(True, False), (False, False), (True, True)]
                w.venues[venue].rights = Rights(True, False)
                listing = scenario.listings[venue]
                row = scenario.rows[venue][0]
                px = (Decimal(str(float(row['bid_px'][0])))*Decimal('0.8')//listing.tick)*listing.tick
                qty = (max(listing.min_qty, listing.min_notional*2/px)//listing.lot + 1)*listing.lot
                word = await link.place(NewOrder('guard-1-0-0', scenario.instrument, BUY, qty, px, 'GTC'))
                assert word.status == 'acked', word
                armed = await link.cancel_after(10.)
                if venue in ('binance', 'bybit'): assert armed is None; return
                assert int(armed) > 0 and int(await link.cancel_after(0.)) == 0
                w.venues[venue].switch(0.2, w.clock.now_ns())
                async with asyncio.timeout(60):
                    while await link.open_orders(): await asyncio.sleep(0.05) # noqa: ASYNC110
            finally: await link.close()
        finally: await w.stop()
    asyncio.run(main())
