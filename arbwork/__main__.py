"""`python -m arbwork` is the command line."""

from arbwork.cli import main

raise SystemExit(main())
