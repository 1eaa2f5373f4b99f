import sys

import benchmark
import neighbours
import searching
import serving
import training

if __name__ == "__main__":
    if sys.argv[1:2] == ["search"]:
        sys.exit(searching.main(sys.argv[2:]))
    if sys.argv[1:2] == ["neighbours"]:
        sys.exit(neighbours.main(sys.argv[2:]))
    if sys.argv[1:2] == ["training"]:
        sys.exit(training.main(sys.argv[2:]))
    if sys.argv[1:2] == ["serve"]:
        sys.exit(serving.main(sys.argv[2:]))
    sys.exit(benchmark.main())
