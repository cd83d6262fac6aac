"""Image-to-text and text-to-image retrieval, as in the JEST paper's tables.

Reference: Evans et al. 2024, arXiv 2406.17711.
"""

import collections
from collections.abc import Sequence

import numpy as np

from jest_tf.evaluation import ranking

_RECALLS = (1, 5, 10)


def retrieval_measures(
    image_embeddings: np.ndarray,
    text_embeddings: np.ndarray,
    image_groups: Sequence,
    text_groups: Sequence,
) -> dict[str, float]:
    """Returns recall and mean reciprocal rank in both directions.

    An image and a text match if their groups are equal; a query's rank is that
    of its first match. Recall@k is the share of ranks up to k, MRR the mean of
    1 / rank.

    Args:
        image_embeddings: float [N, D]; the score is the inner product.
        text_embeddings: float [M, D].
        image_groups: [N] integers or strings.
        text_groups: [M], of the same kind.

    Returns:
        `image_to_text/recall@1`, `@5`, `@10`, `mrr` and the same of
        `text_to_image`, each in [0, 1].
    """
    sides = image_embeddings, text_embeddings, image_groups, text_groups
    return {
        name: float(values.mean())
        for name, values in query_values(*sides).items()
    }


def query_values(
    image_embeddings: np.ndarray,
    text_embeddings: np.ndarray,
    image_groups: Sequence,
    text_groups: Sequence,
) -> dict[str, np.ndarray]:
    """Returns what each query adds to the means of `retrieval_measures`.

    Returns:
        Its names; float64 [N] from image to text, float64 [M] from text to
        image, each in [0, 1].
    """
    results = {}
    for name, places in _places(
        image_embeddings, text_embeddings, image_groups, text_groups
    ):
        results |= _values(name, places)
    return results


def chance(image_groups: Sequence, text_groups: Sequence) -> dict[str, float]:
    """Returns the measures of a model that maps everything to the same point.

    Groups are as in `retrieval_measures`; every query must have a match.
    """
    results = {}
    for name, queries, candidates in (
        ("image_to_text", image_groups, text_groups),
        ("text_to_image", text_groups, image_groups),
    ):
        sizes = collections.Counter(candidates)
        matching, counts = np.unique(
            [sizes[query] for query in queries], return_counts=True
        )
        tied = len(candidates) - matching
        places = ranking.Places(np.zeros_like(tied), tied, matching)
        results |= {
            name: float(np.average(values, weights=counts))
            for name, values in _values(name, places).items()
        }
    return results


def ranks(
    image_embeddings: np.ndarray,
    text_embeddings: np.ndarray,
    image_groups: Sequence,
    text_groups: Sequence,
) -> dict[str, np.ndarray]:
    """Returns ranks of first matches; arguments as in `retrieval_measures`.

    Returns:
        `image_to_text`, float64 [N], and `text_to_image`, float64 [M]: expected
        ranks, from 1; integers unless scores are tied.
    """
    expected = {}
    for name, (above, tied, matching) in _places(
        image_embeddings, text_embeddings, image_groups, text_groups
    ):
        # With t misses and m matches in random order, t / (m + 1) misses are
        # expected before the first match.
        expected[name] = above + 1 + tied / (matching + 1)
    return expected


def _values(name, places):
    """The measures of each query, by name."""
    values = {
        f"{name}/recall@{k}": ranking.expected(
            places, lambda ranks, k=k: ranks <= k
        )
        for k in _RECALLS
    }
    values[f"{name}/mrr"] = ranking.expected(places, lambda ranks: 1 / ranks)
    return values


def _places(images, texts, image_groups, text_groups):
    """Yields the name and the places of each direction."""
    images = ranking.check_vectors("image_embeddings", images)
    texts = ranking.check_vectors("text_embeddings", texts)
    ranking.check_rows("image_groups", image_groups, len(images))
    ranking.check_rows("text_groups", text_groups, len(texts))
    numbers: dict = {}  # equal groups on both sides have equal numbers
    image_groups, text_groups = (
        np.array([numbers.setdefault(group, len(numbers)) for group in side])
        for side in (image_groups, text_groups)
    )
    for name, *sides in (
        ("image_to_text", images, image_groups, texts, text_groups),
        ("text_to_image", texts, text_groups, images, image_groups),
    ):
        yield name, ranking.places(name, *sides)
