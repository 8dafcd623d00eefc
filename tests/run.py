"""All checks in the order in which they are quickest to fail: lint, notebooks as clean as they are committed, their lessons, pytest.

Most tests wait for servers and processes of their own, so two run at a time. What failed then is tried once more, alone, and named: on a busy
machine that tells a test that was too impatient from code that is broken. The first is a bug of the test; the second fails again."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent
AGAIN = 8 # failures that are tried once more; beyond that it is no matter of a busy machine

STEPS = {
    'lint': ['ruff', 'check', 'arbwork', 'tests', 'bench'],
    'notebooks': ['nbdev-test', '--n-workers', '2'],
    'pytest': ['pytest', '-n', str(min(4, max(2, os.cpu_count() or 2))), '--dist', 'worksteal'],
}


def call(command: list[str], env: dict) -> int:
    return subprocess.run([str(BIN/command[0]), *command[1:]], env=env).returncode


def failed() -> list[str]:
    "Tests that failed in the last run of pytest."
    try: return list(json.loads((ROOT/'.pytest_cache/v/cache/lastfailed').read_text()))
    except FileNotFoundError: return []


def main() -> int:
    os.chdir(ROOT)
    env = {**os.environ, 'PATH': f'{BIN}{os.pathsep}{os.environ["PATH"]}', 'JUPYTER_PLATFORM_DIRS': '1'}
    for name in sys.argv[1:] or STEPS:
        start = time.monotonic()
        print(f'== {name}: {" ".join(STEPS[name])}', flush=True)
        code = call(STEPS[name], env)
        if name == 'pytest' and code == 1 and 0 < len(once := failed()) <= AGAIN:
            print('== pytest: once more, alone: ' + ' '.join(once), flush=True)
            code = call(['pytest', '--last-failed'], env)
            if not code: print('== pytest: passed at the second try, so impatient tests rather than broken code: ' + ' '.join(once), flush=True)
        print(f'== {name}: {"ok" if code == 0 else "FAILED"} in {time.monotonic() - start:.0f} s', flush=True)
        if code: return code
    return 0


if __name__ == '__main__':
    raise SystemExit(main())
