"""SigLIP 2 B/16, fine-tuned on your own data by JEST.

    jest-tf train --config configs/tune_siglip2_b16.py \
        --workdir runs/tune_siglip2_b16 --set 'data.train=data/pool-*.tfrecord'

First run `pip install '.[keras-hub]'`, and train the reference on a small
curated set. It starts from SigLIP 2, too: use this recipe with `--workdir
runs/tune_reference --set 'data.train=data/curated-*.tfrecord'
selection.stages=none`. Without a curated set, `reference.model` may be the
public model itself; learnability then finds only pairs that tuning unlearned.

Hardware: one GPU with 80 GB. Time: half an hour at 400 TFLOP/s: a step
has 3,328 passes of 46 GFLOPs, for scores, reference and training. NOT RUN BY
US: we did not have the weights; tests run it on a small preset with random
weights. docs/recipes.md says where JEST pays.
"""

from jest_tf import config as config_lib


def config() -> config_lib.TrainConfig:
    """Trains on the 256 jointly most learnable of 1,280 pairs."""
    return config_lib.TrainConfig(
        steps=5000,
        data=config_lib.DataConfig(
            train=("data/pool-*.tfrecord",),
            image_size=224,
            text_length=64,  # SigLIP 2's
        ),
        model=config_lib.ModelConfig(
            init_from="keras_hub:siglip2_base_patch16_224",
            dtype_policy="mixed_bfloat16",
        ),
        reference=config_lib.ReferenceConfig(model="runs/tune_reference"),
        selection=config_lib.SelectionConfig(
            256, stages=(config_lib.Stage(candidates=5),)
        ),
        optimizer=config_lib.OptimizerConfig(
            learning_rate=2e-5, warmup_steps=250, layer_decay=0.8, ema=0.999
        ),
    )
