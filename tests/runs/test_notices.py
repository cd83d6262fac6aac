"""Notices of a run's data: samples, tests trained on, equal captions."""

import contextlib
import dataclasses
import io
import types
import zlib
from unittest import mock

import numpy as np
import run_server
import shard_files
import tensorflow as tf
import tiny

from jest_tf import config, evaluation, models, runs
from jest_tf.data import known_images
from jest_tf.runs import inputs, notices


class NoticesTest(shard_files.FolderTestCase):
    def pool(self, captions=("a b",) * 100, damaged=(), first=0, name="pool"):
        """A shard of images that differ; those of `damaged` rows are empty."""
        shades = np.arange(first, first + len(captions), dtype=np.uint8)
        pixels = np.ones([4, 4, 3], np.uint8) * shades[:, None, None, None]
        images = [tf.io.encode_png(image).numpy() for image in pixels]
        return shard_files.write_shard(
            self.path(f"{name}.tfrecord"),
            [
                shard_files.serialize(
                    image=b"" if row in damaged else image, caption=caption
                )
                for row, (image, caption) in enumerate(
                    zip(images, captions, strict=True)
                )
            ],
        )

    def check(self, pool, *tests):
        """Opens and checks the data of a run; returns sources and lines."""
        self.recipe = run_server.recipe(
            self.directory,
            [
                *(f"data.train={pool}", f"evaluation.data={','.join(tests)}"),
                *("selection.stages=none", "selection.batch_size=20"),
            ],
        )
        strategy = tf.distribute.get_strategy()
        opened = inputs.open_inputs(self.recipe, "", strategy)
        with contextlib.redirect_stderr(io.StringIO()) as said:
            opened = notices.check_data(self.recipe, opened)
        return opened.sources, said.getvalue().splitlines()

    def test_unreadable_records_are_refused_or_counted(self):
        # 256 positions are an epoch of the 256 rows.
        captions = ["a b"] * 256
        pool = self.pool(captions, damaged=range(200, 211))
        with self.assertRaisesRegex(
            ValueError,
            "cannot be read: 11 of .* at most 1.00%.*11 x empty image; the "
            rf"first: record 2\d\d of {pool}, empty image$",
        ):
            self.check(pool)
        _, (line,) = self.check(self.pool(captions, damaged=[7]))
        self.assertStartsWith(
            line,
            "warning: 1 of 256 sampled records cannot be read, the first "
            f"record 7 of {pool}: empty image; ",
        )
        self.assertEmpty(self.check(self.pool(captions))[1])

    def test_a_sample_ends_early_where_records_take_long(self):
        pool = self.pool([b"a \xe9"] * 256)
        ticks = iter(range(99))
        clock = types.SimpleNamespace(monotonic=lambda: next(ticks))
        with (
            mock.patch.object(notices, "time", clock),
            mock.patch.object(notices, "_SECONDS", 1.5),
        ):
            _, (line,) = self.check(pool)
        # Two of the sixteen parts.
        self.assertStartsWith(line, "warning: 32 of 32 sampled captions are ")

    def test_shards_that_are_named_twice_are_counted(self):
        pools = self.pool(), self.pool(first=100, name="other")
        _, (line,) = self.check(f"{','.join(pools)},{self.path('*.tfrecord')}")
        self.assertStartsWith(
            line, "warning: 2 of the 4 shards in `data.train`"
        )

    def test_captions_that_are_not_utf8_are_counted(self):
        captions = [b"a \xe9"] * 64 + [b"a b"] * 192
        _, (line,) = self.check(self.pool(captions))
        self.assertStartsWith(line, "warning: 64 of 256 sampled captions are ")

    def test_tests_in_the_training_data_are_counted(self):
        tests = self.pool(["a b"] * 30, name="tests")
        sources, lines = self.check(f"{self.pool()},{tests}", tests)
        self.assertLen(lines, 1)
        self.assertStartsWith(
            lines[0],
            "warning: 30 of the 30 records of the evaluation data 'tests' are "
            f"training data too, the first in {tests}: ",
        )
        # Found in a sample of an epoch: said at once, and not again.
        copies = self.pool(first=90)
        tests = self.pool(["c"] * 20, first=80, name="tests")
        sources, (line,) = self.check(copies, tests)
        self.assertStartsWith(
            line,
            "warning: images of the evaluation data, byte for byte, are in "
            "the training data: 10 in 256 sampled records, the first record 0 "
            f"of {copies}; ",
        )
        self.assertEmpty(self.follow(sources, 100))

    def follow(self, sources, count, *ids, start_step=0):
        """Lines said in `count` steps, the first of these caption ids."""
        rows = {}
        model = types.SimpleNamespace(
            rows=types.SimpleNamespace(trained=rows.get)
        )
        callback = notices.Notices(self.recipe, sources, start_step)
        callback.set_model(model)
        with contextlib.redirect_stderr(io.StringIO()) as said:
            for step in range(count):
                rows["caption_id"] = np.array((*ids, range(20))[: step + 1][-1])
                callback.on_train_batch_end(step)
            callback.on_train_end()
        return said.getvalue().splitlines()

    def test_png_files_of_equal_sizes_are_told_apart(self):
        # Their CRC-32s have 16 free bits: each part of a PNG holds its own.
        pixels = np.random.default_rng(0).integers(0, 255, [2000, 4, 4, 3])
        encoded = [
            tf.io.encode_png(image, compression=0).numpy()
            for image in pixels.astype(np.uint8)
        ]
        self.assertLess(len({zlib.crc32(image) for image in encoded}), 1990)
        keys = {known_images.image_key(image) for image in encoded}
        self.assertLen(keys, 2000)

    def test_known_images_are_told_after_the_first_steps(self):
        pool, tests = self.pool(), self.pool(["c"] * 9, first=200, name="tests")
        sources, lines = self.check(pool, tests)
        self.assertEmpty(lines)
        (image, *_) = evaluation.open_stores(self.recipe.evaluation.named)[
            "tests"
        ].store.read([4])
        for _ in range(2):
            sources.known.look(image.image, 33)
        sources.known.look(image.image + b"\0", 12)
        (line,) = self.follow(sources, 100)
        self.assertStartsWith(
            line,
            "warning: images of the evaluation data, byte for byte, are in "
            "the training data: 1 in the records that 100 steps read, the "
            f"first record 33 of {pool}; ",
        )
        sources.known.look(image.image, 33)
        self.assertEmpty(sources.known.found)

    def test_equal_captions_are_told_once(self):
        sources, _ = self.check(self.pool())
        few = [0, 0, *range(2, 20)]
        many = [0, 0, 2, 3, 0, *range(5, 20)]
        (line,) = self.follow(sources, 5, few, many, many, start_step=7)
        self.assertRegex(
            line,
            "^warning: step 9: 3 of the 20 rows in the batch have .*"
            "`model.false_negatives=equal_captions` leaves ",
        )
        self.assertEmpty(self.follow(sources, 5, few))
        model = dataclasses.replace(
            self.recipe.model, false_negatives="equal_captions"
        )
        self.recipe = dataclasses.replace(self.recipe, model=model)
        self.assertEmpty(self.follow(sources, 5, many))

    def test_a_run_says_so(self):
        tests = self.pool(["c"] * 9, first=95, name="tests")
        self.check(self.pool(), tests)
        build = {"build_learner": run_server.build_learner}
        with (
            mock.patch.multiple(models, **build),
            mock.patch.object(notices, "_SAMPLED", 1),
            tiny.eagerly(),
            contextlib.redirect_stderr(io.StringIO()) as said,
        ):
            recipe = dataclasses.replace(
                self.recipe,
                steps=5,
                distribution=config.DistributionConfig("mirrored"),
            )
            runs.train(recipe, self.path("run"))
        lines = [
            line for line in said.getvalue().splitlines() if "warn" in line
        ]
        for line, text in zip(
            lines,
            (
                "found no GPU: the run uses one CPU",
                "step 1: 20 of the 20 rows in the batch",
                "data: 5 in the records that 5 steps",
            ),
            strict=True,
        ):
            self.assertIn(text, line)
