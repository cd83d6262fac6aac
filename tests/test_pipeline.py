"""Tests of the training and evaluation datasets."""

import os
import tempfile

import numpy as np
import tensorflow as tf
import test_records

from jest_tf.data import pipeline, preprocessing, records, stream

SIZE = 6
VOCABULARY = ["[UNK]", "[EOS]", *"abcdefghijklmnopqrstuvwxyz0123456789", "##0"]
# No two rows share a caption but the last two, which share their first.
CAPTIONS = [
    [b"a", b"b", b"c"],
    ["caf\u00e9".encode()],
    [b"bad \xff"],
    [b"  "],
    [b"e", b"  f"],
    [b"same", b"g"],
    [b"same", b"bad \xfe"],
]


class PipelineTestCase(tf.test.TestCase):
    def setUp(self):
        super().setUp()
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.directory = directory.name
        rng = np.random.default_rng(0)
        self.images = rng.integers(0, 256, (7, SIZE, SIZE, 3), np.uint8)
        self.tokenizer = preprocessing.WordPieceTokenizer(VOCABULARY, 4)
        # Two shards of 3 and 4; the rows of the second have no id.
        self.write("a", range(3), id=True)
        self.write("b", range(3, 7))
        self.store = records.TFRecordStore(os.path.join(self.directory, "*"))
        self.ids = self.store.columns(["id"])["id"]

    def write(self, name, rows, id=False, **features):
        path = os.path.join(self.directory, name)
        payloads = []
        for row in rows:
            values = {
                "image": tf.io.encode_png(self.images[row]).numpy(),
                "caption": CAPTIONS[row],
                "label": f"label {row}",
            }
            if id:
                values["id"] = 100 + row
            values |= features
            payloads.append(
                test_records.serialize(
                    **{k: v for k, v in values.items() if v is not None}
                )
            )
        return test_records.write_shard(path, payloads)

    def super_batches(self, count=None, store=None, **settings):
        settings = {
            "super_batch_size": 4,
            "seed": 5,
            "tokenizer": self.tokenizer,
            "image_size": SIZE,
        } | settings
        dataset = pipeline.super_batches(store or self.store, **settings)
        if count is None:
            return dataset
        return list(dataset.take(count).as_numpy_iterator())

    def rows_of(self, batches):
        """The row of each id, in order."""
        ids = np.concatenate([batch["id"] for batch in batches])
        matches = ids[:, None] == self.ids
        self.assertAllEqual(matches.sum(1), np.ones(len(ids)))
        return matches.argmax(1)

    def chosen(self, row, position, seed=5):
        """The caption that (seed, position) picks for a row."""
        salt = int.from_bytes(b"caption", "big")
        value = stream.uniform_hash(seed, np.array([position]), salt)[0]
        return CAPTIONS[row][int(value) // 2 % len(CAPTIONS[row])]

    def assert_equal_batches(self, ours, theirs):
        self.assertEqual(len(ours), len(theirs))
        for one, other in zip(ours, theirs, strict=True):
            self.assertEqual(list(one), list(other))
            for name in one:
                self.assertAllEqual(one[name], other[name])


class SuperBatchesTest(PipelineTestCase):
    def test_shapes_are_static(self):
        spec = self.super_batches().element_spec
        self.assertEqual(
            spec,
            {
                "image": tf.TensorSpec([4, SIZE, SIZE, 3], tf.uint8),
                "text": tf.TensorSpec([4, 4], tf.int32),
                "id": tf.TensorSpec([4], tf.int64),
                "caption_id": tf.TensorSpec([4], tf.int64),
                "caption_replaced": tf.TensorSpec([4], tf.bool),
            },
        )

    def test_rows_follow_the_order_of_the_stream(self):
        rows = self.rows_of(self.super_batches(20))
        order = stream.Order(7, seed=5)
        self.assertAllEqual(rows, order.rows(np.arange(80)))

    def test_every_value_belongs_to_its_record(self):
        batches = self.super_batches(30)
        rows = self.rows_of(batches)
        values = {
            name: np.concatenate([batch[name] for batch in batches])
            for name in batches[0]
        }
        captions = [self.chosen(row, p) for p, row in enumerate(rows)]
        self.assertAllEqual(values["image"], self.images[rows])
        valid = [c.decode("utf-8", "replace").encode() for c in captions]
        self.assertAllEqual(values["text"], self.tokenizer(tf.constant(valid)))
        self.assertAllEqual(
            values["caption_replaced"],
            [b"\xff" in c or b"\xfe" in c for c in captions],
        )
        # Every caption of every record was used, and ids of captions are
        # equal exactly where the captions are.
        self.assertEqual(set(captions), {c for cs in CAPTIONS for c in cs})
        _, expected = np.unique(valid, return_inverse=True)
        _, got = np.unique(values["caption_id"], return_inverse=True)
        self.assertAllEqual(expected[:, None] == expected, got[:, None] == got)

    def test_captions_are_chosen_evenly(self):
        store = records.TFRecordStore(os.path.join(self.directory, "a"))
        counts = [0, 0, 0]
        for batch in self.super_batches(30, store=store, super_batch_size=30):
            for token in batch["text"][batch["id"] == 100][:, 0]:
                counts[token - VOCABULARY.index("a")] += 1
        self.assertEqual(sum(counts), 300)
        # Mean 100, standard deviation 8.2 each: five of them.
        self.assertAllInRange(counts, 59, 141)

    def test_resuming_at_any_step_continues_the_stream_exactly(self):
        # Sizes in one chunk, in several chunks, and over several epochs.
        for size in (1, 4, 30, 512):
            unbroken = self.super_batches(6, super_batch_size=size)
            for step in (1, 2, 5):
                resumed = self.super_batches(
                    6 - step, super_batch_size=size, start_step=step
                )
                self.assert_equal_batches(resumed, unbroken[step:])

    def test_a_super_batch_does_not_depend_on_its_chunks(self):
        whole = self.super_batches(2, super_batch_size=512)
        self.addCleanup(setattr, pipeline, "_CHUNK", pipeline._CHUNK)
        pipeline._CHUNK = 32
        self.assertEqual(pipeline._chunk_size(512), 32)
        self.assert_equal_batches(
            self.super_batches(2, super_batch_size=512), whole
        )

    def test_chunks_divide_the_super_batch(self):
        for size, chunk in (
            (1, 1), (255, 255), (256, 256), (257, 257), (1280, 256),
            (768, 256), (1000, 250), (2 * 257, 514), (32768, 256),
        ):  # fmt: skip
            self.assertEqual(pipeline._chunk_size(size), chunk)

    def test_a_far_step_needs_no_walk_there(self):
        batch = self.super_batches(1, start_step=10**15)[0]
        positions = np.arange(4 * 10**15, 4 * 10**15 + 4)
        self.assertAllEqual(
            self.rows_of([batch]), stream.Order(7, 5).rows(positions)
        )

    def test_an_epoch_covers_every_record_once(self):
        batches = self.super_batches(5, super_batch_size=7)
        for batch in batches:
            self.assertAllEqual(np.sort(batch["id"]), np.sort(self.ids))
        orders = {tuple(batch["id"]) for batch in batches}
        self.assertLen(orders, 5)

    def test_seeds_give_different_streams(self):
        streams = [
            np.concatenate([b["id"] for b in self.super_batches(7, seed=seed)])
            for seed in range(4)
        ]
        for i in range(4):
            for j in range(i):
                self.assertNotAllEqual(streams[i], streams[j])

    def test_two_iterations_are_equal(self):
        self.assert_equal_batches(self.super_batches(9), self.super_batches(9))

    def test_a_reference_gets_its_own_preprocessing(self):
        longer = preprocessing.WordPieceTokenizer(VOCABULARY, 6)
        plain = self.super_batches(3)
        batches = self.super_batches(
            3, reference_tokenizer=longer, reference_image_size=9
        )
        for batch, before in zip(batches, plain, strict=True):
            text = batch.pop("text_for_reference")
            image = batch.pop("image_for_reference")
            self.assert_equal_batches([batch], [before])
            self.assertAllEqual(text[:, :3], batch["text"][:, :3])
            self.assertEqual(text.shape, (4, 6))
            for row, resized in zip(self.rows_of([batch]), image, strict=True):
                encoded = tf.io.encode_png(self.images[row])
                self.assertAllEqual(
                    resized, preprocessing.decode_image(encoded, 9)
                )

    def test_a_reference_that_preprocesses_alike_adds_nothing(self):
        spec = self.super_batches(
            reference_tokenizer=self.tokenizer, reference_image_size=SIZE
        ).element_spec
        self.assertEqual(spec, self.super_batches().element_spec)

    def test_pictures_of_another_size_are_resized(self):
        batch = self.super_batches(1, image_size=3)[0]
        for row, image in zip(
            self.rows_of([batch]), batch["image"], strict=True
        ):
            encoded = tf.io.encode_png(self.images[row])
            self.assertAllEqual(image, preprocessing.decode_image(encoded, 3))

    def test_bad_settings_are_refused(self):
        for name, value in (
            ("super_batch_size", 0),
            ("image_size", 0),
            ("reference_image_size", -1),
            ("start_step", -1),
            ("seed", -1),
        ):
            with self.assertRaisesRegex(ValueError, f"`{name}`.*{value}"):
                self.super_batches(**{name: value})


class BadRecordTest(PipelineTestCase):
    def refuse(self, message, read=None):
        """A third shard, "c", is at fault; its record 1 is to be named."""
        store = records.TFRecordStore(os.path.join(self.directory, "*"))
        read = read or (lambda store: self.super_batches(4, store=store))
        with self.assertRaisesRegex(tf.errors.InvalidArgumentError, message):
            read(store)

    def write_bad(self, **features):
        good = self.write("good", [0], id=True)
        bad = self.write("bad", [1], **features)
        payloads = list(
            tf.data.TFRecordDataset([good, bad]).as_numpy_iterator()
        )
        os.remove(good)
        os.remove(bad)
        test_records.write_shard(os.path.join(self.directory, "c"), payloads)

    def test_a_record_without_caption_is_named(self):
        for captions in (None, []):
            self.write_bad(caption=captions)
            self.refuse("`caption` must hold .*0 values in record 1 of .*/c")

    def test_a_record_without_one_picture_is_named(self):
        for images in (None, [b"x", b"y"]):
            self.write_bad(image=images)
            count = len(images or [])
            self.refuse(f"`image` .*{count} values in record 1 of .*/c")

    def test_a_picture_that_cannot_be_decoded_is_named_with_the_reason(self):
        png = tf.io.encode_png(self.images[0]).numpy()
        for image in (b"", b"not a picture", png[:-30], png[:20]):
            self.write_bad(image=image)
            message = f"`image`.*{len(image)} bytes .* in record 1 of .*/c: ."
            self.refuse(message)
            self.refuse(
                message, lambda store: list(pipeline.images(store, 4, SIZE))
            )

    def test_ids_that_would_repeat_are_refused(self):
        os.mkdir(os.path.join(self.directory, "d"))
        self.write("d/b", [1], id=True)
        store = records.TFRecordStore(
            [os.path.join(self.directory, name) for name in ("b", "d/b")]
        )
        with self.assertRaisesRegex(
            tf.errors.InvalidArgumentError, "`id`.*base name.*record . of .*/b"
        ):
            next(iter(self.super_batches(store=store, super_batch_size=5)))

    def test_garbage_instead_of_an_example_is_refused(self):
        test_records.write_shard(os.path.join(self.directory, "c"), [b"\xff"])
        self.refuse("`tf.train.Example`.*1 other bytes in record 0 of .*/c")


class EvaluationTest(PipelineTestCase):
    def test_examples_come_once_in_order_with_the_first_caption(self):
        dataset = pipeline.examples(
            self.store,
            batch_size=3,
            tokenizer=self.tokenizer,
            image_size=SIZE,
            metadata=["label", "concept"],
        )
        batches = list(dataset.as_numpy_iterator())
        self.assertEqual([len(b["id"]) for b in batches], [3, 3, 1])
        values = {
            name: np.concatenate([batch[name] for batch in batches])
            for name in batches[0]
        }
        first = [
            captions[0].decode("utf-8", "replace") for captions in CAPTIONS
        ]
        self.assertAllEqual(values["id"], self.ids)
        self.assertAllEqual(values["id"][:3], [100, 101, 102])
        self.assertAllEqual(values["image"], self.images)
        self.assertAllEqual(values["text"], self.tokenizer(tf.constant(first)))
        self.assertAllEqual(
            values["caption_replaced"], [row == 2 for row in range(7)]
        )
        self.assertEqual(values["caption_id"][5], values["caption_id"][6])
        self.assertLen(set(values["caption_id"]), 6)
        self.assertAllEqual(
            values["label"], [f"label {row}".encode() for row in range(7)]
        )
        self.assertAllEqual(values["concept"], [b""] * 7)

    def test_images_come_once_in_order(self):
        for size in (1, 3, 7, 100):
            dataset = pipeline.images(self.store, size, SIZE)
            self.assertEqual(dataset.element_spec.shape[1:], [SIZE, SIZE, 3])
            batches = list(dataset.as_numpy_iterator())
            self.assertLen(batches, -(-7 // size))
            self.assertLen(dataset, len(batches))
            self.assertAllEqual(np.concatenate(batches), self.images)

    def test_images_need_no_captions(self):
        self.write("b", range(3, 7), caption=None)
        store = records.TFRecordStore(os.path.join(self.directory, "b"))
        (batch,) = pipeline.images(store, 4, SIZE)
        self.assertAllEqual(batch, self.images[3:])

    def test_bad_settings_are_refused(self):
        with self.assertRaisesRegex(ValueError, "`batch_size`.*0"):
            pipeline.images(self.store, 0, SIZE)
        with self.assertRaisesRegex(ValueError, "`image_size`.*0"):
            pipeline.examples(
                self.store,
                batch_size=1,
                tokenizer=self.tokenizer,
                image_size=0,
            )


if __name__ == "__main__":
    tf.test.main()
