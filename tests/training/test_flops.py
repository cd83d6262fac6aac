"""FLOPs of a step: against hand counts, closed forms and TensorFlow's own."""

import dataclasses
import functools
import itertools
import pathlib

import lockstep
import pytest
import tensorflow as tf
import tiny_towers

from jest_tf import config as config_lib
from jest_tf import losses, models, selection
from jest_tf.embeddings import Embeddings
from jest_tf.models import reference, two_tower
from jest_tf.training import flops
from jest_tf.training import funnel as funnel_lib
from jest_tf.training import step as step_lib


def products(function, *shapes):
    """The FLOPs of a function of float32 tensors."""
    return flops.count(function, *map(tf.TensorSpec, shapes))[0]


class CountTest(tf.test.TestCase):
    def test_products_by_hand(self):
        def matmul(**transposed):
            return lambda a, b: tf.matmul(a, b, **transposed)

        def einsum(equation):
            return lambda *x: tf.einsum(equation, *x)

        def convolve(image, filters):
            return tf.nn.conv2d(image, filters, 2, "SAME")

        def grouped(image, filters):
            return tf.nn.conv2d(image, filters[:, :, :3], 2, "SAME")

        def depthwise(image, filters):
            filters = filters[:, :, :, :4]
            return tf.nn.depthwise_conv2d(image, filters, [1, 2, 2, 1], "SAME")

        image, filters = [2, 8, 8, 6], [3, 3, 6, 10]
        positions = 2 * 4 * 4  # at stride 2, padded
        for function, shapes, expected in (
            # [4, 5] x [5, 6]: 4 * 6 values of 5 multiplications and additions.
            (matmul(), ([4, 5], [5, 6]), 4 * 5 * 6),
            (matmul(transpose_a=True), ([5, 4], [5, 6]), 4 * 5 * 6),
            (matmul(transpose_b=True), ([4, 5], [6, 5]), 4 * 5 * 6),
            # Batches are broadcast.
            (matmul(), ([3, 1, 4, 5], [7, 5, 6]), 3 * 7 * 4 * 5 * 6),
            (matmul(), ([3, 7, 4, 5], [3, 7, 5, 6]), 3 * 7 * 4 * 5 * 6),
            # An einsum is a single loop over its axes.
            (einsum("ab,bc->ac"), ([4, 5], [5, 6]), 4 * 5 * 6),
            (einsum("...ab,...bc->...ac"), ([3, 4, 5], [5, 6]), 3 * 4 * 5 * 6),
            (einsum("xab,abd->xd"), ([3, 4, 5], [4, 5, 6]), 3 * 4 * 5 * 6),
            (einsum("ab->ba"), ([4, 5],), 0),
            # Every output of a convolution meets its filter.
            (convolve, (image, filters), positions * 9 * 6 * 10),
            (grouped, (image, filters), positions * 9 * 3 * 10),
            (depthwise, (image, filters), positions * 9 * 6 * 4),
        ):
            self.assertEqual(products(function, *shapes), 2 * expected, shapes)

    def test_nested_functions_and_loops_are_entered(self):
        @tf.function
        def inner(a):
            return tf.matmul(a, a)

        def step(value, a):
            mapped = tf.map_fn(lambda row: tf.matmul(row[None], a)[0], value)
            return tf.matmul(mapped, inner(a))

        def loop(a):
            return tf.while_loop(
                lambda value: tf.reduce_sum(value) > 1.0,
                lambda value: (step(value, a),),
                (a,),
                maximum_iterations=3,
            )

        found = flops.count(loop, tf.TensorSpec([4, 4]))
        # With the last dimension of the result.
        self.assertEqual(found, (2 * 3 * (4 * 4**2 + 2 * 4**3), 4))

    def test_graphs_that_cannot_be_counted_are_refused(self):
        def loop(a, number=None):
            return tf.while_loop(
                lambda value: tf.reduce_sum(value) > 1.0,
                lambda value: (tf.matmul(value, a),),
                (a,),
                maximum_iterations=number,
            )

        def branch(a):
            is_large = tf.reduce_sum(a) > 1.0
            return tf.cond(is_large, lambda: tf.matmul(a, a), lambda: a)

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
    """FLOPs of a transformer block for an example."""
    attention = tokens * width * 4 * width + 2 * tokens**2 * width
    return 2 * (attention + 2 * tokens * width * ratio * width)


def image_products(tokens, patch, width, depth, ratio=4):
    """FLOPs of an image tower: for each example, and once for a batch."""
    pooling = (
        tokens * width * 2 * width  # keys and values
        + 2 * tokens * width  # attention of a probe
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
    SIZE, PATCH = tiny_towers.IMAGE_SIZE, tiny_towers.PATCH_SIZE
    WIDTH, DEPTH = tiny_towers.SIZES["width"], tiny_towers.SIZES["depth"]
    LENGTH, ROWS = tiny_towers.LENGTH, 6
    DIM = WIDTH + 4  # of the reference's embeddings
    COARSE = config_lib.View(patch_size=4)

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        shape = (None, cls.SIZE, cls.SIZE, 3)
        cls.learner, teacher = (
            models.TwoTower(
                tiny_towers.image_tower(dim, patch_sizes=(4,)),
                tiny_towers.text_tower(dim),
            )
            for dim in (cls.WIDTH, cls.DIM)
        )
        for model in (cls.learner, teacher):
            model.build({"image": shape, "text": (None, cls.LENGTH)})
        cls.teacher = staticmethod(reference.frozen(teacher))

    def specs(self, rows=ROWS):
        return {
            "image": tf.TensorSpec([rows, self.SIZE, self.SIZE, 3], tf.uint8),
            "text": tf.TensorSpec([rows, self.LENGTH], tf.int32),
        }

    def forward(self, rows=ROWS, patch=PATCH, dim=WIDTH):
        """The closed form of the forward pass, by default the learner's."""
        tokens = (self.SIZE // patch) ** 2
        image, once = image_products(tokens, patch, self.WIDTH, self.DEPTH)
        if dim != self.WIDTH:
            image += 2 * self.WIDTH * dim
        text = text_products(self.LENGTH, self.WIDTH, self.DEPTH, dim)
        return rows * (image + text) + once

    def resizing(self, patch):
        """Of kernel and positions, rows first and then columns."""
        kernel = patch * self.PATCH * (self.PATCH + patch) * 3 * self.WIDTH
        old, new = self.SIZE // self.PATCH, self.SIZE // patch
        return 2 * (kernel + new * old * (old + new) * self.WIDTH)

    def of_small(self):
        """The forward pass of images of half the size, a patch each."""
        size, half = self.SIZE, self.SIZE // 2
        image, once = image_products(1, self.PATCH, self.WIDTH, self.DEPTH)
        text = text_products(self.LENGTH, self.WIDTH, self.DEPTH, self.WIDTH)
        images = half * size * (size + half) * 3 * self.ROWS
        positions = 1 * 2 * (2 + 1) * self.WIDTH
        return self.ROWS * (image + text) + once + 2 * (images + positions)

    def test_a_forward_pass_is_its_closed_form(self):
        for view, expected in (
            (config_lib.View(), self.forward()),
            (self.COARSE, self.forward(patch=4) + self.resizing(4)),
            (config_lib.View(image_size=2), self.of_small()),
        ):
            embed = functools.partial(self.learner, training=False, view=view)
            found = flops.count(embed, self.specs())
            self.assertEqual(found, (expected, self.WIDTH))

    def check(self, *stages, rows=ROWS, curated=0, replicas=1, **options):
        """Compares the FLOPs of a step; two rows pass the stages.

        The expected FLOPs are among the options, by their names.
        """
        expected = {
            name: options.pop(name)
            for name in [*options]
            if name in (*flops.PARTS, "no_reuse", "reused")
        }
        settings = config_lib.SelectionConfig(2 + curated, stages)
        projection = None
        if dim := options.get("projection_dim"):
            projection = two_tower.Projection(dim)
            projection.build((None, self.WIDTH))
        step = step_lib.Step(
            self.learner,
            self.teacher,
            projection=projection,
            segment=config_lib.plan(settings)[0] if stages else None,
            options=step_lib.StepOptions(**options),
        )
        batch = self.specs(rows // replicas)
        if curated:
            batch["curated"] = self.specs(curated // replicas)
        found = flops.count_step(step, batch, replicas)
        found["reused"] = found["no_reuse"] - found["reuse"]
        self.assertEqual({name: found[name] for name in expected}, expected)

    def test_a_uniform_step_is_three_passes_and_its_loss(self):
        logits = 2 * self.ROWS**2 * self.WIDTH
        for options, formed in (({}, 2), ({"loss_block_size": 2}, 3)):
            self.check(
                **options,
                **{"score": 0, "reference": 0, "select": 0},
                forward=self.forward(),
                loss=logits,
                backward=2 * self.forward() + formed * logits,
                no_reuse=3 * self.forward(),
                reused=0,
            )

    def test_a_frozen_tower_has_no_backward_pass(self):
        sizes = self.LENGTH, self.WIDTH, self.DEPTH, self.WIDTH
        text = self.ROWS * text_products(*sizes)
        logits = 2 * self.ROWS**2 * self.WIDTH
        tower = self.learner.image_tower
        tower.trainable = False
        try:
            self.check(forward=self.forward(), backward=2 * text + 2 * logits)
        finally:
            tower.trainable = True

    def test_micro_batches_embed_once_more_in_the_backward_pass(self):
        forward = 3 * self.forward(2)
        backward = 3 * forward + 2 * 2 * self.ROWS**2 * self.WIDTH
        self.check(micro_batch_size=2, forward=forward, backward=backward)

    def test_a_scoring_step_counts_its_passes_and_its_draw(self):
        stage = config_lib.Stage(3, num_chunks=2, scoring_batch_size=3)
        for replicas in (1, 2):
            self.check(
                stage,
                replicas=replicas,
                score=2 * self.forward(3),
                reference=2 * self.forward(3, dim=self.DIM),
                # Two models score six rows, of which two pass.
                select=selection.draw_flops(6, 2, self.WIDTH + self.DIM),
                forward=replicas * self.forward(2 // replicas),
                loss=2 * 2**2 * self.WIDTH,
                # Two of the six rows scored are trained on.
                reused=2 * self.forward(3) // 3,
            )

    def test_every_stage_counts_what_comes_into_it(self):
        stored = config_lib.Stage(9, "stored", "uniform", "easy_reference")
        # Twelve rows, six of which pass to the last stage.
        first = config_lib.Stage(2, num_chunks=2, view=self.COARSE)
        last = config_lib.Stage(3, num_chunks=1)
        hard = dataclasses.replace(last, criterion="hard_learner")
        unscored = dataclasses.replace(first, method="uniform")
        of_coarse = self.forward(12, patch=4) + self.resizing(4)
        both = self.WIDTH + self.DIM
        of_first = selection.draw_flops(12, 6, both)
        for stages, score, embedded, select in (
            # The reference embeds a row once.
            (
                *((stored, first, hard), of_coarse, 12),
                of_first + selection.draw_flops(6, 2, self.WIDTH),
            ),
            ((unscored, last), 0, 6, selection.draw_flops(6, 2, both)),
        ):
            self.check(
                *stages,
                rows=12,
                score=score + self.forward(6),
                reference=self.forward(embedded, dim=self.DIM),
                select=select,
                forward=self.forward(2),
                # Only the last stage sees the view that is trained in.
                reused=self.forward(6) // 3,
            )

    def test_distillation_runs_the_reference_unless_it_has_been(self):
        stage = config_lib.Stage(3, num_chunks=2)
        hard = dataclasses.replace(stage, criterion="hard_learner")
        for stages, curated, embedded in (
            ((), 0, [self.ROWS]),
            ((hard,), 0, [2]),
            # Chosen and curated rows are embedded together.
            ((stage,), 4, [self.ROWS, 6]),
        ):
            trained = 2 + curated if stages else self.ROWS
            self.check(
                *stages,
                curated=curated,
                distillation_weight=1.0,
                projection_dim=self.DIM,
                reference=sum(
                    self.forward(rows, dim=self.DIM) for rows in embedded
                ),
                forward=self.forward(trained),
            )

    def test_distillation_projects_both_embeddings_of_every_row(self):
        logits = 2 * self.ROWS**2 * self.WIDTH
        projected = 2 * (self.ROWS * self.WIDTH * self.DIM * 2)
        self.check(
            **{"distillation_weight": 1.0, "projection_dim": self.DIM},
            forward=self.forward(),
            loss=logits + projected,
            backward=2 * (self.forward() + logits + projected),
        )

    @pytest.mark.tensorflow
    def test_what_is_counted_is_what_losses_and_gradients_form(self):
        """Without the cosines of a reference's own pairs, which are few."""
        rows, scale = self.ROWS, tf.constant(10.0)
        omit, similar = (
            {"false_negatives": "reference"},
            {"similarity_weight": 1},
        )
        cases = (
            ("sigmoid", {}, losses.sigmoid_loss),
            ("softmax", {}, losses.softmax_loss),
            ("sigmoid", omit, losses.sigmoid_loss),
            ("softmax", omit, losses.softmax_loss),
            ("sigmoid", similar, losses.similarity_distillation),
        )
        shares = (1, None), (1, rows), (2, None)
        for (name, options, function), (replicas, block) in itertools.product(
            cases, shares
        ):
            held = rows // replicas
            local = {"block_size": block}
            if replicas > 1:
                local["replicas"] = lockstep.Echo(replicas)

            def traced(*parts, function=function, options=options, local=local):
                learner, reference = (
                    Embeddings(*parts[i : i + 2], scale, scale) for i in (0, 2)
                )
                if options:
                    local = local | {"reference": reference}
                with tf.GradientTape() as tape:
                    tape.watch(parts[:2])
                    value = function(learner, **local)
                return tf.concat(tape.gradient(value, parts[:2]), 0)

            found = replicas * products(
                traced, *[[held, self.WIDTH]] * 2, *[[held, self.DIM]] * 2
            )
            if options == omit:
                found -= replicas * 2 * rows * self.DIM
            step = step_lib.Step(
                self.learner,
                self.teacher,
                loss=name,
                options=step_lib.StepOptions(loss_block_size=block, **options),
            )
            counts = flops.count_step(step, self.specs(held), replicas)
            embedded = replicas * self.forward(held, dim=self.DIM)
            self.assertEqual(counts["reference"], embedded if options else 0)
            counted = (
                counts["loss"] + counts["backward"] - 2 * counts["forward"]
            )
            if options == similar:  # beside the contrastive loss
                options = step_lib.StepOptions(loss_block_size=block)
                step = dataclasses.replace(step, options=options)
                alone = flops.count_step(step, self.specs(held), replicas)
                counted -= alone["loss"] + alone["backward"]
                counted += 2 * alone["forward"]
            with self.subTest((name, options, replicas, block)):
                self.assertEqual(found, counted)


class ColumnsTest(tf.test.TestCase):
    def test_rows_scored_in_a_view_that_is_trained_in_are_reused(self):
        fine, coarse = config_lib.View(), config_lib.View(8)
        for scored_in, trained_in, expected in (
            (fine, (), 12),
            (config_lib.View(4), (), 12),
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

    def counted(self, recipe, *settings):
        """FLOPs of a step of a recipe, and of a forward pass over b rows."""
        configs = pathlib.Path(__file__).parents[2] / "configs"
        run = config_lib.load_config(configs / recipe, settings)
        # The vocabulary is looked up, not multiplied with.
        learner = models.build_learner(run, vocabulary_size=8)
        step = step_lib.Step(
            learner,
            funnel_lib.Cached(10.0, 0.0),
            segment=run.plan[0],
            options=step_lib.StepOptions(
                views=run.training_views,
                micro_batch_size=run.model.micro_batch_size,
                loss_block_size=run.model.loss_block_size,
            ),
        )
        size, length = run.data.image_size, run.data.text_length

        def specs(rows):
            return {
                "image": tf.TensorSpec([rows, size, size, 3], tf.uint8),
                "text": tf.TensorSpec([rows, length], tf.int32),
            }

        rows = run.selection.super_batch_size()
        width = models.PRESETS[run.model.preset].width
        stored = tf.TensorSpec([rows, width], tf.float16)
        stored = {"reference_image": stored, "reference_text": stored}
        columns = flops.count_step(step, specs(rows) | stored)
        embed = functools.partial(learner, training=True)
        forward, _ = flops.count(embed, specs(run.selection.batch_size))
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

    def test_the_pages_say_what_embedding_by_public_models_costs(self):
        root = pathlib.Path(__file__).parents[2]
        recipe, page = (
            " ".join((root / path).read_text(encoding="utf-8").split())
            for path in ("configs/distil_s16.py", "docs/recipes.md")
        )
        for text, width, depth, ratio, patch in (
            (recipe + page, 768, 12, 4, 16),
            (recipe, 1152, 27, 4304 / 1152, 14),
        ):
            pair = 2 * width * width + depth * (
                block_products(64, width, ratio)
                + block_products((224 // patch) ** 2, width, ratio)
            )
            tokens = (224 // patch) ** 2
            pair += image_products(tokens, patch, width, 0, ratio)[0]
            hours = 1e7 * pair / (0.4 * 312e12) / 3600
            self.assertIn(f"{pair / 1e9:.0f} GFLOPs", text)
            self.assertRegex(text, f"{hours:.0f} hours?\\b")

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
        length = "data.text_length=12"
        columns, forward = self.counted("flexi_jest_b16.py", length)
        shares = self.shares(columns, forward)
        self.assertEqual(round(shares["no_reuse"]), 110)
        # Half of the rows are trained on in the view that they are scored in.
        reused = columns["no_reuse"] - columns["reuse"]
        self.assertEqual(reused, columns["score"] // 10)
        self.assertAllClose(shares["step"], shares["no_reuse"], rtol=0.01)
        # The scoring pass of a coarse example, 28 % of a fine example's.
        self.assertAllClose(columns["score"] / 5 / forward, 0.28, atol=0.005)
