"""The real model ranks right across languages, on the project's own sentences."""

from itertools import permutations

import numpy as np
from samples import LANGUAGES, SENTENCES, TOPICS

from e5core import similarity

# Of 16 sentences, how many must find their translation first. Measured: 16 in 112 of the 132
# pairs and 14 in the worst (Swahili to Chinese); the published model, of which this one is a
# 4-bit copy, is at .979 for German on the thousand sentences of Tatoeba.
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


def test_a_sentence_is_nearest_to_its_own_topic_in_all_languages(real_model):
    """Among all 191 others, the nearest is a translation."""
    vectors = real_model.encode_query(SENTENCES)
    scores = similarity(vectors, vectors)
    np.fill_diagonal(scores, -1)
    nearest = scores.argmax(axis=1)
    assert np.mean([TOPICS[i] == TOPICS[j] for i, j in enumerate(nearest)]) >= 0.99
