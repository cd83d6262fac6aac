"""Tests of the training and evaluation datasets."""

import hashlib
from unittest import mock

import numpy as np
import oracles
import shard_files
import streams
import tensorflow as tf
import tiny

from jest_tf import files
from jest_tf.data import batches as batches_lib
from jest_tf.data import images as images_lib
from jest_tf.data import loading, reader, stream, tokenizers
from jest_tf.data import stores as stores_lib
from jest_tf.files import retries

SIZE = 6
VOCABULARY = ["[UNK]", "[EOS]", *"abcdefghijklmnopqrstuvwxyz0123456789", "##0"]
# No two rows share a caption but the last two, which share their first.
CAPTIONS = [
    [b"a", b"b", b"c"],
    ["caf\u00e9".encode()],
    [b"bad \xff"],
    [b" \t", b"d", b"", "\u3000".encode()],
    [b"e", b"  f"],
    [b"same", b"g"],
    [b"same", b"bad \xfe"],
]


class PipelineTestCase(shard_files.FolderTestCase, streams.StreamTestCase):
    def setUp(self):
        super().setUp()
        rng = np.random.default_rng(0)
        self.images = rng.integers(0, 256, (7, SIZE, SIZE, 3), np.uint8)
        self.tokenizer = tokenizers.WordPieceTokenizer(VOCABULARY, 4)
        # Two shards of 3 and 4; the rows of the second have no id.
        self.write("a", range(3), id=True)
        self.write("b", range(3, 7))
        self.store = stores_lib.open_store(self.path("[ab]"))
        self.ids = self.store.columns(["id"])["id"]

    def write(self, name, rows, id=False, **features):
        path = self.path(name)
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
                shard_files.serialize(
                    **{k: v for k, v in values.items() if v is not None}
                )
            )
        return shard_files.write_shard(path, payloads)

    def super_batches(self, count=None, store=None, **settings):
        settings = {
            "batch_size": 4,
            "seed": 5,
            "tokenizer": self.tokenizer,
            "image_size": SIZE,
        } | settings
        dataset = streams.super_batches(store or self.store, **settings)
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
        captions = [
            c for c in CAPTIONS[row] if c.decode("utf-8", "replace").strip()
        ]
        return captions[int(value) // 2 % len(captions)]


class SuperBatchesTest(PipelineTestCase):
    def test_every_value_is_of_its_record_in_the_streams_order(self):
        batches = self.super_batches(30)
        rows = self.rows_of(batches)
        self.assertAllEqual(rows, stream.Order(7, 5).rows(np.arange(120)))
        values = streams.joined(batches)
        captions = [self.chosen(row, p) for p, row in enumerate(rows)]
        self.assertAllEqual(values["image"], self.images[rows])
        valid = [c.decode("utf-8", "replace").encode() for c in captions]
        self.assertAllEqual(values["text"], self.tokenizer(tf.constant(valid)))
        self.assertAllEqual(
            values["caption_replaced"],
            [b"\xff" in c or b"\xfe" in c for c in captions],
        )
        self.assertNotIn(True, values["record_replaced"])
        # Every caption of every record was used but for the blank, and ids of
        # captions are equal exactly where the captions are.
        used = {c for cs in CAPTIONS for c in cs}
        self.assertEqual(set(captions), used - set(CAPTIONS[3]) | {b"d"})
        _, expected = np.unique(valid, return_inverse=True)
        _, got = np.unique(values["caption_id"], return_inverse=True)
        self.assertAllEqual(expected[:, None] == expected, got[:, None] == got)

    def test_an_unreadable_record_is_replaced_like_a_damaged_one(self):
        path = self.path("b")
        store = stores_lib.open_store(path)
        offset, size = store.indexes[0].spans([2])[0, :2].tolist()
        sector = shard_files.BadSector(offset + size // 2, offset + size)
        found, lines = {}, {}
        for how, open_file in (("sector", sector), ("damage", files.open_file)):
            if how == "damage":
                shard_files.flip(path, offset + size // 2)
            faults = reader.FaultLog(self.path("log"), 1.0)
            with (
                mock.patch.object(retries, "WAITS", (0.0,)),
                mock.patch.object(files, "open_file", open_file),
            ):
                found[how] = self.super_batches(5, store, faults=faults)
            faults.close(5)
            lines[how] = tiny.read_lines(self.directory, "log")
        self.assert_equal_batches(found["sector"], found["damage"])
        # 20 positions are five epochs of the four records.
        self.assertGreaterEqual(len(lines["sector"]), 5)
        for line, other in zip(lines["sector"], lines["damage"], strict=True):
            self.assertEqual(line["place"], f"record 2 of {path}")
            self.assertRegex(line.pop("reason"), "^unreadable: .*Input/output")
            self.assertRegex(other.pop("reason"), "fail their checksum$")
            self.assertEqual(line, other)

    def test_resuming_at_any_step_continues_the_stream_exactly(self):
        # Of several epochs, in a chunk and in two.
        for size, step in ((4, 5), (512, 1)):
            unbroken = self.super_batches(6, batch_size=size)
            resumed = self.super_batches(
                6 - step, batch_size=size, start_step=step
            )
            self.assert_equal_batches(resumed, unbroken[step:])

    def test_a_reference_gets_separate_preprocessing(self):
        longer = tokenizers.WordPieceTokenizer(VOCABULARY, 6)
        plain = self.super_batches(3, image_size=3)
        batches = self.super_batches(
            3,
            image_size=3,
            tokenizer_of_reference=longer,
            image_form=images_lib.Resizing(9),
        )
        for batch, before in zip(batches, plain, strict=True):
            text = batch.pop("text_for_reference")
            image = batch.pop("image_for_reference")
            self.assert_equal_batches([batch], [before])
            self.assertAllEqual(text[:, :3], batch["text"][:, :3])
            self.assertEqual(text.shape, (4, 6))
            for place, row in enumerate(self.rows_of([batch])):
                whole = tf.constant(self.images[row])
                for size, found in ((3, batch["image"]), (9, image)):
                    expected = images_lib.resize_image(whole, size)
                    self.assertAllEqual(found[place], expected)

    def test_the_example_data_gives_the_recorded_batches(self):
        # Digests of what the stream made of it when the data came: runs and
        # published numbers hang on these. Any order, caption, token or pixel
        # that changes shows here.
        store = stores_lib.open_store(
            "examples/icontext_mini/pool-*.tfrecord", index_dir=self.directory
        )
        vocabulary = tiny.LETTERS
        expected = {
            "image": "003651abcb57ef5a",
            "text": "9ae5616d00e71be2",
            "text_for_reference": "3ceba208deadd146",
            "id": "ef8e35674914ad3f",
            "caption_id": "b56b13fec017e273",
            "caption_replaced": "2ea9ab9198d16380",
        }
        batch = self.super_batches(
            1,
            store=store,
            batch_size=96,
            seed=3,
            start_step=1001,
            image_size=32,
            tokenizer=tokenizers.WordPieceTokenizer(vocabulary, 16),
            tokenizer_of_reference=tokenizers.WordPieceTokenizer(vocabulary, 8),
        )[0]
        self.assertNotIn(True, batch.pop("record_replaced"))
        digests = {
            name: hashlib.sha256(value.tobytes()).hexdigest()[:16]
            for name, value in batch.items()
        }
        self.assertEqual(digests, expected)

    def test_hosts_share_every_super_batch_in_order(self):
        settings = {"batch_size": 24, "shuffle_block_size": 2}
        shares = [
            self.super_batches(
                2, start_step=1, host=host, num_hosts=3, **settings
            )
            for host in range(3)
        ]
        self.assert_equal_batches(
            [streams.joined(parts) for parts in zip(*shares, strict=True)],
            self.super_batches(3, **settings)[1:],
        )

    def test_sidecars_that_do_not_fit_stop_it(self):
        class Others:
            """Sidecars of other records."""

            dim, dtype, is_remote = 3, "float16", False

            def valid(self, rows):
                return np.ones(len(rows), bool)

            def read(self, rows, captions, ids):
                raise ValueError("other ids")

        def iterate():
            self.super_batches(1, sidecars=Others(), embeddings=True)

        with self.assertRaisesRegex(
            tf.errors.InvalidArgumentError, "other ids"
        ):
            iterate()
        with (
            self.assertRaisesRegex(ValueError, "^other ids$"),
            loading.plain_errors(),
        ):
            iterate()

    def test_bad_settings_are_refused(self):
        for name, value in (
            ("image_size", 0),
            ("start_step", -1),
            ("seed", -1),
            ("seed", 2**31),
            ("num_hosts", 0),
            ("num_hosts", 3),
            ("host", 1),
            ("host", -1),
            ("weights", (1.0, 2.0)),
        ):
            value_text = str(value).strip("()").replace("(", "")
            with self.assertRaisesRegex(ValueError, f"`{name}`.*{value_text}"):
                self.super_batches(**{name: value})
        with self.assertRaisesRegex(ValueError, "`block_size`.*0"):
            self.super_batches(shuffle_block_size=0)


class CuratedTest(PipelineTestCase):
    """Shard "a", of 3 records, is the pool; "b", of 4, is the curated set."""

    def setUp(self):
        super().setUp()
        self.parts = [
            stores_lib.open_store(self.path(name)) for name in ("a", "b")
        ]
        self.store = stores_lib.join(self.parts)
        self.ids = self.store.columns(["id"])["id"]
        # The seed of the curated set's order.
        salt = int.from_bytes(b"cura", "big")
        self.seed = oracles.position_hash(5, 0, salt) >> 1

    def curated(self, count, curated_rows=2, **settings):
        settings = {"num_curated": 1, "curated_rows": curated_rows} | settings
        return self.super_batches(count, **settings)

    def test_they_come_beside_the_pools_in_an_order_of_their_own(self):
        batches = self.curated(8, shuffle_block_size=2)
        pool = stream.Order(3, 5, block_size=2)
        curated = [batch.pop("curated") for batch in batches]
        self.assertEqual(list(curated[0]), list(batches[0]))
        positions = np.arange(16)
        self.assertAllEqual(self.rows_of(batches), pool.rows(positions))
        order = stream.Order(4, self.seed, block_size=2)
        rows = self.rows_of(curated)
        self.assertAllEqual(rows, 3 + order.rows(positions))
        values = streams.joined(curated)
        self.assertAllEqual(values["image"], self.images[rows])
        chosen = [
            self.chosen(row, position, self.seed)
            for position, row in enumerate(rows)
        ]
        valid = [caption.decode("utf-8", "replace") for caption in chosen]
        self.assertAllEqual(values["text"], self.tokenizer(tf.constant(valid)))
        # The pool is what it is without curated rows.
        alone = self.super_batches(
            8, self.parts[0], batch_size=2, shuffle_block_size=2
        )
        self.assert_equal_batches(batches, alone)

    def test_where_all_rows_are_curated_they_are_the_batch(self):
        batches = self.curated(3, 4)
        self.assertEqual(
            self.super_batches(num_curated=1, curated_rows=4).element_spec,
            self.super_batches().element_spec,
        )
        rows = stream.Order(4, self.seed).rows(np.arange(12))
        self.assertAllEqual(self.rows_of(batches), 3 + rows)

    def test_without_curated_rows_the_pool_is_drawn_from_alone(self):
        alone = self.super_batches(3, self.parts[0])
        self.assert_equal_batches(self.curated(3, 0), alone)

    def test_any_step_continues_it_and_hosts_share_it(self):
        shares = [
            self.curated(2, host=host, num_hosts=2, start_step=4)
            for host in range(2)
        ]
        self.assert_equal_batches(
            [streams.joined(parts) for parts in zip(*shares, strict=True)],
            self.curated(6)[4:],
        )
        for size, what in (
            (4, "the rows into the first live"),
            (6, "`data.cu"),
        ):
            with self.assertRaisesRegex(ValueError, f"divide {what}.*2 rows"):
                self.curated(1, batch_size=size, num_hosts=4)

    def test_faults_of_both_sets_are_logged_by_step_and_setting(self):
        for store in self.parts:
            place, size = store.indexes[0].spans([1])[0, :2].tolist()
            shard_files.flip(store.shards.paths[0], place + size // 2)

        def lines(count, start_step):
            faults = reader.FaultLog(self.path("log"), 1.0)
            self.curated(count, faults=faults, start_step=start_step)
            faults.close(start_step + count)
            return tiny.read_lines(self.directory, "log")

        orders = {
            "data.curated": stream.Order(4, self.seed, start=3),
            "data.train": stream.Order(3, 5),
        }
        expected = []
        for step in range(8):
            for setting, order in orders.items():
                bad = 1 if setting == "data.train" else 4
                expected += [
                    (step, setting, position)
                    for position in (2 * step, 2 * step + 1)
                    if order.rows([position])[0] == bad
                ]
        found = lines(8, 0)
        self.assertEqual(
            [
                (line["step"], line["setting"], line["position"])
                for line in found
            ],
            expected,
        )
        self.assertLen({setting for _, setting, _ in expected}, 2)
        for line in found:
            path = "a" if line["setting"] == "data.train" else "b"
            path = self.path(path)
            self.assertEqual(line["place"], f"record 1 of {path}")
        self.assertEqual(lines(5, 3), found)


class EvaluationTest(PipelineTestCase):
    def test_examples_come_once_in_order(self):
        dataset = batches_lib.examples(
            self.store, batch_size=3, image_size=SIZE
        )
        batches = list(dataset.as_numpy_iterator())
        self.assertEqual([len(b["id"]) for b in batches], [3, 3, 1])
        values = streams.joined(batches)
        self.assertAllEqual(values["id"], self.ids)
        self.assertAllEqual(values["id"][:3], [100, 101, 102])
        self.assertAllEqual(values["image"], self.images)

    def test_images_alone_need_no_captions(self):
        self.write("b", range(3, 7), caption=None)
        store = stores_lib.open_store(self.path("b"))
        for size in (1, 3, 4, 100):
            dataset = batches_lib.examples(
                store, batch_size=size, image_size=SIZE
            )
            self.assertEqual(list(dataset.element_spec), ["image", "id"])
            batches = list(dataset.as_numpy_iterator())
            self.assertLen(batches, -(-4 // size))
            self.assertLen(dataset, len(batches))
            images = np.concatenate([batch["image"] for batch in batches])
            self.assertAllEqual(images, self.images[3:])

    def test_a_record_without_an_image_is_named(self):
        png = tf.io.encode_png(self.images[0]).numpy()
        for image, reason in (
            (None, "no image"),
            ([b"x", b"y"], "2 images"),
            (b"", "empty image"),
            (png[:-30], "Invalid PNG data"),
        ):
            bad = {"image": image} if image is not None else {}
            path = shard_files.write_shard(
                self.path("c"),
                [
                    shard_files.serialize(caption="good", image=png),
                    shard_files.serialize(caption="bad", **bad),
                ],
            )
            dataset = batches_lib.examples(
                stores_lib.open_store(path), batch_size=2, image_size=SIZE
            )
            with self.assertRaisesRegex(
                tf.errors.InvalidArgumentError, f"record 1 of .*/c, .*{reason}"
            ):
                list(dataset)
