"""IconText: a reference on the curated set and the noisy pool.

    jest-tf train --config configs/icontext_reference.py \
        --workdir icontext-work/runs/reference

First build the data with `make icontext-data`. Cost: docs/icontext.md; results:
benchmarks/icontext/results/report.md.
"""

from jest_tf import config as config_lib

DATA = "icontext-work/data"


def config() -> config_lib.TrainConfig:
    """Half of each batch is curated emoji art, half is from the pool."""
    return config_lib.TrainConfig(
        steps=1500,
        data=config_lib.DataConfig(
            train=(
                f"{DATA}/reference-*.tfrecord",
                f"{DATA}/pool-*.tfrecord",
            ),
            weights=(1.0, 1.0),
            # One vocabulary for all runs: they differ in the method only.
            vocabulary=f"{DATA}/vocab.txt",
            super_batch_size=256,
            image_size=32,
            text_length=16,
            min_crop_area=0.6,
        ),
        # Emoji art of several styles shares its captions.
        model=config_lib.ModelConfig(
            towers="benchmarks.icontext.towers:build",
            # Uniform training learns sooner with it than with the sigmoid loss
            # (cells tune_uniform_softmax and tune_uniform_2e-3).
            loss="softmax",
            equal_captions="ignore",
        ),
        optimizer=config_lib.OptimizerConfig(
            learning_rate=2e-3, warmup_steps=100, weight_decay=0.05
        ),
        evaluation=config_lib.EvaluationConfig(
            data=(
                f"{DATA}/val_concept-*.tfrecord",
                f"{DATA}/test_concept-*.tfrecord",
                f"{DATA}/test_style-*.tfrecord",
            ),
            every_steps=100,
            prompts=("{}", "{} icon", "a picture of {}"),
        ),
    )
