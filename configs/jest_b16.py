"""JEST B/16 at the paper's size: SigLIP's recipe with a tenth of the steps.

    jest-tf train --config configs/jest_b16.py \
        --workdir runs/jest_b16 --set 'data.train=data/pool-*.tfrecord'

First, `pip install '.[keras-hub]'`, and `jest-tf embed --model
keras_hub:siglip2_so400m_patch14_224 --data 'data/pool-*.tfrecord'` writes the
reference's embeddings beside the shards: 273 GFLOPs a pair, for a billion pairs
a seventh of the run's FLOPs. On icons, a reference as strong as the learner
becomes is what makes JEST pay (docs/results.md); the paper's is trained with
configs/siglip_b16.py on a curated part of the pool.

Hardware: 256 chips of TPU v5p, 640 examples scored and 128 trained on each.
Time: 11 hours, if a chip reaches 40 % of its 459 TFLOP/s: 1.8e21 FLOPs, eight
forward passes of 57 GFLOPs an example trained on; a step must be fed 163,840
decoded pictures. NOT RUN BY US: we have neither the data nor the machine, and
docs/tpu.md says what several hosts run.
The step of a small twin is compiled for TPUs.

Expected, with the paper's 4 billion examples of WebLI and a reference trained
on its curated part (JEST++; Evans et al. 2024, arXiv 2406.17711, table 1):
ImageNet 10-shot 70.3 and zero-shot 76.9, COCO recall@1 image to text 70.3 and
text to image 53.3. The baseline has seen ten times as many.

What the paper's optimizer, resolution and text length were is not known to us:
all that is not the method is the baseline's.
"""

import dataclasses
import pathlib

from jest_tf import config as config_lib


def config() -> config_lib.TrainConfig:
    """Draws 163,840, trains on the 32,768 jointly most learnable."""
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
