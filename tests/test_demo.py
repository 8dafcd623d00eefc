"The demo, interrupted: whatever asks it to end, nothing goes on, nothing stays locked, and starting again begins anew. And what its stages rest on."
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from arbwork.desk import demo
from arbwork.market import ArbworkError, ConfigError
from arbwork.settings import load_settings

ROOT = Path(__file__).parents[1]
WORK = '''
import sys
from pathlib import Path
from arbwork.desk import demo
from arbwork.market import ArbworkError
from arbwork.settings import load_settings
out, mine = map(Path, sys.argv[1:])
demo.WORLDS[demo.RECORDED]['speed'] = 30. # four minutes: nobody waits for its end
def work():
    with demo.staged(out, False) as (pool, children, show):
        def studying():
            with show.stage('study', 'studying what lasts'):
                demo.result_of(children.start('research', 'arbwork', 'research', 'sleeper', '--settings', mine, '--out', out/'study', '--json'))
        demo.results(pool.submit(demo.record_world, children, load_settings(mine), out, demo.RECORDED, 1, show), pool.submit(studying))
try: work()
except ArbworkError as e:
    print(f'arbwork: {e}', file=sys.stderr)
    raise SystemExit(e.exit_code)
'''


def cell(kind, source, **metadata):
    return dict(cell_type=kind, metadata=metadata, source=source, **(dict(execution_count=None, outputs=[]) if kind == 'code' else {}), id=str(abs(hash(source)))[:8])


@pytest.fixture
def mine(tmp_path):
    "Settings with a strategy whose study never ends."
    (tmp_path/'settings.ini').write_text((ROOT/'settings.ini').read_text())
    (tmp_path/'strategies').mkdir()
    cells = [cell('code', "settings = ''\nout_dir = ''", tags=['parameters']),
             cell('code', "import pathlib, time\npathlib.Path(out_dir, 'awake').touch()\ntime.sleep(3600)")]
    kernel = dict(display_name='python3', language='python', name='python3')
    (tmp_path/'strategies'/'sleeper.ipynb').write_text(json.dumps(dict(nbformat=4, nbformat_minor=5, metadata=dict(kernelspec=kernel), cells=cells)))
    return tmp_path/'settings.ini'


def until(true, what, seconds=120):
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, what
        time.sleep(.05)


def alive(name):
    "Processes that inherited this word, by what they run."
    found = {}
    for path in Path('/proc').glob('[0-9]*'):
        try:
            if f'DEMO_TEST={name}'.encode() in (path/'environ').read_bytes().split(b'\0'): found[int(path.name)] = (path/'cmdline').read_bytes().replace(b'\0', b' ').decode()
        except OSError: continue
    return found


@pytest.mark.skipif(sys.platform != 'linux', reason='processes are looked up in /proc')
def test_ctrl_c_and_a_kill_leave_nothing_and_starting_again_begins_anew(tmp_path, mine):
    out, name = tmp_path/'demo', f'{os.getpid()}-{time.monotonic_ns()}'
    def journal_there(): return (out/'recorded'/'journal.db').exists() and (out/'study'/'awake').exists()
    for send in (lambda p: [os.killpg(p.pid, signal.SIGINT) for _ in range(2)], lambda p: p.terminate()):
        p = subprocess.Popen([sys.executable, '-c', WORK, out, mine], stderr=subprocess.PIPE, text=True, start_new_session=True, env=os.environ | dict(DEMO_TEST=name))
        try:
            until(lambda p=p: p.poll() is not None or journal_there(), 'both stages under way')
            assert p.poll() is None, p.stderr.read()
            runs = ' '.join(alive(name).values())
            assert all(x in runs for x in ('arbwork sim', 'arbwork collect', 'arbwork research', 'ipykernel_launcher'))
            with pytest.raises(ArbworkError, match=f'process {p.pid} has it'), demo.staged(out, True, Console(file=StringIO())): pass
            send(p)
            said = p.communicate(timeout=120)[1].strip().splitlines()
        finally: p.kill()
        assert p.returncode == 130
        last = ' '.join(said[[i for i, x in enumerate(said) if x.startswith('arbwork: ')][0]:])
        assert 'interrupted while' in last and 'studying what lasts' in last and demo.WHAT[demo.RECORDED] in last and last.endswith('starting again begins anew')
        until(lambda: not alive(name), alive(name))
        assert not list(out.rglob('*.part')) and (out/'study'/'awake').exists()
    with demo.staged(out, False, Console(file=StringIO())) as (_, children, show), show.stage('version', 'asking'):
        assert not (out/'study').exists() and not (out/'recorded').exists()
        assert demo.result_of(children.start('version', 'arbwork', 'version', '--json'))


def test_a_folder_of_other_files_is_refused(tmp_path):
    (tmp_path/'letter').touch()
    with pytest.raises(ConfigError, match='found files that no demo wrote'), demo.staged(tmp_path, False, Console(file=StringIO())): pass
    assert (tmp_path/'letter').exists()


def test_the_first_failure_ends_all(tmp_path):
    with pytest.raises(ArbworkError, match='exit code 2'), demo.staged(tmp_path/'demo', False, Console(file=StringIO())) as (pool, children, _):
        world = demo.World(children, 'calm', scenario='link-2021-08-20', seed=1, speed=1., hours=1., lead=1., on_call=True)
        child = children.start('waiting', 'arbwork', 'sim', '--port', demo.free_ports(2))
        demo.results(pool.submit(demo.result_of, child), pool.submit(demo.result_of, children.start('wrong', 'arbwork', 'colect')))
    assert world.process.poll() is not None and child.poll() is not None
    with pytest.raises(ArbworkError, match='being stopped'): children.start('late', 'arbwork', 'version')


def test_a_recording_that_did_not_keep_up_is_made_again_more_slowly(tmp_path, monkeypatch):
    speeds, found = [], iter([dict(share=.5, late_s=1.), dict(share=1., late_s=900.), dict(share=1., late_s=3.)])
    class World:
        about = dict(rows=100)
        def __init__(self, children, name, speed, lead, on_call, **more): speeds.append((speed, lead)); assert on_call
        def __enter__(self): return self
        def __exit__(self, *what): pass
    def record(children, settings, out, world, update): out.mkdir(); return dict(rows=100)
    for name, what in dict(World=World, record=record, heard=lambda path, rows: next(found)).items(): monkeypatch.setattr(demo, name, what)
    show = demo.Stages(Console(file=StringIO(), width=300))
    got = demo.record_world(None, None, tmp_path, demo.STRESS, 7, show)
    first, lead = demo.WORLDS[demo.STRESS]['speed'], demo.WORLDS[demo.STRESS]['lead']
    assert speeds == [(first/2**k, lead*2**k) for k in range(3)] and got['recording']['speed'] == first/4 and got['recording']['heard']['late_s'] == 3
    assert f'once more at {first/2:g} times the wall' in show.console.file.getvalue() and len(show.spans['stress.collect']) == 3


STUB = '''#!/bin/sh
# stands for python3, uv and arbwork: writes down what it was asked, and where it is told to, stays there half done
here=FOLDER
echo "$(basename "$0") $*" >> $here/asked
hold() { touch .venv/half; if [ "$(cat $here/hold 2>/dev/null)" = "$1" ]; then touch $here/there; sleep 600; fi; rm -f .venv/half; }
put() { cp $here/stub .venv/bin/$1; }
case "$*" in
  -c*) ;;
  "-m venv .venv") mkdir -p .venv/bin; put python; hold venv;;
  "-m pip install"*) hold pip; put uv;;
  *--require-hashes*) hold packages; put arbwork;;
  *"-e .") hold ourselves;;
  compile) hold compile;;
esac
'''


@pytest.mark.skipif(not shutil.which('make'), reason='make is missing')
def test_a_set_up_that_was_interrupted_is_made_anew(tmp_path):
    for name in ('Makefile', 'requirements.lock', 'pyproject.toml'): shutil.copy(ROOT/name, tmp_path)
    stub, asked = tmp_path/'stub', tmp_path/'asked'
    stub.write_text(STUB.replace('FOLDER', str(tmp_path)))
    stub.chmod(stub.stat().st_mode | stat.S_IXUSR)
    def make(): return subprocess.Popen(['make', 'setup', f'PYTHON={stub}'], cwd=tmp_path, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    def steps(): return [next(x for x in ('-m venv', '-e .', '-hashes', '-m pip', 'compile') if x in line) for line in asked.read_text().splitlines() if ' -c ' not in line]
    whole = ['-m venv', '-m pip', '-hashes', '-e .', 'compile']
    for where in ('venv', 'pip', 'packages', 'ourselves', 'compile'):
        (tmp_path/'hold').write_text(where)
        p = make()
        until((tmp_path/'there').exists, where)
        os.killpg(p.pid, signal.SIGINT)
        assert p.wait(60) and not (tmp_path/'.venv'/'.ready').exists() and (tmp_path/'.venv'/'half').exists()
        for name in ('hold', 'there', 'asked'): (tmp_path/name).unlink()
        assert not make().wait(60) and (tmp_path/'.venv'/'.ready').exists() and not (tmp_path/'.venv'/'half').exists()
        assert steps() == (whole if where != 'compile' else ['compile'])
        asked.write_text('')
        assert not make().wait(60) and steps() == [] # all is there
        os.utime(tmp_path/'requirements.lock') # newer packages are wanted: installed over the old ones
        assert not make().wait(60) and steps() == whole[1:]
        if where != 'compile': shutil.rmtree(tmp_path/'.venv')
