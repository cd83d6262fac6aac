"""Quickstart: a small learner, trained uniformly on the noisy pool.

    jest-tf train --config configs/quickstart_uniform.py \
        --workdir runs/uniform

docs/quickstart.md has the result of three seeds.
"""

from jest_tf import config as config_lib

DATA = "examples/icontext_mini"


def config() -> config_lib.TrainConfig:
    """Trains on 18,000 pairs, of which 5,400 are clean."""
    return config_lib.TrainConfig(
        steps=1000,
        data=config_lib.DataConfig(
            train=(f"{DATA}/pool-*.tfrecord",),
            noise_field="noise",
            vocabulary=f"{DATA}/reference/vocab.txt",
            image_size=32,
            text_length=16,
            min_crop_area=0.5,
        ),
        selection=config_lib.SelectionConfig(256),
        # Several icon sets have icons of the same name.
        model=config_lib.ModelConfig(
            towers="benchmarks.icontext.towers:build_narrow",
            loss="softmax",
            false_negatives="equal_captions",
        ),
        # The best of 5e-4, 1e-3, 2e-3 and 4e-3 on validation, seed 0.
        optimizer=config_lib.OptimizerConfig(
            learning_rate=2e-3,
            schedule="constant",
            warmup_steps=100,
            weight_decay=0.05,
            ema=0.98,
        ),
        evaluation=config_lib.EvaluationConfig(
            data=(f"{DATA}/val-*.tfrecord", f"{DATA}/test-*.tfrecord"),
            every_steps=200,
        ),
    )
