import sys

from e5core.convert.to_sentence_transformers import main

sys.exit(main())
