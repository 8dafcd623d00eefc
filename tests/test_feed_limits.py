"What a venue lets us ask: counters against a count by hand, budgets at the wire, and what a refusal for rate does to everything after it."
import asyncio
import contextlib
import random
from decimal import Decimal

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_feed_wire import KEYS, BinanceVenue, BybitAccount, Venue, binance_depth, feeding, run, until

from arbwork.clock import VirtualClock, WallClock
from arbwork.feed.binance import Binance
from arbwork.feed.budget import FOREVER, NS, Budget, Cost, Counter, Limit, Stop, Used
from arbwork.feed.bybit import Bybit
from arbwork.feed.codec import Keys, Request
from arbwork.feed.events import INVALID, VALID, Balance, Fill, NewOrder, Notice, OrderUpdate
from arbwork.feed.kraken import Kraken
from arbwork.feed.okx import Okx
from arbwork.feed.sockets import Reply, Rest
from arbwork.feed.wire import CODECS, Addresses, TradeLink
from arbwork.market import BUY, ERROR_CODES, SELL, Listing, VenueError

START = 1_629_417_605*NS
LINK = Listing('bybit', 'LINK-USDT', 'LINKUSDT', Decimal('0.001'), Decimal('0.01'), Decimal('0.1'), Decimal(5))
ORDER = NewOrder('s1-7-1-0', 'LINK-USDT', BUY, Decimal('3.5'), Decimal('26.84'))


def used_by_hand(kind, sent, now_ns, most, seconds):
    "What a venue would count, from everything that was ever sent."
    span = int(seconds*NS)
    if kind == 'rolling': return sum(n for t, n in sent if now_ns - t < span)
    if kind == 'aligned': return sum(n for t, n in sent if t//span == now_ns//span)
    level, before = 0., 0
    for t, n in [*sent, (now_ns, 0.)]: level, before = max(0., level - most*(t - before)/span) + n, t
    return level


@pytest.mark.parametrize('kind', ['rolling', 'aligned', 'decay'])
@settings(max_examples=120, deadline=None)
@given(steps=st.lists(st.tuples(st.integers(0, 3_000), st.sampled_from([1, 2, 5])), min_size=1, max_size=80), seconds=st.sampled_from([1, 2, 10]))
def test_what_goes_out_is_never_more_than_the_limit(kind, steps, seconds):
    "Whoever sends only what the counter allows, and comes again when it says, stays within the venue's own count."
    most, now, sent = 10., START, []
    c = Counter(Limit('x', most, seconds, kind))
    for ms, units in steps:
        now += ms*1_000_000
        wait = c.wait_ns(units, most, now)
        assert 0 <= wait <= seconds*NS
        if wait:
            assert used_by_hand(kind, sent, now, most, seconds) + units > most + 1e-9 or kind == 'aligned'
            now += wait
            assert c.wait_ns(units, most, now) == 0, 'it comes when it said'
        c.add(units, now)
        sent.append((now, units))
        assert used_by_hand(kind, sent, now, most, seconds) <= most + 1e-6
        assert abs(c.level(now) - used_by_hand(kind, sent, now, most, seconds)) < 1e-6
    assert c.wait_ns(most + 1, most, now) == FOREVER


def test_a_part_is_kept_for_what_is_urgent_and_shares_are_shares():
    budget = Budget((Limit('create', 20, 1),), share=0.5)
    order = (Cost('create'),)
    sent = 0
    while not budget.wait_ns(order, START): budget.spend(order, START); sent += 1
    assert sent == 8 and 'found 8 of 10 create used in 1 s, wanted 1 more within 8' in budget.why(order, START)
    while not budget.wait_ns(order, START, urgent=True): budget.spend(order, START); sent += 1
    assert sent == 10 and budget.retry_ns(order, START, urgent=True) == START + NS
    assert budget.wait_ns((Cost('unheard of', 99),), START) == 0, 'a limit that nobody stated stops nobody'


def test_the_venues_own_count_goes_before_ours_when_it_is_higher():
    budget = Budget((Limit('weight', 6_000, 60, 'aligned'),))
    budget.spend((Cost('weight', 500),), START)
    budget.heard(Used('weight', 300), START)
    assert budget.counter('weight').level(START) == 500
    budget.heard(Used('weight', 5_990, '', 5_995), START + NS)
    assert budget.wait_ns((Cost('weight', 6),), START + NS, urgent=True) == 54*NS
    assert budget.counter('weight').level(START + 56*NS) == 0, 'a new minute'
    budget.heard(Used('nothing of ours', 3), START)


def test_bans_and_full_counters():
    budget, order = Budget((Limit('orders', 50, 10, 'aligned'), Limit('day', 1_000, 86_400, 'aligned'))), (Cost('orders'), Cost('day'))
    budget.stop(Stop('rate'), START, order)
    assert budget.wait_ns(order, START, urgent=True) == 5*NS and budget.counter('day').level(START) == 0, 'nobody waits a day for a limit of ten seconds'
    budget.stop(Stop('banned', START + 300*NS), START)
    budget.stop(Stop('rate', START + 7*NS), START)
    assert budget.wait_ns((), START, urgent=True) == 300*NS and budget.closed_code == 'rate'
    budget = Budget()
    budget.stop(Stop('banned'), START)
    assert budget.wait_ns((), START) == 120*NS, 'the shortest ban there is, where no time is named'


# what the documentation of each venue says that things cost

def test_what_things_cost():
    keys = Keys('key', 'c2VjcmV0', 'word')
    binance, bybit, okx, kraken = (CODECS[v](None, keys) for v in ('binance', 'bybit', 'okx', 'kraken'))
    def units(codec, request): return {c.limit: c.units for c in codec.costs(request)}
    assert [units(binance, x)['weight'] for x in (binance.time_request(), binance.listings_request(['LINK-USDT']), binance.balances_request(0), binance.fills_request('LINK-USDT', 0, 0),
            binance.recent_orders_request('LINK-USDT', 0, 0), binance.open_orders_request(0, 'LINK-USDT'), binance.cancel_request('LINK-USDT', 'x', 0))] == [1, 20, 20, 20, 20, 6, 1]
    assert units(bybit, bybit.check_request('LINK-USDT')) == {'requests': 1} and units(bybit, bybit.balances_request(0)) == {'requests': 1, 'reads': 1}
    assert units(bybit, bybit.place_request(ORDER, 0)) == {'requests': 1, 'create': 1}
    assert units(okx, okx.place_request(ORDER, 0)) == {'60 in 2 s': 1, 'account': 1} and units(okx, okx.fills_request('LINK-USDT', 0, 10**18)) == {'10 in 2 s': 1}
    assert units(kraken, kraken.place_request(ORDER, 0)) == {} and units(kraken, kraken.time_request()) == {'public': 1}
    for codec in (binance, bybit, okx, kraken):
        names = {x.name for x in codec.limits}
        asked = [codec.time_request(), codec.listings_request(['LINK-USDT']), codec.balances_request(0), codec.order_request('LINK-USDT', 'x', 0), codec.open_orders_request(0), codec.fills_request('LINK-USDT', 0, 0)]
        for cost in [c for x in asked for c in codec.costs(x)] + [*codec.order_costs('LINK-USDT'), *codec.cancel_costs('LINK-USDT', 1.), *codec.connect_costs()]: assert cost.limit in names, (codec.venue, cost)


def test_bybit_tells_by_header_and_by_frame():
    codec = Bybit(None, KEYS)
    said = codec.private(b'{"reqId":"9","retCode":0,"retMsg":"OK","op":"order.create","data":{"orderId":"o1","orderLinkId":"x"},"retExtInfo":{},"header":{"X-Bapi-Limit":"20","X-Bapi-Limit-Status":"3","X-Bapi-Limit-Reset-Timestamp":"1711001595208"},"connId":"c"}')
    assert said[0] == Used('create', 17, '', 20)
    assert codec.told(codec.balances_request(0), {'X-Bapi-Limit': '50', 'X-Bapi-Limit-Status': '49'}) == [Used('reads', 1, '/v5/account/wallet-balance', 50)]
    assert codec.told(codec.balances_request(0), {}) == codec.told(codec.balances_request(0), {'X-Bapi-Limit': 'x', 'X-Bapi-Limit-Status': '1'}) == []
    gone = codec.stopped('rate', 'bybit book: HTTP 403 403, access too frequent', {}, START)
    assert (gone.code, gone.until_ns) == ('banned', START + 600*NS)
    restart = codec.private(b'{"reqId":"9","retCode":10019,"retMsg":"ws trade service is restarting","op":"order.create","data":{},"connId":"c"}')
    assert [(x.kind, x.code) for x in restart] == [('error', 'venue_down'), ('shutdown', '')]


# at the wire

class Asked:
    "REST that answers from a list and counts."
    def __init__(self, *replies): self.replies, self.requests = list(replies), []
    async def __call__(self, request):
        self.requests.append(request)
        return self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]


def rest(http, codec=None, patience_s=5.):
    codec, clock = codec or Binance(None, KEYS), VirtualClock(START)
    return Rest(codec, http, Budget(codec.limits), clock.now_ns, clock, patience_s), codec, clock


@pytest.mark.parametrize('status, headers, body, code, after_s', [
    (429, {'Retry-After': '7'}, b'{"code":-1003,"msg":"Too many requests queued."}', 'rate', 7),
    (418, {'Retry-After': '180'}, b'{"code":-1003,"msg":"Way too much request weight used; IP banned until 1629417785000. Please use WebSocket Streams for live updates to avoid bans."}', 'banned', 180),
    (418, {}, b'<html>', 'banned', 120), (429, {}, b'', 'rate', 55)])
def test_a_refusal_for_rate_stops_everything_until_its_time(status, headers, body, code, after_s):
    async def main():
        http = Asked(Reply(status, body, headers), Reply(200, b'{"serverTime":1629417605000}'))
        ask, codec, clock = rest(http)
        for _ in range(3):
            with pytest.raises(VenueError) as e: await ask(codec.snapshot_request('LINK-USDT'), lambda *x: codec.snapshot_reply('LINK-USDT', *x))
            assert (e.value.code, e.value.retry_ns) == (code, START + after_s*NS), e.value
        assert len(http.requests) == 1 and 'not sent' in str(e.value)
        await clock.advance(after_s)
        assert await ask(codec.time_request(), codec.time_reply) == START
    run(main())


def test_reads_wait_for_room_and_are_refused_when_that_takes_too_long():
    async def main():
        http = Asked(Reply(200, b'{"serverTime":1629417605000}', {'X-MBX-USED-WEIGHT-1M': '4799'}))
        ask, codec, clock = rest(http)
        await ask(codec.time_request(), codec.time_reply)
        with pytest.raises(VenueError) as e: await ask(codec.balances_request(START), codec.balances_reply)
        assert e.value.code == 'rate' and e.value.retry_ns == START + 55*NS and 'found 4799 of 6000 weight' in str(e.value) and 'wanted 20 more within 4800' in str(e.value)
        assert await ask(codec.time_request(), codec.time_reply), 'the last unit'
        assert await ask(codec.time_request(), codec.time_reply, urgent=True), 'what is urgent goes on'
        assert ask.budget.refused == 1
        small = Okx()
        ask, codec, _ = rest(Asked(Reply(200, b'{"code":"0","msg":"","data":[{"ts":"1629417605000"}]}')), small)
        ask.clock = ask_clock = WallClock()
        ask.venue_ns = ask_clock.now_ns
        began = ask_clock.now_ns()
        for _ in range(12): await ask(codec.time_request(), codec.time_reply)
        assert ask_clock.now_ns() - began > 1.5*NS, 'ten in two seconds, of which two are kept'
    run(main())


def test_orders_beyond_the_budget_do_not_leave_and_cancels_do():
    async def main():
        got = []
        async def create(m, ws): got.append(m['args'][0]['orderLinkId']); return [msgspec.json.encode(dict(reqId=m['reqId'], retCode=0, op='order.create', data=dict(orderId='o', orderLinkId=m['reqId']))).decode()]
        async def cancel(m, ws): got.append('cancel'); return [msgspec.json.encode(dict(reqId=m['reqId'], retCode=170213, retMsg='Order does not exist.', op='order.cancel')).decode()]
        venue = BybitAccount({'order.create': create, 'order.cancel': cancel})
        budget = Budget((Limit('create', 5, 3_600), Limit('cancel', 5, 3_600)))
        async with venue.link(budget=budget) as (link, events, problems):
            await link.start()
            for i in range(4): assert (await link.place(msgspec.structs.replace(ORDER, client_id=f'a-{i}'))).status == 'acked'
            for _ in range(2):
                with pytest.raises(VenueError) as e: await link.place(msgspec.structs.replace(ORDER, client_id='a-4'))
                assert e.value.code == 'rate' and 'order a-4: not sent, found 4 of 5 create used' in str(e.value) and e.value.retry_ns > link.venue_ns()
            assert (await link.hedge(msgspec.structs.replace(ORDER, client_id='h-0'))).status == 'acked'
            with pytest.raises(VenueError): await link.hedge(msgspec.structs.replace(ORDER, client_id='h-1'))
            for _ in range(5): assert (await link.cancel('LINK-USDT', 'a-0')).status == 'unknown_order'
            assert got == ['a-0', 'a-1', 'a-2', 'a-3', 'h-0', *['cancel']*5] and link.health['refused'] == 3
    run(main())


def test_an_order_refused_for_rate_fills_the_counter():
    async def main():
        got = []
        async def create(m, ws): got.append(m['reqId']); return [msgspec.json.encode(dict(reqId=m['reqId'], retCode=10006, retMsg='Too many visits!', op='order.create', data={})).decode()]
        async with BybitAccount({'order.create': create}).link() as (link, events, problems):
            await link.start()
            u = await link.place(ORDER)
            assert (u.status, u.code) == ('rejected', 'rate')
            with pytest.raises(VenueError) as e: await link.place(msgspec.structs.replace(ORDER, client_id='again'))
            assert e.value.code == 'rate' and len(got) == 1
            await asyncio.sleep(1.05)
            await link.place(msgspec.structs.replace(ORDER, client_id='later'))
            assert len(got) == 2
    run(main())


def test_a_ban_heard_on_a_socket_stops_rest_as_well():
    async def main():
        class Banned(Venue):
            def __init__(self):
                super().__init__()
                self.until = None
                self.rest = {'/api/v3/time': lambda: (200, msgspec.json.encode({'serverTime': WallClock().now_ns()//10**6})), '/api/v3/account': lambda: (200, b'{"balances":[]}')}
                async def on_message(self, m, ws):
                    if m['id'] == 'login': return ['{"id":"login","status":200,"result":{"subscriptionId":0}}']
                    until_ms = WallClock().now_ns()//10**6 + 60_000
                    return [msgspec.json.encode(dict(id=m['id'], status=418, error=dict(code=-1003, msg='Way too much request weight used.', data=dict(serverTime=1, retryAfter=until_ms)))).decode()]
                self.on_message = on_message
        venue = Banned()
        async with venue.open():
            link = TradeLink(Binance(), venue.addresses, WallClock(), print, KEYS, on_problem=lambda *x: None, timeout_s=1.)
            await link.start()
            u = await link.place(ORDER)
            assert (u.status, u.code) == ('rejected', 'banned')
            for what in (link.balances(), link.cancel('LINK-USDT', 'x'), link.place(ORDER)):
                with pytest.raises(VenueError) as e: await what
                assert e.value.code == 'banned' and 50 < (e.value.retry_ns - WallClock().now_ns())/NS <= 60, e.value # the venue's clock is ours here
            assert len(venue.heard) == 2
            await link.close()
    run(main())


# orders that must not leave

@pytest.mark.parametrize('change, code, words', [
    (dict(px=Decimal('26.8405')), 'tick_or_lot', 'price 26.8405 is no multiple of the tick 0.001'), (dict(qty=Decimal('3.505')), 'tick_or_lot', 'quantity 3.505 is no multiple of the lot 0.01'),
    (dict(qty=Decimal('0.05')), 'below_minimum', 'quantity 0.05 is below the minimum 0.1'), (dict(qty=Decimal('0.1')), 'below_minimum', 'notional 2.684'),
    (dict(qty=Decimal(0)), 'below_minimum', 'quantity 0, wanted above 0'), (dict(qty=Decimal(2), side=SELL), 'insufficient_funds', 'found 1 LINK, wanted 2'),
    (dict(qty=Decimal('4')), 'insufficient_funds', 'found 100 USDT, wanted 107.36'), (dict(qty=Decimal('1.5'), side=SELL, px=None), 'insufficient_funds', 'found 1 LINK, wanted 1.5')])
def test_an_order_that_cannot_be_taken_does_not_leave(change, code, words):
    async def main():
        async def create(m, ws): raise AssertionError('it left')
        venue = BybitAccount({'order.create': create})
        async with venue.link(codec=Bybit({'LINK-USDT': LINK})) as (link, events, problems):
            await link.start()
            link._take(Balance('LINK', Decimal('0.5'), Decimal('0.5')))
            link._take(Balance('USDT', Decimal(90), Decimal(10)))
            u = await link.place(msgspec.structs.replace(ORDER, **change))
            assert (u.status, u.code, u.filled_qty) == ('rejected', code, 0) and u.reason.startswith('not sent: ') and words in u.reason, u
            assert not [m for m in venue.heard if m['op'] == 'order.create'] and [type(e) for e in events] == [Balance, Balance]
    run(main())


def test_what_has_just_been_bought_may_be_sold_before_a_balance_says_so():
    async def main():
        async def create(m, ws): return [msgspec.json.encode(dict(reqId=m['reqId'], retCode=0, op='order.create', data=dict(orderId='o', orderLinkId=m['reqId']))).decode()]
        async with BybitAccount({'order.create': create}).link(codec=Bybit({'LINK-USDT': LINK})) as (link, events, problems):
            await link.start()
            sell = msgspec.structs.replace(ORDER, side=SELL, client_id='sell')
            assert (await link.place(sell)).status == 'acked', 'nothing is known of balances'
            link._take(Balance('LINK', Decimal(0), Decimal(0)))
            assert (await link.place(msgspec.structs.replace(sell, client_id='sell-1'))).code == 'insufficient_funds'
            fill = Fill('s1-7-1-0', 'o', 'f1', 'LINK-USDT', BUY, Decimal('26.84'), Decimal('3.5'), Decimal('0.0035'), 'LINK', False, 1)
            link._take(fill)
            link._take(fill)
            assert (await link.place(msgspec.structs.replace(sell, client_id='sell-2'))).status == 'acked'
            assert (await link.place(msgspec.structs.replace(sell, client_id='sell-3', qty=Decimal('3.51')))).code == 'insufficient_funds', 'a fill counts once'
    run(main())


def test_a_venue_that_does_not_trade_gets_no_orders():
    async def main():
        venue = BybitAccount()
        async with venue.link() as (link, events, problems):
            await link.start()
            for system in ('maintenance', 'cancel_only', 'post_only', 'online'):
                [notice] = Kraken().private(msgspec.json.encode(dict(channel='status', type='update', data=[dict(system=system, api_version='v2')])))
                link._take(notice)
                if system == 'online': break
                with pytest.raises(VenueError) as e: await link.place(ORDER)
                assert e.value.code == 'venue_down' and f'not sent, the venue says {system}' in str(e.value)
            assert link.status == '' and [x for k, x in problems if k == 'status'] == [f'bybit: {s}' for s in ('maintenance', 'cancel_only', 'post_only', 'online')]
    run(main())
