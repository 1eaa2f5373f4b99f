import sys

from e5core.cli import main

sys.exit(main(["convert", "pytorch-bin", *sys.argv[1:]]))
