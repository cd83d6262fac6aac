"""Locked-image tuning: a new text tower beside SigLIP 2's image tower.

    jest-tf train --config configs/lit_b16.py \
        --workdir runs/lit_b16 --set 'data.train=data/pool-*.tfrecord'

First run `pip install '.[keras-hub]'`. The text tower and its vocabulary are
learned from your captions, in any language; images are embedded as by SigLIP
2. `--set model.init_tower=none` starts from SigLIP 2's text tower, too.

Hardware: one GPU with 80 GB. Time: an hour or two; the image tower has no
backward pass. NOT RUN BY US at this size: tests run it on a small preset with
random weights.

Reference: Zhai et al. 2022, "LiT" (arXiv 2111.07991).
"""

from jest_tf import config as config_lib


def config() -> config_lib.TrainConfig:
    """Trains the text tower, temperature and bias on whole batches."""
    return config_lib.TrainConfig(
        steps=10_000,
        data=config_lib.DataConfig(
            train=("data/pool-*.tfrecord",),
            image_size=224,
            text_length=64,
            vocabulary_size=32_000,
        ),
        model=config_lib.ModelConfig(
            preset="b16",
            init_from="keras_hub:siglip2_base_patch16_224",
            init_tower="image_tower",
            frozen=("image_tower",),
            dtype_policy="mixed_bfloat16",
        ),
        selection=config_lib.SelectionConfig(1024),
        optimizer=config_lib.OptimizerConfig(warmup_steps=1000),
    )
