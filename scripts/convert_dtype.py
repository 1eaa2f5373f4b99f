import sys

from e5core.convert.dtype import main

sys.exit(main())
