"""References of any make, and finished runs that serve as a reference."""

import tempfile

import numpy as np
import pytest
import tensorflow as tf
import tiny

from jest_tf import config
from jest_tf.data import tokenizers
from jest_tf.embeddings import Embeddings
from jest_tf.models import reference
from jest_tf.runs import directory, loading


class FrozenTest(tf.test.TestCase):
    def test_what_was_made_for_the_reference_takes_the_place_of_the_rest(self):
        batch = {"image": 1, "text": 2, "id": 3, "text_for_reference": 4}
        whole = {**batch, "image_for_reference": 5}
        # A callable gets the batch alone.
        embed = reference.frozen(lambda view: (view, 2, 3, 4))
        for given, image in ((batch, 1), (whole, 5)):
            found = embed(given)
            self.assertIsInstance(found, Embeddings)
            self.assertEqual(found[0], {"image": image, "text": 4, "id": 3})
        self.assertLen(batch, 4)  # the caller's batch is as it was


class LoadRunTest(tf.test.TestCase):
    """A run of the preset "tiny" whose weights were moved a little."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.workdir = cls.enterClassContext(tempfile.TemporaryDirectory())
        cls.config = config.TrainConfig(
            data=config.DataConfig(image_size=8, text_length=3),
            model=config.ModelConfig(preset="tiny"),
        )
        cls.tokenizer = tokenizers.WordPieceTokenizer(tiny.VOCABULARY, 3)
        cls.learner = tiny.write_run(cls.workdir, cls.config)
        for variable in cls.learner.trainable_variables:
            variable.assign_add(0.01 * tf.ones(variable.shape))
        directory.save_learner(cls.workdir, cls.learner)
        cls.run_of_learner = loading.load(cls.workdir)

    # For sidecars, which the command line writes.
    @pytest.mark.tensorflow
    def test_an_encoder_does_what_the_learner_does_in_equal_batches(self):
        random = np.random.default_rng(0)
        images = random.integers(0, 256, (7, 8, 8, 3), np.uint8)
        captions = ["a b", "c", "j i h g f", "a", "", "b", "z", "d", "e"]
        encode = reference.encoder(self.run_of_learner, batch_size=3)
        for k, m in ((7, 9), (3, 6), (1, 2), (2, 0)):
            image, text = encode(images[:k], captions[:m])
            self.assertAllClose(image, self.learner.encode_image(images[:k]))
            tokens = self.tokenizer(tf.constant(captions[:m], tf.string))
            self.assertAllClose(text, self.learner.encode_text(tokens))
            self.assertEqual((len(image), len(text)), (k, m))

    def test_a_description_changes_with_all_that_changes_embeddings(self):
        run = loading.load(self.workdir)
        # As in 0.3.0, whose sidecars stay valid.
        self.assertEqual(run.settings, (("tiny", None), "float32"))
        before = reference.describe(run)
        self.assertEqual(before, reference.describe(self.run_of_learner))

        def changed(**values):
            after = reference.describe(run._replace(**values))._asdict()
            return {
                name
                for name, value in after.items()
                if value != getattr(before, name)
            }

        others = tiny.VOCABULARY[:2] + tiny.VOCABULARY[:1:-1]
        other = tokenizers.WordPieceTokenizer(others, 3)
        self.assertEqual(changed(tokenizer=other), {"tokenizer"})
        mixed = config.ModelConfig("tiny", dtype_policy="mixed_bfloat16")
        mixed = config.TrainConfig(data=run.config.data, model=mixed)
        self.assertEqual(changed(config=mixed), {"fingerprint"})
        run.learner.bias.assign_add(1.0)
        self.assertEqual(changed(), {"fingerprint", "bias"})
        run.learner.bias.assign_sub(1.0)
        self.assertEqual(changed(), set())
        kernel = run.learner.weights[2]
        kernel.assign(tf.reverse(kernel, [0]))
        self.assertEqual(changed(), {"fingerprint"})
