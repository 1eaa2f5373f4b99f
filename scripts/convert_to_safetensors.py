import sys

from e5core.convert.from_pytorch_bin import main

sys.exit(main())
