import sys

from e5core.cli import main

sys.exit(main(["convert", "onnx", *sys.argv[1:]]))
