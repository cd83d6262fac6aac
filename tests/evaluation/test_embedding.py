"""The encoder: what is computed, by which replica, and how often."""

import pathlib

import lockstep
import tensorflow as tf
import tiny

from jest_tf import distribution, evaluation
from jest_tf.data import stores, tokenizers


class EncoderTest(tf.test.TestCase):
    def setUp(self):
        super().setUp()
        self.folder = pathlib.Path(self.get_temp_dir()) / self.id()
        self.folder.mkdir()
        path = str(self.folder / "some.tfrecord")
        tiny.write_shard(path, 20)
        self.store = stores.open_store(path)
        self.learner = tiny.learner()

    def encoder(self, learner=None, strategy=None):
        tokenizer = tokenizers.WordPieceTokenizer(
            tiny.VOCABULARY, tiny.TEXT_LENGTH
        )
        return evaluation.Encoder(
            learner or self.learner, tokenizer, tiny.IMAGE_SIZE, 4, strategy
        )

    def count(self, encoder):
        """Counts the batches of images from here on."""
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
            found = encoder.images(self.store)
            self.assertAllClose(found, alone.images(self.store), atol=1e-6)
            found, expected = encoder.texts(texts), alone.texts(texts)
            self.assertAllClose(found, expected, atol=1e-6)

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
