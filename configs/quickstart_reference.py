"""Quickstart: the reference, trained on a small curated set of pictures.

    jest-tf train --config configs/quickstart_reference.py \
        --workdir runs/reference

About a minute on 2 CPU cores. Result of three seeds: docs/quickstart.md.
"""

from jest_tf import config as config_lib

DATA = "examples/icontext_mini"


def config() -> config_lib.TrainConfig:
    """2,000 clean pairs of a pool's icons."""
    return config_lib.TrainConfig(
        steps=500,
        data=config_lib.DataConfig(
            train=(f"{DATA}/reference-*.tfrecord",),
            super_batch_size=128,
            image_size=32,
            text_length=16,
            min_crop_area=0.6,
        ),
        # Icons of several sets share their names.
        model=config_lib.ModelConfig(preset="tiny", equal_captions="ignore"),
        optimizer=config_lib.OptimizerConfig(
            learning_rate=3e-3, warmup_steps=50, weight_decay=0.05
        ),
        evaluation=config_lib.EvaluationConfig(
            data=(
                f"{DATA}/val-*.tfrecord",
                f"{DATA}/test-*.tfrecord",
            ),
            every_steps=100,
            prompts=("{}", "{} icon", "a picture of {}"),
        ),
    )
