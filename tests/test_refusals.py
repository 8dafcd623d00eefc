"What is asked for wrongly is refused by name, and a halt needs nothing but the journal."
import asyncio
from types import SimpleNamespace

import msgspec
import numpy as np
import pytest
from test_kernel import rich, universe_of

from arbwork.live import main, paper_money
from arbwork.market import ConfigError
from arbwork.research.backtest import backtest, inventory_of
from arbwork.serve.guard import kill
from arbwork.settings import Params, load_settings
from arbwork.sim.scenarios import stress
from arbwork.store.journal import open_journal
from arbwork.trade.core import Command
from arbwork.trade.start import check_clocks

SETTINGS = '[arbwork]\nvenues = binance, bybit\ninstruments = LINK-USDT\nvar = var\njournal = sqlite:///var/journal.db\nticks = lmdb://var/ticks\nboard = var/board.bin\n' + ''.join(
    f'[venue:{v}]\nrest = http://127.0.0.1:1\npublic_ws = ws://127.0.0.1:1\nprivate_ws = ws://127.0.0.1:1\ntrade_ws = ws://127.0.0.1:1\nmaker_bps = 1\ntaker_bps = 1\nlatency_ms = 50\n' for v in ('binance', 'bybit'))


def test_a_halt_is_written_though_the_vault_cannot_be_opened(tmp_path, monkeypatch):
    for name in 'ARBWORK_VAULT_PASSPHRASE', 'ARBWORK_VAULT_PASSPHRASE_FILE': monkeypatch.delenv(name, raising=False)
    (tmp_path/'settings.ini').write_text(SETTINGS)
    (tmp_path/'var').mkdir()
    open_journal(f'sqlite:///{tmp_path}/var/journal.db').close() # a bot has been there
    done = asyncio.run(kill(load_settings(tmp_path/'settings.ini'), by='a person'))
    assert done.journal == 'kept' and done.bot == 'none' and list(done.errors) == ['vault'] and not done.reached and done.code
    journal = open_journal(f'sqlite:///{tmp_path}/var/journal.db')
    try: commands = [msgspec.msgpack.decode(e.body, type=Command) for e in journal.read('control', 0, 10) if e.kind == 'command']
    finally: journal.close()
    assert [(c.verb, c.by) for c in commands] == [('halt', 'a person')]


@pytest.mark.parametrize('away_s', [7., -7.])
def test_a_clock_that_is_wrong_is_refused_with_a_figure(away_s):
    link = lambda s, error_s=.1: {'okx': SimpleNamespace(offset=SimpleNamespace(ns=int(s*1e9), error_ns=int(error_s*1e9)))}
    with pytest.raises(ConfigError, match=r'clock: found 6\.9 s between this machine and okx, wanted at most 5; turn on NTP'): check_clocks(link(away_s), 5.)
    check_clocks(link(away_s, 2.5), 5.) # as far as is known it may be right
    check_clocks(link(away_s), 10.)
    check_clocks({'okx': SimpleNamespace(offset=None)}, 5.)


def test_a_backtest_refuses_what_cannot_be():
    world = stress(seed=1, hours=1.)
    run = lambda **how: backtest('cross', params=Params(), data=world, **how)
    for jitter in -.5, float('nan'), float('inf'):
        with pytest.raises(ConfigError, match='jitter: found .* wanted a finite figure >= 0'): run(latency_ns=10**9, jitter=jitter)
    with pytest.raises(ConfigError, match='latency_ns: found .*binance.* wanted exactly'): run(latency_ns={'binance': 1})
    names = world.universe.venues
    one, other = run(latency_ns={v: (k + 1)*10**7 for k, v in enumerate(reversed(names))}), run(latency_ns=[(len(names) - k)*10**7 for k in range(len(names))])
    assert len(one.fills) and np.array_equal(one.fills, other.fills), 'by name or in their order'
    assert len(repr(one)) < 400 and f'{len(one.trades)} trades' in repr(one)
    u = universe_of(1.)
    for amount in -5, float('nan'), float('inf'):
        with pytest.raises(ConfigError, match=f'inventory {u.venues[0]} {u.assets[0]}: found {amount}, wanted a finite amount >= 0'): inventory_of(u, {u.venues[0]: {u.assets[0]: amount}})
    assert inventory_of(u, {u.venues[0]: {u.assets[0]: 0}}).shape == rich(u).shape


@pytest.mark.parametrize('given, says', [('USDT', "found 'USDT', wanted ASSET=QTY"), ('USDT=-5', '--balance USDT: found -5, wanted an amount >= 0'), ('USDT=much', "--balance USDT: found 'much', wanted a number")])
def test_paper_money_is_looked_at_before_anything_else(given, says, tmp_path, capsys):
    with pytest.raises(ConfigError, match=says): paper_money([given], 'paper')
    (tmp_path/'settings.ini').write_text(SETTINGS)
    assert main(['--mode', 'paper', '--settings', str(tmp_path/'settings.ini'), '--balance', given]) == 2
    assert says in capsys.readouterr().err
