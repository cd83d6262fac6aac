"""JEST L/16 at the paper's size: the B/16 recipe with larger towers.

    jest-tf train --config configs/jest_l16.py \
        --workdir runs/jest_l16 --set 'data.train=data/pool-*.tfrecord'

Needs a reference's sidecars beside the shards, as configs/jest_b16.py does.

Hardware: 256 chips of TPU v5p, 640 examples scored and 128 trained on each.
Time: 1.6 days, if a chip reaches 40 % of its 459 TFLOP/s: 6.4e21 FLOPs, eight
forward passes of 200 GFLOPs per example trained on. NOT RUN BY US.

Expected, with the paper's 4 billion examples of WebLI and a reference trained
on its curated part (JEST++; Evans et al. 2024, arXiv 2406.17711, table 1):
ImageNet 10-shot 75.5 and zero-shot 80.5, COCO recall@1 image to text 71.1 and
text to image 54.8.
"""

import dataclasses
import pathlib

from jest_tf import config as config_lib


def config() -> config_lib.TrainConfig:
    """Trains on the 32,768 jointly most learnable of 163,840 pairs."""
    b16 = config_lib.load_config(
        pathlib.Path(__file__).with_name("jest_b16.py")
    )
    return dataclasses.replace(
        b16, model=dataclasses.replace(b16.model, preset="l16")
    )
