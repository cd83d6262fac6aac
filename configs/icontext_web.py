"""IconText's web-like benchmark: uniform training on a noisy pool.

    jest-tf train --config configs/icontext_web.py \
        --workdir icontext-work/runs/web

First build the data with `make icontext-data`. 70 % of the pool is noise; the
validation pairs come from icon sets that no run trains on. The learning rate is
that for chosen or curated pairs. For uniform training on this pool, validation
chose half of it: `--set optimizer.learning_rate=1e-3`.
"""

from jest_tf import config as config_lib

DATA = "icontext-work/web"


def config() -> config_lib.TrainConfig:
    """Trains on every pair of the stream."""
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
            false_negatives="equal_captions",
        ),
        # A constant rate makes runs of all lengths comparable; averaged weights
        # take the place of a decay.
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
