"""The encoder: what is kept, what is computed again, and when."""

import os
import pathlib
from unittest import mock

import lockstep
import numpy as np
import tensorflow as tf
import tiny

from jest_tf import distribution, evaluation
from jest_tf.data import artefacts, stores, tokenizers
from jest_tf.evaluation import embedding


class EncoderTest(tf.test.TestCase):
    def setUp(self):
        super().setUp()
        self.folder = pathlib.Path(self.get_temp_dir()) / self.id()
        self.folder.mkdir()
        path = str(self.folder / "some.tfrecord")
        tiny.write_shard(path, 20)
        self.store = stores.open_store(path)
        self.learner = tiny.learner()
        self.kept = str(self.folder / "kept")

    def encoder(self, learner=None, strategy=None):
        tokenizer = tokenizers.WordPieceTokenizer(
            tiny.VOCABULARY, tiny.TEXT_LENGTH
        )
        return evaluation.Encoder(
            learner or self.learner, tokenizer, tiny.IMAGE_SIZE, 4, strategy
        )

    def count(self, encoder):
        """Counts the batches of pictures from here on."""
        encode, calls = encoder._encode_image, []

        def counted(images):
            calls.append(len(images))
            return encode(images)

        encoder._encode_image = counted
        return calls

    def test_replicas_share_a_batch_and_find_what_one_finds(self):
        alone = self.encoder()
        texts = ["a b", "c", "d e", "f", "g"]
        for count in (2, 3):
            strategy = lockstep.mirrored(count)
            with strategy.scope():
                encoder = self.encoder(tiny.learner(), strategy)
            seen = []

            def watch(rows, encoder=encoder, seen=seen):
                device = tf.distribute.get_replica_context()
                seen.append((rows.shape[0], device.replica_id_in_sync_group))
                return rows

            spread = distribution.spread(strategy, watch)
            self.assertAllEqual(spread(tf.range(6)), tf.range(6))
            self.assertEqual({rows for rows, _ in seen}, {6 // count})
            self.assertAllClose(
                encoder.images(self.store), alone.images(self.store), atol=1e-6
            )
            self.assertAllClose(
                encoder.texts(texts), alone.texts(texts), atol=1e-6
            )

    def test_nothing_is_embedded_twice_with_fixed_weights(self):
        encoder = self.encoder()
        calls = self.count(encoder)
        with encoder.fixed():
            first = encoder.images(self.store)
            self.assertIs(encoder.images(self.store), first)
        self.assertLen(calls, 5)
        for weight in self.learner.image_tower.weights:
            weight.assign(-weight)
        with encoder.fixed():
            self.assertNotAllClose(encoder.images(self.store), first)
        encoder.images(self.store)
        encoder.images(self.store)
        self.assertLen(calls, 20)

    def test_a_killed_evaluation_goes_on_with_the_next_part(self):
        class Killed(BaseException):
            pass

        with mock.patch.object(embedding, "PART_ROWS", 8):
            encoder = self.encoder()
            whole = encoder.images(self.store)
            encode = encoder._encode_image
            calls = []

            def killed(images):
                calls.append(0)
                if len(calls) == 4:
                    raise Killed
                return encode(images)

            encoder._encode_image = killed
            with self.assertRaises(Killed), encoder.fixed(self.kept):
                encoder.images(self.store)
            # Parts of 8 rows: the first was written, the second was not.
            encoder = self.encoder()
            calls = self.count(encoder)
            with encoder.fixed(self.kept, keep=True):
                self.assertAllEqual(encoder.images(self.store), whole)
            self.assertLen(calls, 3)
            encoder = self.encoder()
            calls = self.count(encoder)
            with encoder.fixed(self.kept):
                self.assertAllEqual(encoder.images(self.store), whole)
            self.assertEmpty(calls)
        self.assertFalse(os.path.exists(self.kept))

    def test_files_are_of_the_weights_and_of_the_data(self):
        encoder = self.encoder()
        with encoder.fixed(self.kept, keep=True):
            encoder.images(self.store)
            encoder.texts(["a", "b"])
        other = str(self.folder / "other.tfrecord")
        tiny.write_shard(other, 20, seed=1)
        for learner, store, texts, computed in (
            (tiny.learner(), self.store, ["a", "b"], 0),
            (tiny.learner(seed=1), self.store, ["a", "b"], 5),
            (tiny.learner(), stores.open_store(other), ["b", "a"], 5),
        ):
            encoder = self.encoder(learner)
            calls = self.count(encoder)
            with encoder.fixed(self.kept, keep=True):
                encoder.images(store)
                found = encoder.texts(texts)
            self.assertLen(calls, computed)
            self.assertAllClose(found, encoder.texts(texts))
        # Those of damaged files are computed again.
        whole = self.encoder().images(self.store)
        for path in pathlib.Path(self.kept).rglob("*.embeddings"):
            content = bytearray(path.read_bytes())
            content[-1] ^= 1
            path.write_bytes(content)
        with encoder.fixed(self.kept, keep=True):
            self.assertAllEqual(encoder.images(self.store), whole)
        # So are those of files with no rows, or too many.
        for path in pathlib.Path(self.kept).rglob("*.embeddings"):
            for rows in (0, 21):
                part = {"embeddings": np.ones([rows, tiny.DIM], np.float32)}
                artefacts.write(str(path), "embeddings", {}, part)
                with encoder.fixed(self.kept, keep=True):
                    found = encoder.images(self.store)
                self.assertAllEqual(found, whole)
