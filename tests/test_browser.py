"""The workbench in a real browser, against a running bot and simulated venues."""
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest

from arbwork import __version__
from arbwork.clock import NS
from arbwork.decide.cross import kernel_hash, decide
from arbwork.research.promote import Gate, Manifest, load_key, make_key, sign, write_manifest
from arbwork.settings import load_settings, make_params
from arbwork.sim.scenarios import load_scenario
from arbwork.store.journal import open_journal
from arbwork.trade.core import Status
from arbwork.decide.contract import Universe

ROOT = Path(__file__).parents[1]
FLAGS = ['--headless=new', '--no-sandbox', '--disable-gpu', '--no-first-run', '--disable-background-networking', '--disable-component-update', '--disable-sync']
CHROMIUM = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)


@pytest.fixture
def chromium():
    if CHROMIUM: return CHROMIUM
    word = 'Chromium is missing; `apt install chromium` brings it, then the workbench is tried in a browser too'
    pytest.fail(word) if os.environ.get('CI') == 'true' else pytest.skip(word)


@pytest.fixture
def desk(tmp_path):
    "A folder of its own, with settings, the notebook, and a manifest signed there."
    text = (ROOT/'settings.ini').read_text().replace('data/var', str(tmp_path/'var'))
    (tmp_path/'settings.ini').write_text(text)
    s = load_settings(tmp_path/'settings.ini')
    assert s.var == tmp_path/'var' and s.promoted == tmp_path/'strategies'/'promoted'
    s.promoted.mkdir(parents=True)
    make_key(s.keys)
    world = load_scenario('stress', seed=16, hours=1)
    now = time.time_ns()
    m = Manifest(strategy='cross', params=make_params(dict(min_edge_bps=2), s.params), kernel_hash=kernel_hash(decide), version=__version__, snapshot='browser', window=(0, NS),
                 seed=1, trials=1, gates=[Gate('min_trades', 40., '>= 30', True)], latency_ms={v: 50. for v in world.listings},
                 universe=Universe(list(world.listings.values()), {v: tuple(world.fees_bps[v]) for v in world.listings}), oos_sharpe=1., created_ns=now, expires_ns=now + 3600*NS)
    write_manifest(sign(m, load_key(s.keys)), s.promoted/'cross.json')
    shutil.copy(ROOT/'nbs'/'workbench.ipynb', tmp_path/'workbench.ipynb')
    return s


@contextmanager
def lab(settings):
    "JupyterLab on a private port, with folders of its own."
    folder = settings.path.parent/'jupyter'
    news = folder/'s'/'@jupyterlab'/'apputils-extension'
    news.mkdir(parents=True)
    (news/'notification.jupyterlab-settings').write_text(json.dumps(dict(fetchNews='false', checkForUpdates=False)))
    env = {**os.environ, 'ARBWORK_SETTINGS': str(settings.path), 'JUPYTER_CONFIG_DIR': f'{folder}/c', 'JUPYTER_DATA_DIR': f'{folder}/d', 'JUPYTER_RUNTIME_DIR': f'{folder}/r',
           'JUPYTERLAB_SETTINGS_DIR': f'{folder}/s', 'JUPYTERLAB_WORKSPACES_DIR': f'{folder}/w', 'IPYTHONDIR': f'{folder}/i', 'PYDEVD_DISABLE_FILE_VALIDATION': '1'}
    with socket.create_server(('127.0.0.1', 0)) as s: port = s.getsockname()[1]
    with open(folder/'lab.log', 'w') as log:
        child = subprocess.Popen([sys.executable, '-m', 'jupyterlab', '--no-browser', '--allow-root', f'--port={port}', '--ServerApp.port_retries=0', '--ServerApp.ip=127.0.0.1',
                                  '--IdentityProvider.token=of-this-test', f'--ServerApp.root_dir={settings.path.parent}'], env=env, stdout=log, stderr=log)
    try:
        for _ in range(300):
            assert child.poll() is None, (folder/'lab.log').read_text()[-2000:]
            try: urllib.request.urlopen(f'http://127.0.0.1:{port}/api?token=of-this-test', timeout=1).close(); break
            except OSError: time.sleep(0.1)
        yield f'http://127.0.0.1:{port}/lab/tree/workbench.ipynb?token=of-this-test&reset'
    finally:
        child.terminate()
        try: child.wait(20)
        except subprocess.TimeoutExpired: child.kill(); child.wait()


def said(settings)->Status:
    "What the bot itself last said, read from its journal."
    journal = open_journal(f'sqlite:///{settings.var}/workbench/journal.db')
    try: return msgspec.msgpack.decode(journal.last('status').body, type=Status)
    finally: journal.close()


def until(check, seconds, what):
    end = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < end, what()
        time.sleep(0.1)


def run_all(page):
    "Run all cells, again where the first click came before the kernel listened: a cell that was taken shows a star or its number."
    prompt = page.locator('.jp-CodeCell .jp-InputArea-prompt').first
    for _ in range(4):
        page.get_by_role('menuitem', name='Run', exact=True).click()
        page.get_by_role('menuitem', name='Run All Cells', exact=True).click()
        for _ in range(100):
            if re.search(r'[*\d]', prompt.inner_text()): return
            page.wait_for_timeout(100)
    raise AssertionError('the cells were never taken')


@pytest.mark.browser
@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_slider_moves_a_running_bot(chromium, desk, tmp_path):
    sync_playwright = pytest.importorskip('playwright.sync_api').sync_playwright
    with lab(desk) as address, sync_playwright() as p:
        browser = p.chromium.launch(executable_path=chromium, headless=True, args=FLAGS)
        page = browser.new_page(viewport=dict(width=1440, height=1400))
        errors = []
        page.on('pageerror', lambda e: errors.append(str(e)))
        page.goto(address)
        page.locator('.jp-CodeCell').nth(1).wait_for(timeout=60_000)
        page.get_by_text('Kernel status: Idle').first.wait_for(state='attached', timeout=60_000)
        page.keyboard.press('Control+B')
        run_all(page)
        panel = page.locator('.arb-panel .js-plotly-plot').first
        until(panel.is_visible, 150, lambda: f'no workbench on the page; the cells say {page.locator(".jp-OutputArea-output").all_inner_texts()}')
        badge, note = page.locator('.arb .badge').first, page.locator('.arb-note')
        def press(name): page.locator('.arb-panel .jupyter-button', has_text=name).click()

        press('Start')
        until(lambda: badge.inner_text() == 'trading', 60, lambda: note.inner_text())
        before = said(desk).params['min_edge_bps']

        handle = page.locator('.arb-min_edge_bps .noUi-handle')
        handle.focus()
        for _ in range(4): handle.press('ArrowRight')
        wish = page.locator('.arb').filter(has_text='Minimum edge').last # its words come from the kernel, a while after the handle has moved
        until(lambda: f'{before + 2:.1f} bps' in wish.inner_text() and '→' in wish.inner_text(), 15, lambda: wish.inner_text())
        press('Apply')
        until(lambda: said(desk).params['min_edge_bps'] == before + 2, 15, lambda: note.inner_text())
        until(lambda: f'applied: min_edge_bps {before + 2:g}' in note.inner_text(), 10, lambda: note.inner_text())

        until(lambda: said(desk).trades > 0, 90, lambda: str(said(desk)))
        until(lambda: page.locator('.arb td', has_text=re.compile('^done')).count() > 0, 15, lambda: 'no trade on the screen')
        page.wait_for_timeout(3000)
        (ROOT/'data'/'var').mkdir(parents=True, exist_ok=True)
        page.screenshot(path=ROOT/'data'/'var'/'workbench.png')

        press('Pause')
        until(lambda: said(desk).state == 'paused' and badge.inner_text() == 'paused', 15, lambda: note.inner_text())
        press('Resume')
        until(lambda: said(desk).state == 'active' and badge.inner_text() == 'trading', 15, lambda: note.inner_text())
        press('Halt')
        until(lambda: said(desk).state == 'halted' and badge.inner_text() == 'halted', 15, lambda: note.inner_text())
        assert not errors
        browser.close()
