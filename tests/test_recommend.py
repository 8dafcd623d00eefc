"Recommendations: surely better on what was not used for choosing, or nothing; and the same again from what they carry."
import msgspec
import numpy as np
import pytest

from arbwork.market import DataError
from arbwork.research.backtest import backtest, inventory_of, prepare
from arbwork.research.recommend import NEVER_MOVED, Advice, moves, recommend, say, words
from arbwork.settings import RANGES, Params, check_params, make_params
from arbwork.sim.scenarios import load_scenario

HOW = dict(latency_ns=50_000_000, fee_in='received')


@pytest.fixture(scope='module')
def world():
    w = load_scenario('stress', seed=7, hours=96.)
    return w, prepare(w.tape(), w.universe), inventory_of(w.universe, w.balances)


@pytest.fixture(scope='module')
def advice(world):
    w, tape, start = world
    return recommend('cross', tape, w.universe, make_params(dict(min_edge_bps=6, max_notional=2_000, cooldown_s=60)), inventory=start, seed=7, **HOW)


def test_every_move_stays_in_range_and_limits_that_protect_never_move():
    for p in (Params(), make_params(dict(risk_tolerance=1, min_edge_bps=0, trades_per_hour=1e6, cooldown_s=86_400))):
        for name, values in moves(p).items():
            assert values and name not in NEVER_MOVED
            for v in values:
                assert v != getattr(p, name)
                check_params(make_params({name: v}, p))


def test_what_is_advised_pays_in_both_halves_and_its_figures_are_those_of_a_run(world, advice):
    w, tape, start = world
    assert any(r.wish == 'cooldown_s' for r in advice.advised)
    rows = tape.rows
    late = prepare(rows[(rows['ts_recv_ns'] >= advice.window[0])], w.universe)
    base = make_params(advice.found[0].reproduce['params'])
    before = backtest('cross', late, w.universe, base, inventory=start, **HOW)
    days = len(late.ends_ns)*60/86_400
    assert advice.trades == before.funnel['trade'] and advice.pnl_day == pytest.approx(before.pnl_quote/days)
    for r in advice.found:
        after = backtest('cross', late, w.universe, make_params(r.reproduce['move'], base), inventory=start, **HOW)
        assert r.trades == after.funnel['trade'] - before.funnel['trade']
        assert r.pnl_day == pytest.approx((after.pnl_quote - before.pnl_quote)/days, abs=1e-6)
        assert r.low_day <= r.pnl_day <= r.high_day or r.low_day == r.high_day
        if r.advised: assert r.low_day > 0 and r.seen_pnl_day > 0 and r.confidence > .95
    assert [r.advised for r in advice.found] == sorted((r.advised for r in advice.found), reverse=True)


def test_the_same_seed_gives_the_same_advice(world, advice):
    w, tape, start = world
    again = recommend('cross', tape, w.universe, make_params(advice.found[0].reproduce['params']), inventory=start, seed=7, **HOW)
    assert again == advice
    assert msgspec.json.decode(msgspec.json.encode(advice), type=Advice) == advice


def test_books_without_an_edge_are_left_alone():
    link = load_scenario('link-2021-08-20')
    found = recommend('cross', link.tape(), link.universe, Params(), inventory=inventory_of(link.universe, link.balances), latency_ns=50_000_000)
    assert not found.advised and say(found)[0].startswith('Change nothing') and len(say(found)) == 1


def test_noise_is_not_advised():
    "Ten generated days without dislocations worth a fee: no wish is surely better."
    for seed in range(10):
        w = load_scenario('stress', seed=100 + seed, hours=6.)
        rows = w.tape()
        other = rows['slot'] == 1
        middle = (rows['bid_px'][:, :1] + rows['ask_px'][:, :1])/2
        follow = np.maximum.accumulate(np.where(~other, np.arange(len(rows)), 0))
        for name in ('bid_px', 'ask_px'): rows[name][other] += (middle[follow] - middle)[other]
        found = recommend('cross', rows, w.universe, Params(), inventory=inventory_of(w.universe, w.balances), seed=seed, **HOW)
        assert not found.advised


def test_a_sentence_carries_its_figures(advice):
    text = words(advice.advised[0], 'USDT')
    assert 'trades' in text and 'USDT a day unseen' in text and 'confidence' in text and 'because' in text


def test_too_short_a_recording_is_refused(world):
    w, tape, start = world
    with pytest.raises(DataError, match='two halves'): recommend('cross', tape.rows[:600], w.universe, Params(), inventory=start, bucket_s=600.)
    with pytest.raises(DataError, match='enough for two halves'): recommend('cross', tape.rows[:3], w.universe, Params(), inventory=start)
