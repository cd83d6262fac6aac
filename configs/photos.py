"""PhotoText's benchmark: uniform training on photographs with moved captions.

    jest-tf train --config configs/photos.py --workdir photos-work/runs/photos

First build the data with `make photos-data`.
"""

from jest_tf import config as config_lib

DATA = "photos-work/photos"


def config() -> config_lib.TrainConfig:
    """Trains on every pair of the stream."""
    return config_lib.TrainConfig(
        steps=2000,
        data=config_lib.DataConfig(
            train=(f"{DATA}/part70/pool-*.tfrecord",),
            vocabulary=f"{DATA}/vocab.txt",
            image_size=64,
            text_length=32,
            min_crop_area=0.6,
        ),
        selection=config_lib.SelectionConfig(batch_size=256),
        model=config_lib.ModelConfig(
            towers="benchmarks.phototext.towers:build_full",
            loss="softmax",
            equal_captions="ignore",
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
            data=(f"{DATA}/val_*-*.tfrecord",),
            every_steps=250,
        ),
    )
