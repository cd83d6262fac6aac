"""Draws and steps of `fit` that are equal on both of Keras' backends.

    KERAS_BACKEND=... python fits.py RESULT SAVED LOADED

writes every array to RESULT and a model to SAVED, and embeds by LOADED.
"""

import dataclasses
import functools
import sys

import graphs
import keras
import numpy as np
import random_embeddings
import tiny
import tiny_towers

from jest_tf import config, embeddings, selection
from jest_tf.data import augmentation
from jest_tf.models import two_tower
from jest_tf.training import model as model_lib
from jest_tf.training import optimizer
from jest_tf.training import step as step_lib

ROWS, SIZE, STEPS = 32, 8, 10
# Beside the rows to choose from, in the case "all".
CURATED = 2
STAGE = config.Stage(ROWS // SIZE, num_chunks=2)
COARSE = config.View(patch_size=4)

# Arguments of `jest` by name.
CASES = {
    "joint": {},
    "softmax": {
        "stages": (dataclasses.replace(STAGE, scoring_batch_size=8),),
        "loss": "softmax",
        "micro_batch_size": 2,
        "loss_block_size": 3,
    },
    "all": {
        "stages": (
            config.Stage(2, method="independent", criterion="easy_reference"),
            config.Stage(2, num_chunks=2, view=COARSE, first_step=2),
        ),
        "projection_dim": 7,
        "false_negatives": "reference",
        "views": (config.View(), COARSE),
        "distillation_weight": 0.3,
        "distillation_steps": 8,
        "augment": augmentation.Augmentation(flip=True, min_area=0.5),
        "steps_per_execution": 2,
        "ema": 0.5,
    },
}


def towers(seed, width=6, **settings):
    model = two_tower.TwoTower(
        tiny_towers.image_tower(width, patch_sizes=(4,), **settings),
        tiny_towers.text_tower(width, **settings),
    )
    size = tiny_towers.IMAGE_SIZE
    model.build(
        {"image": (None, size, size, 3), "text": (None, tiny_towers.LENGTH)}
    )
    tiny_towers.randomise(model.image_tower, seed)
    tiny_towers.randomise(model.text_tower, seed + 1)
    return model


def jest(
    stages=(STAGE,),
    quota="global",
    loss="sigmoid",
    of_towers=None,
    steps_per_execution=1,
    ema=None,
    **options,
):
    """A compiled model; `options` are those of a step."""
    model = model_lib.JESTModel(
        towers(0, **(of_towers or {})),
        towers(10, options.get("projection_dim", 6)),
        config.SelectionConfig(SIZE, stages=stages, quota=quota),
        loss,
        options=step_lib.StepOptions(seed=3, **options),
    )
    if model.projection is not None:
        tiny_towers.randomise(model.projection, 20)
    schedule = config.OptimizerConfig(learning_rate=1e-2, warmup_steps=2)
    model.compile(
        optimizer.AdamW(
            optimizer.build_schedule(schedule, 2 * STEPS),
            weight_decay=0.01,
            global_clipnorm=1.0,
            use_ema=ema is not None,
            ema_momentum=ema or 0.0,
        ),
        steps_per_execution=steps_per_execution,
    )
    return model


def dataset(rows=ROWS, num_curated=0):
    """Ids of more than 32 bits, and captions that repeat."""
    batches = []
    for number in range(STEPS):
        batch = tiny_towers.make_batch(rows, seed=number)
        batch["id"] = np.arange(rows, dtype=np.int64) << 40
        batch["caption_id"] = batch["id"] // 2**41 << 33
        if num_curated:
            batch["curated"] = {
                name: values[:num_curated] for name, values in batch.items()
            }
        batches.append(batch)
    return tiny.dataset(batches)


class Record(keras.callbacks.Callback):
    """Draws, ids and losses of every step; losses of an epoch so far."""

    def __init__(self):
        super().__init__()
        self.draws, self.ids, self.losses = [], [], []

    def on_train_batch_end(self, batch, logs=None):
        self.draws.append(self.model.rows.drawn)
        self.ids.append(np.asarray(self.model.drawn_ids))
        self.losses.append(float(logs["loss"]))


def trained(model, data=None, **options):
    record = Record()
    model.fit(data or dataset(), verbose=0, callbacks=[record], **options)
    return record


def many_draws(loss, steps=200):
    """Rows of the draws of many steps, int32 [steps, 204], of 1,024 rows."""
    models, size = random_embeddings.models(1024), 204

    def body(state, step):
        drawn = selection.draw(
            *(*models, config.Stage(5)), size=size, loss=loss, seed=(0, step)
        )
        return state, (drawn.indices,)

    return graphs.compiled(
        lambda: embeddings.scan(body, steps, (), (([size], "int32"),)),
        jit_compile=False,
    )()[1][0]


def weights_of(model):
    return np.concatenate([np.ravel(weight) for weight in model.get_weights()])


@functools.cache
def results(name, own_rows=lambda data: data):
    """Everything a run of a case tells.

    `own_rows` leaves this process's rows of every super-batch.
    """
    model, data = jest(**CASES[name]), dataset()
    if name == "all":
        data = dataset(ROWS // SIZE * (SIZE - CURATED), CURATED)
    record = trained(model, own_rows(data))
    whole = own_rows(dataset().take(2))
    whole = model.evaluate(whole, verbose=0, return_dict=True)
    scored = model.rows.scored(len(model.selection.stages) - 1)
    return {
        f"{name}/draws": record.draws,
        f"{name}/ids": record.ids,
        f"{name}/kept_ids": scored["id"][scored["kept"]],
        f"{name}/losses": [*record.losses, whole["loss"]],
        f"{name}/weights": weights_of(model),
    }


def assert_same(test, found, expected):
    """Compares `results`: draws to the row, what is trained up to rounding."""
    for key, value in expected.items():
        with test.subTest(key):
            if key.endswith(("draws", "ids")):
                test.assertAllEqual(found[key], value)
            elif key.endswith("losses"):
                test.assertAllClose(found[key], value, rtol=1e-5)
            else:
                # AdamW divides small gradients by their size.
                test.assertAllClose(found[key], value, rtol=0, atol=5e-4)


def embedded(path):
    """The embeddings of a saved model."""
    model = keras.saving.load_model(path)
    sides = model(next(iter(dataset())))
    return np.concatenate([np.ravel(side) for side in sides])


def save(path):
    model = jest()
    model.optimizer.build(model.trainable_variables)
    model.save(path)


def main(result, saved, loaded):
    found = {loss: many_draws(loss) for loss in config.LOSSES}
    for name in CASES:
        found |= results(name)
    save(saved)
    found["saved"], found["loaded"] = embedded(saved), embedded(loaded)
    np.savez(result, **found)


if __name__ == "__main__":
    main(*sys.argv[1:])
