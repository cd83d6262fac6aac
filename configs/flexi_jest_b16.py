"""Flexi-JEST B/16 at the paper's size: `jest_b16` with coarse patches.

    jest-tf train --config configs/flexi_jest_b16.py \
        --workdir runs/flexi_jest_b16 --set 'data.train=data/pool-*.tfrecord'

Scores with patches of 32 pixels. Trains on one half of the sub-batch with
patches of 16 and on the other with 32, so that the tower learns both. A step
takes 110 % of a uniform step's FLOPs by Evans et al. 2024 (arXiv 2406.17711,
table 1), and 134 % by docs/logs.md, which counts the text tower, here with 64
tokens. Prepare the reference as configs/jest_b16.py says.

Hardware: 256 chips of TPU v5p. NOT RUN BY US: we have neither the data nor the
machine. Its step is compiled for TPUs on JAX, with the rows of a chip.

Expected, with the paper's 4 billion examples of WebLI (Flexi-JEST++, table 1):
ImageNet 10-shot 68.2 and zero-shot 75.8, COCO recall@1 image to text 68.0 and
text to image 51.2.
"""

import dataclasses
import pathlib

from jest_tf import config as config_lib


def config() -> config_lib.TrainConfig:
    """`jest_b16` with a fine and a coarse view of the images."""
    jest = config_lib.load_config(
        pathlib.Path(__file__).with_name("jest_b16.py")
    )
    coarse = config_lib.View(patch_size=32)
    return dataclasses.replace(
        jest,
        model=dataclasses.replace(jest.model, train_views=True),
        selection=dataclasses.replace(
            jest.selection,
            stages=(config_lib.Stage(candidates=5, view=coarse),),
        ),
    )
