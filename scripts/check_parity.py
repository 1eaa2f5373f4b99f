import sys

from e5core.parity.check import main

sys.exit(main())
