"""Tests of writing the sidecars of a store: by any model, by the command."""

import contextlib
import io
import os
import tempfile
import threading
from unittest import mock

import numpy as np
import shard_files
import tensorflow as tf
import tiny

from jest_tf import cli, config
from jest_tf.data import batches, stores
from jest_tf.data import images as images_lib
from jest_tf.data import sidecars as sidecars_lib
from jest_tf.data.sidecars import embed, file_format
from jest_tf.models import reference
from jest_tf.runs import loading

SIZE, DIM = 6, 5
DESCRIPTION = file_format.Description("f", "t", "p", DIM, 4.0, -2.0)


def draw_image(seed, size=SIZE):
    random = np.random.default_rng(seed)
    return random.integers(0, 256, (size, size, 3), np.uint8)


def embed_image(image):
    """A made-up model: the mean colours, and two ones, at unit length."""
    vector = np.append(np.float32(image).mean((0, 1)), [1, 1])
    return vector / np.linalg.norm(vector)


def embed_caption(caption):
    vector = np.float32([len(caption), ord(caption[0]), 1, 2, 3])
    return vector / np.linalg.norm(vector)


def encode(images, captions):
    return (
        np.array([embed_image(image) for image in images]).reshape(-1, DIM),
        np.array([embed_caption(text) for text in captions]).reshape(-1, DIM),
    )


class StoreTestCase(shard_files.FolderTestCase):
    """Two shards with records of every kind, good and bad."""

    def setUp(self):
        super().setUp()
        self.folder = self.path("sidecars")
        png = [tf.io.encode_png(draw_image(i)).numpy() for i in range(9)]
        damaged = png[4][:-30] + b"x" * 30
        jpeg = tf.io.encode_jpeg(draw_image(8, 40)).numpy()
        self.captions = {
            0: ["one", "two  words", "three"],
            1: [" ", "after a blank"],
            2: ["bad \xff".encode("latin-1")],
            3: [],
            4: ["of a damaged image"],
            5: ["\u00fcber", "\u3000"],
            6: ["of no image"],
            7: ["of another size"],
            8: ["last"],
        }
        images = {i: png[i] for i in range(9)}
        images |= {4: damaged, 6: b"", 7: jpeg}
        for name, rows in (("0", range(5)), ("1", range(5, 9))):
            shard_files.write_shard(
                self.path(f"{name}.tfrecord"),
                [
                    shard_files.serialize(
                        image=images[row], caption=self.captions[row], id=row
                    )
                    for row in rows
                ],
            )
        self.store = stores.open_store(f"{self.directory}/*.tfrecord")
        self.jpeg = images_lib.resize_image(
            images_lib.decode(jpeg), SIZE
        ).numpy()

    def write(self, encode=encode, **settings):
        batch_size = settings.pop("batch_size", 2)
        return embed.write(
            self.store,
            encode,
            DESCRIPTION,
            embed.Output(self.folder, **{"dtype": "float32"} | settings),
            image_size=SIZE,
            batch_size=batch_size,
        )

    def assert_right(self):
        sidecars = sidecars_lib.Sidecars(self.store, self.folder, DESCRIPTION)
        parts = [sidecars.read_shard(shard) for shard in range(2)]
        ids, valid = (
            np.concatenate([part[name] for part in parts])
            for name in ("ids", "valid")
        )
        self.assertAllEqual(ids, np.arange(9))
        bad = [4, 6]
        self.assertAllEqual(np.flatnonzero(~valid), bad)
        for row in range(9):
            part, place = parts[row >= 5], row % 5
            text = part["text"][slice(*part["offsets"][place : place + 2])]
            if row in bad:
                self.assertEmpty(text)
                continue
            image = self.jpeg if row == 7 else draw_image(row)
            self.assertAllClose(part["image"][place], embed_image(image))
            captions = self.captions[row]
            self.assertLen(text, len(captions))
            for vector, caption in zip(text, captions, strict=True):
                if isinstance(caption, bytes):
                    caption = caption.decode("utf-8", "replace")
                expected = np.zeros(DIM)
                if caption.strip():
                    expected = embed_caption(caption)
                self.assertAllClose(vector, expected)


class WriteTest(StoreTestCase):
    def test_every_image_and_caption_is_embedded(self):
        for batch_size in (1, 2, 3, 100):
            self.folder = self.path(str(batch_size))
            summary = self.write(batch_size=batch_size)
            self.assert_right()
            self.assertEqual(summary[:5], (2, 0, (), 9, 2))
            self.assertEqual(
                sorted(reason.split(":")[0] for reason in summary.reasons),
                ["damaged image", "empty image"],
            )

    def test_the_model_sees_what_is_whole_and_not_blank(self):
        seen = []

        def watch(images, captions):
            seen.append((len(images), captions))
            self.assertEqual(images.dtype, np.uint8)
            return encode(images, captions)

        self.write(watch, batch_size=5)
        self.assertEqual(
            seen,
            [
                (
                    4,
                    ["one", "two  words", "three", "after a blank"]
                    + ["bad \ufffd"],
                ),
                (3, ["\u00fcber", "of another size", "last"]),
            ],
        )

    def test_a_broken_off_call_goes_on_at_its_unfinished_shard(self):
        calls = []

        def broken(images, captions):
            calls.append(len(images))
            if len(calls) == 4:
                raise RuntimeError("out of memory")
            return encode(images, captions)

        with self.assertRaisesRegex(RuntimeError, "out of memory"):
            self.write(broken)
        counts = []
        summary = self.write(progress=lambda *count: counts.append(count))
        self.assert_right()
        self.assertEqual(summary.skipped, 1)
        self.assertEqual(summary.written, 1)
        self.assertEqual(counts, [(0, 4), (2, 4), (4, 4)])

    def test_two_processes_share_the_work(self):
        # A thread stands for the other process: a lock is of an open file.
        inside, done = threading.Event(), threading.Event()

        def slow(images, captions):
            inside.set()
            done.wait(60)
            return encode(images, captions)

        results = []
        other = threading.Thread(
            target=lambda: results.append(self.write(slow, shards=[0]))
        )
        other.start()
        self.assertTrue(inside.wait(60))
        ours = self.write()
        done.set()
        other.join()
        path = sidecars_lib.sidecar_path(self.store, 0, self.folder)
        self.assertEqual(ours.busy, (path,))
        self.assertEqual((ours.written, results[0].written), (1, 1))
        self.assert_right()

    def test_what_does_not_fit_is_kept_unless_it_may_be_replaced(self):
        self.write(dtype="float16")
        with self.assertRaisesRegex(
            ValueError, "dtype, 'float3.*`--overwrite`"
        ):
            self.write()
        sidecars = sidecars_lib.Sidecars(self.store, self.folder)
        self.assertEqual(sidecars.dtype, "float16")
        self.assertEqual(self.write(overwrite=True).written, 2)
        self.assert_right()

    def test_a_model_that_returns_something_else_is_refused(self):
        for message, model in (
            ("Received: 1 values", lambda *_: encode(*_)[:1]),
            (r"for its images \[2, 5\]. Rec", lambda i, c: encode(i[:1], c)),
            (
                r"must return for its captions \[4, 5\]. Received: \[4, 4\]",
                lambda i, c: (encode(i, c)[0], encode(i, c)[1][:, :4]),
            ),
            ("of unit length", lambda *_: [3 * part for part in encode(*_)]),
        ):
            with self.assertRaisesRegex(ValueError, message):
                self.write(model)


class RowsTest(StoreTestCase):
    def test_only_the_rows_asked_for_are_embedded(self):
        wanted = np.array([0, 1, 0, 0, 0, 0, 0, 1, 1], bool)
        sizes = []

        def counted(images, captions):
            sizes.append(len(images))
            return encode(images, captions)

        self.write()
        every = sidecars_lib.Sidecars(self.store, self.folder)
        self.folder += "-some"
        self.write(counted, rows=wanted)
        some = sidecars_lib.Sidecars(self.store, self.folder)
        # Full passes: two of the second shard's rows at once.
        self.assertEqual(sizes, [1, 2])
        self.assertAllEqual(some.valid(np.arange(9)), wanted)
        rows = np.flatnonzero(wanted)
        ours, theirs = (
            sidecars.read_numbered(rows, 0 * rows, self.store.ids(rows))
            for sidecars in (some, every)
        )
        for part, other in zip(ours, theirs, strict=True):
            self.assertAllEqual(part, other)
        self.folder += "-last"
        self.write(rows=np.arange(9) > 4)  # none of the first shard
        last = sidecars_lib.Sidecars(self.store, self.folder)
        self.assertFalse(last.valid(np.arange(5)).any())
        self.assertTrue(last.valid(np.array([7, 8])).all())


class CommandTest(tf.test.TestCase):
    """A finished run that was never trained, and shards of noise."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.directory = cls.enterClassContext(tempfile.TemporaryDirectory())
        cls.workdir = os.path.join(cls.directory, "reference")
        settings = config.TrainConfig(
            data=config.DataConfig(image_size=32, text_length=16),
            model=config.ModelConfig(preset="tiny"),
        )
        tiny.write_run(cls.workdir, settings, tiny.LETTERS)
        cls.run_of_reference = loading.load(cls.workdir)
        for shard in range(3):
            tiny.write_shard(f"{cls.directory}/{shard}.tfrecord", 30, shard)

    def arguments(self, *more, data=None, output="sidecars"):
        return [
            *("--workdir", self.workdir),
            *("--data", data or f"{self.directory}/*.tfrecord"),
            *("--output", os.path.join(self.directory, output)),
            *("--index-dir", os.path.join(self.directory, "index")),
            *("--batch-size", "8"),
            *more,
        ]

    def run_command(self, *more, **settings):
        with (
            contextlib.redirect_stdout(io.StringIO()) as printed,
            contextlib.redirect_stderr(io.StringIO()) as shown,
            mock.patch.object(loading, "load", self.load),
        ):
            cli.execute(self.arguments(*more, **settings), "embed")
        return printed.getvalue(), shown.getvalue()

    def load(self, workdir):
        """The run of `setUpClass`, which need not be read every time."""
        self.assertEqual(workdir, self.workdir)
        return self.run_of_reference

    def open(self, output):
        store = stores.open_store(
            f"{self.directory}/*.tfrecord",
            index_dir=os.path.join(self.directory, "index"),
        )
        description = reference.describe(self.run_of_reference)
        return sidecars_lib.Sidecars(
            store, os.path.join(self.directory, output), description
        )

    def test_it_writes_what_the_reference_says_of_each_record(self):
        printed, shown = self.run_command("--dtype", "float32", output="a")
        self.assertIn("3 sidecars written, 90 records", printed)
        settings = r"reference.model=\S+ reference.sidecar_dir=\S*a\n"
        self.assertRegex(printed, f"next: jest-tf train .* --set {settings}")
        self.assertRegex(shown, "embedding: 90 of 90 records")
        run, sidecars = self.run_of_reference, self.open("a")
        store = stores.open_store(f"{self.directory}/1.tfrecord")
        (batch,) = batches.examples(store, batch_size=30, image_size=32)
        first = [record.captions[0] for record in store.read(range(30))]
        tokens = run.tokenizer(tf.constant(first))
        expected = run.learner(batch | {"text": tokens})
        rows = np.arange(30, 60)
        image, text = sidecars.read(rows, 0 * rows, batch["id"].numpy())
        self.assertAllClose(image, expected.image)
        self.assertAllClose(text, expected.text)
        self.assertEqual(sidecars.scale, float(expected.scale))

    def test_hosts_share_the_shards_and_do_nothing_twice(self):
        first, _ = self.run_command("--num-hosts", "2", output="b")
        self.assertIn("2 sidecars written, 60 records; 0 were there", first)
        second, _ = self.run_command(
            "--num-hosts", "2", "--host", "1", output="b"
        )
        self.assertIn("1 sidecar written, 30 records; 0 were there", second)
        again, shown = self.run_command(output="b")
        self.assertIn("0 sidecars written, 0 records; 3 were there", again)
        self.assertNotIn("embedding", shown)
        self.open("b")
