"""How long a training step takes for several learners.

    python -m benchmarks.icontext.learner_speed

One thread, b = 256, 32 x 32 pixels, 16 tokens, no input pipeline. What is timed
is the processor, so that other work on the machine counts for less; of several
rounds the fastest is taken.
"""

import os
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np  # noqa: E402
import tensorflow as tf  # noqa: E402

from jest_tf import config as config_lib  # noqa: E402
from jest_tf import (
    models,
    training,  # noqa: E402
)
from jest_tf.training import optimizer

LEARNERS = {
    "the benchmark's": {"towers": "benchmarks.icontext.towers:build"},
    "twice as wide": {"towers": "benchmarks.icontext.towers:build_wide"},
    "preset tiny": {"preset": "tiny"},
    "tiny, patches of 4": {"preset": "tiny", "patch_size": 4},
}
BATCH_SIZE, ROUNDS, STEPS = 256, 3, 5
_VOCABULARY_SIZE, _TEXT_LENGTH, _IMAGE_SIZE = 8192, 16, 32


def main():
    """Print a line a learner."""
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    first = None
    for name, settings in LEARNERS.items():
        seconds, weights = measure(settings)
        first = first or seconds
        print(
            f"{name:20}{weights:12,} weights{1e3 * seconds:8.0f} ms"
            f"{seconds / first:6.1f}",
            flush=True,
        )


def measure(settings):
    """Processor seconds of a step of a learner, and its number of weights.

    Args:
        settings: of `config.ModelConfig`.
    """
    config = config_lib.TrainConfig(
        data=config_lib.DataConfig(
            image_size=_IMAGE_SIZE, text_length=_TEXT_LENGTH
        ),
        model=config_lib.ModelConfig(**settings),
    )
    learner = models.build_learner(config, _VOCABULARY_SIZE)
    model = training.JESTModel(learner)
    model.compile(optimizer.AdamW(1e-3))
    dataset = tf.data.Dataset.from_tensors(_batch()).repeat()
    model.fit(dataset, steps_per_epoch=2, verbose=0)  # traces
    rounds = []
    for _ in range(ROUNDS):
        started = time.process_time()
        model.fit(dataset, steps_per_epoch=STEPS, verbose=0)
        rounds.append((time.process_time() - started) / STEPS)
    return min(rounds), learner.count_params()


def _batch():
    random = np.random.default_rng(0)
    images = random.integers(0, 256, [BATCH_SIZE, _IMAGE_SIZE, _IMAGE_SIZE, 3])
    texts = random.integers(0, _VOCABULARY_SIZE, [BATCH_SIZE, _TEXT_LENGTH])
    return {
        "image": tf.constant(images, tf.uint8),
        "text": tf.constant(texts, tf.int32),
    }


if __name__ == "__main__":
    main()
