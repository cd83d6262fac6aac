"""IconText's web-like benchmark: uniform training on a noisy pool.

    jest-tf train --config configs/icontext_web.py \
        --workdir icontext-work/runs/web

First build the data with `make icontext-data`. The pool has 70 % of noise, the
validation pairs are of icon sets that nobody trains on. The rate is that of
chosen or curated pairs. Validation chose half of it for uniform training on
this pool: `--set optimizer.learning_rate=1e-3`.
"""

from jest_tf import config as config_lib

DATA = "icontext-work/web"


def config() -> config_lib.TrainConfig:
    """Trains on every pair that comes."""
    return config_lib.TrainConfig(
        steps=4500,
        data=config_lib.DataConfig(
            train=(f"{DATA}/pool70/pool-*.tfrecord",),
            vocabulary=f"{DATA}/vocab.txt",
            image_size=32,
            text_length=16,
        ),
        selection=config_lib.SelectionConfig(batch_size=256),
        model=config_lib.ModelConfig(
            towers="benchmarks.icontext.towers:build_small",
            loss="softmax",
            equal_captions="ignore",
        ),
        # At a constant rate runs of all lengths compare; averaged weights take
        # the place of a decay.
        optimizer=config_lib.OptimizerConfig(
            learning_rate=2e-3,
            schedule="constant",
            warmup_steps=100,
            weight_decay=0.05,
            ema=0.98,
        ),
        evaluation=config_lib.EvaluationConfig(
            data=(f"{DATA}/val_sets-*.tfrecord",),
            every_steps=250,
        ),
    )
