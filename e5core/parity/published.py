"""Outputs that others have published for the real checkpoints, as data.

Every number was read in the source named beside it. None was computed by this project.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class LastNumbers:
    """The last number of each token's last hidden state, for a text that is given as ids."""

    source: str
    tolerance: float
    ids: tuple[int, ...]
    numbers: tuple[float, ...]  # one a token


@dataclass(frozen=True)
class FirstNumbers:
    """The first numbers of a text's pooled vector; no prefix, not normalised."""

    source: str
    tolerance: float
    text: str
    numbers: tuple[float, ...]


@dataclass(frozen=True)
class Prefixes:
    name: str
    query: str
    passage: str


@dataclass(frozen=True)
class Similarities:
    """Cosines of every query with every passage, times `scale`.

    settings  the prefixes that may have been used; the numbers have to hold under one of them
    """

    source: str
    tolerance: float
    scale: float
    settings: tuple[Prefixes, ...]
    queries: tuple[str, ...]
    passages: tuple[str, ...]
    numbers: tuple[float, ...]  # [queries, passages], row by row


@dataclass(frozen=True)
class Scores:
    """What a cross-encoder gives to pairs: logits, or their sigmoid if `normalized`."""

    source: str
    tolerance: float
    normalized: bool
    pairs: tuple[tuple[str, str], ...]
    numbers: tuple[float, ...]  # one a pair


Expectation = LastNumbers | FirstNumbers | Similarities | Scores

TRANSFORMERS = "transformers, tests/models/xlm_roberta/test_modeling_xlm_roberta.py"
FASTEMBED = "fastembed, tests/test_text_onnx_embeddings.py"
SENTENCE_TRANSFORMERS = "sentence-transformers, tests/test_pretrained.py"
CROSS_ENCODERS = "sentence-transformers, tests/cross_encoder/test_pretrained.py"
FLAG_EMBEDDING = "FlagEmbedding, examples/inference/reranker/README.md"
MODEL_CARD = "model card of intfloat/multilingual-e5-large-instruct"

TASK = "Given a web search query, retrieve relevant passages that answer the query"
NO_PREFIX = Prefixes("no prefix", "", "")
E5_PREFIXES = Prefixes("query and passage prefix", "query: ", "passage: ")
INSTRUCTION = Prefixes("instruction", f"Instruct: {TASK}\nQuery: ", "")


def _xlm_roberta(*numbers: float) -> LastNumbers:
    ids = (0, 581, 10269, 83, 99942, 136, 60742, 23, 70, 80583, 18276, 2)
    return LastNumbers(TRANSFORMERS, 1e-3, ids, numbers)


def _red_planet(settings: tuple[Prefixes, ...], *numbers: float) -> Similarities:
    """The test's settings are unknown: prefixes depended on the repository as it was that day."""
    return Similarities(
        SENTENCE_TRANSFORMERS,
        0.01,
        1.0,
        settings,
        queries=(_PLANET,),
        passages=_PLANETS,
        numbers=numbers,
    )


def _red_planet_scores(*numbers: float, normalized: bool = True) -> Scores:
    """Computed in bfloat16, which rounds a logit of 10 to sixteenths and a sigmoid near 1 to
    256ths. The test allows two runs of that 0.01; other precisions get twice as much, and two
    steps for logits."""
    tolerance = 0.02 if normalized else 0.125
    pairs = tuple((_PLANET, passage) for passage in _PLANETS)
    return Scores(CROSS_ENCODERS, tolerance, normalized, pairs, numbers)


def _flag_embedding(*numbers: float) -> Scores:
    """Printed in float16 on a GPU, where a logit of 5 is rounded to 256ths, and so is every
    layer before it. No tolerance is named."""
    panda = "what is panda?"
    pairs = (("query", "passage"), (panda, "hi"), (panda, _GIANT_PANDA))
    return Scores(FLAG_EMBEDDING, 0.05, False, pairs, numbers)


_PLANET = "Which planet is known as the Red Planet?"
_PLANETS = (
    "Venus is often called Earth's twin because of its similar size and proximity.",
    "Mars, known for its reddish appearance, is often referred to as the Red Planet.",
    "Jupiter, the largest planet in our solar system, has a prominent red spot.",
    "Saturn, famous for its rings, is sometimes mistaken for the Red Planet.",
)
_GIANT_PANDA = (
    "The giant panda (Ailuropoda melanoleuca), sometimes called a panda bear or simply panda, is a "
    "bear species endemic to China."
)
_PROTEIN = (
    "As a general guideline, the CDC's average requirement of protein for women ages 19 to 70 is "
    "46 grams per day. But, as you can see from this chart, you'll need to increase that if you're "
    "expecting or training for a marathon. Check out the chart below to see how much protein you "
    "should be eating each day."
)
_PUMPKIN = (
    "1.清炒南瓜丝 原料:嫩南瓜半个 调料:葱、盐、白糖、鸡精 做法: "
    "1、南瓜用刀薄薄的削去表面一层皮,用勺子刮去瓤 "
    "2、擦成细丝(没有擦菜板就用刀慢慢切成细丝) 3、锅烧热放油,入葱花煸出香味 "
    "4、入南瓜丝快速翻炒一分钟左右,放盐、一点白糖和鸡精调味出锅 "
    "2.香葱炒南瓜 原料:南瓜1只 调料:香葱、蒜末、橄榄油、盐 做法: 1、将南瓜去皮,切成片 "
    "2、油锅8成热后,将蒜末放入爆香 3、爆香后,将南瓜片放入,翻炒 "
    "4、在翻炒的同时,可以不时地往锅里加水,但不要太多 5、放入盐,炒匀 "
    "6、南瓜差不多软和绵了之后,就可以关火 7、撒入香葱,即可出锅"
)

PUBLISHED: dict[str, tuple[Expectation, ...]] = {
    "FacebookAI/xlm-roberta-base": (
        _xlm_roberta(
            *(-0.0101, 0.1218, -0.0803, 0.0801, 0.1327, 0.0776),
            *(-0.1215, 0.2383, 0.3338, 0.3106, 0.0300, 0.0252),
        ),
    ),
    "FacebookAI/xlm-roberta-large": (
        _xlm_roberta(
            *(-0.0699, -0.0318, 0.0705, -0.1241, 0.0999, -0.0520),
            *(0.1004, -0.1838, -0.4704, 0.1437, 0.0821, 0.0126),
        ),
    ),
    "intfloat/multilingual-e5-base": (
        _red_planet((NO_PREFIX, E5_PREFIXES), 0.79078, 0.87654, 0.85599, 0.86601),
    ),
    "intfloat/multilingual-e5-large": (
        FirstNumbers(FASTEMBED, 1e-3, "hello world", (0.4544, -0.0968, 0.1054, -1.3753, 0.1500)),
        _red_planet((NO_PREFIX, E5_PREFIXES), 0.76823, 0.87257, 0.8288, 0.83204),
    ),
    "intfloat/multilingual-e5-large-instruct": (
        _red_planet((NO_PREFIX, E5_PREFIXES, INSTRUCTION), 0.79779, 0.89875, 0.85599, 0.85365),
        Similarities(
            MODEL_CARD,
            # The card names no tolerance. This allows a cosine 1e-3, which the other sources allow
            # a number. It is wide enough for weights that have been stored in float16 since.
            0.1,
            100.0,
            (INSTRUCTION,),
            queries=("how much protein should a female eat", "南瓜的家常做法"),
            passages=(_PROTEIN, _PUMPKIN),
            numbers=(91.92852783203125, 67.580322265625, 70.3814468383789, 92.1330795288086),
        ),
    ),
    "BAAI/bge-reranker-base": (_red_planet_scores(0.87891, 0.99609, 0.99609, 0.05029),),
    "BAAI/bge-reranker-large": (
        _flag_embedding(-1.5263671875, -5.60546875, 5.76171875),
        _red_planet_scores(0.69922, 1.0, 0.97266, 0.81641),
    ),
    "BAAI/bge-reranker-v2-m3": (
        _flag_embedding(-5.65234375, -8.1875, 5.26171875),
        _red_planet_scores(0.01855, 1.0, 0.78906, 0.98828),
    ),
    "cross-encoder/mmarco-mMiniLMv2-L12-H384-v1": (
        _red_planet_scores(-3.28125, 10.1875, 3.4375, 7.46875, normalized=False),
    ),
    "dragonkue/bge-reranker-v2-m3-ko": (_red_planet_scores(0.00711, 1.0, 0.96484, 1.0),),
    "hotchpotch/japanese-bge-reranker-v2-m3-v1": (
        _red_planet_scores(0.04077, 0.99609, 0.82031, 0.98438),
    ),
    # bge-reranker-v2-m3 with a trimmed vocabulary: the same scores, to the last digit.
    "qilowoq/bge-reranker-v2-m3-en-ru": (_red_planet_scores(0.01855, 1.0, 0.78906, 0.98828),),
    "seroe/bge-reranker-v2-m3-turkish-triplet": (
        _red_planet_scores(0.01453, 0.99609, 0.625, 0.96875),
    ),
}


def published_outputs(name: str) -> tuple[Expectation, ...]:
    """The outputs for a hub id, or for the last part of one.

    Raises ValueError, which lists the known models.
    """
    for model, expected in PUBLISHED.items():
        if name in (model, model.rsplit("/", 1)[-1]):
            return expected
    raise ValueError(
        f"no published outputs are known for {name!r}, only for {', '.join(PUBLISHED)}; say with "
        "--published-as which of these a folder holds"
    )
