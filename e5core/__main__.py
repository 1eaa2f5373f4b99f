"""`python -m e5core` is the command line."""

import sys

from e5core.cli import main

sys.exit(main())
