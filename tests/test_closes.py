"What the candles of March 2023 may say, and what they may not: closes through the kernel that trades, against a count made without it."
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from arbwork.research.backtest import backtest
from arbwork.research.closes import CLOSES, close_rows, closes
from arbwork.settings import make_params

BARS = Path(__file__).parents[2]/'shared'/'data'/'real'/'bars_1m'
here = pytest.mark.skipif(not BARS.exists(), reason='the candles of March 2023 are not here (their licence is not stated, so they do not ship)')
FREE = make_params(dict(min_edge_bps=0., max_notional=1e4, risk_tolerance=1., cooldown_s=0., trades_per_hour=1e6, max_skew_s=.5, max_age_s=1., max_exposure=1e7, max_loss_day=1e7,
                        max_drawdown=1., slippage_bps=0.))
CALM, CRISIS = ('2023-03-01', '2023-03-08'), ('2023-03-10', '2023-03-13')
PLENTY = {'BTC': 1e6, 'USD': 1e10, 'USDC': 1e10}


def candles(venue, instrument, days):
    frame = pd.read_parquet(BARS/f'{venue}_{instrument.lower()}_1m_20230301_20230321.parquet')
    if 'open_time' in frame.columns: frame = frame.set_index(pd.to_datetime(frame['open_time'], unit='ms', utc=True)) if frame['open_time'].dtype.kind in 'iuf' else frame.set_index(pd.to_datetime(frame['open_time'], utc=True))
    return frame.loc[days[0]:days[1], ['close', 'volume']].astype(float)


def data(days, fees, *pairs):
    frames = {p: candles(*p, days) for p in pairs}
    return frames, closes(frames, {v: (fees, fees) for v, _ in pairs}, {v: {a: PLENTY[a] for a in i.split('-')} for v, i in pairs})


def minutes(frames, fees):
    "Minutes in which both traded and one close pays for the other and two fees, counted by pandas."
    a, b = (f[f['volume'] > 0]['close'] for f in frames.values())
    both = pd.concat([a, b], axis=1, join='inner').to_numpy()
    cheap, dear = both.min(axis=1), both.max(axis=1)
    return len(both), int((dear*(1 - fees/1e4) - cheap*(1 + fees/1e4) > 1e-9*cheap).sum())


@here
@pytest.mark.parametrize('usdc', ['kraken', 'binanceus'])
def test_a_gap_of_currencies_is_refused_and_never_traded(usdc):
    frames, d = data(CRISIS, 10., ('coinbase', 'BTC-USD'), (usdc, 'BTC-USDC'))
    n, wide = minutes(frames, 10.)
    r = backtest('cross', data=d, params=FREE)
    assert wide > .5*n and r.funnel['currency'] == wide and r.funnel['trade'] == 0 and len(r.fills) == 0


@here
def test_calm_days_leave_nothing_after_twenty_bps():
    frames, d = data(CALM, 10., ('coinbase', 'BTC-USD'), ('kraken', 'BTC-USD'))
    n, wide = minutes(frames, 10.)
    r = backtest('cross', data=d, params=FREE)
    assert n > 10_000 and r.funnel['trade'] == wide == 0 and r.funnel['fee'] > n


@here
def test_the_crisis_gives_what_the_closes_show_and_says_what_they_are():
    frames, d = data(CRISIS, 10., ('coinbase', 'BTC-USD'), ('kraken', 'BTC-USD'))
    n, wide = minutes(frames, 10.)
    r = backtest('cross', data=d, params=FREE)
    assert wide > 20 and r.funnel['trade'] == wide and len(r.fills) == 2*wide
    assert r.about == CLOSES and 'not quotes' in r.about and 'not simultaneous' in r.about
    dear = backtest('cross', data=d, params=make_params(dict(fee_mult=2.), FREE))
    assert dear.funnel['trade'] == minutes(frames, 20.)[1] < wide and 0 <= dear.pnl_quote < r.pnl_quote


def test_a_minute_without_a_trade_is_no_minute():
    index = pd.date_range('2023-03-11', periods=4, freq='1min', tz='UTC')
    rows = close_rows(pd.DataFrame(dict(close=[1., 2., 3., 4.], volume=[1., 0., 2., np.nan]), index=index), 3)
    assert list(rows['bid_px'][:, 0]) == [1., 3.] and set(rows['slot']) == {3} and (rows['ts_recv_ns'] == [index[0].value + 60*10**9, index[2].value + 60*10**9]).all()
