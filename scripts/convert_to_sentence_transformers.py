import sys

from e5core.cli import main

sys.exit(main(["convert", "sentence-transformers", *sys.argv[1:]]))
