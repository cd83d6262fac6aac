"""A small SigLIP from a large public one: a stored stage and distillation.

    jest-tf train --config configs/distil_s16.py \
        --workdir runs/distil_s16 --set 'data.train=data/pool-*.tfrecord'

First, `pip install '.[keras-hub]'`, and `jest-tf embed --model
keras_hub:siglip2_so400m_patch14_224 --data 'data/pool-*.tfrecord'` writes the
reference's embeddings beside the shards, once for all learners: 273 GFLOPs a
pair, so ten million pairs take 6 hours on one A100 that reaches 40 % of its 312
TFLOP/s. `siglip2_base_patch16_224` takes 46 GFLOPs a pair, 1 hour, and is 768
wide. Training never runs the reference.

The stored stage passes the best-matching third: take one over the share of your
pool that matches, which `jest-tf advise` estimates. Distillation fades out over
the run, so that the learner is not held to its reference at the end.

Hardware: one GPU with 80 GB. Time: a few hours; a step trains 1,024 examples in
three passes of a ViT-S/16, and scores none. NOT RUN BY US at this size: on
icons, this recipe has the results of docs/results.md. Compare it on your data
with `--set selection.stages=none reference.distillation_weight=0
reference.distillation_steps=none reference.projection=none`.
"""

from jest_tf import config as config_lib


def config() -> config_lib.TrainConfig:
    """A stored stage chooses 1,024 of 3,072 records to train on."""
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
            distillation_weight=8.0,
            distillation_steps=20_000,
            projection=1152,
        ),
        selection=config_lib.SelectionConfig(
            1024,
            stages=(config_lib.Stage(3, "stored", criterion="easy_reference"),),
        ),
        # Distillation bears a higher rate than 1e-3.
        optimizer=config_lib.OptimizerConfig(
            learning_rate=2e-3, warmup_steps=1000, ema=0.999
        ),
    )
