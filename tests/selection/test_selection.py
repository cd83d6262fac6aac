"""Joint selection against the paper's matrix form, and its properties."""

import itertools
from unittest import mock

import numpy as np
import oracles
import random_embeddings
import tensorflow as tf

from jest_tf import losses, selection
from jest_tf.embeddings import Embeddings
from jest_tf.selection import local_rows, scores, tiles


class JointSelectionTest(tf.test.TestCase):
    def test_the_same_noise_gives_the_set_of_the_matrix_form(self):
        sizes = [(200, 40, 5), (321, 101, 8), (64, 64, 3), (50, 1, 1)]
        for (size, batch, chunks), criterion, loss, first in itertools.product(
            sizes,
            selection.CRITERIA,
            selection.LOSSES,
            selection.FIRST_CHUNKS,
        ):
            learner, reference = random_embeddings.models(size, seed=size)
            noise = selection.gumbel_noise((3, 7), chunks, size).numpy()
            draw = selection.select_jointly(
                learner,
                reference,
                batch_size=batch,
                num_chunks=chunks,
                seed=(3, 7),
                criterion=criterion,
                loss=loss,
                first_chunk=first,
                gain=0.7,
            )
            expected = oracles.select_jointly(
                learner,
                reference,
                batch_size=batch,
                noise=noise,
                criterion=criterion,
                loss=loss,
                first_chunk=first,
                gain=0.7,
            )
            with self.subTest(
                size=size, criterion=criterion, loss=loss, first_chunk=first
            ):
                self.assertAllEqual(draw.indices, expected)

    def test_large_uneven_tiles_give_the_set_of_the_matrix_form(self):
        # More rows than a tile, more columns than a tile, neither a multiple.
        size, batch, chunks = 2500, 1203, 2
        learner, reference = random_embeddings.models(size, seed=5)
        for loss in selection.LOSSES:
            draw = selection.select_jointly(
                learner,
                reference,
                batch_size=batch,
                num_chunks=chunks,
                seed=(0, 1),
                loss=loss,
            )
            noise = selection.gumbel_noise((0, 1), chunks, size).numpy()
            expected = oracles.select_jointly(
                learner, reference, batch_size=batch, noise=noise, loss=loss
            )
            self.assertAllEqual(draw.indices, expected)

    def test_a_model_that_the_criterion_does_not_need_may_be_missing(self):
        learner, reference = random_embeddings.models(60)
        for criterion, ours in (
            ("easy_reference", (None, reference)),
            ("hard_learner", (learner, None)),
        ):
            options = dict(
                batch_size=12, num_chunks=3, seed=(1, 1), criterion=criterion
            )
            with_both = selection.select_jointly(learner, reference, **options)
            with_one = selection.select_jointly(*ours, **options)
            self.assertAllEqual(with_both.indices, with_one.indices)
            self.assertAllClose(with_both.score, with_one.score)
            missing = "learner" if ours[0] is None else "reference"
            self.assertIsNone(getattr(with_one, f"{missing}_loss"))

    def test_increments_of_any_order_add_up_to_the_score_of_the_set(self):
        # docs/method.md: sigmoid scores are exact increments of sum_ij S_ij.
        learner, reference = random_embeddings.models(30)
        matrix = oracles.pair_losses(learner) - oracles.pair_losses(reference)
        order = np.random.default_rng(0).permutation(30)[:9]
        total = 0.0
        criterion = "learnability"
        models = scores.check_models(learner, reference, criterion)
        state = scores.start(models, "sigmoid")
        for row in order:
            total += scores.conditional(state, criterion)[row]
            state = scores.add(
                state, tf.constant([row]), local_rows.LocalRows(30)
            )
        self.assertAllEqual(tf.where(state.kept)[:, 0], np.sort(order))
        self.assertAllClose(
            total, matrix[np.ix_(order, order)].sum(), rtol=1e-4
        )


class DrawReportTest(tf.test.TestCase):
    def test_row_losses_and_scores_equal_the_oracle(self):
        learner, reference = random_embeddings.models(90)
        for (name, sampler), loss in itertools.product(
            selection.SAMPLERS.items(), selection.LOSSES
        ):
            draw = sampler(
                learner,
                reference,
                batch_size=25,
                num_chunks=4,
                seed=(2, 3),
                loss=loss,
            )
            chosen = draw.indices.numpy()
            kept = np.isin(np.arange(90), chosen)
            batch = {}
            for model, parts in (
                ("learner", learner),
                ("reference", reference),
            ):
                expected = oracles.row_losses(parts, chosen, loss)
                with self.subTest(sampler=name, loss=loss, model=model):
                    self.assertAllClose(
                        getattr(draw, f"{model}_loss"), expected, atol=2e-4
                    )
                batch[model] = expected[kept].mean()
            self.assertAllEqual(draw.kept, kept)
            self.assertAllClose(
                draw.score, batch["learner"] - batch["reference"], atol=1e-4
            )

    def test_the_mean_of_kept_rows_is_the_loss_of_the_sub_batch(self):
        learner, reference = random_embeddings.models(70)
        for loss in selection.LOSSES:
            draw = selection.select_jointly(
                learner,
                reference,
                batch_size=20,
                num_chunks=5,
                seed=(4, 4),
                loss=loss,
            )
            for model, parts in (
                ("learner", learner),
                ("reference", reference),
            ):
                sub_batch = parts._replace(
                    image=parts.image[draw.indices.numpy()],
                    text=parts.text[draw.indices.numpy()],
                )
                direct = getattr(losses, f"{loss}_loss")(sub_batch)
                rows = tf.boolean_mask(
                    getattr(draw, f"{model}_loss"), draw.kept
                )
                self.assertAllClose(tf.reduce_mean(rows), direct, rtol=1e-5)

    def test_summary_averages_kept_and_dropped_rows(self):
        learner, reference = random_embeddings.models(50)
        draw = selection.select_jointly(
            learner, reference, batch_size=10, num_chunks=2, seed=(0, 0)
        )
        summary = selection.summarize(draw)
        kept = draw.kept.numpy()
        for model in ("learner", "reference"):
            rows = getattr(draw, f"{model}_loss").numpy()
            self.assertAllClose(
                summary[f"{model}_loss_kept"], rows[kept].mean()
            )
            self.assertAllClose(
                summary[f"{model}_loss_dropped"], rows[~kept].mean()
            )
        everything = selection.select_jointly(
            learner, reference, batch_size=50, num_chunks=2, seed=(0, 0)
        )
        self.assertAllEqual(
            selection.summarize(everything)["learner_loss_dropped"], 0.0
        )

    def test_uniform_score_is_that_of_a_uniform_draw(self):
        # Its expectation is known: every row is in a draw with probability
        # b/B, every pair of rows with b(b-1)/(B(B-1)).
        size, batch = 40, 8
        learner, reference = random_embeddings.models(size)
        matrix = oracles.pair_losses(learner) - oracles.pair_losses(reference)
        own = np.trace(matrix)
        others = matrix.sum() - own
        expected = own / size + others * (batch - 1) / (size * (size - 1))

        @tf.function
        def score(step):
            return selection.select_top(
                learner, reference, batch_size=batch, seed=(0, step)
            ).uniform_score

        values = np.array([score(step) for step in tf.range(300)])
        error = values.std() / np.sqrt(len(values))
        self.assertLess(abs(values.mean() - expected), 4 * error)
        self.assertLess(4 * error, 0.5)

    def test_uniform_score_of_a_large_batch_is_scaled_up_from_a_sample(self):
        learner, reference = random_embeddings.models(300)
        for loss in selection.LOSSES:

            def scores(rows, loss=loss):
                with mock.patch.object(selection.report, "UNIFORM_ROWS", rows):
                    score = tf.function(
                        lambda step: (
                            selection.select_top(
                                learner,
                                reference,
                                batch_size=280,
                                seed=(0, step),
                                loss=loss,
                            ).uniform_score
                        )
                    )
                    return np.array([score(step) for step in tf.range(100)])

            whole, sampled = scores(280), scores(150)
            self.assertGreater(sampled.std(), 2 * whole.std())
            error = np.hypot(whole.std(), sampled.std()) / 10.0
            self.assertLess(abs(whole.mean() - sampled.mean()), 4 * error)


class SamplerPropertyTest(tf.test.TestCase):
    def test_every_sampler_keeps_exactly_b_rows_without_repeats(self):
        learner, reference = random_embeddings.models(77)
        for (name, sampler), batch in itertools.product(
            selection.SAMPLERS.items(), (1, 33, 77)
        ):
            draw = sampler(
                learner,
                reference,
                batch_size=batch,
                num_chunks=min(batch, 7),
                seed=(5, 6),
            )
            with self.subTest(sampler=name, batch=batch):
                self.assertEqual(draw.indices.dtype, tf.int32)
                self.assertEqual(draw.indices.shape, (batch,))
                self.assertLen(set(draw.indices.numpy()), batch)
                self.assertBetween(draw.indices.numpy().min(), 0, 76)
                self.assertBetween(draw.indices.numpy().max(), 0, 76)

    def test_top_takes_the_highest_own_pairs_in_order(self):
        learner, reference = random_embeddings.models(64)
        matrix = oracles.pair_losses(learner) - oracles.pair_losses(reference)
        draw = selection.select_top(
            learner, reference, batch_size=10, seed=(0, 0)
        )
        self.assertAllEqual(
            draw.indices, np.argsort(-np.diag(matrix), kind="stable")[:10]
        )

    def test_one_chunk_is_independent_selection(self):
        learner, reference = random_embeddings.models(64)
        options = dict(batch_size=16, seed=(8, 9))
        self.assertAllEqual(
            selection.select_jointly(
                learner, reference, num_chunks=1, **options
            ).indices,
            selection.select_independently(
                learner, reference, **options
            ).indices,
        )

    def test_uniform_is_the_order_of_the_noise(self):
        learner, reference = random_embeddings.models(64)
        draw = selection.select_uniformly(
            learner, reference, batch_size=16, seed=(8, 9)
        )
        noise = selection.gumbel_noise((8, 9), 1, 64)[0].numpy()
        self.assertAllEqual(draw.indices, np.argsort(-noise)[:16])
        self.assertAllEqual(
            selection.uniform_rows((8, 9), 16, 64), draw.indices
        )

    def test_equal_models_and_zero_gain_draw_uniformly(self):
        learner, other = random_embeddings.models(40)
        noise = selection.gumbel_noise((1, 2), 1, 40)[0].numpy()
        expected = np.argsort(-noise)[:8]
        equal = selection.select_independently(
            learner, learner, batch_size=8, seed=(1, 2)
        )
        self.assertAllEqual(equal.indices, expected)
        self.assertAllClose(equal.score, 0.0)
        without_gain = selection.select_independently(
            learner, other, batch_size=8, seed=(1, 2), gain=0.0
        )
        self.assertAllEqual(without_gain.indices, expected)

    def test_ties_go_to_the_lower_row(self):
        same = random_embeddings.related(1, 4, seed=0)
        repeated = same._replace(
            image=np.repeat(same.image, 9, 0), text=np.repeat(same.text, 9, 0)
        )
        draw = selection.select_top(
            repeated, repeated, batch_size=4, seed=(0, 0)
        )
        self.assertAllEqual(draw.indices, [0, 1, 2, 3])

    def test_joint_draws_follow_the_exact_law_on_a_tiny_case(self):
        # B = 4, b = 2, N = 2: p(i, then j) = softmax(S_ii)_i times softmax
        # over k != i of S_kk + S_ki + S_ik at j.
        size, trials = 4, 20_000
        learner = random_embeddings.related(size, 3, 1, scale=3.0, bias=-1.0)
        reference = random_embeddings.related(size, 5, 2, scale=2.0, bias=-0.5)
        matrix = oracles.pair_losses(learner) - oracles.pair_losses(reference)
        expected = np.zeros([size, size])
        first = np.exp(np.diag(matrix))
        first /= first.sum()
        for i in range(size):
            second = np.exp(np.diag(matrix) + matrix[i] + matrix[:, i])
            second[i] = 0.0
            expected[i] = first[i] * second / second.sum()

        @tf.function
        def draws():
            return tf.map_fn(
                lambda step: (
                    selection.select_jointly(
                        learner,
                        reference,
                        batch_size=2,
                        num_chunks=2,
                        seed=(0, step),
                    ).indices
                ),
                tf.range(trials),
            )

        counts = np.zeros([size, size])
        np.add.at(counts, tuple(draws().numpy().T), 1)
        off = ~np.eye(size, dtype=bool)
        chi_square = (
            (counts - trials * expected)[off] ** 2 / (trials * expected)[off]
        ).sum()
        self.assertEqual(counts.trace(), 0)
        # 11 degrees of freedom; P(chi-square > 31.3) = 0.001.
        self.assertLess(chi_square, 31.3)

    def test_a_permuted_super_batch_with_permuted_noise_gives_the_same_rows(
        self,
    ):
        learner, reference = random_embeddings.models(48)
        order = np.random.default_rng(0).permutation(48)
        noise = selection.gumbel_noise((0, 0), 4, 48).numpy()

        def draw(order):
            learner_, reference_ = (
                parts._replace(image=parts.image[order], text=parts.text[order])
                for parts in (learner, reference)
            )
            permuted = tf.constant(noise[:, order])
            with mock.patch.object(
                selection.noise, "gumbel_noise", lambda *_: permuted
            ):
                return selection.select_jointly(
                    learner_,
                    reference_,
                    batch_size=12,
                    num_chunks=4,
                    seed=(0, 0),
                ).indices.numpy()

        self.assertAllEqual(order[draw(order)], draw(np.arange(48)))

    def test_more_chunks_make_a_more_learnable_batch(self):
        learner = random_embeddings.related(
            1024, 16, 0, scale=20.0, bias=-8.0, similarity=0.3
        )
        reference = random_embeddings.related(
            1024, 16, 9, scale=20.0, bias=-8.0, similarity=0.7
        )

        @tf.function
        def score(step, num_chunks):
            return selection.select_jointly(
                learner,
                reference,
                batch_size=256,
                num_chunks=num_chunks,
                seed=(0, step),
            ).score

        means = [
            np.mean([score(step, chunks) for step in tf.range(3)])
            for chunks in (1, 4, 16)
        ]
        self.assertGreater(means[1], means[0])
        self.assertGreater(means[2], means[1])

    def test_clean_pairs_are_preferred_to_shuffled_ones(self):
        # The learner knows nothing; the reference knows the clean half.
        size = 512
        reference = random_embeddings.related(
            size, 32, 3, scale=30.0, similarity=0.8
        )
        text = reference.text.copy()
        text[size // 2 :] = np.roll(text[size // 2 :], 1, axis=0)
        reference = reference._replace(text=text)
        learner = random_embeddings.related(
            size, 32, 4, scale=10.0, similarity=0.0
        )
        shares = {}
        for criterion in ("learnability", "easy_reference"):
            draw = selection.select_jointly(
                learner,
                reference,
                batch_size=128,
                num_chunks=8,
                seed=(0, 0),
                criterion=criterion,
            )
            shares[criterion] = np.mean(draw.indices.numpy() < size // 2)
        # By chance a half, with a standard deviation of about 4 %.
        self.assertGreater(shares["learnability"], 0.7)
        self.assertGreater(shares["easy_reference"], 0.7)


class PurityTest(tf.test.TestCase):
    def test_noise_is_gumbel_and_a_function_of_the_seed(self):
        noise = selection.gumbel_noise((3, 4), 8, 20_000).numpy()
        self.assertEqual(noise.dtype, np.float32)
        self.assertTrue(np.isfinite(noise).all())
        # mean = Euler's constant, variance = pi^2 / 6; 160,000 variates.
        self.assertAllClose(noise.mean(), np.euler_gamma, atol=0.015)
        self.assertAllClose(noise.var(), np.pi**2 / 6, atol=0.05)
        again = selection.gumbel_noise(tf.constant([3, 4]), 8, 20_000)
        self.assertAllEqual(again, noise)
        for other in ((3, 5), (4, 4)):
            self.assertNotAllClose(
                selection.gumbel_noise(other, 8, 20_000), noise
            )

    def test_eager_graph_and_xla_draw_the_same_rows(self):
        learner, reference = random_embeddings.models(150)
        for (name, sampler), loss in itertools.product(
            selection.SAMPLERS.items(), selection.LOSSES
        ):

            def draw(seed, sampler=sampler, loss=loss):
                return sampler(
                    learner,
                    reference,
                    batch_size=40,
                    num_chunks=6,
                    seed=seed,
                    loss=loss,
                )

            seed = tf.constant([11, 12])
            eager = draw(seed)
            for jit in (False, True):
                compiled = tf.function(draw, jit_compile=jit)(seed)
                with self.subTest(sampler=name, loss=loss, jit=jit):
                    self.assertAllEqual(eager.indices, compiled.indices)
                    for field in ("score", "uniform_score", "learner_loss"):
                        self.assertAllClose(
                            getattr(eager, field),
                            getattr(compiled, field),
                            atol=1e-4,
                        )

    def test_no_gradient_passes_through_a_draw(self):
        learner, reference = random_embeddings.models(20)
        image = tf.constant(learner.image)
        with tf.GradientTape() as tape:
            tape.watch(image)
            draw = selection.select_jointly(
                learner._replace(image=image),
                reference,
                batch_size=5,
                num_chunks=1,
                seed=(0, 0),
            )
            total = draw.score + tf.reduce_sum(draw.learner_loss)
        self.assertIsNone(tape.gradient(total, image))

    def test_bfloat16_embeddings_are_scored_in_float32(self):
        rounded = [
            Embeddings(*(tf.cast(part, tf.bfloat16) for part in parts))
            for parts in random_embeddings.models(64)
        ]
        widened = [
            Embeddings(*(tf.cast(part, tf.float32) for part in parts))
            for parts in rounded
        ]
        options = dict(batch_size=16, num_chunks=4, seed=(0, 0))
        self.assertAllEqual(
            selection.select_jointly(*rounded, **options).indices,
            selection.select_jointly(*widened, **options).indices,
        )

    def test_no_matrix_of_all_pairs_is_formed(self):
        size = 3000
        learner, reference = random_embeddings.models(size)

        @tf.function
        def draw():
            return selection.select_jointly(
                learner, reference, batch_size=600, num_chunks=2, seed=(0, 0)
            ).indices

        largest = max(
            int(np.prod(output.shape))
            for graph in _graphs(draw.get_concrete_function().graph)
            for node in graph.get_operations()
            for output in node.outputs
            if output.shape.is_fully_defined()
        )
        self.assertLess(largest, size * 600)

    def test_sums_of_a_tile_equal_those_in_double_precision(self):
        random = np.random.default_rng(0)
        ranges = (-60, -15), (-12, -8), (-3, 3), (50, 200), (-20, 20)
        for columns in (5, 32, 37, 80, 1024):
            for low, high in (*ranges, (-1e4, 1e4), (-2e4, -1e4)):
                logits = random.uniform(low, high, size=(7, columns))
                logits = logits.astype(np.float32)
                exact = np.float64(logits)
                one, none = tf.constant(1.0), tf.constant(0.0)
                with self.subTest(columns=columns, low=low):
                    self.assertAllClose(
                        tiles.sum_softplus(tf.constant(logits), one, none),
                        oracles.softplus(exact).sum(1),
                        rtol=1e-6,
                        atol=1e-34,
                    )

    def test_scale_and_bias_are_of_the_sums(self):
        random = np.random.default_rng(1)
        cosines = random.uniform(-1, 1, size=(9, 117)).astype(np.float32)
        for scale, bias in ((10, -10), (117.3, -16.5), (-3, 2), (0, 1)):
            exact = np.float64(np.float32(scale)) * cosines
            scale, bias = (tf.constant(x, tf.float32) for x in (scale, bias))
            self.assertAllClose(
                tiles.sum_softplus(tf.constant(cosines), scale, bias),
                oracles.softplus(exact + bias.numpy()).sum(1),
                rtol=2e-6,
            )

    def test_sums_do_not_depend_on_the_height_of_a_tile(self):
        random = np.random.default_rng(2)
        cosines = random.uniform(-1, 1, size=(100, 200)).astype(np.float32)
        scale, bias = tf.constant(20.0), tf.constant(-5.0)
        for function in (
            lambda tile: tiles.sum_softplus(tile, scale, bias),
            lambda tile: tf.reduce_logsumexp(scale * tile, 1),
        ):
            parts = [cosines[:33], cosines[33:]]
            self.assertAllEqual(
                function(tf.constant(cosines)),
                tf.concat([function(tf.constant(part)) for part in parts], 0),
            )


def _graphs(graph):
    """The graph of a function and of every function it calls."""
    yield graph
    for function in graph._functions.values():
        inner = getattr(function, "graph", None)
        if inner is not None:
            yield inner


class SelectionErrorTest(tf.test.TestCase):
    def test_bad_settings_are_named(self):
        learner, reference = random_embeddings.models(10)
        cases = (
            (dict(batch_size=11), r"`batch_size` \(b\).*B=10.*11"),
            (dict(batch_size=0), "from 1 to"),
            (dict(batch_size=4, num_chunks=5), "`num_chunks`.*5.*batch_size=4"),
            (dict(batch_size=4, num_chunks=0), "`num_chunks`"),
            (dict(batch_size=4, criterion="easy"), "`criterion`.*'easy'"),
            (dict(batch_size=4, loss="hinge"), "`loss`.*'hinge'"),
            (dict(batch_size=4, first_chunk="top"), "`first_chunk`.*'top'"),
            (dict(batch_size=4, seed=(1, 2, 3)), "`seed` must be two"),
        )
        for options, message in cases:
            options = {"num_chunks": 2, "seed": (0, 0), **options}
            with self.subTest(**options):
                with self.assertRaisesRegex(ValueError, message):
                    selection.select_jointly(learner, reference, **options)

    def test_a_missing_model_is_named(self):
        learner, reference = random_embeddings.models(10)
        for models_, criterion, name in (
            ((learner, None), "learnability", "reference"),
            ((None, reference), "learnability", "learner"),
            ((learner, None), "easy_reference", "reference"),
            ((None, reference), "hard_learner", "learner"),
        ):
            for sampler in selection.SAMPLERS.values():
                with self.assertRaisesRegex(
                    ValueError, f"needs the {name}'s embeddings"
                ):
                    sampler(
                        *models_,
                        batch_size=2,
                        num_chunks=1,
                        seed=(0, 0),
                        criterion=criterion,
                    )

    def test_embeddings_that_do_not_fit_are_named(self):
        learner, reference = random_embeddings.models(10)
        nan = learner.image.copy()
        nan[3, 2] = np.nan
        cases = (
            (learner._replace(image=nan), "`learner` embeddings hold NaN"),
            (
                learner._replace(image=learner.image[0]),
                r"must both be \[B, dim",
            ),
            (learner._replace(text=learner.text[:5]), r"must both be \[B, dim"),
            (
                learner._replace(
                    image=np.int32(learner.image), text=np.int32(learner.text)
                ),
                "must hold floating-point",
            ),
            (learner._replace(scale=[1.0, 2.0]), "`learner.scale`"),
            (random_embeddings.related(9, 4, 0), "same super-batch"),
        )
        for broken, message in cases:
            with self.assertRaisesRegex(ValueError, message):
                selection.select_jointly(
                    broken, reference, batch_size=2, num_chunks=1, seed=(0, 0)
                )

    def test_nan_in_a_graph_stops_it(self):
        learner, reference = random_embeddings.models(10)

        @tf.function
        def draw(image):
            return selection.select_jointly(
                learner._replace(image=image),
                reference,
                batch_size=2,
                num_chunks=1,
                seed=(0, 0),
            ).indices

        with self.assertRaisesRegex(
            tf.errors.InvalidArgumentError, "`learner` embeddings hold NaN"
        ):
            draw(tf.fill(learner.image.shape, np.nan))

    def test_nan_that_xla_lets_pass_is_in_the_score(self):
        learner, reference = random_embeddings.models(10)

        @tf.function(jit_compile=True)
        def draw(image, **options):
            found = selection.select_jointly(
                learner._replace(image=image),
                reference,
                batch_size=2,
                seed=(0, 0),
                **options,
            )
            return found.indices, found.score

        for options in ({"num_chunks": 1}, {"num_chunks": 2}):
            nan = learner.image.copy()
            _, score = draw(nan, **options)
            self.assertTrue(np.isfinite(score))
            nan[3, 2] = np.nan
            rows, score = draw(nan, **options)
            self.assertNotIn(3, rows)
            self.assertTrue(np.isnan(score))
