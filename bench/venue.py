"""A venue of numbered updates on a port of this machine, and settings that record it."""

import asyncio
import json
from pathlib import Path

from aiohttp import web

from arbwork.settings import load_settings


class Venue:
    "A few Bybit topics on a port of this machine: a snapshot, then a change each `pause_s`, leaving out the updates in `lost`."
    def __init__(self, updates=300, lost=(), twice=(), pause_s=0.001, busy_after=100):
        self.updates, self.lost, self.twice, self.pause_s, self.u, self.ended = updates, set(lost), set(twice), pause_s, 1, asyncio.Event()
        self.sent, self.busy, self.busy_after = 0, asyncio.Event(), busy_after

    async def __aenter__(self):
        app = self.app = web.Application()
        app.router.add_get('/v5/market/instruments-info', self.listings)
        app.router.add_get('/v5/public/spot', self.socket)
        self.runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self.runner.setup()
        await web.TCPSite(self.runner, '127.0.0.1', 0).start()
        self.port = self.runner.addresses[0][1]
        return self

    async def __aexit__(self, *_): await self.runner.cleanup()

    async def listings(self, request):
        return web.json_response({'retCode': 0, 'retMsg': 'OK', 'time': 1, 'result': {'category': 'spot', 'list': [
            {'symbol': 'LINKUSDT', 'baseCoin': 'LINK', 'quoteCoin': 'USDT', 'status': 'Trading', 'priceFilter': {'tickSize': '0.001'},
             'lotSizeFilter': {'basePrecision': '0.01', 'quotePrecision': '0.0001', 'minOrderQty': '0.01', 'minOrderAmt': '5'}}]}})

    def book(self, kind):
        px = 27 + self.u%100/1000
        levels = [[f'{px - i/1000:.3f}', '40'] for i in range(12)], [[f'{px + 0.002 + i/1000:.3f}', '25'] for i in range(12)]
        if kind == 'delta': levels = [['26.500', str(self.u)]], [['28.500', str(self.u)]]
        return json.dumps({'topic': 'orderbook.50.LINKUSDT', 'type': kind, 'ts': 1_629_417_600_000 + self.u,
                           'data': {'s': 'LINKUSDT', 'b': levels[0], 'a': levels[1], 'u': self.u, 'seq': self.u}, 'cts': 1_629_417_600_000 + self.u})

    async def socket(self, request):
        ws = web.WebSocketResponse()
        await ws.prepare(request)
        hears = asyncio.Event()
        pump = asyncio.create_task(self.pump(ws, hears))
        try:
            async for message in ws:
                op = json.loads(message.data)
                if op['op'] == 'subscribe':
                    await ws.send_str(json.dumps({'success': True, 'ret_msg': 'subscribe', 'op': 'subscribe', 'req_id': op['req_id']}))
                    await ws.send_str(self.book('snapshot'))
                    self.sent += 1
                    hears.set()
                elif op['op'] == 'unsubscribe':
                    hears.clear()
        finally: pump.cancel()
        return ws

    async def pump(self, ws, hears):
        while self.u < self.updates:
            await hears.wait()
            await asyncio.sleep(self.pause_s)
            self.u += 1
            if self.u in self.lost: continue
            for _ in range(2 if self.u in self.twice else 1): await ws.send_str(self.book('delta'))
            self.sent += 1
            if self.sent > self.busy_after: self.busy.set()
        self.ended.set()


def settings_for(folder: Path, ports: dict, instruments='LINK-USDT', journal='sqlite:///var/journal.db', more=''):
    text = f'[arbwork]\nvenues = {", ".join(ports)}\ninstruments = {instruments}\nvar = var\nstrategies = strategies\n'
    text += f'journal = {journal}\nticks = lmdb://var/ticks\nboard = var/board.bin\n{more}'
    for name, port in ports.items():
        text += f'[venue:{name}]\nrest = http://127.0.0.1:{port}\nmaker_bps = 10\ntaker_bps = 10\n'
        text += ''.join(f'{x}_ws = ws://127.0.0.1:{port}\n' for x in ('public', 'private', 'trade'))
    (folder/'settings.ini').write_text(text)
    return load_settings(folder/'settings.ini')
