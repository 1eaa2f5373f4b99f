import sys

from e5core.cli import main

sys.exit(main(["convert", "fairseq", *sys.argv[1:]]))
