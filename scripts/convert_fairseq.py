import sys

from e5core.convert.from_fairseq import main

sys.exit(main())
