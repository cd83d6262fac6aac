"""`fit` on Keras' JAX backend; tests/conftest.py asks for four CPU devices."""

import dataclasses
import os

import hand_draws
import keras
import numpy as np
import tensorflow as tf
import tiny_towers

from jest_tf import config
from jest_tf.data import augmentation
from jest_tf.embeddings import Embeddings
from jest_tf.models import two_tower
from jest_tf.training import model as model_lib
from jest_tf.training import optimizer
from jest_tf.training import step as step_lib

ROWS, SIZE, STEPS = 32, 8, 4
STAGE = config.Stage(ROWS // SIZE, num_chunks=2)


def towers(seed, dropout=0.0):
    model = two_tower.TwoTower(
        tiny_towers.image_tower(dropout=dropout),
        tiny_towers.text_tower(dropout=dropout),
    )
    size = tiny_towers.IMAGE_SIZE
    model.build(
        {
            "image": (None, size, size, 3),
            "text": (None, tiny_towers.LENGTH),
        }
    )
    tiny_towers.randomise(model.image_tower, seed)
    tiny_towers.randomise(model.text_tower, seed + 1)
    return model


def jest(stages=(STAGE,), quota="global", dropout=0.0, **options):
    model = model_lib.JESTModel(
        towers(0, dropout),
        towers(10),
        config.SelectionConfig(SIZE, stages=stages, quota=quota),
        options=step_lib.StepOptions(seed=3, **options),
    )
    model.compile(optimizer.AdamW(1e-2, global_clipnorm=1.0))
    return model


def batches(rows=ROWS):
    """Ids of more than 32 bits, and captions that repeat."""
    for number in range(STEPS):
        batch = tiny_towers.make_batch(rows, seed=number)
        row = np.arange(rows, dtype=np.int64)
        yield batch | {"id": row << 40, "caption_id": row // 2 << 33}


def dataset(rows=ROWS):
    every = [dict(one) for one in batches(rows)]
    joined = {name: [one[name] for one in every] for name in every[0]}
    return tf.data.Dataset.from_tensor_slices(joined)


class Record(keras.callbacks.Callback):
    """Draws and losses of every step."""

    def __init__(self):
        super().__init__()
        self.draws, self.losses = [], []

    def on_train_batch_end(self, batch, logs=None):
        self.draws.append(self.model.drawn_ids >> 40)
        self.losses.append(float(logs["loss"]) * (batch + 1))


def trained(model, data=None):
    record = Record()
    data = data or dataset()
    model.fit(data, verbose=0, callbacks=[record])
    return record


def on_devices(count):
    devices = keras.distribution.list_devices("cpu")[:count]
    keras.distribution.set_distribution(
        keras.distribution.DataParallel(devices=devices)
    )


class FitTest(tf.test.TestCase):
    def tearDown(self):
        keras.distribution.set_distribution(None)
        super().tearDown()

    def test_a_step_trains_on_what_the_matrix_form_draws(self):
        model, reference = jest(), towers(10)
        first = next(batches())
        models = [
            Embeddings(*map(np.asarray, one(first)))
            for one in (model.learner, reference)
        ]
        expected = hand_draws.rows(
            *models, STAGE, batch_size=SIZE, seed=(3, 0), loss="sigmoid"
        )
        record = trained(model, dataset().take(1))
        self.assertAllEqual(record.draws[0], expected)
        self.assertAllEqual(model.rows.drawn(0), expected)

    def test_micro_batches_and_blocks_give_the_step_of_the_whole_batch(self):
        options = {"equal_captions": "ignore", "distillation_weight": 0.5}
        whole, parts = (
            jest(**options),
            jest(
                stages=(dataclasses.replace(STAGE, scoring_batch_size=8),),
                micro_batch_size=2,
                loss_block_size=3,
                **options,
            ),
        )
        ours, theirs = trained(whole), trained(parts)
        self.assertAllEqual(ours.draws, theirs.draws)
        self.assertAllClose(ours.losses, theirs.losses, rtol=1e-5)
        for one, other in zip(
            whole.get_weights(), parts.get_weights(), strict=True
        ):
            self.assertAllClose(one, other, atol=2e-4)

    def test_four_devices_give_the_steps_of_one(self):
        options = {
            "stages": (
                config.Stage(2, method="uniform"),
                config.Stage(2, num_chunks=2),
            ),
            "equal_captions": "positive",
            "augment": augmentation.Augmentation(flip=True, min_area=0.5),
        }
        alone = trained(jest(**options))
        on_devices(4)
        model = jest(**options)
        together = trained(model)
        self.assertAllEqual(alone.draws, together.draws)
        self.assertAllClose(alone.losses, together.losses, rtol=1e-5)
        self.assertLen(model.rows.scored(1)["number"], ROWS // 2)

    def test_quota_per_replica_draws_as_many_rows_of_every_device(self):
        on_devices(4)
        for rows in trained(jest(quota="per_replica")).draws:
            owners = np.bincount(rows // (ROWS // 4), minlength=4)
            self.assertAllEqual(owners, [SIZE // 4] * 4)

    def test_a_resumed_run_has_the_bits_of_an_unbroken_one(self):
        whole = jest(dropout=0.2)
        trained(whole)
        path = os.path.join(self.get_temp_dir(), "model.keras")
        model = jest(dropout=0.2)
        trained(model, dataset().take(2))
        model.save(path)
        model = keras.saving.load_model(path)
        model.attach_reference(towers(10))
        trained(model, dataset().skip(2))
        for one, other in zip(
            [*whole.get_weights(), *whole.optimizer.variables],
            [*model.get_weights(), *model.optimizer.variables],
            strict=True,
        ):
            self.assertAllEqual(one, other)

    def test_what_jax_cannot_do_is_refused(self):
        model = model_lib.JESTModel(towers(0))
        inner = keras.optimizers.SGD()
        with self.assertRaisesRegex(ValueError, "mixed_float16.*Received"):
            model.compile(keras.optimizers.LossScaleOptimizer(inner))
