"""Journals for tests: a file, or a real server that a test may kill. Without the server a test is skipped; in CI, which installs them, it fails."""

import os

import pytest

from bench.servers import Store


def started(scheme, folder, *options, **how):
    "A store for journals, see `bench.servers.Store`."
    try: return Store(scheme, folder, *options, **how)
    except FileNotFoundError as e:
        if os.environ.get('CI') == 'true': pytest.fail(str(e))
        pytest.skip(str(e))


@pytest.fixture
def server(tmp_path):
    "Start a store of a scheme, with options of its own; all are stopped at the end."
    stores = []
    def start(scheme, *options, **how):
        stores.append(started(scheme, tmp_path/f'store{len(stores) or ""}', *options, **how))
        return stores[-1]
    yield start
    for x in stores: x.stop()


@pytest.fixture(params=['sqlite', 'redis', 'nats'])
def store(request, server): return server(request.param)


@pytest.fixture(params=['redis', 'nats'])
def served(request, server): return server(request.param)
