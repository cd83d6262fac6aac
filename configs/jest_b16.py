"""JEST B/16 at the paper's size: SigLIP's recipe with a tenth of the steps.

    jest-tf train --config configs/jest_b16.py \
        --workdir runs/jest_b16 --set 'data.train=data/pool-*.tfrecord'

First run `pip install '.[keras-hub]'` and `jest-tf embed --model
keras_hub:siglip2_so400m_patch14_224 --data 'data/pool-*.tfrecord'`. It writes
the reference's embeddings beside the shards. At 273 GFLOPs a pair, a billion
pairs take a seventh of the run's FLOPs. On icons, JEST pays with a reference as
strong as the learner becomes (docs/results.md). For one like the paper's, train
configs/siglip_b16.py on a curated part of the pool.

Hardware: 256 chips of TPU v5p, 640 examples scored and 128 trained on each.
Time: 11 hours, if a chip reaches 40 % of its 459 TFLOP/s: 1.8e21 FLOPs, eight
forward passes of 57 GFLOPs per example trained on. Each step needs 163,840
decoded images. NOT RUN BY US: we have neither the data nor the machine. Its
step is compiled for TPUs; docs/tpu.md has the commands for several hosts.

Expected, with the paper's 4 billion examples of WebLI and a reference trained
on its curated part (JEST++; Evans et al. 2024, arXiv 2406.17711, table 1):
ImageNet 10-shot 70.3 and zero-shot 76.9, COCO recall@1 image to text 70.3 and
text to image 53.3. The baseline sees ten times as many examples.

We do not know the paper's optimizer, resolution and text length: apart from the
method, everything is the baseline's.
"""

import dataclasses
import pathlib

from jest_tf import config as config_lib


def config() -> config_lib.TrainConfig:
    """Trains on the 32,768 jointly most learnable of 163,840 pairs."""
    siglip = config_lib.load_config(
        pathlib.Path(__file__).with_name("siglip_b16.py")
    )
    return dataclasses.replace(
        siglip,
        steps=siglip.steps // 10,
        selection=dataclasses.replace(
            siglip.selection, stages=(config_lib.Stage(candidates=5),)
        ),
    )
