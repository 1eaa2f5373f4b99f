"""A picture of vectors: languages, meanings, or any corpus.

    e5core map parallel.tsv --output languages.html --model M
    e5core map parallel.tsv --kind meanings --output meanings.png --model M
    e5core map articles.npy --labels section --output articles.html

Parallel sentences are a table with a row a sentence, a folder with a text file a language, or a
folder in the layout of SIB-200. Vectors are what e5core embed wrote; their texts are read from
where they were. The suffix of --output says what is drawn: .html works offline and can be zoomed
and searched, .png and .svg are pictures. Needs the extra `map`.
"""

import sys
from argparse import ArgumentTypeError, Namespace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from e5core.bulk.queries import read_passages
from e5core.checkpoint.folder import ModelFolder
from e5core.cli.options import add_model_options, load_options
from e5core.cli.program import Parser
from e5core.maps.points import (
    Map,
    map_of_corpus,
    map_of_languages,
    map_of_meanings,
    unknown_shares,
)
from e5core.maps.sentences import Columns, Parallel, parallel, read_parallel
from e5core.model import E5
from e5core.tokenizer import SentencePieceTokenizer
from e5core.vectors.index import Index

KINDS = ("languages", "meanings", "corpus")
VECTORS = (".npy", ".safetensors", ".parquet")
POINTS = 5000
MEANINGS = 8
# Pixels of a side: below, no label has room, and above, programs refuse the picture.
SMALLEST, LARGEST = 100, 10_000


def add_arguments(parser: Parser) -> None:
    parser.add_argument("input", type=Path, metavar="INPUT", help="sentences or vectors")
    add_model_options(parser)
    parser.add_argument(
        "--kind",
        choices=KINDS,
        help="what a point is: a language, a sentence in a language, or any text (default: corpus "
        "for vectors, languages for sentences)",
    )
    parser.add_argument("--output", type=Path, required=True, help=".html, .png or .svg")
    columns = Columns()
    parser.add_argument("--text-column", default=columns.text)
    parser.add_argument("--language-column", default=columns.language)
    parser.add_argument("--meaning-column", default=columns.meaning, help="what is said")
    parser.add_argument("--labels", help="the column by which the points of a corpus are coloured")
    parser.add_argument("--translation", help="the language that hovering translates into")
    parser.add_argument(
        "--meanings",
        type=int,
        default=MEANINGS,
        help="how many are drawn, of --kind meanings (default: %(default)s)",
    )
    parser.add_argument(
        "--points", type=int, default=POINTS, help="at most, of a corpus (default: %(default)s)"
    )
    parser.add_argument(
        "--size",
        type=_size,
        default="860x600",
        help="of .png and .svg, in pixels; .html fills its window (default: %(default)s)",
    )
    parser.set_defaults(run=run)


def run(options: Namespace) -> int:
    from e5core.maps import chart

    chart.check_suffix(options.output)
    stored = options.input.suffix in VECTORS and options.input.is_file()
    kind = options.kind or ("corpus" if stored else "languages")
    if kind == "corpus" and not stored:
        raise ValueError(
            f"{options.input} holds no vectors; run e5core embed first, and name its output"
        )
    if kind != "corpus" and options.labels is not None:
        raise ValueError(
            f"--labels colours the points of --kind corpus, and this is a map of {kind}"
        )
    if kind == "corpus":
        drawn = _corpus(options)
    else:
        sentences, vectors, unknown = (_read_vectors if stored else _embed)(options, kind)
        make = map_of_languages if kind == "languages" else map_of_meanings
        drawn = make(sentences, vectors, unknown, options.translation)
    chart.save(drawn, options.output, options.size)
    for note in drawn.notes:
        print(f"{options.prog}: {note}", file=sys.stderr)
    print(f"{options.output}: {drawn.title}")
    return 0


Given = tuple[Parallel, npt.NDArray[np.float32], list[float]]


def _embed(options: Namespace, kind: str) -> Given:
    """Parallel sentences from files, with their vectors [languages, meanings, hidden_size]."""
    columns = Columns(options.text_column, options.language_column, options.meaning_column)
    sentences = read_parallel(options.input, columns)
    if kind == "meanings":
        sentences = first_meanings(sentences, options.meanings)
    model = E5.from_pretrained(options.model, **vars(load_options(options)))
    texts = [text for row in sentences.texts for text in row]
    vectors = model.encode_query(texts)
    shape = (len(sentences.languages), len(sentences.meanings), -1)
    return sentences, vectors.reshape(shape), unknown_shares(sentences, model.tokenizer)


def _read_vectors(options: Namespace, kind: str) -> Given:
    """The same from vectors whose rows name languages and meanings."""
    index = Index.open(options.input)
    everything = list(range(len(index.vectors)))
    texts, languages, meanings = (
        _texts(options, index, everything, column)
        for column in (None, options.language_column, options.meaning_column)
    )
    sentences = parallel(texts, languages, meanings)
    if kind == "meanings":
        sentences = first_meanings(sentences, options.meanings)
    vectors = np.asarray(index.vectors[np.array(sentences.places)], dtype=np.float32)
    return sentences, vectors, unknown_shares(sentences, _tokenizer(options, index))


def _tokenizer(options: Namespace, index: Index) -> SentencePieceTokenizer:
    """The tokenizer of the model that made vectors, to see which scripts it knows."""
    made = index.made_from or {}
    name = made.get("model", {}).get("name", options.model)
    return ModelFolder.open(name, load_options(options)).load_tokenizer()


def _corpus(options: Namespace) -> Map:
    """Vectors of any texts; a sample at equal distances if they are too many."""
    index = Index.open(options.input)
    if options.points < 3:
        raise ValueError(f"--points is {options.points}, expected 3 or more")
    count = len(index.vectors)
    chosen = np.unique(np.linspace(0, count - 1, min(count, options.points)).astype(np.int64))
    places = chosen.tolist()
    texts = _texts(options, index, places, None, needed=False)
    labels = None if options.labels is None else _texts(options, index, places, options.labels)
    vectors = np.asarray(index.vectors[chosen], dtype=np.float32)
    return map_of_corpus(vectors, texts, labels, options.labels or "")


def first_meanings(sentences: Parallel, count: int) -> Parallel:
    """Sentences with their first meanings alone."""
    if count < 1:
        raise ValueError(f"--meanings is {count}, expected 1 or more")
    return Parallel(
        sentences.languages,
        sentences.meanings[:count],
        [row[:count] for row in sentences.texts],
        [row[:count] for row in sentences.places],
    )


def _texts(
    options: Namespace, index: Index, places: list[int], column: str | None, needed: bool = True
) -> list[str]:
    """A field of the rows that vectors were made of, read anew; None is the embedded text."""
    found = read_passages(index, options.input, places, column=column)
    if needed and len(found) < len(places):
        raise ValueError(
            f"{len(places) - len(found)} of {len(places)} rows of {options.input} have no "
            f"{column or 'text'} that can still be read where they were"
        )
    return [found.get(place, "") for place in places]


def _size(text: str) -> tuple[int, int]:
    """Width and height of "860x600"."""
    numbers = text.split("x")
    if len(numbers) == 2 and all(number.isdecimal() for number in numbers):
        width, height = map(int, numbers)
        if all(SMALLEST <= number <= LARGEST for number in (width, height)):
            return width, height
    raise ArgumentTypeError(
        f"is {text!r}, expected a width and a height from {SMALLEST} to {LARGEST}, as 860x600"
    )
