"""Rows to measure with."""

import numpy as np

from arbwork.feed.events import BOOK, LEVELS, VALID


def rows(n: int, seed: int = 7) -> np.ndarray:
    "Ten-level books that wander, as a feed would hand them on."
    rng = np.random.default_rng(seed)
    out = np.zeros(n, BOOK)
    out['seq'], out['state'] = np.arange(1, n + 1), VALID
    out['ts_venue_ns'] = out['ts_recv_ns'] = 1_700_000_000_000_000_000 + np.arange(n)*1_000_000
    mid = 27*np.exp(np.cumsum(rng.standard_normal(n))*1e-5)
    steps = (np.arange(LEVELS) + 0.5)*1e-3
    out['bid_px'], out['ask_px'] = mid[:, None] - steps, mid[:, None] + steps
    out['bid_qty'], out['ask_qty'] = rng.lognormal(3, 1, (2, n, LEVELS))
    return out
