import sys

from e5core.cli import main

sys.exit(main(["convert", "trim-vocabulary", *sys.argv[1:]]))
