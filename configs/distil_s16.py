"""A small SigLIP from a large public SigLIP: a stored stage and distillation.

    jest-tf train --config configs/distil_s16.py \
        --workdir runs/distil_s16 --set 'data.train=data/pool-*.tfrecord'

First run `pip install '.[keras-hub]'` and `jest-tf embed --model
keras_hub:siglip2_so400m_patch14_224 --data 'data/pool-*.tfrecord'`. It writes
the reference's embeddings beside the shards, once for all learners. At 273
GFLOPs a pair, ten million pairs take 6 hours on an A100 that reaches 40 % of
its 312 TFLOP/s. `siglip2_base_patch16_224`, with a width of 768, takes 46
GFLOPs a pair, or 1 hour. Training never runs the reference.

The stored stage passes the best-matching third. Set its `candidates` to 1 over
your pool's matched share, which `jest-tf advise` estimates. Distillation fades
out over half of the run, so that the reference does not limit the learner.

Hardware: one GPU with 80 GB. Time: a few hours; a step trains on 1,024 examples
with three passes of a ViT-S/16, and scores none. NOT RUN BY US at this size:
docs/results.md has results of the method, without fading. Plain training, to
compare with on your data: `--set selection.stages=none
reference.distillation_weight=0 reference.distillation_steps=none
reference.projection=none`.
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
            distillation_steps=10_000,
            projection=1152,
        ),
        selection=config_lib.SelectionConfig(
            1024,
            stages=(config_lib.Stage(3, "stored", criterion="easy_reference"),),
        ),
        # Distillation allows a higher rate than 1e-3.
        optimizer=config_lib.OptimizerConfig(
            learning_rate=2e-3, warmup_steps=1000, ema=0.999
        ),
    )
