"""Draws compared: rank correlation, overlaps, views, the command."""

import contextlib
import dataclasses
import io
import itertools
import json
import os
import tempfile
from unittest import mock

import keras
import numpy as np
import oracles
import pytest
import random_embeddings
import run_server
import tensorflow as tf
import tiny

from jest_tf import config, models, selection, training
from jest_tf.data.sidecars import recognition
from jest_tf.runs import checkpoints, directory, draw_comparison
from jest_tf.training import step as step_lib
from trainers import evaluate, train

SEED = 4
JOINT = config.SelectionConfig("joint", batch_size=8, num_chunks=2)


class SubBatchScoreTest(tf.test.TestCase):
    def test_it_is_the_oracles_and_that_of_the_draw(self):
        learner, reference = random_embeddings.models(24, seed=1)
        for criterion, loss in itertools.product(
            selection.CRITERIA, selection.LOSSES
        ):
            kind = {"criterion": criterion, "loss": loss}
            draw = selection.select_jointly(
                learner,
                reference,
                batch_size=6,
                num_chunks=3,
                seed=(SEED, 0),
                **kind,
            )
            score, conditional = selection.sub_batch_score(
                learner, reference, draw.indices, **kind
            )
            self.assertAllClose(score, draw.score, rtol=1e-5, atol=1e-5)
            chosen = draw.indices.numpy().tolist()
            expected = oracles.combine(
                criterion,
                oracles.row_losses(learner, chosen, loss)[chosen].mean(),
                oracles.row_losses(reference, chosen, loss)[chosen].mean(),
            )
            self.assertAllClose(score, expected, rtol=1e-4, atol=1e-4)
            if loss == "sigmoid":
                matrix = oracles.combine(
                    criterion,
                    oracles.pair_losses(learner),
                    oracles.pair_losses(reference),
                )
                added = np.diag(matrix) + matrix[:, chosen].sum(1)
                added += matrix[chosen].sum(0)
                left = np.setdiff1d(np.arange(24), chosen)
                self.assertAllClose(
                    conditional.numpy()[left], added[left], 1e-4, 1e-4
                )


class CompareTest(tf.test.TestCase):
    def model(self, settings=JOINT):
        model = training.JESTModel(
            tiny.flexible_learner(0), tiny.learner(5), settings, seed=SEED
        )
        model.compile(keras.optimizers.SGD(0.1))
        return model

    def compare(self, settings=JOINT, count=2, **views):
        batches = tiny.super_batches(count, rows=24)
        found = draw_comparison.compare(
            self.model(settings),
            tiny.dataset(batches),
            3,
            settings=settings,
            views=views,
        )
        return batches, list(found)

    def test_draws_are_those_of_the_samplers(self):
        batches, found = self.compare()
        model = self.model()
        for place, (batch, values) in enumerate(
            zip(batches, found, strict=True)
        ):
            batch = {n: tf.constant(value) for n, value in batch.items()}
            learner, frozen = step_lib.score(model.step, batch)
            own, other = (
                {
                    name: sampler(
                        learner,
                        frozen,
                        batch_size=8,
                        num_chunks=2,
                        seed=(seed, 3 + place),
                    )
                    for name, sampler in selection.SAMPLERS.items()
                }
                for seed in (SEED, SEED ^ 1)
            )
            rows, others = (
                {n: set(d.indices.numpy().tolist()) for n, d in of.items()}
                for of in (own, other)
            )
            for name, measures in values["draws"].items():
                for column, expected in (
                    ("score", float(own[name].score)),
                    ("overlap_run", len(rows[name] & rows["joint"]) / 8),
                    ("overlap_uniform", len(rows[name] & rows["uniform"]) / 8),
                    ("overlap_other_noise", len(rows[name] & others[name]) / 8),
                ):
                    self.assertAllClose(measures[column], expected, 1e-4, 1e-4)
            self.assertEqual(values["views"], {})

    def test_the_full_view_agrees_with_itself(self):
        _, found = self.compare(same=draw_comparison.Look(patch_size=2))
        for values in found:
            del values["views"]["same"]["overlap_other_noise"]
            for value in values["views"]["same"].values():
                self.assertAllClose(value, 1.0)

    def test_a_coarse_view_is_compared_by_full_scores(self):
        look = draw_comparison.Look(patch_size=4)
        (batch,), (found,) = self.compare(count=1, coarse=look)
        values = found["views"]["coarse"]
        batch = {n: tf.constant(value) for n, value in batch.items()}
        model = self.model()
        full, frozen = step_lib.score(model.step, batch)
        looking = config.SelectionConfig("joint", 8, 2, view=look.view)
        looked, _ = step_lib.score(
            dataclasses.replace(model.step, selection=looking), batch
        )
        matrices = [
            oracles.pair_losses(one) - oracles.pair_losses(frozen)
            for one in (full, looked)
        ]
        ranks = [oracles.average_ranks(np.diag(one)) for one in matrices]
        self.assertAllClose(
            values["spearman_own"], np.corrcoef(*ranks)[0, 1], atol=1e-2
        )
        noise = selection.gumbel_noise((SEED, 3), 2, 24).numpy()
        drawn = [
            oracles.select_jointly(one, frozen, batch_size=8, noise=noise)
            for one in (full, looked)
        ]
        self.assertEqual(values["overlap"], len(np.intersect1d(*drawn)) / 8)

        def score(rows):
            return np.mean(
                oracles.row_losses(full, rows, "sigmoid")[rows]
                - oracles.row_losses(frozen, rows, "sigmoid")[rows]
            )

        uniform = selection.uniform_rows((SEED, 3), 8, 24).numpy().tolist()
        gains = [score(list(one)) - score(uniform) for one in drawn]
        self.assertAllClose(
            values["score_kept"], gains[1] / gains[0], atol=1e-3
        )
        left = np.setdiff1d(np.arange(24), drawn[0])
        given = [
            np.diag(one) + one[:, drawn[0]].sum(1) + one[drawn[0]].sum(0)
            for one in matrices
        ]
        expected = np.corrcoef(
            *(oracles.average_ranks(one[left]) for one in given)
        )
        self.assertAllClose(
            values["spearman_conditional"], expected[0, 1], atol=1e-2
        )

    def test_a_criterion_without_the_learner_has_no_views(self):
        settings = config.SelectionConfig(
            "joint", batch_size=8, num_chunks=2, criterion="easy_reference"
        )
        look = draw_comparison.Look(patch_size=4)
        _, found = self.compare(settings, coarse=look)
        self.assertEqual([values["views"] for values in found], [{}, {}])
        self.assertIn("score", found[1]["draws"]["joint"])

    def test_augmented_pictures_are_the_learners_alone(self):
        look = draw_comparison.Look(flip=True, min_crop_area=0.5)
        (batch,), (found,) = self.compare(count=1, cropped=look)
        batch = {name: tf.constant(value) for name, value in batch.items()}
        model = self.model()
        seen = look.augment(batch, (SEED ^ draw_comparison._CROPS, 3))
        self.assertNotAllEqual(seen["image"], batch["image"])
        full, frozen = step_lib.score(model.step, batch)
        cropped, same = step_lib.score(model.step, seen)
        for one, other in zip(frozen, same, strict=True):
            self.assertAllEqual(one, other)
        own = [
            selection.select_jointly(
                one, frozen, batch_size=8, num_chunks=2, seed=(SEED, 3)
            ).own_score
            for one in (full, cropped)
        ]
        rank = recognition.spearman(*own)
        values = found["views"]["cropped"]
        self.assertAllClose(values["spearman_own"], rank, rtol=1e-4)
        self.assertLess(rank, 0.999)

    def test_candidates_alone_are_drawn_from(self):
        settings = config.SelectionConfig(
            "joint", batch_size=8, num_chunks=2, candidates=8
        )
        _, found = self.compare(settings)
        for values in found:
            self.assertEqual(values["draws"]["uniform"]["overlap_run"], 1.0)


class ViewTest(tf.test.TestCase):
    def test_a_view_is_written_as_it_is_read(self):
        for text, fields in (
            ("patch_size=32", {"patch_size": 32}),
            (
                "patch_size=8,keep_tokens=0.5",
                {"patch_size": 8, "keep_tokens": 0.5},
            ),
            ("image_size=64", {"image_size": 64}),
            (
                "flip=true,min_crop_area=0.5",
                {"flip": True, "min_crop_area": 0.5},
            ),
        ):
            look = draw_comparison.Look(**fields)
            self.assertEqual(draw_comparison.parse_view(text), look)
            self.assertEqual(draw_comparison.describe_view(look), text)
        self.assertEqual(
            draw_comparison.describe_view(draw_comparison.Look()), "full"
        )

    def test_mistakes_name_the_field(self):
        for text, message in (
            ("patch=3", "No setting `patch`"),
            ("patch_size", "a.b=c"),
            ("patch_size=big", "`patch_size`"),
            ("keep_tokens=0", "keep_tokens"),
            ("min_crop_area=0", "`view.min_crop_area` must be in"),
        ):
            with self.assertRaisesRegex(ValueError, message):
                draw_comparison.parse_view(text)


def build_learner(settings, vocabulary_size, patch_sizes=()):
    del vocabulary_size, patch_sizes
    return tiny.flexible_learner(settings.seed)


class CommandTest(tf.test.TestCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(folder.cleanup)
        shard = os.path.join(folder.name, "a.tfrecord")
        tiny.write_shard(shard)
        cls.workdir = os.path.join(folder.name, "run")
        recipe = f"{folder.name}/recipe.json"
        config.save_config(
            run_server.recipe(
                folder.name,
                (
                    "steps=8",
                    "evaluation.every_steps=none",
                    f"data.train={shard}",
                ),
            ),
            recipe,
        )
        patch = mock.patch.object(models, "build_learner", build_learner)
        patch.start()
        cls.addClassCleanup(patch.stop)
        with contextlib.redirect_stderr(io.StringIO()):
            train.main(["--config", recipe, "--workdir", cls.workdir])

    def evaluate(self, *flags):
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            evaluate.main(["--workdir", self.workdir, "--selection", *flags])
        return printed.getvalue()

    def test_it_prints_tables_and_writes_a_file(self):
        flags = ("--super-batches", "2", "--views", "patch_size=4")
        text = self.evaluate(*flags)
        self.assertStartsWith(text, "step 8: joint draws of 4 of 12 rows by")
        self.assertIn("share 33.3% of their rows", text)
        for line in (r"\ndraw +score ", r"\njoint ", r"\npatch_size=4 "):
            self.assertRegex(text, line)
        with open(f"{self.workdir}/{directory.SELECTION_FILE}") as file:
            results = json.load(file)
        self.assertEqual((results["step"], results["super_batches"]), (8, 2))
        joint = results["draws"]["joint"]
        self.assertEqual(joint["overlap_run"], {"mean": 1.0, "std": 0.0})
        self.assertIn(f"{joint['score']['mean']:.3f} ±", text)
        self.assertEqual(json.loads(self.evaluate(*flags, "--json")), results)

    @pytest.mark.slow
    def test_the_weights_of_a_checkpoint(self):
        steps = checkpoints.saved_steps(self.workdir)
        final, last, first = (
            draw_comparison.measure(
                self.workdir, num_super_batches=1, step=step
            )
            for step in (None, steps[-1], steps[0])
        )
        self.assertEqual(final, last)
        self.assertEqual(first["step"], steps[0])
        self.assertNotEqual(first["draws"], last["draws"])

    def test_mistakes_end_with_one_clear_line(self):
        for flags, message in (
            (["--step", "3"], r"`step` must be one of .*\[4, 8\].*: 3"),
            (["--views", "patch_size=3"], r"built for, \(2, 4\).*=3"),
            (["--super-batches", "0"], "at least 1"),
        ):
            with self.assertRaises(SystemExit) as stop:
                self.evaluate(*flags)
            self.assertRegex(str(stop.exception), f"^error: .*{message}")


if __name__ == "__main__":
    tf.test.main()
