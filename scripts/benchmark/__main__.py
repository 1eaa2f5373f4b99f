import sys

import benchmark
import gpu
import neighbours
import reranking
import searching
import serving
import training
import tuning

PROGRAMS = {
    "gpu": gpu.main,
    "neighbours": neighbours.main,
    "rerank": reranking.main,
    "search": searching.main,
    "serve": serving.main,
    "training": training.main,
    "tune": tuning.main,
}

if __name__ == "__main__":
    program = PROGRAMS.get(sys.argv[1] if len(sys.argv) > 1 else "")
    sys.exit(program(sys.argv[2:]) if program else benchmark.main())
