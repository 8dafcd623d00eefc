"""`python -m bench.interrupts [STAGE...]`: the real demo, interrupted in each of its stages and started again on what is left; the last run has to complete.

Each run is ended as a terminal ends it (SIGINT to the process group), every second one as a service manager does (SIGTERM to the process alone), in the
stage that is its turn. The next run begins in the same folder and has to get at least to the stage after. One JSON line a run says in what it was
interrupted, its exit code, what it said, and what was left alive. `--make` does the same to `make demo` in a copy of this checkout, first of all during
set-up (environment, packages, compiling); there the exit code is make's. A run through all stages takes about a quarter of an hour.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
STAGES = {'recorded.collect': 'recording two hours', 'recorded.study': 'studying two hours', 'live.open': 'opening venues', 'stress.study': 'studying a generated',
          'live': 'trading the promoted', 'parity': 'replaying the session', 'report': 'writing the report'}
SET_UP = {'environment': lambda home: (home/'.venv'/'bin'/'python').exists(), 'packages': lambda home: any(home.glob('.venv/lib/*/site-packages/numpy*')), 'compile': 'compiling the kernels'}
PATIENCE = 1_800 # seconds until a stage begins, and until a run has ended


def alive(name: str) -> list[str]:
    "What runs of all that inherited this word."
    found = []
    for path in Path('/proc').glob('[0-9]*'):
        try:
            if f'BENCH_INTERRUPTS={name}'.encode() in (path/'environ').read_bytes().split(b'\0'): found.append((path/'cmdline').read_bytes().replace(b'\0', b' ').decode().strip())
        except OSError: continue
    return found


def run(command: list[str], home: Path, log: Path, begun=None, after_s: float = 0., kill: bool = False) -> dict:
    "One run, ended some seconds after `begun` (words of its output, or a question about its folder); to its end where there is none."
    name = f'{os.getpid()}-{time.monotonic_ns()}'
    env = {**os.environ, 'BENCH_INTERRUPTS': name}
    if command[0] == 'make': env.pop('PYTHONPATH', None) # the copy is to find itself
    with open(log, 'wb') as out:
        p = subprocess.Popen(command, cwd=home, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=env, start_new_session=True)
    try:
        deadline = time.monotonic() + PATIENCE
        while begun and p.poll() is None and not (begun(home) if callable(begun) else begun in log.read_text()):
            if time.monotonic() > deadline: raise SystemExit(f'{log}: {begun} did not begin')
            time.sleep(.02)
        if begun:
            time.sleep(after_s)
            if p.poll() is None: p.terminate() if kill else os.killpg(p.pid, signal.SIGINT)
        code = p.wait(PATIENCE)
    finally:
        if p.poll() is None: os.killpg(p.pid, signal.SIGKILL)
    deadline = time.monotonic() + 5
    while (left := alive(name)) and time.monotonic() < deadline: time.sleep(.05)
    return dict(code=code, left=left, said=' '.join(log.read_text().strip().splitlines()[-3:]) if begun else '')


def main() -> int:
    parser = argparse.ArgumentParser(prog='python -m bench.interrupts', description=__doc__.splitlines()[0])
    parser.add_argument('stages', nargs='*', metavar='STAGE', help=f'of {", ".join(STAGES)}; with --make also {", ".join(SET_UP)}; otherwise all')
    parser.add_argument('--make', action='store_true', help='`make demo` in a copy of this checkout')
    parser.add_argument('--no-end', action='store_true', help='leave out the last run, which completes')
    args = parser.parse_args()
    known = (SET_UP if args.make else {}) | STAGES
    if odd := set(args.stages) - set(known): parser.error(f'found {sorted(odd)}, wanted some of {list(known)}')
    good, rng = True, random.Random(1)
    with tempfile.TemporaryDirectory(prefix='interrupts-') as folder:
        home = Path(folder)/'checkout' if args.make else ROOT
        if args.make: shutil.copytree(ROOT, home, ignore=shutil.ignore_patterns('.git', '.venv', 'var', '.nb', '__pycache__', '.pytest_cache', '.hypothesis'))
        out = home/'data'/'var'/'demo' if args.make else Path(folder)/'demo'
        command = ['make', 'demo'] if args.make else [sys.executable, '-m', 'arbwork', 'demo', '--out', str(out)]
        for k, stage in enumerate(args.stages or known):
            kill = bool(k % 2) and stage in STAGES and not args.make
            got = run(command, home, Path(folder)/f'{stage}.log', known[stage], rng.random(), kill)
            got['ok'] = not got['left'] and (got['code'] != 0 if args.make else got['code'] == 130 and 'starting again begins anew' in got['said'])
            good &= got['ok']
            print(json.dumps(dict(stage=stage, by='SIGTERM' if kill else 'SIGINT') | got), flush=True)
        if not args.no_end:
            got = run(command, home, Path(folder)/'end.log')
            got['ok'] = not got['left'] and got['code'] == 0 and (out/'report.html').exists()
            good &= got['ok']
            print(json.dumps(dict(stage='to its end', wall_seconds=json.loads((out/'summary.json').read_text())['wall_seconds'] if got['ok'] else None) | got), flush=True)
    return 0 if good else 1


if __name__ == '__main__':
    sys.exit(main())
