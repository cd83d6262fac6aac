"""A small SigLIP from a large public one: a stored stage and distillation.

    jest-tf train --config configs/distil_s16.py \
        --workdir runs/distil_s16 --set 'data.train=data/pool-*.tfrecord'

First, `pip install '.[keras-hub]'`, and `jest-tf embed --model
keras_hub:siglip2_so400m_patch14_224 --data 'data/pool-*.tfrecord'` writes the
reference's embeddings beside the shards; the run then never embeds with it. The
stored stage chooses by them, and learned projections take the learner's 384
numbers to the reference's 1,152.

Hardware: one GPU with 80 GB. Time: a few hours; a step trains 1,024 examples in
three passes of a ViT-S/16, and scores none. NOT RUN BY US at this size: its
small twin is configs/icontext_best.py, whose results are in docs/recipes.md.
On a public model's data the gain is yours to measure: compare it with
`--set selection.stages=none`.
"""

from jest_tf import config as config_lib


def config() -> config_lib.TrainConfig:
    """A stored stage chooses 1,024 of 16,384 records to train on."""
    return config_lib.TrainConfig(
        steps=20_000,
        data=config_lib.DataConfig(
            train=("data/pool-*.tfrecord",),
            image_size=224,
            text_length=64,
            vocabulary_size=32_000,
        ),
        model=config_lib.ModelConfig(
            preset="s16", dtype_policy="mixed_bfloat16"
        ),
        reference=config_lib.ReferenceConfig(
            model="keras_hub:siglip2_so400m_patch14_224",
            distillation_weight=16.0,
            projection=1152,
        ),
        selection=config_lib.SelectionConfig(
            1024,
            stages=(
                config_lib.Stage(16, "stored", criterion="easy_reference"),
            ),
        ),
        # Distillation bears a higher rate than 1e-3.
        optimizer=config_lib.OptimizerConfig(
            learning_rate=2e-3, warmup_steps=1000, ema=0.999
        ),
    )
