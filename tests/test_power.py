"The gates stay shut for noise and open for an edge that was planted; `python -m bench.power` tries a hundred seeds of each."
from bench.power import noise, planted


def test_noise_is_not_promoted():
    found = [noise(seed, settings=400) for seed in range(3)]
    assert not any(x['promoted'] for x in found) and all(x['dsr'] < .95 and .1 < x['pbo'] < .9 for x in found)


def test_a_planted_edge_is_found_and_promoted():
    found = [planted(seed) for seed in range(3)]
    assert all(x['promoted'] for x in found) and all(x['share'] > .6 for x in found)
