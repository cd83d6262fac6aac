"""Image-to-text and text-to-image retrieval, as in the JEST paper's tables.

Reference: Evans et al. 2024, arXiv 2406.17711.
"""

from collections.abc import Sequence

import numpy as np

from jest_tf.evaluation import ranking

_RECALLS = (1, 5, 10)

MEASURES = tuple(
    f"{direction}/{measure}"
    for direction in ("image_to_text", "text_to_image")
    for measure in (*(f"recall@{k}" for k in _RECALLS), "mrr")
)


def retrieval_measures(
    image_embeddings: np.ndarray,
    text_embeddings: np.ndarray,
    image_groups: Sequence,
    text_groups: Sequence,
    *,
    block_size: int = ranking.BLOCK_SIZE,
) -> dict[str, float]:
    """Recall and mean reciprocal rank in both directions.

    An image and a text match if they are of one group; a query is answered at
    the rank of its first match. Recall@k is the share of queries answered in
    the first k, MRR the mean of 1 / rank.

    Args:
        image_embeddings: float [N, D]; the score is the inner product.
        text_embeddings: float [M, D].
        image_groups: [N] integers or strings.
        text_groups: [M], of the same kind.
        block_size: queries scored at a time.

    Returns:
        `MEASURES`, each in [0, 1].

    Raises:
        ValueError: on shapes that do not fit, embeddings that are not finite,
            or a query without a match on the other side.
    """
    results = {}
    for name, queries in _directions(
        image_embeddings, text_embeddings, image_groups, text_groups
    ):
        places = ranking.places(name, *queries, block_size)
        for k in _RECALLS:
            results[f"{name}/recall@{k}"] = ranking.recall(places, k)
        results[f"{name}/mrr"] = ranking.expected(
            places, lambda ranks: 1 / ranks
        )
    return results


def ranks(
    image_embeddings: np.ndarray,
    text_embeddings: np.ndarray,
    image_groups: Sequence,
    text_groups: Sequence,
    *,
    block_size: int = ranking.BLOCK_SIZE,
) -> dict[str, np.ndarray]:
    """The rank of each query's first match, for statistics of the caller.

    Args:
        image_embeddings: as of `retrieval_measures`; the others likewise.

    Returns:
        `image_to_text`, float64 [N], and `text_to_image`, float64 [M]: the
        expected rank, from 1. It is whole unless scores are tied.

    Raises:
        ValueError: as `retrieval_measures`.
    """
    found = {}
    for name, queries in _directions(
        image_embeddings, text_embeddings, image_groups, text_groups
    ):
        above, tied, matching = ranking.places(name, *queries, block_size)
        # Of t misses among t + m in random order, t / (m + 1) come before the
        # first of the m matches.
        found[name] = above + 1 + tied / (matching + 1)
    return found


def _directions(images, texts, image_groups, text_groups):
    """Both directions by name: queries, candidates and their groups."""
    images = ranking.check_vectors("image_embeddings", images)
    texts = ranking.check_vectors("text_embeddings", texts)
    ranking.check_rows("image_groups", image_groups, len(images))
    ranking.check_rows("text_groups", text_groups, len(texts))
    numbers: dict = {}  # equal groups on both sides have equal numbers
    image_groups, text_groups = (
        np.array([numbers.setdefault(group, len(numbers)) for group in side])
        for side in (image_groups, text_groups)
    )
    return (
        ("image_to_text", (images, image_groups, texts, text_groups)),
        ("text_to_image", (texts, text_groups, images, image_groups)),
    )
