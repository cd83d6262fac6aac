"""Zero-shot classification with class names as prompts.

Reference: Radford et al. 2021, arXiv 2103.00020.
"""

from collections.abc import Callable, Sequence

import numpy as np

from jest_tf import models
from jest_tf.config import checks
from jest_tf.evaluation import ranking

_ACCURACIES = (1, 5)


def zero_shot_measures(
    image_embeddings: np.ndarray,
    image_classes: np.ndarray,
    class_embeddings: np.ndarray,
) -> dict[str, float]:
    """Returns the accuracy of the nearest class embeddings.

    Args:
        image_embeddings: float [N, D].
        image_classes: integer [N], the row of each image's class.
        class_embeddings: float [C, D].

    Returns:
        `zero_shot/accuracy@1` and `@5`, the shares of images whose class is
        among the k best, and `zero_shot/mean_per_class`, the mean, over classes
        with images, of each class's share for k = 1. A tie counts as its mean
        over all orders.
    """
    targets = np.asarray(image_classes)
    hits_within = image_values(image_embeddings, targets, class_embeddings)
    results = {name: float(hits.mean()) for name, hits in hits_within.items()}
    counts = np.bincount(targets, minlength=len(class_embeddings))
    hits = hits_within["zero_shot/accuracy@1"]
    shares = np.bincount(targets, hits, len(counts))[counts > 0]
    results["zero_shot/mean_per_class"] = float(
        np.mean(shares / counts[counts > 0])
    )
    return results


def image_values(
    image_embeddings: np.ndarray,
    image_classes: np.ndarray,
    class_embeddings: np.ndarray,
) -> dict[str, np.ndarray]:
    """Returns what each image adds to `zero_shot/accuracy@1` and `@5`.

    Arguments are as in `zero_shot_measures`; the result is float64 [N] by name.
    """
    images = ranking.check_vectors("image_embeddings", image_embeddings)
    classes = ranking.check_vectors("class_embeddings", class_embeddings)
    ranking.check_rows("image_classes", image_classes, len(images))
    targets = np.asarray(image_classes)
    if targets.min() < 0 or targets.max() >= len(classes):
        raise ValueError(
            f"`image_classes` must be in [0, {len(classes)}). Received: "
            f"{targets.min()} to {targets.max()}"
        )
    places = ranking.places(
        "zero_shot", images, targets, classes, np.arange(len(classes))
    )
    return {
        f"zero_shot/accuracy@{k}": ranking.expected(
            places, lambda ranks, k=k: ranks <= k
        )
        for k in _ACCURACIES
    }


def nearest(
    image_embeddings: np.ndarray, class_embeddings: np.ndarray
) -> np.ndarray:
    """Returns the nearest class of each image, int64 [N].

    Ties go to the lower row. Arguments are as in `zero_shot_measures`.
    """
    images = ranking.check_vectors("image_embeddings", image_embeddings)
    classes = ranking.check_vectors("class_embeddings", class_embeddings)
    size = ranking.BLOCK_SIZE
    return np.concatenate(
        [
            ranking.scores(images[start : start + size], classes).argmax(axis=1)
            for start in range(0, len(images), size)
        ]
    )


def class_embeddings(
    encode_text: Callable[[list[str]], np.ndarray],
    class_names: Sequence[str],
    prompts: Sequence[str] = ("{}",),
) -> np.ndarray:
    """Embeds class names: the mean over prompts, scaled to unit length.

    Args:
        encode_text: maps n strings to unit-norm embeddings [n, D].
        class_names: C names.
        prompts: templates, each with one "{}" where the name goes.

    Returns:
        float32 [C, D].
    """
    checks.check("class_names", class_names, ("at least one name", len))
    checks.check("prompts", prompts, checks.PROMPTS)
    texts = [
        prompt.replace("{}", name) for name in class_names for prompt in prompts
    ]
    embeddings = np.asarray(encode_text(texts))
    # [C * prompts, D] -> [C, D]
    mean = embeddings.reshape(len(class_names), len(prompts), -1).mean(axis=1)
    return np.asarray(models.unit_norm(mean))
