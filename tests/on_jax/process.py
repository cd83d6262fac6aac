"""One of two processes that train together: see test_processes.py.

    KERAS_DISTRIBUTION_PROCESS_ID=... python process.py PAGE RESULT SAVED

starts as PAGE says, trains on half of every super-batch, and writes every array
to RESULT and a model to SAVED. Each process has two devices.
"""

import re
import sys

import fits
import jax
import keras
import numpy as np
import tensorflow as tf

# On how many devices of each process.
CASES = {"joint": 2, "softmax": 1}


def start(page):
    """Runs the page's file; returns `super_batches` of it."""
    with open(page, encoding="utf-8") as file:
        (text,) = re.findall(
            r"```python\n# processes.py\n(.*?)```", file.read(), re.S
        )
    namespace = {}
    exec(text, namespace)
    return namespace["super_batches"]


def refusal(own_rows):
    try:
        fits.results("joint", own_rows)
    except ValueError as error:
        return str(error)
    return ""


def main(page, result, saved):
    super_batches = start(page)
    whole = keras.distribution.distribution()
    devices = np.reshape(whole.device_mesh.devices, [2, 2])

    def own_rows(data, rows=fits.ROWS):
        # Dealt in turn, examples come to their half of a super-batch.
        order = np.arange(fits.ROWS).reshape(2, -1).T.ravel()
        examples = data.map(
            lambda batch: {
                name: tf.gather(value, order) for name, value in batch.items()
            }
        )
        return super_batches(examples.unbatch(), rows)

    def too_few(data):
        return own_rows(data, fits.ROWS - 8 * jax.process_index())

    found = {}
    for name, count in CASES.items():
        used = [*devices[:, :count].flat]
        keras.distribution.set_distribution(
            keras.distribution.DataParallel(
                devices=used, auto_shard_dataset=False
            )
        )
        found |= fits.results(name, own_rows)
    fits.save(saved)
    found["loaded"] = fits.weights_of(keras.saving.load_model(saved))
    found["unequal"] = refusal(too_few)
    keras.distribution.set_distribution(None)
    found["alone"] = refusal(lambda data: own_rows(data))
    np.savez(result, **found)


if __name__ == "__main__":
    main(*sys.argv[1:])
