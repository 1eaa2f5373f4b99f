"""Places on a plane: the components of theory, languages without their meanings, no bent planes."""

import numpy as np
import pytest

from e5core.vectors.places import language_places, places


def test_the_plane_of_points_that_lie_in_one() -> None:
    random = np.random.default_rng(0)
    plane = np.linalg.qr(random.standard_normal((9, 9)))[0][:2]
    flat = random.standard_normal((40, 2)) * [5, 1]
    # On a sphere's small cap a plane stays one: unit length hardly bends it.
    vectors = 1000 * np.ones(9) / 3 + flat @ plane
    found = places(vectors)
    assert found.shares.sum() == pytest.approx(1, abs=1e-3)
    assert found.shares[0] > found.shares[1]
    # Distances are kept, but for the length that unit vectors have lost.
    of = np.linalg.norm(found.coordinates[0] - found.coordinates[1:], axis=1)
    centred = vectors / np.linalg.norm(vectors, axis=1)[:, None]
    expected = np.linalg.norm(centred[0] - centred[1:], axis=1)
    np.testing.assert_allclose(of, expected, rtol=0.02)
    # And they are those of NumPy's covariance.
    values = np.linalg.eigvalsh(np.cov(centred.T))[::-1]
    np.testing.assert_allclose(found.coordinates.var(axis=0, ddof=1), values[:2], rtol=1e-4)


def test_languages_are_found_whatever_is_said() -> None:
    """A vector is its meaning and a little of its language: the map has the languages alone."""
    random = np.random.default_rng(1)
    meanings = random.standard_normal((50, 64))
    families = random.standard_normal((3, 64)) * 0.2
    languages = np.repeat(families, 4, axis=0) + random.standard_normal((12, 64)) * 0.02
    for said in (meanings, random.standard_normal((50, 64))):
        vectors = said[None] + languages[:, None] + random.standard_normal((12, 50, 64)) * 0.05
        coordinates = language_places(vectors).coordinates.reshape(3, 4, 2)
        centres = coordinates.mean(axis=1)
        within = np.linalg.norm(coordinates - centres[:, None], axis=2).max()
        apart = min(np.linalg.norm(centres[i] - centres[j]) for i, j in ((0, 1), (0, 2), (1, 2)))
        assert apart > 4 * within
        # Of single vectors the meanings are most.
        single = places(vectors.reshape(-1, 64)).coordinates.reshape(3, 200, 2).mean(axis=1)
        spread = places(vectors.reshape(-1, 64)).coordinates.std()
        assert np.linalg.norm(single - single.mean(axis=0), axis=1).max() < spread


def test_a_direction_in_which_sentences_differ_counts_less() -> None:
    """Two pairs of languages: one apart where all sentences are spread, one where none is."""
    random = np.random.default_rng(3)
    noise = random.standard_normal((4, 400, 8)) * [1, 0.05, 0.05, 0.05, 0.05, 0.05, 0.05, 0.05]
    languages = np.zeros((4, 1, 8))
    languages[0, 0, 0] = languages[1, 0, 0] = 0.3
    languages[0, 0, 1] = languages[2, 0, 1] = 0.3
    coordinates = language_places(noise + languages + 5).coordinates
    assert np.linalg.norm(coordinates[0] - coordinates[2]) < np.linalg.norm(
        coordinates[0] - coordinates[1]
    )


def test_what_is_not_fitted_bends_no_plane() -> None:
    random = np.random.default_rng(2)
    vectors = random.standard_normal((8, 5, 16)) * 0.1 + 1
    vectors[3] += 10 * random.standard_normal(16)
    fitted = np.arange(8) != 3
    found = language_places(vectors, fitted)
    alone = language_places(vectors[fitted])
    np.testing.assert_allclose(found.coordinates[fitted], alone.coordinates, atol=1e-7)
    np.testing.assert_allclose(found.shares, alone.shares)
    bent = language_places(vectors)
    assert bent.shares[0] > 2 * found.shares[0] or bent.shares[0] > 0.9


def test_refusals() -> None:
    vectors = np.eye(4)
    with pytest.raises(ValueError, match=r"expected \[languages, sentences, hidden_size\]"):
        language_places(vectors)
    with pytest.raises(ValueError, match="2 places are to be put on a plane, expected 3 or more"):
        places(vectors[:2])
    with pytest.raises(ValueError, match=r"fitted has the shape \(2,\), expected \(4,\)"):
        places(vectors, [True, False])
    with pytest.raises(ValueError, match="vector 1 of vectors is zero"):
        places(np.array([[1.0, 2.0], [0.0, 0.0], [1.0, 0.0]]))
