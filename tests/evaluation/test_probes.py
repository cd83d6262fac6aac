"""Probes against scikit-learn's ridge regression, and by hand."""

import numpy as np
import tensorflow as tf
from sklearn import datasets, linear_model, metrics

from jest_tf import evaluation
from jest_tf.evaluation import probes


def digits():
    """Unit-norm pixels and labels of scikit-learn's digits, in two halves."""
    images, labels = datasets.load_digits(return_X_y=True)
    images = images / np.linalg.norm(images, axis=1, keepdims=True)
    return images[:900], labels[:900], images[900:], labels[900:]


class FewShotTest(tf.test.TestCase):
    def test_least_squares_is_ridge_regression(self):
        # Fewer rows than features, and more.
        train, labels, test, _ = digits()
        for rows in (20, 300):
            some, l2 = train[:rows], 7.0
            scale = some.std(axis=0) + 1e-5
            mean = some.mean(axis=0)

            def prepared(values, scale=scale, mean=mean):
                constant = np.full([len(values), 1], 100.0)
                return np.hstack([(values - mean) / scale, constant])

            targets = 2.0 * np.eye(10)[labels[:rows]] - 1.0
            ridge = linear_model.Ridge(alpha=l2, fit_intercept=False)
            ridge.fit(prepared(some), targets)
            self.assertAllClose(
                probes.least_squares(some, labels[:rows], test, 10, l2),
                ridge.predict(prepared(test)),
                rtol=1e-6,
                atol=1e-6,
            )

    def test_shots_are_drawn_by_class_and_seed(self):
        train, labels, test, test_labels = digits()
        found = evaluation.few_shot_measures(
            *(train, labels, test, test_labels),
            num_classes=10,
            shots=[1, 10],
            num_seeds=2,
        )
        expected = {1: [], 10: []}
        for seed in range(2):
            random = np.random.default_rng(seed)
            orders = [
                random.permutation(np.where(labels == one)[0])
                for one in range(10)
            ]
            for shots, shares in expected.items():
                rows = np.concatenate([order[:shots] for order in orders])
                self.assertAllEqual(
                    np.bincount(labels[rows]), np.full(10, shots)
                )
                scores = probes.least_squares(
                    train[rows], labels[rows], test, 10, 1024.0
                )
                shares.append(np.mean(scores.argmax(axis=1) == test_labels))
        for shots, shares in expected.items():
            self.assertAllClose(
                found[f"few_shot/{shots}_shots"], np.mean(shares)
            )
            self.assertAllClose(
                found[f"few_shot/{shots}_shots_std"], np.std(shares)
            )
        # Ten pictures of a digit tell more than one does.
        self.assertGreater(
            found["few_shot/10_shots"], found["few_shot/1_shots"] + 0.1
        )


class LinearProbeTest(tf.test.TestCase):
    def test_it_is_the_best_logistic_regression_of_a_grid(self):
        train, labels, test, test_labels = digits()
        found = evaluation.linear_probe_measures(
            train[:60], labels[:60], test[:60], test_labels[:60]
        )
        held = np.random.default_rng(0).permutation(60)[::5]
        kept = np.setdiff1d(np.arange(60), held)

        def fit(rows, inverse):
            model = linear_model.LogisticRegression(C=inverse, max_iter=1000)
            return model.fit(train[rows], labels[rows])

        grid = np.logspace(-6, 6, 13)
        scores = [
            fit(kept, one).score(train[held], labels[held]) for one in grid
        ]
        model = fit(np.arange(60), grid[np.argmax(scores)])
        chosen = model.predict(test[:60])
        self.assertAllClose(
            found["linear_probe/accuracy@1"],
            np.mean(chosen == test_labels[:60]),
        )
        self.assertAllClose(
            found["linear_probe/mean_per_class"],
            metrics.balanced_accuracy_score(test_labels[:60], chosen),
        )
        self.assertAllClose(
            found["linear_probe/accuracy@5"],
            metrics.top_k_accuracy_score(
                test_labels[:60],
                model.decision_function(test[:60]),
                k=5,
                labels=model.classes_,
            ),
        )

    def test_a_class_that_was_not_trained_on_is_never_right(self):
        found = evaluation.linear_probe_measures(
            [[-1.0], [1.0]] * 5, [0, 1] * 5, [[-1.0], [1.0], [2.0]], [0, 1, 2]
        )
        self.assertAllClose(found["linear_probe/accuracy@1"], 2 / 3)
        self.assertAllClose(found["linear_probe/mean_per_class"], 2 / 3)

    def test_what_does_not_fit_is_refused(self):
        two = np.eye(2)
        with self.assertRaisesRegex(ValueError, "of two classes or more"):
            evaluation.linear_probe_measures(two, [1, 1], two, [1, 1])
        with self.assertRaisesRegex(ValueError, "`test_labels` must have"):
            evaluation.few_shot_measures(
                two, [0, 1], two, [0], num_classes=2, shots=[1]
            )
