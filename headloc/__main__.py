"""`python -m headloc` is `headloc`."""

import sys

from headloc.cli import main

sys.exit(main())
