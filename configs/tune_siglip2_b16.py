"""SigLIP 2 B/16, tuned on your own noisy pairs, chosen by a tuned copy.

    jest-tf train --config configs/tune_siglip2_b16.py \
        --workdir runs/tune_copy --set 'data.train=data/checked-*.tfrecord' \
        data.curated= data.curated_rows=0 selection.stages=none \
        bootstrap.renew_at= steps=500 optimizer.warmup_steps=50 \
        optimizer.ema=none
    jest-tf embed --model runs/tune_copy --output sidecars \
        --data 'data/pool-*.tfrecord'
    jest-tf train --config configs/tune_siglip2_b16.py \
        --workdir runs/tuned --set 'data.train=data/pool-*.tfrecord' \
        'evaluation.data=data/held_out-*.tfrecord,data/general-*.tfrecord'

First run `pip install '.[keras-hub]'`. The copy is SigLIP 2, tuned on a few
thousand checked pairs; its embeddings choose the best third of the pool. At
three renewals the model itself embeds the pool and chooses from then on, if it
recognises as many pairs as the copy. A quarter of every batch replays general
pairs, so that less is forgotten. The closing line has what the run gains on
your own tests, and what it forgets on general ones. docs/fine_tuning.md has
both on photographs.

Hardware: one GPU with 40 GB. Time at 400 TFLOP/s: ten minutes, as a step has
768 passes of 46 GFLOPs, and two minutes each time that a million pairs are
embedded; `bootstrap.shares=0.3` embeds three in ten at a renewal. NOT RUN BY
US: we did not have the weights; tests run it on a small preset with random
weights.
"""

from jest_tf import config as config_lib


def config() -> config_lib.TrainConfig:
    """Trains on the 192 best-matching of 576 pairs, and 64 general pairs."""
    return config_lib.TrainConfig(
        steps=5000,
        data=config_lib.DataConfig(
            train=("data/pool-*.tfrecord",),
            curated=("data/replay-*.tfrecord",),
            curated_rows=64,
            image_size=224,
            text_length=64,  # SigLIP 2's
        ),
        model=config_lib.ModelConfig(
            init_from="keras_hub:siglip2_base_patch16_224",
            dtype_policy="mixed_bfloat16",
        ),
        reference=config_lib.ReferenceConfig(
            model="runs/tune_copy", sidecar_dir="sidecars"
        ),
        selection=config_lib.SelectionConfig(
            256,
            stages=(config_lib.Stage(3, "stored", criterion="easy_reference"),),
        ),
        bootstrap=config_lib.BootstrapConfig(renew_at=(625, 1250, 2500)),
        optimizer=config_lib.OptimizerConfig(
            learning_rate=2e-5, warmup_steps=250, layer_decay=0.8, ema=0.999
        ),
    )
