"""FLOPs of a step: against hand counts, closed forms and TensorFlow's own."""

import dataclasses
import functools
import pathlib

import pytest
import tensorflow as tf

from jest_tf import config as config_lib
from jest_tf import models, selection
from jest_tf.models import reference, towers
from jest_tf.training import flops
from jest_tf.training import step as step_lib


def products(function, *shapes):
    """The FLOPs of a function of float32 tensors."""
    return flops.count(function, *map(tf.TensorSpec, shapes))[0]


class CountTest(tf.test.TestCase):
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
            ("ab->ba", ([4, 5],), 0),
        ):
            found = products(lambda *x, e=equation: tf.einsum(e, *x), *shapes)
            self.assertEqual(found, 2 * expected, equation)

    def test_every_output_of_a_convolution_meets_its_filter(self):
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
            self.assertEqual(
                products(function, image, filters), 2 * positions * of_position
            )

    def test_tensorflows_profiler_agrees_where_nothing_is_nested(self):
        def function(image, filters, weights):
            features = tf.nn.conv2d(image, filters, 1, "VALID")
            return tf.matmul(tf.reshape(features, [2, -1]), weights)

        shapes = [2, 8, 8, 3], [3, 3, 3, 5], [180, 7]
        concrete = tf.function(function).get_concrete_function(
            *map(tf.TensorSpec, shapes)
        )
        options = tf.compat.v1.profiler.ProfileOptionBuilder.float_operation()
        profile = tf.compat.v1.profiler.profile(
            graph=concrete.graph, options=options | {"output": "none"}
        )
        self.assertEqual(products(function, *shapes), profile.total_float_ops)

    def test_nested_functions_are_entered(self):
        @tf.function
        def inner(a):
            return tf.matmul(a, a)

        self.assertEqual(
            products(lambda a: inner(inner(a)), [4, 4]), 2 * 2 * 4**3
        )

    def test_the_last_dimension_of_the_result_comes_along(self):
        specs = tf.TensorSpec([4, 5]), tf.TensorSpec([5, 6])
        self.assertEqual(flops.count(tf.matmul, *specs), (2 * 4 * 5 * 6, 6))

    def test_a_loop_counts_its_maximum_iterations(self):
        def loop(a):
            return tf.while_loop(
                lambda value: tf.reduce_sum(value) > 1.0,
                lambda value: (inner(value, a),),
                (a,),
                maximum_iterations=3,
            )

        def inner(value, a):
            mapped = tf.map_fn(lambda row: tf.matmul(row[None], a)[0], value)
            return tf.matmul(mapped, a)

        self.assertEqual(products(loop, [4, 4]), 2 * 3 * (4 * 4**2 + 4**3))

    def test_graphs_that_cannot_be_counted_are_refused(self):
        def loop(a, number=None):
            return tf.while_loop(
                lambda value: tf.reduce_sum(value) > 1.0,
                lambda value: (tf.matmul(value, a),),
                (a,),
                maximum_iterations=number,
            )

        def branch(a):
            return tf.cond(
                tf.reduce_sum(a) > 1.0, lambda: tf.matmul(a, a), lambda: a
            )

        def data_dependent(a):
            return loop(a, tf.cast(a[0, 0], tf.int32))

        for function, shapes, message in (
            (tf.matmul, ([None, 5], [5, 6]), "MatMul 'MatMul' of"),
            (tf.linalg.cholesky, ([4, 4],), "Received: Cholesky"),
            (loop, ([4, 4],), "`maximum_iterations`"),
            (data_dependent, ([4, 4],), "`maximum_iterations`"),
            (branch, ([4, 4],), "without branches"),
        ):
            with self.assertRaisesRegex(ValueError, message):
                products(function, *shapes)


def block_products(tokens, width, ratio=4):
    """FLOPs of a transformer block for one example."""
    attention = tokens * width * 4 * width + 2 * tokens**2 * width
    return 2 * (attention + 2 * tokens * width * ratio * width)


def image_products(tokens, patch, width, depth, ratio=4):
    """FLOPs of an image tower: for each example, and once for a batch."""
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
        return {
            "image": tf.TensorSpec([rows, self.SIZE, self.SIZE, 3], tf.uint8),
            "text": tf.TensorSpec([rows, self.LENGTH], tf.int32),
        }

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
        embed = functools.partial(self.learner, training=False)
        self.assertEqual(
            flops.count(embed, self.specs()), (self.forward(), self.WIDTH)
        )

    def test_larger_patches_cost_what_their_tokens_do(self):
        embed = functools.partial(
            self.learner, training=False, view=config_lib.View(patch_size=8)
        )
        self.assertEqual(
            flops.count(embed, self.specs())[0],
            self.forward(patch=8) + self.resizing(8),
        )

    def of_step(self, *stages, teacher=None, curated=0, replicas=1, **options):
        """The FLOPs of a step on `ROWS` rows, two of which pass the stages."""
        settings = None
        if stages:
            settings = config_lib.SelectionConfig(2 + curated, stages)
        step = step_lib.Step(
            self.learner,
            teacher,
            selection=settings,
            options=step_lib.StepOptions(**options),
        )
        batch = self.specs(self.ROWS // replicas)
        if curated:
            batch["curated"] = self.specs(curated // replicas)
        return flops.of_step(step, batch, replicas)

    def test_a_uniform_step_is_three_passes_and_its_loss(self):
        logits = 2 * self.ROWS**2 * self.WIDTH
        for options, formed in (({}, 2), ({"loss_block_size": 2}, 3)):
            found = self.of_step(**options)
            self.assertEqual(found["forward"], self.forward())
            self.assertEqual(found["loss"], logits)
            self.assertEqual(
                found["backward"], 2 * self.forward() + formed * logits
            )
            self.assertEqual(found["no_reuse"], 3 * self.forward())
            self.assertEqual(found["reuse"], found["no_reuse"])
            for name in ("score", "reference", "select"):
                self.assertEqual(found[name], 0)

    def test_a_frozen_tower_has_no_backward_pass(self):
        text = self.ROWS * text_products(
            self.LENGTH, self.WIDTH, self.DEPTH, self.WIDTH
        )
        logits = 2 * self.ROWS**2 * self.WIDTH
        tower = self.learner.image_tower
        tower.trainable = False
        try:
            found = self.of_step()
        finally:
            tower.trainable = True
        self.assertEqual(found["forward"], self.forward())
        self.assertEqual(found["backward"], 2 * text + 2 * logits)

    def test_micro_batches_embed_once_more_in_the_backward_pass(self):
        logits = 2 * self.ROWS**2 * self.WIDTH
        found = self.of_step(micro_batch_size=2)
        self.assertEqual(found["forward"], 3 * self.forward(2))
        self.assertEqual(
            found["backward"], 3 * 3 * self.forward(2) + 2 * logits
        )

    def test_a_scoring_step_counts_its_passes_and_its_draw(self):
        stage = config_lib.Stage(3, num_chunks=2, scoring_batch_size=3)
        teacher = reference.frozen(self.learner)
        for replicas in (1, 2):
            found = self.of_step(stage, teacher=teacher, replicas=replicas)
            self.assertEqual(found["score"], 2 * self.forward(3))
            self.assertEqual(found["reference"], 2 * self.forward(3))
            self.assertEqual(
                found["forward"], replicas * self.forward(2 // replicas)
            )
            self.assertEqual(found["loss"], 2 * 2**2 * self.WIDTH)
            # Two models score six rows, of which two pass.
            self.assertEqual(
                found["select"], selection.draw_flops(6, 2, 2 * self.WIDTH)
            )
            # Two of the six rows scored are trained on.
            self.assertEqual(
                found["no_reuse"] - found["reuse"], found["score"] // 3
            )

    def test_every_stage_counts_what_comes_into_it(self):
        teacher = reference.frozen(self.learner)
        stored = config_lib.Stage(9, "stored", "uniform", "easy_reference")
        coarse = config_lib.View(patch_size=8)
        # Twelve rows, six of which pass to the last stage.
        first = config_lib.Stage(2, num_chunks=2, view=coarse)
        of_coarse = self.forward(12, patch=8) + self.resizing(8)
        for criterion, num_models in (("learnability", 2), ("hard_learner", 1)):
            last = config_lib.Stage(3, num_chunks=1, criterion=criterion)
            step = step_lib.Step(
                self.learner,
                teacher,
                selection=config_lib.SelectionConfig(2, (stored, first, last)),
            )
            found = flops.of_step(step, self.specs(12))
            self.assertEqual(found["score"], of_coarse + self.forward(6))
            # The reference embeds a row once.
            self.assertEqual(found["reference"], self.forward(12))
            self.assertEqual(
                found["select"],
                selection.draw_flops(12, 6, 2 * self.WIDTH)
                + selection.draw_flops(6, 2, num_models * self.WIDTH),
            )
            self.assertEqual(found["forward"], self.forward(2))
            # Only the last stage sees the view that is trained in.
            self.assertEqual(
                found["no_reuse"] - found["reuse"], self.forward(6) // 3
            )
        unscored = dataclasses.replace(first, method="uniform")
        step = dataclasses.replace(
            step,
            selection=config_lib.SelectionConfig(2, (unscored, last)),
        )
        found = flops.of_step(step, self.specs(12))
        self.assertEqual(found["score"], self.forward(6))
        self.assertEqual(
            found["select"], selection.draw_flops(6, 2, self.WIDTH)
        )

    def test_distillation_runs_the_reference_unless_it_has_been(self):
        options = {
            "teacher": reference.frozen(self.learner),
            "distillation_weight": 1.0,
        }
        stage = config_lib.Stage(3, num_chunks=2)
        hard = dataclasses.replace(stage, criterion="hard_learner")
        for stages, curated, expected in (
            ((), 0, self.forward()),
            ((stage,), 0, self.forward()),
            ((hard,), 0, self.forward(2)),
            # Chosen and curated rows are embedded together.
            ((stage,), 4, self.forward() + self.forward(6)),
            ((hard,), 4, self.forward(6)),
        ):
            found = self.of_step(*stages, curated=curated, **options)
            self.assertEqual(found["reference"], expected)
            trained = 2 + curated if stages else self.ROWS
            self.assertEqual(found["forward"], self.forward(trained))


class ColumnsTest(tf.test.TestCase):
    def test_the_conventions_by_hand(self):
        counts = dict.fromkeys(flops.PARTS, 0) | {
            "score": 50,
            "reference": 7,
            "select": 4,
            "forward": 10,
            "backward": 21,
        }
        found = flops.columns(counts, reused=10)
        # 3 * 10 + 50 + 7, and less 10 of the 50.
        self.assertEqual(found["no_reuse"], 87)
        self.assertEqual(found["reuse"], 77)
        self.assertEqual(found["step"], 50 + 7 + 4 + 10 + 21)
        self.assertEqual(found["loss"], 0)

    def test_rows_scored_in_a_view_that_is_trained_in_are_reused(self):
        fine, coarse = config_lib.View(), config_lib.View(patch_size=8)
        for scored_in, trained_in, expected in (
            (fine, (), 12),
            (config_lib.View(patch_size=4), (), 12),
            (coarse, (), 0),
            (coarse, (fine, coarse), 6),
            (fine, (fine, coarse, coarse), 4),
        ):
            self.assertEqual(
                flops.num_reused(12, scored_in, trained_in, patch_size=4),
                expected,
            )


@pytest.mark.slow
class PaperTest(tf.test.TestCase):
    """Table 1 of arXiv 2406.17711 from the recipes, at full size."""

    def counted(self, recipe, text_length=None):
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
        step = step_lib.Step(
            learner,
            reference.cached(10.0, 0.0),
            selection=run.selection,
            options=step_lib.StepOptions(
                views=run.model.views,
                micro_batch_size=run.model.micro_batch_size,
                loss_block_size=run.model.loss_block_size,
            ),
        )
        rows, size = run.selection.super_batch_size(), run.data.image_size

        def batch(rows):
            return {
                "image": tf.TensorSpec([rows, size, size, 3], tf.uint8),
                "text": tf.TensorSpec([rows, length], tf.int32),
            }

        width = models.PRESETS[run.model.preset].width
        embeddings = tf.TensorSpec([rows, width], tf.float16)
        columns = flops.of_step(
            step,
            batch(rows)
            | dict.fromkeys(("reference_image", "reference_text"), embeddings),
        )
        forward, _ = flops.count(
            functools.partial(learner, training=True),
            batch(run.selection.batch_size),
        )
        return columns, forward

    def shares(self, columns, forward):
        """Per cent of a uniform step, which is three forward passes."""
        return {
            name: 100 * columns[name] / (3 * forward)
            for name in ("reuse", "no_reuse", "step")
        }

    def test_jest_costs_233_per_cent(self):
        columns, forward = self.counted("jest_b16.py")
        shares = self.shares(columns, forward)
        self.assertEqual(columns["reference"], 0)
        self.assertEqual(columns["forward"], forward)
        self.assertEqual(round(shares["reuse"]), 233)
        # Figure 1: 13.1 / 4.9 and 11.6 / 4.3.
        self.assertEqual(round(shares["no_reuse"]), 267)
        # Selection and loss come on top in the step.
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
        columns, forward = self.counted("flexi_jest_b16.py", 12)
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
