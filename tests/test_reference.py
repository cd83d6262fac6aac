"""References of any make, and finished runs that serve as one."""

import os

import keras
import tensorflow as tf
import tiny

from jest_tf import checkpoint, config, losses, models, reference
from jest_tf.data import preprocessing


class FrozenTest(tf.test.TestCase):
    def test_a_model_is_called_in_evaluation_mode(self):
        (batch,) = tiny.super_batches()
        plain = tiny.learner(0)
        model = tiny.learner(0, extra=[keras.layers.Dropout(0.9)])
        embeddings = reference.frozen(model)(batch)
        self.assertIsInstance(embeddings, losses.Embeddings)
        for one, same in zip(embeddings, plain(batch), strict=True):
            self.assertAllEqual(one, same)

    def test_a_callable_gets_the_batch_alone(self):
        (batch,) = tiny.super_batches()
        seen = []

        def model(*args, **kwargs):
            seen.append((args, kwargs))
            return 1, 2, 3, 4

        self.assertEqual(
            reference.frozen(model)(batch), losses.Embeddings(1, 2, 3, 4)
        )
        self.assertEqual(seen, [((batch,), {})])

    def test_what_was_made_for_the_reference_takes_the_place_of_the_rest(self):
        batch = {
            "image": 1,
            "text": 2,
            "id": 3,
            "text_for_reference": 4,
        }
        seen = []

        def model(view):
            seen.append(view)
            return 1, 2, 3, 4

        embed = reference.frozen(model)
        embed(batch)
        embed({**batch, "image_for_reference": 5})
        self.assertEqual(
            seen,
            [
                {"image": 1, "text": 4, "id": 3},
                {"image": 5, "text": 4, "id": 3},
            ],
        )
        self.assertLen(batch, 4)  # the caller's batch is as it was

    def test_what_cannot_be_called_is_refused(self):
        with self.assertRaisesRegex(
            TypeError, "must be a Keras model or a callable.*'runs/reference'"
        ):
            reference.frozen("runs/reference")


class LoadRunTest(tf.test.TestCase):
    def setUp(self):
        super().setUp()
        self.workdir = self.get_temp_dir()
        self.config = config.TrainConfig(
            data=config.DataConfig(image_size=8, text_length=3),
            model=config.ModelConfig(preset="tiny", temperature=5.0),
        )
        self.path = os.path.join(self.workdir, reference.CONFIG_FILE)

    def write_all(self):
        config.save_config(self.config, self.path)
        tokenizer = preprocessing.WordPieceTokenizer(tiny.VOCABULARY, 3)
        tokenizer.save(self.workdir)
        learner = models.build_learner(self.config, 12)
        for variable in learner.trainable_variables:
            variable.assign_add(0.01 * tf.ones(variable.shape))
        path = os.path.join(self.workdir, reference.WEIGHTS_FILE)
        checkpoint.save_weights(learner, path)
        return learner, tokenizer

    def test_a_finished_run_comes_back_whole(self):
        learner, tokenizer = self.write_all()
        run = reference.load_run(self.workdir)
        self.assertEqual(run.config, self.config)
        texts = tf.constant(["a b c d", "j", ""])
        self.assertAllEqual(run.tokenizer(texts), tokenizer(texts))
        batch = {"image": tf.ones([3, 8, 8, 3]), "text": tokenizer(texts)}
        for one, same in zip(
            reference.frozen(run.learner)(batch), learner(batch), strict=True
        ):
            self.assertAllEqual(one, same)

    def test_what_is_no_finished_run_is_refused(self):
        missing = os.path.join(self.workdir, "missing")
        for workdir in (missing, self.workdir):
            with self.assertRaisesRegex(
                ValueError, rf"finished run, with config.json.*'{workdir}'"
            ):
                reference.load_run(workdir)
        config.save_config(self.config, self.path)
        with self.assertRaisesRegex(ValueError, "with final.weights.h5"):
            reference.load_run(self.workdir)


if __name__ == "__main__":
    tf.test.main()
