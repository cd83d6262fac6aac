"""The encoder: what is computed, by which replica, and how often."""

import lockstep
import pytest
import tensorflow as tf
import tiny

from jest_tf import distribution, evaluation
from jest_tf.data import stores, tokenizers


class EncoderTest(tf.test.TestCase):
    def setUp(self):
        super().setUp()
        path = f"{self.get_temp_dir()}/some.tfrecord"
        tiny.write_shard(path, 20)
        self.store = stores.open_store(path)

    def encoder(self, learner, strategy=None):
        words, length = tiny.VOCABULARY, tiny.TEXT_LENGTH
        tokenizer = tokenizers.WordPieceTokenizer(words, length)
        return evaluation.Encoder(
            learner, tokenizer, tiny.IMAGE_SIZE, 4, strategy
        )

    @pytest.mark.tensorflow
    def test_replicas_share_a_batch_and_find_what_one_finds(self):
        alone = self.encoder(tiny.learner())
        texts = ["a b", "c", "d e", "f", "g"]
        for count in (2, 3):
            strategy = lockstep.mirrored(count)
            with strategy.scope():
                encoder = self.encoder(tiny.learner(), strategy)
            seen = set()

            def watch(rows, seen=seen):
                seen.add(rows.shape[0])
                return rows

            spread = distribution.spread(strategy, watch, None)
            self.assertAllEqual(spread(tf.range(6)), tf.range(6))
            self.assertEqual(seen, {6 // count})
            found = encoder.images(self.store)
            self.assertAllClose(found, alone.images(self.store), atol=1e-6)
            found, expected = encoder.texts(texts), alone.texts(texts)
            self.assertAllClose(found, expected, atol=1e-6)

    def test_nothing_is_embedded_twice_with_fixed_weights(self):
        learner, calls = tiny.learner(), []
        encoder = self.encoder(learner)
        encode = encoder._encode_image

        def counted(images):
            calls.append(len(images))
            return encode(images)

        encoder._encode_image = counted
        with encoder.fixed():
            first = encoder.images(self.store)
            self.assertIs(encoder.images(self.store), first)
        self.assertLen(calls, 5)
        for weight in learner.image_tower.weights:
            weight.assign(-weight)
        with encoder.fixed():
            self.assertNotAllClose(encoder.images(self.store), first)
        encoder.images(self.store)
        encoder.images(self.store)
        self.assertLen(calls, 20)
