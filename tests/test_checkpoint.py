"""Checkpoints: when, how many, whole or not at all; resumed = unbroken."""

import io
import os
from unittest import mock

import keras
import numpy as np
import tensorflow as tf
import tiny

from jest_tf import checkpoint, config, ledger, training
from jest_tf.data import pipeline, preprocessing, records

STEPS = 8
LOGS = (
    checkpoint.METRICS_FILE,
    checkpoint.DRAWS_FILE,
    checkpoint.EVALUATION_FILE,
)


class CheckpointTestCase(tf.test.TestCase):
    def setUp(self):
        super().setUp()
        self.workdir = self.get_temp_dir()
        self.folder = os.path.join(self.workdir, "checkpoints")

    def model(self, rate=0.1, seed=0):
        """Built, its optimizer too, and otherwise untouched."""
        model = training.JESTModel(tiny.learner(seed))
        model.compile(keras.optimizers.SGD(rate), run_eagerly=True)
        model.build(None)
        model.optimizer.build(model.trainable_variables)
        return model

    def callback(self, model, **settings):
        callback = checkpoint.Checkpoints(
            self.workdir,
            **{"every_steps": 1, "keep": 9, "last_step": 99} | settings,
        )
        callback.set_model(model)
        return callback

    def steps(self):
        return [
            int(name.removeprefix("step-").removesuffix(".weights.h5"))
            for name in sorted(os.listdir(self.folder))
        ]

    def write(self, name, text):
        path = os.path.join(self.workdir, name)
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)
        return path


class SavingTest(CheckpointTestCase):
    def test_every_few_steps_and_after_the_last(self):
        callback = self.callback(self.model(), every_steps=3, last_step=8)
        for batch in range(8):
            callback.on_train_batch_end(batch)
        self.assertEqual(self.steps(), [3, 6, 8])

    def test_steps_are_those_of_the_run_and_not_of_the_fit(self):
        callback = self.callback(
            self.model(), every_steps=3, last_step=8, start_step=4
        )
        for batch in range(4):
            callback.on_train_batch_end(batch)
        self.assertEqual(self.steps(), [6, 8])

    def test_the_newest_are_kept(self):
        callback = self.callback(self.model(), keep=2)
        seen = []
        for batch in range(4):
            callback.on_train_batch_end(batch)
            seen.append(self.steps())
        self.assertEqual(seen, [[1], [1, 2], [2, 3], [3, 4]])

    def test_a_save_that_fails_leaves_the_checkpoint_before(self):
        model = self.model()
        callback = self.callback(model, keep=1)
        callback.on_train_batch_end(0)

        def half(path, *_, **__):
            with open(path, "wb") as file:
                file.write(b"half")
            raise OSError("disk full")

        with mock.patch.object(model, "save_weights", half):
            with self.assertRaisesRegex(OSError, "disk full"):
                callback.on_train_batch_end(1)
        self.assertLen(os.listdir(self.folder), 2)  # the half one is there
        again = self.model(seed=3)
        self.assertEqual(checkpoint.restore(again, self.workdir), 1)
        for one, same in zip(again.weights, model.weights, strict=True):
            self.assertAllEqual(one, same)


class RestoreTest(CheckpointTestCase):
    def test_without_a_checkpoint_the_step_is_zero(self):
        model = self.model()
        before = model.get_weights()
        self.assertEqual(checkpoint.restore(model, self.workdir), 0)
        for old, new in zip(before, model.get_weights(), strict=True):
            self.assertAllEqual(old, new)

    def test_the_newest_is_restored_and_other_files_are_not(self):
        model = self.model()
        callback = self.callback(model)
        # As numbers, 10 comes after 9; the name of the last is too long a
        # number for its padding.
        for step in (9, 10, 10**10):
            model.learner.bias.assign(float(step))
            model.optimizer.iterations.assign(step)
            callback.on_train_batch_end(step - 1)
        for name in (
            "step-000000011.weights.h5.partial.weights.h5",
            "step-x.weights.h5",
            "notes.txt",
        ):
            self.write(os.path.join("checkpoints", name), "half-written")
        again = self.model()
        self.assertEqual(checkpoint.restore(again, self.workdir), 10**10)
        self.assertAllEqual(again.learner.bias, np.float32(10**10))
        os.remove(os.path.join(self.folder, "step-10000000000.weights.h5"))
        self.assertEqual(checkpoint.restore(again, self.workdir), 10)
        self.assertAllEqual(again.learner.bias, 10.0)
        self.assertEqual(again.optimizer.iterations, 10)

    def test_the_logs_are_cut_back_to_the_step(self):
        self.callback(self.model()).on_train_batch_end(3)
        whole = '{"step": 2, "a": 1}\n{"step": 4, "a": 2}\n'
        for tail in (
            "",
            '{"step": 5}\n',
            '{"step": 5}\n{"step": 6}\n{"st',
            '{"step": 3, "a',
            '{"a": 1}\n',
        ):
            with self.subTest(tail):
                paths = [self.write(name, whole + tail) for name in LOGS]
                self.assertEqual(
                    checkpoint.restore(self.model(), self.workdir), 4
                )
                for path in paths:
                    with open(path, encoding="utf-8") as file:
                        self.assertEqual(file.read(), whole)
        self.assertLen(os.listdir(self.workdir), 4)  # nothing beside them

    def test_a_line_that_lacks_its_end_alone_is_completed(self):
        self.callback(self.model()).on_train_batch_end(3)
        path = self.write(checkpoint.METRICS_FILE, '{"step": 4}')
        checkpoint.restore(self.model(), self.workdir)
        with open(path, encoding="utf-8") as file:
            self.assertEqual(file.read(), '{"step": 4}\n')

    def test_without_a_checkpoint_the_logs_start_again(self):
        path = self.write(checkpoint.METRICS_FILE, '{"step": 1}\n')
        checkpoint.restore(self.model(), self.workdir)
        self.assertEqual(os.path.getsize(path), 0)


class ResumeTest(tf.test.TestCase):
    def setUp(self):
        super().setUp()
        shard = tiny.write_shard(
            os.path.join(self.get_temp_dir(), "a.tfrecord")
        )
        self.store = records.TFRecordStore(shard)
        self.tokenizer = preprocessing.WordPieceTokenizer(
            tiny.VOCABULARY, tiny.TEXT_LENGTH
        )
        self.config = config.TrainConfig(
            seed=5,
            steps=STEPS,
            data=config.DataConfig(super_batch_size=12, min_crop_area=0.5),
            reference=config.ReferenceConfig("somewhere"),
            selection=config.SelectionConfig("joint", 4, 2),
            optimizer=config.OptimizerConfig(
                learning_rate=0.05, warmup_steps=2, weight_decay=0.1
            ),
            evaluation=config.EvaluationConfig(log_every_steps=4, log_ids=True),
            checkpoint=config.CheckpointConfig(every_steps=3),
        )

    def run_until(self, workdir, stop):
        """As the train command does it; the process ends after step `stop`."""
        model = training.build_model(
            self.config,
            tiny.learner(0, extra=[keras.layers.BatchNormalization()]),
            tiny.learner(5),
        )
        model.build(None)
        model.optimizer.build(model.trainable_variables)
        start_step = checkpoint.restore(model, workdir)
        stream = pipeline.super_batches(
            self.store,
            super_batch_size=12,
            seed=self.config.seed,
            tokenizer=self.tokenizer,
            image_size=tiny.IMAGE_SIZE,
            start_step=start_step,
        )
        callbacks = [
            ledger.Ledger(
                self.config,
                workdir,
                start_step=start_step,
                stream=io.StringIO(),
            ),
            checkpoint.Checkpoints(
                workdir,
                every_steps=self.config.checkpoint.every_steps,
                keep=2,
                start_step=start_step,
                last_step=STEPS,
            ),
        ]
        model.fit(
            stream,
            steps_per_epoch=stop - start_step,
            verbose=0,
            callbacks=callbacks,
        )
        return model, start_step

    def test_a_resumed_run_equals_an_unbroken_one_bit_for_bit(self):
        unbroken, resumed = (
            os.path.join(self.get_temp_dir(), name) for name in ("one", "two")
        )
        expected, _ = self.run_until(unbroken, STEPS)
        # It ends after step 5, whose newest checkpoint is of step 3; the row
        # of step 4 is written twice, and its mean runs over the break.
        self.assertEqual(self.run_until(resumed, 5)[1], 0)
        model, start_step = self.run_until(resumed, STEPS)
        self.assertEqual(start_step, 3)
        self.assertAllEqual(model.drawn_ids, expected.drawn_ids)
        for one, same in zip(model.weights, expected.weights, strict=True):
            self.assertAllEqual(one, same)
        for one, same in zip(
            model.optimizer.variables, expected.optimizer.variables, strict=True
        ):
            self.assertAllEqual(one, same)
        self.assertEqual(model.optimizer.iterations, STEPS)
        self.assertEqual(
            tiny.read_lines(resumed, checkpoint.DRAWS_FILE),
            tiny.read_lines(unbroken, checkpoint.DRAWS_FILE),
        )
        rows = [
            tiny.read_lines(workdir, checkpoint.METRICS_FILE)
            for workdir in (unbroken, resumed)
        ]
        self.assertEqual([row["step"] for row in rows[0]], [4, 8])
        for row in rows[0] + rows[1]:
            self.assertGreater(row.pop("seconds"), 0.0)
        self.assertEqual(rows[0], rows[1])


if __name__ == "__main__":
    tf.test.main()
