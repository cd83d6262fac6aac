"""Quickstart: the reference, trained on a small curated set of pictures.

    jest-tf train --config configs/quickstart_reference.py \
        --workdir runs/reference

Half a minute on 2 CPU cores. Result of three seeds: docs/quickstart.md.
"""

from jest_tf import config as config_lib

DATA = "examples/icontext_mini"


def config() -> config_lib.TrainConfig:
    """2,000 clean pairs of the pool's kind."""
    return config_lib.TrainConfig(
        steps=400,
        data=config_lib.DataConfig(
            train=(f"{DATA}/reference-*.tfrecord",),
            image_size=32,
            text_length=16,
            min_crop_area=0.5,
        ),
        selection=config_lib.SelectionConfig(256),
        # Several sets have an icon of the same name.
        model=config_lib.ModelConfig(
            towers="benchmarks.icontext.towers:build_small",
            loss="softmax",
            equal_captions="ignore",
        ),
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
