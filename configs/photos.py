"""PhotoText's benchmark: uniform training on photographs with moved captions.

    jest-tf train --config configs/photos.py --workdir photos-work/runs/photos

First build the data with `make photos-data`.
"""

import dataclasses
import pathlib

from jest_tf import config as config_lib

DATA = "photos-work/photos"


def config() -> config_lib.TrainConfig:
    """Trains on every pair of the stream, as on IconText."""
    icons = config_lib.load_config(
        pathlib.Path(__file__).with_name("icontext_web.py")
    )
    return dataclasses.replace(
        icons,
        steps=2000,
        data=config_lib.DataConfig(
            train=(f"{DATA}/part70/pool-*.tfrecord",),
            vocabulary=f"{DATA}/vocab.txt",
            image_size=64,
            text_length=32,
            min_crop_area=0.6,
        ),
        model=dataclasses.replace(
            icons.model, towers="benchmarks.phototext.towers:build_full"
        ),
        evaluation=dataclasses.replace(
            icons.evaluation, data=(f"{DATA}/val_*-*.tfrecord",)
        ),
    )
