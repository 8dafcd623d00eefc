"""See `bench.kills`. A module of this name is not run again by the processes that a campaign starts."""

import sys

from bench.kills import main

if __name__ == '__main__': sys.exit(main())
