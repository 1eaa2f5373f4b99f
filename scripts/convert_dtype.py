import sys

from e5core.cli import main

sys.exit(main(["convert", "dtype", *sys.argv[1:]]))
