"""IconText: the uniform learner's recipe, with what has won.

    python -m trainers.train --config configs/icontext_best.py \
        --workdir icontext-work/runs/best

Before that, configs/icontext_reference.py trains the reference, and
`trainers.embed` writes what it makes of `icontext-work/data/pool-*.tfrecord`
beside the shards, once for all runs. By validation the better one is twice as
wide, `--set model.towers=benchmarks.icontext.towers:build_wide`. To end well
above the reference train longer, less of it drawn to the reference and half of
it uniform: `--set steps=3000 reference.distillation_steps=750
cascade.uniform_share=0.5`. What it is better than, and where not, and what each
part of it gives: docs/recipes.md.
"""

import dataclasses
import pathlib

from jest_tf import config as config_lib


def config() -> config_lib.TrainConfig:
    """Stage 0 alone chooses 256 of 6,400, and the reference is distilled.

    No pass is spent on scores: a step has 5 % more FLOPs than a uniform one.
    """
    uniform = config_lib.load_config(
        pathlib.Path(__file__).with_name("icontext_uniform.py")
    )
    return dataclasses.replace(
        uniform,
        steps=380,  # a thirteenth of the uniform learner's
        reference=config_lib.ReferenceConfig(
            sidecars=True, distillation_weight=16.0
        ),
        cascade=config_lib.CascadeConfig(hyper_batch_size=6400),
        # What is drawn to a target bears a higher rate.
        optimizer=dataclasses.replace(
            uniform.optimizer, learning_rate=8e-3, warmup_steps=30
        ),
        evaluation=dataclasses.replace(uniform.evaluation, log_ids=True),
    )
