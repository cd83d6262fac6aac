"""The stream by ops equals the stream by NumPy, damage included."""

import os
from unittest import mock

import fake_gcs
import numpy as np
import picture_files
import pytest
import remote_files
import shard_files
import sidecar_files
import streams
import tensorflow as tf

from jest_tf import config, files
from jest_tf.data import (
    batches,
    fault_log,
    ops_reader,
    ops_records,
    pictures,
    stores,
    tokenizers,
)
from jest_tf.data import sidecars as sidecars_lib
from jest_tf.data.sidecars import embed

SEED, SIZE, LENGTH = 11, 8, 4
TOKENIZER = tokenizers.WordPieceTokenizer(
    ["[UNK]", "[EOS]", *"abcdefghijklmnopqrstuvwxyz0123456789"], LENGTH
)
KINDS = picture_files.every_kind()
PILLOW = (
    *("gif", "animated gif", "bmp", "grey bmp"),
    *("webp alpha", "lossless webp alpha", "animated webp"),
    *(() if pictures.READS_WEBP else ("webp", "lossless webp")),
)
PLAIN = [kind for kind in KINDS if kind not in PILLOW]
PNG = KINDS["png"]


def example(picture=PNG, captions=(b"a",), **more):
    features = {"image": picture, "caption": list(captions), **more}
    return shard_files.serialize(
        **{name: value for name, value in features.items() if value is not None}
    )


def comb(scans):
    """A JPEG that says that it has so many scans."""
    whole = KINDS["jpeg"]
    return whole + b"\xff\xda" * (scans - whole.count(b"\xff\xda"))


# Each in a record: all that can be wrong with it, and all that only looks so.
CAPTIONS = {
    "several": [b"a", b"b", b"c"],
    "some blank": [b" ", b"", b"d", b"\t\n", "\u3000\u00a0".encode(), b"e"],
    "blank": [b" ", "\u2003\x1c".encode()],
    "not UTF-8": [b"bad \xff", b"\xff"],
    "only a byte order mark": ["\ufeff".encode()],
    "only a null": [b"\0"],
    "none": [],
}
PICTURES = {
    **{kind: KINDS[kind] for kind in PLAIN},
    "empty": b"",
    "no picture": b"hello, world" * 10,
    "a cut png": PNG[: len(PNG) // 2],
    "a cut jpeg": KINDS["jpeg"][:300],
    "a head of a png": PNG[:20],
    "a head of a jpeg": KINDS["jpeg"][:3],
    "a cut webp": KINDS["webp"][:30],
    "a large png": picture_files.encode(np.zeros([40, 50, 3], "u1"), "PNG"),
    "a large jpeg": picture_files.encode(np.zeros([40, 50, 3], "u1"), "JPEG"),
    "a large webp": picture_files.encode(np.zeros([40, 50, 3], "u1"), "WEBP"),
    "many scans": comb(100),
    "too many scans": comb(101),
}
if not pictures.READS_WEBP:
    del PICTURES["a cut webp"], PICTURES["a large webp"]
PAYLOADS = {
    **{kind: example(captions=captions) for kind, captions in CAPTIONS.items()},
    **{kind: example(picture) for kind, picture in PICTURES.items()},
    "no feature": b"",
    "no example": b"\xff" * 40,
    "no picture's feature": example(None),
    "no caption's feature": example(captions=(), caption=None),
    "two pictures": example([PNG, PNG]),
    "a number for a picture": example(7),
    "a number for a caption": example(caption=7),
    "other names": shard_files.serialize(jpg=KINDS["jpeg"], txt="x", id=5),
    "the first name is empty": example([], jpg=PNG),
    "the first caption is empty": example(caption=[], txt="x"),
    "a stored id": example(id=-3),
    "a feature more": example(label="x", tokens=[1, 2]),
}
MAX_PIXELS = 1000


class OpsReaderTest(shard_files.FolderTestCase, streams.StreamTestCase):
    def open(self, *shards, **settings):
        paths = [
            shard_files.write_shard(self.path(f"{number}.tfrecord"), payloads)
            for number, payloads in enumerate(shards)
        ]
        return stores.open_store(paths, max_image_pixels=MAX_PIXELS, **settings)

    def stream(self, store, reader, count, **settings):
        settings = {
            "batch_size": 6,
            "seed": SEED,
            "tokenizer": TOKENIZER,
            "image_size": SIZE,
            "faults": fault_log.FaultLog(None, 1.0),
        } | settings
        dataset = streams.super_batches(store, reader=reader, **settings)
        with batches.plain_errors():
            return list(dataset.take(count).as_numpy_iterator())

    def assert_equal_streams(self, store, count=12, token_field="", **settings):
        found = self.stream(
            store, "ops", count, token_field=token_field, **settings
        )
        expected = self.stream(store, "numpy", count, **settings)
        self.assert_equal_batches(found, expected)
        return expected

    def damage(self, store, row, place):
        """Flips a byte of a record, counted from its payload's start."""
        (start, _, _), *_ = store.indexes[0].rows([row])
        shard_files.flip(store.shards.paths[0], int(start) + place)

    @pytest.mark.slow
    def test_the_streams_are_equal_whatever_is_wrong_with_records(self):
        good = [example(KINDS["jpeg"], [b"x%d" % i]) for i in range(60)]
        store = self.open([*PAYLOADS.values(), *good[:40]], good[40:])
        first = len(PAYLOADS)
        # A length, its checksum, a payload, its checksum.
        for row, place in enumerate((-12, -2, 30), first):
            self.damage(store, row, place)
        self.damage(store, first + 4, -13)  # the previous record's checksum
        num_rows = len(store)
        found = self.assert_equal_streams(store, 2 * num_rows // 6)
        replaced = sum(batch["record_replaced"].sum() for batch in found)
        # Of two epochs; "the head" and its kin are all there.
        self.assertGreater(replaced, 2 * 20)
        self.assertIn(-3, np.concatenate([batch["id"] for batch in found]))

    @pytest.mark.slow
    def test_a_torn_shard_has_a_record_that_is_replaced(self):
        path = self.path("0.tfrecord")
        self.open([example(captions=[b"%d" % i]) for i in range(20)])
        os.truncate(path, os.path.getsize(path) - 3)
        store = stores.open_store(path, max_image_pixels=MAX_PIXELS)
        self.assert_equal_streams(store)
        with open(path, "ab") as file:
            file.write(b"\0" * 40)
        store = stores.open_store(path, max_image_pixels=MAX_PIXELS)
        self.assert_equal_streams(store)

    @pytest.mark.slow
    def test_a_stream_goes_on_anywhere_on_any_host(self):
        store = self.open([example(captions=[b"%d" % i]) for i in range(20)])
        self.assert_equal_streams(
            store, shuffle_block_size=3, start_step=12345, host=1, num_hosts=2
        )
        remote = f"ram://{self.path('pictures').strip('/')}.tfrecord"
        tf.io.gfile.copy(store.shards.paths[0], remote, overwrite=True)
        self.assert_equal_streams(stores.open_store(remote))
        # Chunks of a larger super-batch.
        self.assert_equal_streams(store, 2, batch_size=512)

    @pytest.mark.slow
    def test_shares_weights_and_curated_rows_are_those_of_the_stream(self):
        parts = []
        for part, size in enumerate((7, 9, 5)):
            payloads = [
                example(captions=[b"%d" % row], id=100 * part + row)
                for row in range(size)
            ]
            payloads[3] = b""  # replaced from its own part
            path = self.path(f"{part}.tfrecord")
            shard_files.write_shard(path, payloads)
            parts.append(stores.open_store(path))
        curated = {"num_curated": 1, "curated_rows": 2}
        store = stores.join(parts)
        store.manifest = mock.Mock(weights=np.linspace(0, 2, 21))
        found = self.assert_equal_streams(
            store,
            weights=(1.0, 3.0),
            shuffle_block_size=2,
            host=1,
            num_hosts=2,
            **curated,
        )
        for batch in found:
            self.assertEqual(batch["id"].shape, (2,))
            self.assertAllInRange(batch["id"], 0, 109)
            self.assertAllInRange(batch["curated"]["id"], 200, 204)
        curated["curated_rows"] = 6
        self.assert_equal_streams(store, **curated, start_step=7)
        rows = np.arange(21) % 4 > 0
        self.assert_equal_streams(store, rows=rows)

    @pytest.mark.slow
    def test_tokens_made_beforehand_are_those_of_the_caption(self):
        captions = [[b"a", b"", b"%c" % letter] for letter in b"bcdefghijkl"]
        payloads = [
            example(
                captions=texts, ids=TOKENIZER(texts).numpy().ravel().tolist()
            )
            for texts in captions
        ]
        store = self.open(payloads)
        ops_reader.check_tokens(store, TOKENIZER, "ids")
        self.assert_equal_streams(store, token_field="ids")
        other = tokenizers.WordPieceTokenizer(["a", "[EOS]", "[UNK]"], LENGTH)
        for tokenizer, name in ((other, "ids"), (TOKENIZER, "none")):
            with self.assertRaisesRegex(ValueError, "`data.token_field` must"):
                ops_reader.check_tokens(store, tokenizer, name)
        payloads[7] = example(captions=captions[7], ids=[1, 2])
        with self.assertRaisesRegex(ValueError, "record 7 .*no 4 integers"):
            self.stream(self.open(payloads), "ops", 12, token_field="ids")

    @pytest.mark.slow
    def test_embeddings_come_with_the_records(self):
        counts = np.array([1 + row % 3 for row in range(14)])
        payloads = [
            example(captions=[b"%d" % i for i in range(count)], id=50 + row)
            for row, count in enumerate(counts)
        ]
        store = self.open(payloads[:9], payloads[9:])
        valid = np.arange(14) != 4
        embed.write_arrays(
            store,
            sidecar_files.unit_rows(14),
            sidecar_files.unit_rows(counts.sum(), 1),
            sidecar_files.DESCRIPTION,
            captions=counts,
            valid=valid,
        )
        sidecars = sidecars_lib.Sidecars(store)
        settings = {"sidecars": sidecars, "embeddings": True}
        found = self.assert_equal_streams(store, 5, **settings)
        self.assertNotIn(54, np.concatenate([batch["id"] for batch in found]))
        # Another store of as many records.
        others = [example(id=row) for row in range(14)]
        wrapped = mock.Mock(wraps=sidecars)
        wrapped.dim, wrapped.dtype = sidecar_files.DIM, "float16"
        other = self.open(others[:9], others[9:])
        with self.assertRaisesRegex(ValueError, "ids. .* record 0 of"):
            self.stream(other, "ops", 1, **settings | {"sidecars": wrapped})

    @pytest.mark.slow
    def test_what_pillow_must_convert_stops_the_stream(self):
        for kind, picture in KINDS.items():
            found = ops_records.needs_pillow(tf.constant(picture))
            self.assertEqual(bool(found), kind in PILLOW, kind)
        store = self.open([example()] * 3 + [example(KINDS["gif"])])
        with self.assertRaisesRegex(
            ValueError,
            "`data.reader=ops` cannot read record 3 of the store, in "
            ".*0.tfrecord: a GIF, a BMP, or an animated or",
        ):
            self.stream(store, "ops", 4)

    @pytest.mark.slow
    def test_too_many_faults_stop_the_stream(self):
        store = self.open([example()] * 9 + [example(b"")])
        faults = fault_log.FaultLog(None, 0.002)
        # A tenth of the rows; the limit of the first 1,024 is 2.
        with self.assertRaisesRegex(ValueError, "^Too many .*_rate`=0.002$"):
            self.stream(store, "ops", 10, faults=faults)
        store = self.open([example(b"\xff\xd8\xff")] * 3)
        with self.assertRaisesRegex(ValueError, "^16 records .* position 0$"):
            self.stream(store, "ops", 1)

    @pytest.mark.slow
    def test_a_bucket_is_read_as_local_files_are(self):
        remote_files.hurry(self)
        bucket = remote_files.server()
        self.addCleanup(bucket.heal)
        counts = np.array([1 + row % 3 for row in range(24)])
        payloads = [
            example(
                KINDS["jpeg"] if row % 2 else PNG,
                captions=[b"%d" % i for i in range(count)],
                id=50 + row,
            )
            for row, count in enumerate(counts)
        ]
        payloads[3] = PAYLOADS["a cut jpeg"]
        local = self.open(payloads[:10], payloads[10:])
        self.damage(local, 7, 30)
        folder = f"gs://{fake_gcs.BUCKET}/{self.id()}"
        for path in local.shards.paths:
            content = files.read_whole(path)
            files.write_whole(f"{folder}/{os.path.basename(path)}", content)
        far = stores.open_store(
            f"{folder}/*.tfrecord", max_image_pixels=MAX_PIXELS
        )
        settings = {"embeddings": True}
        for store in (local, far):
            embed.write_arrays(
                store,
                sidecar_files.unit_rows(24),
                sidecar_files.unit_rows(counts.sum(), 1),
                sidecar_files.DESCRIPTION,
                captions=counts,
                valid=np.arange(24) != 14,
            )
            settings["sidecars"] = sidecars_lib.Sidecars(store)
            found = self.stream(store, "numpy", 8, **settings)
            if store is local:
                expected = found
        self.assert_equal_batches(found, expected)
        bucket.requests()
        # Two of the ops' own requests fail.
        for fault in ({"status": 503}, {"cut": 100}):
            bucket.fail("GET storage.*[.]tfrecord$", **fault)
        ops = self.stream(far, "ops", 8, **settings)
        self.assert_equal_batches(ops, expected)
        answers = [
            tuple(line.split()[2:])
            for line in bucket.requests()
            if "GET storage" in line and ".tfrecord " in line
        ]
        self.assertIn("503", {status for status, _ in answers})
        self.assertIn(("206", "100"), answers)
        replaced = sum(batch["record_replaced"].sum() for batch in ops)
        self.assertEqual(replaced, 2 * 3)

    def test_no_op_is_of_python_or_of_tensorflow_text(self):
        tokens = TOKENIZER([b"a"]).numpy().ravel().tolist()
        store = self.open([example(ids=tokens)] * 4)
        dataset = streams.super_batches(
            store,
            batch_size=4,
            seed=SEED,
            tokenizer=TOKENIZER,
            image_size=SIZE,
            reader="ops",
            token_field="ids",
        )
        graph = tf.compat.v1.GraphDef.FromString(
            tf.raw_ops.DatasetToGraphV2(
                input_dataset=tf.data.experimental.to_variant(dataset)
            ).numpy()
        )
        ops = {node.op for node in graph.node}
        for function in graph.library.function:
            ops |= {node.op for node in function.node_def}
        self.assertIn("TFRecordDatasetV2", ops)
        self.assertEqual(
            {op for op in ops if "Py" in op or "Bert" in op}, set()
        )

    def test_what_ops_cannot_read_is_refused(self):
        store = self.open([example()] * 4)
        stage = config.Stage(2, "stored", "top", "easy_reference")
        with self.assertRaisesRegex(ValueError, "'ops' reads no sidecars befo"):
            self.stream(store, "ops", 1, stages=(stage,))
        path = self.path("a.tar")
        shard_files.write_tar(path, shard_files.tar_sample("a", caption="b"))
        with self.assertRaisesRegex(ValueError, "Received: .* webdataset"):
            self.stream(stores.open_store(path), "ops", 1)
        remote = f"memory://{self.id()}/0.tfrecord"  # fsspec's
        with open(store.shards.paths[0], "rb") as shard:
            files.write_whole(remote, shard.read())
        other = stores.open_store(remote, index_dir=self.directory)
        with self.assertRaisesRegex(
            ValueError, "'ops' reads what .*: memory://"
        ):
            self.stream(other, "ops", 1)
        os.remove(store.indexes[0].path)
        with self.assertRaisesRegex(ValueError, "indexes that every host can"):
            self.stream(store, "ops", 1)
