"""Run the command line: `python -m n2n`."""

from n2n.cli import main

raise SystemExit(main())
