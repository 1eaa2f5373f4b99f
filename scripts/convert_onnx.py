import sys

from e5core.convert.to_onnx import main

sys.exit(main())
