"""FLOPs of graphs: against hand counts, closed forms and TensorFlow's own."""

import dataclasses
import pathlib

import keras
import pytest
import tensorflow as tf

from jest_tf import config as config_lib
from jest_tf import losses, models, training
from jest_tf.models import reference, towers
from jest_tf.training import flops, micro_batches


def counts(function, *shapes):
    """The FLOPs of a function of float32 tensors, by stage."""
    specs = [
        one if isinstance(one, tf.TypeSpec) else tf.TensorSpec(one)
        for one in shapes
    ]
    traced = tf.function(function, autograph=False)
    return flops.count(traced.get_concrete_function(*specs).graph)


def products(function, *shapes):
    return flops.total(counts(function, *shapes)).products


class OperationsTest(tf.test.TestCase):
    def test_matrix_products_multiply_and_add(self):
        # [4, 5] x [5, 6]: 4 * 6 values of 5 multiplications and additions.
        for shapes, transposed in (
            (([4, 5], [5, 6]), {}),
            (([5, 4], [5, 6]), {"transpose_a": True}),
            (([4, 5], [6, 5]), {"transpose_b": True}),
        ):
            found = products(
                lambda a, b, t=transposed: tf.matmul(a, b, **t), *shapes
            )
            self.assertEqual(found, 2 * 4 * 5 * 6)

    def test_batches_of_products_are_broadcast(self):
        for shapes in (([3, 1, 4, 5], [7, 5, 6]), ([3, 7, 4, 5], [3, 7, 5, 6])):
            self.assertEqual(
                products(tf.matmul, *shapes), 2 * 3 * 7 * 4 * 5 * 6
            )

    def test_an_einsum_is_one_loop_over_its_axes(self):
        for equation, shapes, expected in (
            ("ab,bc->ac", ([4, 5], [5, 6]), 4 * 5 * 6),
            ("...ab,...bc->...ac", ([3, 4, 5], [5, 6]), 3 * 4 * 5 * 6),
            ("xab,abd->xd", ([3, 4, 5], [4, 5, 6]), 3 * 4 * 5 * 6),
            # c is summed before it meets a.
            ("ab,bc->a", ([4, 5], [5, 6]), 4 * 5),
            ("ab->ba", ([4, 5],), 0),
        ):
            found = products(lambda *x, e=equation: tf.einsum(e, *x), *shapes)
            self.assertEqual(found, 2 * expected, equation)

    def test_convolutions_and_their_gradients(self):
        image, filters = [2, 8, 8, 6], [3, 3, 6, 10]
        positions = 2 * 4 * 4  # at stride 2, padded

        def convolve(image, filters):
            return tf.nn.conv2d(image, filters, 2, "SAME")

        def grouped(image, filters):
            return tf.nn.conv2d(image, filters[:, :, :3], 2, "SAME")

        def depthwise(image, filters):
            filters = filters[:, :, :, :4]
            return tf.nn.depthwise_conv2d(image, filters, [1, 2, 2, 1], "SAME")

        for function, of_position in (
            (convolve, 9 * 6 * 10),
            (grouped, 9 * 3 * 10),
            (depthwise, 9 * 6 * 4),
        ):
            forward = 2 * positions * of_position
            self.assertEqual(products(function, image, filters), forward)

            def both(image, filters, function=function):
                return tf.gradients(function(image, filters), [image, filters])

            # Each gradient is a convolution of the same size; nothing needs
            # the values themselves.
            self.assertEqual(products(both, image, filters), 2 * forward)

    def test_tensorflows_profiler_agrees_where_nothing_is_nested(self):
        def function(image, filters, weights):
            features = tf.nn.conv2d(image, filters, 1, "VALID")
            return tf.matmul(tf.reshape(features, [2, -1]), weights)

        concrete = tf.function(function).get_concrete_function(
            *map(tf.TensorSpec, ([2, 8, 8, 3], [3, 3, 3, 5], [180, 7]))
        )
        options = tf.compat.v1.profiler.ProfileOptionBuilder.float_operation()
        profile = tf.compat.v1.profiler.profile(
            graph=concrete.graph, options=options | {"output": "none"}
        )
        self.assertEqual(
            flops.total(flops.count(concrete.graph)).products,
            profile.total_float_ops,
        )

    def test_elementwise_work_is_apart_and_one_a_value(self):
        def function(a, b):
            product = tf.matmul(a, b)
            # 24 exponentials, 24 products, 24 additions in a sum, and 3 values
            # added up by two additions each.
            total = tf.reduce_sum(tf.exp(product) * product, 1)
            return tf.add_n([total, total, total])

        found = flops.total(counts(function, [4, 5], [5, 6]))
        self.assertEqual(found, flops.Flops(2 * 4 * 5 * 6, 3 * 4 * 6 + 2 * 4))

    def test_what_nothing_comes_of_is_free(self):
        def function(a, b):
            tf.matmul(a, b)
            return tf.transpose(tf.concat([a, a], 0)), tf.range(1000) + 1

        self.assertEqual(
            flops.total(counts(function, [4, 5], [5, 6])), flops.Flops()
        )

    def test_what_cannot_be_counted_is_refused(self):
        with self.assertRaisesRegex(ValueError, "MatMul 'MatMul' of"):
            counts(tf.matmul, [None, 5], [5, 6])
        with self.assertRaisesRegex(ValueError, "Received: Cholesky"):
            counts(tf.linalg.cholesky, [4, 4])


class NestedTest(tf.test.TestCase):
    MATRIX = 2 * 4 * 4 * 4

    def test_functions_are_entered(self):
        @tf.function
        def inner(a):
            return tf.matmul(a, a)

        self.assertEqual(
            products(lambda a: inner(inner(a)), [4, 4]), 2 * self.MATRIX
        )

    def test_loops_are_counted_round_by_round(self):
        def mapped(a):
            return tf.map_fn(lambda one: tf.matmul(one, one), a)

        def loop(a):
            # 3, 5, 7, 9
            return tf.while_loop(
                lambda index, _: index <= 10,
                lambda index, value: (index + 2, tf.matmul(value, a)),
                (tf.constant(3), a),
            )

        def from_a_size(a):
            return tf.while_loop(
                lambda index, _: index < tf.shape(a)[0],
                lambda index, value: (index + 1, tf.matmul(value, a)),
                (0, a),
                maximum_iterations=3,
            )

        def nested(a):
            return tf.while_loop(
                lambda index, _: index < 5,
                lambda index, value: (index + 1, loop(value)[1]),
                (tf.constant(0), a),
            )

        for function, shape, rounds in (
            (mapped, [7, 4, 4], 7),
            (loop, [4, 4], 4),
            (from_a_size, [4, 4], 3),
            (nested, [4, 4], 5 * 4),
        ):
            self.assertEqual(
                products(function, shape),
                rounds * self.MATRIX,
                function.__name__,
            )

    def test_the_gradient_of_a_loop_goes_round_as_often(self):
        def gradient(a):
            with tf.GradientTape() as tape:
                tape.watch(a)
                _, value = tf.while_loop(
                    lambda index, _: index < 6,
                    lambda index, value: (index + 1, tf.matmul(value, a)),
                    (0, a),
                    maximum_iterations=10,
                )
            return value, tape.gradient(value, a)

        # Forward, and by each of the factors.
        self.assertEqual(products(gradient, [4, 4]), 3 * 6 * self.MATRIX)

    def test_a_loop_that_the_data_ends_is_refused(self):
        def loop(a):
            return tf.while_loop(
                lambda value: tf.reduce_sum(value) > 1.0,
                lambda value: (tf.matmul(value, a),),
                (a,),
            )

        with self.assertRaisesRegex(ValueError, "which the data ends"):
            counts(loop, [4, 4])

    def test_branches_that_are_known_are_taken(self):
        def branches(index, a):
            return tf.switch_case(
                index,
                [
                    lambda: a,
                    lambda: tf.matmul(a, a),
                    lambda: tf.matmul(a, tf.matmul(a, a)),
                ],
            )

        for index, matrices in ((0, 0), (1, 1), (2, 2), (7, 2), (-1, 2)):
            # TensorFlow doesn't see through the sum, and makes a `Case`.
            found = products(
                lambda a, index=index: branches(tf.constant(index - 1) + 1, a),
                [4, 4],
            )
            self.assertEqual(found, matrices * self.MATRIX)

    def test_of_branches_that_the_data_decides_the_dearest_counts(self):
        def function(a):
            return tf.cond(
                tf.reduce_sum(a) > 0.0,
                lambda: tf.matmul(a, a),
                lambda: tf.matmul(a, tf.matmul(a, a)),
            )

        self.assertEqual(products(function, [4, 4]), 2 * self.MATRIX)


class StagesTest(tf.test.TestCase):
    def test_the_innermost_scope_counts_and_gradients_are_backward(self):
        @tf.function
        def inner(a):
            return tf.matmul(a, a)

        def function(a):
            with tf.GradientTape() as tape:
                tape.watch(a)
                with flops.stage("forward"):
                    value = tf.map_fn(inner, a)
                    with flops.stage("loss"):
                        loss = tf.matmul(value[0], value[0])
            with flops.stage("score"):
                score = tf.matmul(a[0], a[0])
            with flops.stage("score"):
                score = tf.matmul(score, a[0])
            return tape.gradient(loss, a), score, tf.matmul(a[0], a[0])

        found = counts(function, [3, 4, 4])
        matrix = 2 * 4**3
        self.assertEqual(
            {name: one.products // matrix for name, one in found.items()},
            {
                "score": 2,
                "reference": 0,
                "select": 0,
                "forward": 3,
                "loss": 0,  # only its gradient is asked for
                "backward": 2 + 2 * 3,
                "rest": 1,
            },
        )

    def test_there_are_no_other_stages(self):
        with self.assertRaisesRegex(ValueError, "Received: 'lunch'"):
            flops.stage("lunch")


def block_products(tokens, width, ratio=4):
    """Of a transformer block, an example."""
    attention = tokens * width * 4 * width + 2 * tokens**2 * width
    return 2 * (attention + 2 * tokens * width * ratio * width)


def image_products(tokens, patch, width, depth, ratio=4):
    """Of an image tower: of each example, and of the batch once."""
    pooling = (
        tokens * width * 2 * width  # keys and values
        + 2 * tokens * width  # attention of one probe
        + width * width
        + 2 * width * ratio * width
    )
    example = (
        2 * tokens * 3 * patch**2 * width
        + depth * block_products(tokens, width)
        + 2 * pooling
    )
    return example, 2 * width * width  # the probe's query is everyone's


def text_products(tokens, width, depth, dim):
    return depth * block_products(tokens, width) + 2 * width * dim


class TowersTest(tf.test.TestCase):
    SIZE, PATCH, WIDTH, DEPTH, LENGTH, ROWS = 16, 4, 12, 2, 5, 6

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        shared = {
            "width": cls.WIDTH,
            "depth": cls.DEPTH,
            "num_heads": 3,
            "embedding_dim": cls.WIDTH,
            "seed": 0,
        }
        cls.learner = models.TwoTower(
            towers.ImageTower(
                image_size=cls.SIZE,
                patch_size=cls.PATCH,
                patch_sizes=(8,),
                **shared,
            ),
            towers.TextTower(vocabulary_size=50, length=cls.LENGTH, **shared),
        )
        cls.learner.build(
            {
                "image": (None, cls.SIZE, cls.SIZE, 3),
                "text": (None, cls.LENGTH),
            }
        )

    def specs(self, rows=ROWS):
        return (
            tf.TensorSpec([rows, self.SIZE, self.SIZE, 3], tf.uint8),
            tf.TensorSpec([rows, self.LENGTH], tf.int32),
        )

    def forward(self, rows=ROWS, patch=PATCH):
        """The closed form of the forward pass."""
        image, once = image_products(
            (self.SIZE // patch) ** 2, patch, self.WIDTH, self.DEPTH
        )
        text = text_products(self.LENGTH, self.WIDTH, self.DEPTH, self.WIDTH)
        return rows * (image + text) + once

    def resizing(self, patch):
        """Of kernel and positions, rows first and then columns."""
        kernel = patch * self.PATCH * (self.PATCH + patch) * 3 * self.WIDTH
        old, new = self.SIZE // self.PATCH, self.SIZE // patch
        return 2 * (kernel + new * old * (old + new) * self.WIDTH)

    def test_a_forward_pass_is_its_closed_form(self):
        def embed(image, text):
            return self.learner({"image": image, "text": text}, training=False)

        self.assertEqual(products(embed, *self.specs()), self.forward())

    def test_larger_patches_cost_what_their_tokens_do(self):
        view = config_lib.View(patch_size=8)

        def embed(image, text):
            batch = {"image": image, "text": text}
            return self.learner(batch, training=False, view=view)

        self.assertEqual(
            products(embed, *self.specs()),
            self.forward(patch=8) + self.resizing(8),
        )

    def gradient(self, micro_batch_size=None, loss_block_size=None):
        def step(image, text):
            _, _, gradients = micro_batches.gradients(
                self.learner,
                {"image": image, "text": text},
                lambda one: losses.sigmoid_loss(
                    one, block_size=loss_block_size
                ),
                variables=self.learner.trainable_variables,
                micro_batch_size=micro_batch_size,
            )
            return gradients

        return counts(step, *self.specs())

    def backward(self, rows=ROWS):
        """Twice the forward pass, less the gradient that pixels would get."""
        patches = 2 * rows * self.SIZE**2 * 3 * self.WIDTH
        return 2 * self.forward(rows) - patches

    def test_a_gradient_is_its_closed_form(self):
        logits = 2 * self.ROWS**2 * self.WIDTH
        found = self.gradient()
        self.assertEqual(found["forward"].products, self.forward())
        self.assertEqual(found["loss"].products, logits)
        self.assertEqual(
            found["backward"].products, self.backward() + 2 * logits
        )

    def test_a_loss_by_blocks_forms_its_logits_twice(self):
        logits = 2 * self.ROWS**2 * self.WIDTH
        found = self.gradient(loss_block_size=2)
        self.assertEqual(
            found["backward"].products, self.backward() + 3 * logits
        )

    def test_micro_batches_embed_once_more_in_the_backward_pass(self):
        size, logits = 2, 2 * self.ROWS**2 * self.WIDTH
        count = self.ROWS // size
        found = self.gradient(micro_batch_size=size)
        self.assertEqual(found["forward"].products, count * self.forward(size))
        self.assertEqual(found["loss"].products, logits)
        self.assertEqual(
            found["backward"].products,
            count * (self.forward(size) + self.backward(size)) + 2 * logits,
        )


class ColumnsTest(tf.test.TestCase):
    def test_the_conventions_by_hand(self):
        counts = dict.fromkeys(flops.STAGES, flops.Flops())
        counts |= {
            "score": flops.Flops(50, 1),
            "reference": flops.Flops(7, 2),
            "select": flops.Flops(4, 3),
            "forward": flops.Flops(10, 4),
            "backward": flops.Flops(21, 5),
        }
        found = flops.columns(counts, scored=5, reused=1)
        # 3 * 10 + 50 + 7, and less a fifth of 50.
        self.assertEqual(found["no_reuse"], 87)
        self.assertEqual(found["reuse"], 77)
        self.assertEqual(found["step"], 50 + 7 + 4 + 10 + 21)
        self.assertEqual(found["elementwise"], 15)
        self.assertEqual(found["loss"], 0)

    def test_without_scores_both_conventions_are_three_passes(self):
        counts = dict.fromkeys(flops.STAGES, flops.Flops(10))
        counts |= {"score": flops.Flops(), "reference": flops.Flops()}
        found = flops.columns(counts, scored=0, reused=0)
        self.assertEqual((found["no_reuse"], found["reuse"]), (30, 30))


class StepGraphsTest(tf.test.TestCase):
    def traced(self, times):
        graphs = flops.StepGraphs()

        @tf.function
        def step(a):
            for _ in range(times):
                graphs.note("kind")
                a = tf.matmul(a, a)
            return a

        step.get_concrete_function(tf.TensorSpec([4, 4]))
        return graphs

    def test_each_replica_counts_once(self):
        matrix = 2 * 4**3
        # Two replicas in one graph; then one that was traced for two.
        for times in (2, 1):
            columns = self.traced(times).count(2)["kind"]
            self.assertEqual(columns["step"], 2 * matrix)

    def test_a_graph_of_several_steps_is_refused(self):
        with self.assertRaisesRegex(ValueError, "Received: 2 steps traced"):
            self.traced(2).count(1)

    def test_what_is_run_eagerly_is_not_there(self):
        graphs = flops.StepGraphs()
        graphs.note("kind")
        self.assertEqual(graphs.count(1), {})


@pytest.mark.slow
class PaperTest(tf.test.TestCase):
    """Table 1 of arXiv 2406.17711 from the recipes, traced at full size."""

    def traced(self, recipe, text_length=None):
        """FLOPs of a step of a recipe, and of a forward pass over b rows."""
        run = config_lib.load_config(
            pathlib.Path(__file__).parents[2] / "configs" / recipe
        )
        length = text_length or run.data.text_length
        run = dataclasses.replace(
            run, data=dataclasses.replace(run.data, text_length=length)
        )
        # The vocabulary is looked up, not multiplied with.
        learner = models.build_learner(run, vocabulary_size=8)
        model = training.build_model(run, learner, reference.cached(10.0, 0.0))
        # It has no state, and costs no products either.
        model.compile(keras.optimizers.SGD(0.1))
        rows, size = run.data.super_batch_size, run.data.image_size

        def batch(rows):
            return {
                "image": tf.TensorSpec([rows, size, size, 3], tf.uint8),
                "text": tf.TensorSpec([rows, length], tf.int32),
            }

        width = models.PRESETS[run.model.preset].width
        embeddings = tf.TensorSpec([rows, width], tf.float16)
        tf.function(model.train_step).get_concrete_function(
            {
                **batch(rows),
                "reference_image": embeddings,
                "reference_text": embeddings,
            }
        )
        (columns,) = model.step_flops().values()
        embed = tf.function(lambda part: learner(part, training=True))
        embed = embed.get_concrete_function(batch(run.batch_size))
        return columns, flops.total(flops.count(embed.graph)).products

    def shares(self, columns, forward):
        """Per cent of a uniform step, which is three forward passes."""
        return {
            name: 100 * columns[name] / (3 * forward)
            for name in ("reuse", "no_reuse", "step")
        }

    def test_jest_costs_233_per_cent(self):
        columns, forward = self.traced("jest_b16.py")
        shares = self.shares(columns, forward)
        self.assertEqual(columns["reference"], 0)
        self.assertEqual(columns["forward"], forward)
        self.assertEqual(round(shares["reuse"]), 233)
        # Figure 1: 13.1 / 4.9 and 11.6 / 4.3.
        self.assertEqual(round(shares["no_reuse"]), 267)
        # What a step really does: selection and loss on top, no gradient by
        # the pixels.
        self.assertAllClose(shares["step"], shares["no_reuse"], rtol=0.005)
        # The recipe's header: 57 GFLOPs an example, in round numbers.
        self.assertEqual(forward // 32_768 // 10**9, 57)

    def test_flexi_jest_costs_110_per_cent_with_twelve_tokens(self):
        def share(length):
            """Of the closed form: b rows in three passes, 5 b scored."""
            fine, coarse = (
                image_products((256 // patch) ** 2, patch, 768, 12)[0]
                + text_products(length, 768, 12, 768)
                for patch in (16, 32)
            )
            return 1.5 * (fine + coarse) + 5 * coarse, 3 * fine

        lengths = [
            length
            for length in range(2, 65)
            if round(100 * share(length)[0] / share(length)[1]) == 110
        ]
        self.assertEqual(lengths, [12])
        columns, forward = self.traced("flexi_jest_b16.py", 12)
        shares = self.shares(columns, forward)
        self.assertEqual(round(shares["no_reuse"]), 110)
        # Half of the rows are trained on in the view that they are scored in.
        self.assertEqual(
            columns["no_reuse"] - columns["reuse"], columns["score"] // 10
        )
        self.assertAllClose(shares["step"], shares["no_reuse"], rtol=0.01)
        # The scoring pass of a coarse example, 28 % of a fine one's.
        self.assertAllClose(columns["score"] / 5 / forward, 0.28, atol=0.005)


if __name__ == "__main__":
    tf.test.main()
