"""How often the gates open where they must not, and where they must: `python -m bench.power [--seeds N] [--json]`.

Three campaigns of N seeds. *noise*: 1,000 settings whose returns are pure noise, all gates that returns can answer. *planted*: worlds of two hours
with 30 dislocations an hour of 40 bps on average, through generator, kernel, search, evidence, doubts and gates; what was chosen is then run on another
hour that nobody saw and compared with the best of the grid there. *calm*: the same worlds without the dislocations."""

import argparse
import json
import time

import numpy as np

from arbwork.decide.contract import Params
from arbwork.research.backtest import backtest
from arbwork.research.evidence import sharpe
from arbwork.research.promote import FIGURES, gates
from arbwork.research.study import study_of, weigh
from arbwork.research.sweep import sweep
from arbwork.research.trials import Charge
from arbwork.settings import GATES
from arbwork.sim.scenarios import Calibration, stress

GRID = dict(min_edge_bps=[1., 2., 4., 8., 12., 16.], slippage_bps=[2., 5., 10., 20.], single_leg=['reverse', 'proceed'])
JUMPS = dict(jumps_per_hour=30., jump_bps=40., jump_below=.5)
BY_RETURNS = ('min_trades', 'min_dsr', 'max_oos_loss', 'min_oos_sharpe', 'min_folds_positive', 'max_spa', 'min_track_share')


class Figures:
    "Only those figures of a study that returns can answer."
    def __init__(self, e):
        self.trades, self.dsr, self.oos_loss, self.oos_sharpe, self.spa, self.track_share = sum(e.begun), e.dsr, e.overfit.loss, e.oos_sharpe, e.spa, e.track_share
        self.folds_positive = e.walked.positive(e.begun)


def opens(e) -> bool:
    return all(g.passed for g in gates(Figures(e), {k: GATES[k] for k in BY_RETURNS}))


def noise(seed: int, settings: int = 1_000, buckets: int = 480) -> dict:
    rng = np.random.default_rng([1, seed])
    x = rng.normal(0, 1e-4, (buckets, settings))
    e = weigh(x, x != 0, Charge(settings, float(sharpe(x).var(ddof=1)), 1, 0), bucket_s=60., rng=rng, draws=500)
    return dict(promoted=opens(e), pbo=e.overfit.pbo, dsr=e.dsr, spa=e.spa)


def world(seed: int, hours: float = 2., **calibration):
    w = stress(seed=seed, hours=hours, calibration=Calibration(**calibration))
    return w, dict(inventory=w.universe.empty_inventory() + 1e5), {v: 50. for v in w.universe.venues}


def calm(seed: int) -> dict:
    w, how, latency_ms = world(10_000 + seed, jumps_per_hour=0.)
    s, _ = study_of('cross', w.tape(), w.universe, GRID, latency_ms=latency_ms, seed=seed, draws=500, **how)
    return dict(promoted=s.promoted, trades=s.winner_trades, pnl=s.winner_pnl)


def planted(seed: int) -> dict:
    w, how, latency_ms = world(20_000 + seed, **JUMPS)
    s, parts = study_of('cross', w.tape(), w.universe, GRID, latency_ms=latency_ms, seed=seed, draws=500, **how)
    other, how, _ = world(30_000 + seed, 1., **JUMPS)
    how |= dict(latency_ns=50e6, fee_in='received')
    best = max(r.pnl_quote for r in sweep('cross', other.tape(), other.universe, GRID, base=Params(), **how).results)
    mine = backtest('cross', other.tape(), other.universe, s.params, **how).pnl_quote
    return dict(promoted=s.promoted, share=mine/best if best > 0 else 0., failed=[g.name for g in s.gates if not g.passed])


def campaign(seeds: int, tell=lambda text: None) -> dict:
    out = {}
    for name, one in dict(noise=noise, calm=calm, planted=planted).items():
        start, found = time.monotonic(), []
        for seed in range(seeds):
            found.append(one(seed))
            tell(f'{name}: {seed + 1} of {seeds}')
        mean = {k: float(np.mean([x[k] for x in found])) for k in found[0] if k not in ('promoted', 'failed')}
        out[name] = dict(seeds=seeds, promoted=sum(x['promoted'] for x in found), seconds=round(time.monotonic() - start, 1), mean=mean)
        if name == 'noise': out[name]['dsr_below_095'] = sum(x['dsr'] < .95 for x in found)
        if name == 'planted': out[name]['within_80_percent_of_the_best_elsewhere'] = sum(x['share'] >= .8 for x in found)
    return out


if __name__ == '__main__':
    assert set(BY_RETURNS) <= set(FIGURES)
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--seeds', type=int, default=100)
    p.add_argument('--json', action='store_true')
    a = p.parse_args()
    found = campaign(a.seeds, (lambda text: None) if a.json else lambda text: print(text, end='\r', flush=True))
    if a.json: print(json.dumps(found))
    else:
        print(' '*40)
        for name, x in found.items(): print(f'{name:8}', *(f'{k}={v}' for k, v in x.items()), sep='  ')
