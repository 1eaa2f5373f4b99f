"""The real model ranks right across languages, on the project's own sentences."""

from itertools import permutations

import numpy as np

from e5core import similarity
from e5core.parity.samples import LANGUAGES, SENTENCES, TOPICS

# Of 16 sentences, how many must find their translation first. Measured: all 16 in 118 of the 132
# pairs, 14 in the worst (Swahili to Chinese), 99.3% in the mean. The published model, of which
# this one is a 4-bit copy, finds 97.9% of German's on the thousand sentences of Tatoeba.
LEAST_OF_16 = 14
LEAST_MEAN = 0.985


def test_translations_are_found_in_every_language_pair(real_model, measured):
    languages = list(dict.fromkeys(LANGUAGES))
    assert len(languages) == 12
    # A symmetric task: query on both sides, as the models' card says.
    vectors = real_model.encode_query(SENTENCES)
    by_language = {
        language: {
            topic: vector
            for topic, vector, of in zip(TOPICS, vectors, LANGUAGES, strict=True)
            if of == language
        }
        for language in languages
    }
    topics = sorted(set(TOPICS))
    right = {}
    for one, other in permutations(languages, 2):
        a, b = (np.stack([by_language[x][topic] for topic in topics]) for x in (one, other))
        right[one, other] = int((similarity(a, b).argmax(axis=1) == np.arange(len(topics))).sum())
    mean = np.mean(list(right.values())) / len(topics)
    worst = min(right, key=lambda pair: right[pair])
    measured(
        f"translations found first: {mean:.1%} over {len(right)} language pairs, all of them in "
        f"{sum(n == len(topics) for n in right.values())}; worst {'-'.join(worst)} {right[worst]} "
        f"of {len(topics)}"
    )
    for language in languages:
        pairs = [n for (one, _), n in right.items() if one == language]
        measured(f"    from {language}: {np.mean(pairs) / len(topics):.1%}")
    assert min(right.values()) >= LEAST_OF_16
    assert mean >= LEAST_MEAN
