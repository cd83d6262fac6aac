"""SigLIP L/16 at the paper's size: the B/16 baseline with larger towers.

    jest-tf train --config configs/siglip_l16.py \
        --workdir runs/siglip_l16 --set 'data.train=data/pool-*.tfrecord'

Hardware: 256 chips of TPU v5p, 128 examples each. Time: 5.9 days, if a chip
reaches 40 % of its 459 TFLOP/s: 2.4e22 FLOPs, three forward passes of 200
GFLOPs per example. NOT RUN BY US; configs/siglip_b16.py says what is needed.

Expected, with the paper's 40 billion examples of WebLI (Evans et al. 2024,
arXiv 2406.17711, table 1): ImageNet 10-shot 77.1 and zero-shot 80.5, COCO
recall@1 image to text 69.5 and text to image 51.2.
"""

import dataclasses
import pathlib

from jest_tf import config as config_lib


def config() -> config_lib.TrainConfig:
    """ViT-L/16 at 256 pixels and a text tower of the same size."""
    b16 = config_lib.load_config(
        pathlib.Path(__file__).with_name("siglip_b16.py")
    )
    return dataclasses.replace(
        b16, model=dataclasses.replace(b16.model, preset="l16")
    )
