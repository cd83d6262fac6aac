"""Manifests: their files, what is refused, the stream that draws by them."""

import json
import os
import tempfile

import numpy as np
import oracles
import shard_files
import stored_cases
import streams
import tensorflow as tf
import tiny

from jest_tf import config, files
from jest_tf.data import pipeline, stores, stream
from jest_tf.data.stores import manifest


def slow_rows(weights, seed, num_positions):
    """Rows drawn by weight, a position at a time, in Python integers."""
    drawn = [row for row, weight in enumerate(weights) if weight > 0]
    unit, size = 2**20, len(drawn)
    shares = [weights[row] * unit * size / sum(weights) for row in drawn]
    lengths = [int(share) for share in shares]
    left = sorted(range(size), key=lambda i: lengths[i] - shares[i])
    for i in left[: unit * size - sum(lengths)]:
        lengths[i] += 1
    salt = int.from_bytes(b"shift", "big")
    rows = []
    for position in range(num_positions):
        slot = oracles.row_at(size, seed, position)
        shift = oracles.position_hash(seed, position // size, salt) >> 44
        place, i = slot * unit + shift, 0
        while place >= lengths[i]:
            place -= lengths[i]
            i += 1
        rows.append(drawn[i])
    return rows


class FolderTestCase(tf.test.TestCase):
    def setUp(self):
        super().setUp()
        self.folder = self.enterContext(tempfile.TemporaryDirectory())
        self.directory = os.path.join(self.folder, "manifest")
        for number, rows in enumerate((20, 7, 13)):
            tiny.write_shard(self.shard(number), rows=rows, seed=number)
        self.store = self.open()

    def shard(self, number):
        return os.path.join(self.folder, f"{number}.tfrecord")

    def open(self, pattern="*"):
        return stores.open_store(f"{self.folder}/{pattern}.tfrecord")

    def write(self, weights=None, **arguments):
        if weights is None:
            weights = np.arange(40) % 4
        return shard_files.write_manifest(
            self.store, self.directory, weights, **arguments
        )

    def assert_refused(self, pattern, store=None):
        with self.assertRaisesRegex(ValueError, pattern):
            manifest.read(self.directory, store or self.store)


class ManifestTest(FolderTestCase):
    def test_nothing_in_it_but_weights_and_the_like_changes_its_identity(self):
        identity = self.write().identity
        self.assertEqual(self.write().identity, identity)
        self.assertNotEqual(self.write(np.ones(40)).identity, identity)
        scores = np.zeros(40)
        self.assertNotEqual(self.write(scores=scores).identity, identity)
        made_by = {**shard_files.MADE_BY, "share": 0.25}
        self.assertNotEqual(self.write(made_by=made_by).identity, identity)

    def test_a_manifest_of_other_shards_is_refused_by_name_and_version(self):
        self.write()
        before = self.store.stamp(1)
        head = r"manifest\.json must be of the shards of `data.train`.* "
        self.assert_refused(
            rf"{head}Expected: no others. Received: 2.tfrecord of version ",
            self.open("[01]"),
        )
        tiny.write_shard(self.shard(1), rows=7, seed=8)
        store = self.open()
        self.assert_refused(
            rf"{head}Expected: 1\.tfrecord of version {store.stamp(1)}\. "
            rf"Received: 1\.tfrecord of version {before}",
            store,
        )
        tiny.write_shard(os.path.join(self.folder, "x.tfrecord"), seed=9)
        tiny.write_shard(self.shard(1), rows=7, seed=1)
        self.assert_refused(
            rf"{head}Expected: x\.tfrecord of version .* Received: no others",
            self.open(),
        )

    def test_an_unfinished_manifest_says_what_to_do(self):
        self.write()
        os.remove(os.path.join(self.directory, manifest.MANIFEST_FILE))
        self.assert_refused("If the command was interrupted, run it again")
        self.directory = os.path.join(self.folder, "nowhere")
        self.assert_refused("expected a folder that `jest-tf curate` has")

    def test_a_file_of_another_manifest_is_found(self):
        self.write(np.ones(40))
        path = manifest.part_path(self.store, 0, self.directory)
        other = files.read_whole(path)
        self.write()
        files.write_whole(path, other)
        self.assert_refused("rewritten since, or belongs to another")

    def test_a_damaged_list_is_refused(self):
        self.write()
        path = os.path.join(self.directory, manifest.MANIFEST_FILE)
        good = json.loads(files.read_whole(path))
        for change, pattern in (
            (
                {"version": 2},
                "must be of version 3. Received: 2.*jest-tf curate",
            ),
            ({"shards": None}, "damaged"),
            ({"shards": [{"shard": "0"}]}, "damaged"),
        ):
            files.write_whole(path, json.dumps(good | change).encode())
            self.assert_refused(pattern)
        for text in ("", "[]", "{", "[" * 10**5, "3"):
            files.write_whole(path, text.encode())
            self.assert_refused("cannot be read|must be of version")

    def test_another_version_of_a_shard_has_room_beside_it(self):
        copy = os.path.join(self.folder, "copy", "1.tfrecord")
        os.mkdir(os.path.dirname(copy))
        tiny.write_shard(copy, rows=7, seed=9)
        store = stores.join([self.store, stores.open_store(copy)])
        found = shard_files.write_manifest(
            store, self.directory, np.arange(47) % 2
        )
        self.assertAllEqual(found.weights, np.arange(47) % 2)

    def test_a_manifest_that_leaves_out_a_store_with_a_share_is_refused(self):
        self.write(np.arange(40) >= 20)
        data = config.DataConfig(
            train=(self.shard(0), f"{self.folder}/[12].tfrecord"),
            manifest=self.directory,
            weights=(1.0, 3.0),
        )
        store = stores.open_stores(data)
        with self.assertRaisesRegex(
            ValueError,
            f"`data.manifest` must draw.*{self.directory}', which draws none "
            rf"of the 20 of `data.train\[0\]`, from .* 0 of {self.shard(0)} on",
        ):
            pipeline.order(store, 0, pipeline.Options(weights=data.weights))
        # By their size, what is left out has no share.
        rows = pipeline.order(store, 0, pipeline.Options()).rows(np.arange(20))
        self.assertAllEqual(np.sort(rows), np.arange(20, 40))

    def test_a_manifest_that_draws_no_record_is_refused(self):
        with self.assertRaisesRegex(ValueError, "must have a record that is"):
            self.write(np.zeros(40))


class WeightedOrderTest(tf.test.TestCase):
    WEIGHTS = np.array([0, 1, 0, 3, 0.5, 1, 0, 0, 2.5, 1])

    def rows(self, start, stop, seed=3, **arguments):
        arguments = {"row_weights": self.WEIGHTS} | arguments
        order = stream.Order(len(self.WEIGHTS), seed, **arguments)
        return order.rows(np.arange(start, stop))

    def test_rows_equal_a_slow_implementation(self):
        expected = slow_rows(self.WEIGHTS, 3, 600)
        self.assertAllEqual(self.rows(0, 600), expected)

    def test_every_epoch_has_a_row_as_often_as_its_weight_says(self):
        # Six rows of mean 1.5: an epoch has six positions.
        mean = self.WEIGHTS / 1.5
        totals = np.zeros(10)
        for block_size in (None, 2):
            for epoch in range(400):
                rows = self.rows(
                    6 * epoch, 6 * epoch + 6, block_size=block_size
                )
                counts = np.bincount(rows, minlength=10)
                self.assertAllInRange(counts - mean, -1 + 1e-5, 1 - 1e-5)
                totals += counts
        # Shifts of 800 epochs: a mean of 0 to 1 of them is off by at most
        # 0.5 / sqrt(400) for those of an order, and five times that never.
        self.assertAllClose(totals / 800, mean, atol=5 * 0.5 / 20)

    def test_equal_weights_are_a_permutation_of_the_rows_that_have_them(self):
        weights = np.float32(np.arange(50) % 3 == 1) * np.float32(0.1)
        order = stream.Order(50, 7, row_weights=weights)
        self.assertEqual(order.num_drawn, 17)
        plain = stream.Order(17, 7)
        drawn = np.flatnonzero(weights)
        positions = np.arange(17 * 20)
        self.assertAllEqual(order.rows(positions), drawn[plain.rows(positions)])

    def test_substitutes_are_drawn_by_weight(self):
        order = stream.Order(10, 3, row_weights=self.WEIGHTS)
        rows = order.substitutes(np.arange(60000), 2)
        self.assertAllEqual(np.unique(rows), np.flatnonzero(self.WEIGHTS))
        shares = np.bincount(rows, minlength=10) / 60000
        # Five standard deviations of a share of at most one third.
        error = 5 * np.sqrt(0.25 / 60000)
        self.assertAllClose(shares, self.WEIGHTS / 9, atol=error)

    def test_weights_have_a_say_within_a_part_of_a_mixture(self):
        weights = np.array([1, 0, 3, 0, 0, 0, 5, 5])
        mixture = stream.Mixture((3, 5), (1, 3), 4, row_weights=weights)
        self.assertEqual(mixture.num_drawn, 4)
        rows = mixture.rows(np.arange(2**16))
        shares = np.bincount(rows, minlength=8) / 2**16
        expected = [0.25 * 0.25, 0, 0.25 * 0.75, 0, 0, 0, 0.375, 0.375]
        # The first part has 2^13 epochs of two, one row once in half of them:
        # five standard deviations.
        atol = 5 * np.sqrt(2**13 / 4) / 2**16
        self.assertAllClose(shares, expected, atol=atol)

    def test_weights_that_cannot_be_are_refused(self):
        for weights in ([1.0] * 3, [0.0] * 4, [-1, 1, 1, 1], [np.nan, 1, 1, 1]):
            with self.assertRaisesRegex(ValueError, "`row_weights` must hold"):
                stream.Order(4, 0, row_weights=np.array(weights))
        with self.assertRaisesRegex(ValueError, "`row_weights` must hold"):
            stream.Mixture((2, 2), (1, 1), 0, row_weights=[1, 1, 0, 0])


class StreamTest(stored_cases.StoredTestCase):
    """Streams by a manifest, with sidecars and a stored stage."""

    WEIGHTS = np.where(np.arange(80) % 5 < 3, 1 + np.arange(80) % 2, 0)

    def setUp(self):
        super().setUp()
        directory = self.enterContext(tempfile.TemporaryDirectory())
        shard_files.write_manifest(self.store, directory, self.WEIGHTS)
        self.store.manifest = manifest.read(directory, self.store)
        self.addCleanup(setattr, self.store, "manifest", None)

    def test_only_what_has_weight_is_drawn_and_sidecars_join(self):
        whole = streams.joined(self.batches(40, batch_size=12, embeddings=True))
        rows = whole["id"] - 1000
        image = np.float16(self.image)[rows]
        self.assertAllEqual(whole["reference_image"], image)
        readable = ~np.isin(np.arange(80), stored_cases.BAD)
        self.assertAllEqual(
            np.unique(rows), np.flatnonzero(readable & (self.WEIGHTS > 0))
        )

    def test_a_stored_stage_offers_only_what_has_weight(self):
        stage = config.Stage(
            3, "stored", criterion="easy_reference", num_chunks=3
        )
        batches = self.batches(10, batch_size=12, stages=(stage,))
        rows = streams.joined(batches)["id"] - 1000
        self.assertAllGreater(self.WEIGHTS[rows], 0)
        drawn = int((self.WEIGHTS > 0).sum())
        with self.assertRaisesRegex(ValueError, f"draw from, {drawn}, .*: 51$"):
            self.batches(1, batch_size=17, stages=(stage,))
