"Jobs that run by themselves: once each time, by real processes, with their failures told and their outputs kept."
import http.server
import json
import shutil
import signal
import subprocess
import threading
import time

import msgspec
import nbformat
import pytest
from hypothesis import given, strategies as st
from test_cli import command, environment, write_settings

from arbwork.clock import NS, parse_ns
from arbwork.market import ConfigError
from arbwork.serve import schedule as sc
from arbwork.settings import load_settings
from arbwork.store.journal import open_journal

NOON = parse_ns('2026-11-25T12:00')
GOOD = "import json, pathlib\npathlib.Path(out_dir, 'study.json').write_text(json.dumps(dict(said='well')))"
SLOW = "import pathlib, time\npathlib.Path(out_dir, 'began').write_text('')\nwhile True: time.sleep(.05)"


class At:
    "A wall that stands still."
    def __init__(self, now_ns): self.at = now_ns
    def now_ns(self): return self.at


def notebook(folder, name, *sources):
    cells = [nbformat.v4.new_code_cell("settings = ''\nout_dir = ''", metadata=dict(tags=['parameters'])), *map(nbformat.v4.new_code_cell, sources)]
    book = nbformat.v4.new_notebook(cells=cells, metadata=dict(kernelspec=dict(name='python3', display_name='python3', language='python')))
    folder.mkdir(exist_ok=True)
    nbformat.write(book, folder/f'{name}.ipynb')


def person(tmp_path, more, **books):
    path = write_settings(tmp_path, (9, 9), more=f'[schedule]\n{more}\n')
    for name, source in books.items(): notebook(tmp_path/'strategies', name, source)
    return load_settings(path)


@given(st.integers(0, 6), st.integers(0, 23), st.integers(0, 59), st.integers(0, 10**6))
def test_the_days_of_cron_are_those_of_the_calendar(day, hour, minute, after_min):
    found = sc.next_ns(sc.trigger_of(f'{minute} {hour} * * {day}'), NOON + after_min*60*NS)
    at = time.gmtime(found//NS)
    assert (at.tm_wday + 1) % 7 == day and (at.tm_hour, at.tm_min, at.tm_sec) == (hour, minute, 0) and 0 < found - NOON - after_min*60*NS <= 7*86_400*NS


def test_either_day_is_enough_where_both_are_named():
    trigger, at, days = sc.trigger_of('0 3 13 * 5'), NOON, []
    for _ in range(8):
        at = sc.next_ns(trigger, at)
        days.append((time.gmtime(at//NS).tm_mday == 13, time.gmtime(at//NS).tm_wday == 4))
    assert all(a or b for a, b in days) and any(a and not b for a, b in days) and any(b and not a for a, b in days)


def test_what_cannot_be_is_said_with_its_place(tmp_path):
    with pytest.raises(ConfigError, match=r'settings.ini:\d+: .schedule. moon: found .0 3 .., wanted'): person(tmp_path, 'moon = 0 3 * ')
    s = person(tmp_path, 'moon = 0 3 * * *')
    with pytest.raises(ConfigError, match='moon: found no notebook .*moon.ipynb'): sc.check_jobs(s)
    with pytest.raises(ConfigError, match='moon: found .61 3 . . .., wanted a cron'): sc.check_jobs(person(tmp_path, 'moon = 61 3 * * *', moon=GOOD))
    with pytest.raises(ConfigError, match='keep_days: found .long., wanted a number'): person(tmp_path, 'keep_days = long')


def test_a_slot_is_run_once_and_a_missed_one_made_up_for(tmp_path):
    s = person(tmp_path, 'calm = 0 3 * * *', calm=GOOD)
    assert sc.once(s, At(NOON)) == []                                   # it begins now
    ran = sc.once(s, At(NOON + 16*3_600*NS))
    assert [(r.job, r.outcome, r.exit_code, r.slot_ns) for r in ran] == [('calm', 'done', 0, parse_ns('2026-11-26T03:00'))], ran
    assert sc.once(s, At(NOON + 17*3_600*NS)) == [] and sc.due(s, 'calm', sc.trigger_of('0 3 * * *'), NOON + 65*3_600*NS) == parse_ns('2026-11-28T03:00')
    folder = sc.place_of(s, 'calm', ran[0].slot_ns)
    assert {'calm.ipynb', 'study.json', 'origin.json', 'run.json', 'log.txt', 'output.json'} <= {p.name for p in folder.iterdir()}
    assert sc.state(s, NOON)[0]['last_good'] == '2026-11-26T03:00:00.000Z'


def test_a_failure_is_told_everywhere_and_leaves_its_page(tmp_path):
    heard = []
    class Page(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            heard.append(json.loads(self.rfile.read(int(self.headers['content-length']))))
            self.send_response(204), self.end_headers()
        def log_message(self, *what): pass
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Page)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        s = person(tmp_path, f'bad = 0 3 * * *\nalert_command = cat > {tmp_path}/heard.json\nalert_webhook = http://127.0.0.1:{server.server_port}/x', bad='1/0')
        sc.once(s, At(NOON))
        run, = sc.once(s, At(NOON + 16*3_600*NS))
    finally: server.shutdown(), server.server_close()
    assert (run.outcome, run.exit_code) == ('failed', 1) and 'ZeroDivisionError' in run.said
    folder = sc.place_of(s, 'bad', run.slot_ns)
    page = nbformat.read(folder/'bad.ipynb', 4)
    assert any(o.get('ename') == 'ZeroDivisionError' for c in page.cells for o in c.get('outputs', [])) and not (folder/'study.json').exists()
    journal = open_journal(s.journal)
    try: told = [msgspec.msgpack.decode(e.body) for e in journal.read('alerts')]
    finally: journal.close()
    assert told == heard == [json.loads((tmp_path/'heard.json').read_text())] and told[0]['job'] == 'bad' and told[0]['folder'] == str(folder)
    assert sc.once(s, At(NOON + 17*3_600*NS)) == [] # a failure is not tried again by itself


def test_old_outputs_go_and_the_last_good_one_stays(tmp_path):
    s, day = person(tmp_path, 'calm = 0 3 * * *\nkeep_days = 3', calm=GOOD), 86_400*NS
    for k, outcome in enumerate(('done', 'failed', 'done', 'failed', 'failed', 'failed', 'failed')):
        sc._write(sc.place_of(s, 'calm', NOON + k*day), sc.Run('calm', NOON + k*day, 1, 1, outcome, 0))
    assert sc.tidy(s, 'calm', NOON + 8*day) == 4
    assert [(r.slot_ns - NOON)//day for _, r in sc.runs(s, 'calm')] == [2, 5, 6]


def until(true, process):
    while not true():
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)


def test_the_scheduler_runs_what_was_missed_is_alone_and_ends_what_it_began(tmp_path):
    s = person(tmp_path, 'slow = 0 * * * *', slow=SLOW)
    (s.var/'schedule'/'slow').mkdir(parents=True)
    (s.var/'schedule'/'slow'/'since').write_text(str(time.time_ns() - 2*3_600*NS))
    start = lambda *what: subprocess.Popen(command('schedule', *what, '--settings', s.path, '--json'), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment())
    process = start('run')
    try:
        assert json.loads(process.stdout.readline())['next']['slow'].endswith(':00:00.000Z')
        until(lambda: list(s.var.glob('schedule/slow/*/began')), process)
        second = start('once')
        out, err = second.communicate(timeout=120)
        assert (second.returncode, json.loads(out)['runs']) == (0, []), err
        third = start('once', '--job', 'slow')
        out, err = third.communicate(timeout=120)
        assert 'skipped' in err and 'has it' in err and json.loads(out)['runs'] == []
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0 and 'Traceback' not in err, err
    finally:
        if process.poll() is None: process.kill(), process.communicate()
    assert [r.outcome for _, r in sc.runs(s, 'slow')] == ['interrupted'] and sc.due(s, 'slow', sc.trigger_of('0 * * * *'), time.time_ns())


def test_units_are_ones_that_systemd_reads(tmp_path):
    s = person(tmp_path, 'calm = 0 3 * * *', calm=GOOD)
    done = subprocess.run(command('schedule', 'units', tmp_path/'units', '--settings', s.path, '--json'), capture_output=True, text=True, timeout=120, env=environment())
    files = json.loads(done.stdout)['files']
    assert done.returncode == 0 and sorted(p.name for p in (tmp_path/'units').iterdir()) == files and str(s.path) in (tmp_path/'units'/'arbwork.cron').read_text()
    if shutil.which('systemd-analyze'):
        checked = subprocess.run(['systemd-analyze', 'verify', '--user', *(tmp_path/'units').glob('arbwork-*')], capture_output=True, text=True, timeout=120)
        assert 'Unknown' not in checked.stderr and 'Failed to parse' not in checked.stderr, checked.stderr
