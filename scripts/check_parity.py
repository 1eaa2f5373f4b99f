import sys

from e5core.cli import main

sys.exit(main(["check", *sys.argv[1:]]))
