"""All checks in the order in which they are quickest to fail: lint, notebooks as clean as they are committed, their lessons, pytest."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent

STEPS = {
    'lint': ['ruff', 'check', 'arbwork', 'tests', 'bench'],
    'notebooks': ['nbdev-test', '--n-workers', '2'],
    'pytest': ['pytest'],
}


def main() -> int:
    os.chdir(ROOT)
    env = {**os.environ, 'PATH': f'{BIN}{os.pathsep}{os.environ["PATH"]}', 'JUPYTER_PLATFORM_DIRS': '1'}
    wanted = sys.argv[1:] or list(STEPS)
    for name in wanted:
        start = time.monotonic()
        print(f'== {name}: {" ".join(STEPS[name])}', flush=True)
        run = subprocess.run([str(BIN/STEPS[name][0]), *STEPS[name][1:]], env=env)
        print(f'== {name}: {"ok" if run.returncode == 0 else "FAILED"} in {time.monotonic() - start:.0f} s', flush=True)
        if run.returncode: return run.returncode
    return 0


if __name__ == '__main__':
    raise SystemExit(main())
