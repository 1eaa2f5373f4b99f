import sys

from e5core.convert.trim_vocabulary import main

sys.exit(main())
