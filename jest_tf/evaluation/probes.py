"""Probes: linear classifiers on embeddings of labelled pictures.

`few_shot` is the L2-regularised least squares that big_vision reports for
SigLIP; `linear_probe` is the logistic regression of CLIP's paper.

References: Zhai et al. 2022, arXiv 2106.04560, appendix B.3 (few-shot); Radford
et al. 2021, arXiv 2103.00020, appendix A (logistic regression).
"""

import warnings
from collections.abc import Sequence

import numpy as np

from jest_tf.evaluation import ranking

MEASURES = (
    "linear_probe/accuracy@1",
    "linear_probe/accuracy@5",
    "linear_probe/mean_per_class",
)

# The constant feature is large, so that its weight, the bias of a class, is
# hardly regularised.
_CONSTANT = 100.0
# Added to the deviations that features are divided by.
_EPSILON = 1e-5
# The inverse regularisations to try, and the held-out share that chooses.
_GRID = np.logspace(-6, 6, 13)
_HELD_OUT = 5
_MAX_ITERATIONS = 1000


def few_shot_measures(
    train: np.ndarray,
    train_labels: np.ndarray,
    test: np.ndarray,
    test_labels: np.ndarray,
    *,
    num_classes: int,
    shots: Sequence[int],
    num_seeds: int = 3,
    l2: float = 1024.0,
) -> dict[str, float]:
    """Returns the accuracy of least squares on a few pictures of each class.

    Targets are 1 for a picture's class and -1 for others; features are
    standardised by the chosen pictures. A class with fewer pictures than asked
    for gives all that it has.

    Args:
        train: float [n, D] embeddings to choose from.
        train_labels: integers [n] in [0, num_classes).
        test: float [m, D].
        test_labels: integers [m].
        num_classes: C.
        shots: pictures of a class, several numbers.
        num_seeds: draws; a draw of fewer shots is a part of that of more.
        l2: weight of the squared coefficients.

    Returns:
        `few_shot/K_shots`, the mean over seeds, and `few_shot/K_shots_std`,
        the standard deviation over seeds, of each K.

    Raises:
        ValueError: shapes do not fit, or an embedding is not finite.
    """
    train, train_labels = _checked("train", train, train_labels)
    test, test_labels = _checked("test", test, test_labels)
    accuracies: dict = {count: [] for count in shots}
    for seed in range(num_seeds):
        generator = np.random.default_rng(seed)
        orders = [
            generator.permutation(np.flatnonzero(train_labels == label))
            for label in range(num_classes)
        ]
        for count, found in accuracies.items():
            rows = np.concatenate([order[:count] for order in orders])
            scores = least_squares(
                train[rows], train_labels[rows], test, num_classes, l2
            )
            found.append(np.mean(scores.argmax(axis=1) == test_labels))
    results = {}
    for count, found in accuracies.items():
        results[f"few_shot/{count}_shots"] = float(np.mean(found))
        results[f"few_shot/{count}_shots_std"] = float(np.std(found))
    return results


def least_squares(
    features: np.ndarray,
    labels: np.ndarray,
    test: np.ndarray,
    num_classes: int,
    l2: float,
) -> np.ndarray:
    """Fits W = (X'X + l2 I)^-1 X'Y and returns the scores of `test`, [m, C].

    X has standardised features and a constant, Y is 1 for the class of a row
    and -1 elsewhere. Arguments as in `few_shot_measures`, float64.
    """
    mean = features.mean(axis=0)
    deviation = features.std(axis=0) + _EPSILON

    def prepared(rows):
        rows = (rows - mean) / deviation
        return np.pad(rows, [(0, 0), (0, 1)], constant_values=_CONSTANT)

    known = prepared(features)  # [n, D + 1]
    targets = 2.0 * (labels[:, None] == np.arange(num_classes)) - 1.0
    n, width = known.shape
    if n >= width:
        weights = np.linalg.solve(
            known.T @ known + l2 * np.eye(width), known.T @ targets
        )
    else:  # the same, by the smaller matrix
        weights = known.T @ np.linalg.solve(
            known @ known.T + l2 * np.eye(n), targets
        )
    return prepared(test) @ weights


def linear_probe_measures(
    train: np.ndarray,
    train_labels: np.ndarray,
    test: np.ndarray,
    test_labels: np.ndarray,
) -> dict[str, float]:
    """Returns measures of logistic regression on all training embeddings.

    The regularisation is the best of 13 on a fifth of `train`, held out; the
    classifier is then fitted to all of it. Arguments as `few_shot_measures`.

    Returns:
        `MEASURES`; the mean is over the classes of `test`.

    Raises:
        ValueError: shapes do not fit, an embedding is not finite, or there are
            fewer than two classes.
    """
    train, train_labels = _checked("train", train, train_labels)
    test, test_labels = _checked("test", test, test_labels)
    if len(np.unique(train_labels)) < 2:
        raise ValueError(
            "`train_labels` must be of two classes or more. Received: one"
        )
    order = np.random.default_rng(0).permutation(len(train))
    held, kept = (
        order[::_HELD_OUT],
        np.delete(order, np.arange(0, len(order), _HELD_OUT)),
    )
    best = 1.0
    if len(np.unique(train_labels[kept])) > 1:
        scores = [
            _logistic(train[kept], train_labels[kept], inverse).score(
                train[held], train_labels[held]
            )
            for inverse in _GRID
        ]
        best = _GRID[int(np.argmax(scores))]
    model = _logistic(train, train_labels, best)
    scores = model.decision_function(test)
    if scores.ndim == 1:  # of two classes
        scores = np.stack([-scores, scores], axis=1)
    places = np.searchsorted(model.classes_, test_labels)
    known = model.classes_[places % len(model.classes_)] == test_labels
    own = np.where(
        known,
        np.take_along_axis(
            scores, (places % len(model.classes_))[:, None], axis=1
        )[:, 0],
        -np.inf,
    )
    ranks = 1 + (scores > own[:, None]).sum(axis=1)
    hits = known & (ranks == 1)
    counts = np.bincount(test_labels)
    shares = np.bincount(test_labels, hits)[counts > 0] / counts[counts > 0]
    values = np.mean(hits), np.mean(known & (ranks <= 5)), np.mean(shares)
    return dict(zip(MEASURES, map(float, values), strict=True))


def _logistic(features, labels, inverse):
    from sklearn import linear_model  # takes a second

    model = linear_model.LogisticRegression(C=inverse, max_iter=_MAX_ITERATIONS)
    with warnings.catch_warnings():
        # At weak regularisation, where the best rarely lies.
        warnings.simplefilter("ignore")
        return model.fit(features, labels)


def _checked(name, vectors, labels):
    vectors = np.float64(ranking.check_vectors(name, vectors))
    ranking.check_rows(f"{name}_labels", labels, len(vectors))
    return vectors, np.asarray(labels)
