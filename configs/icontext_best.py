"""IconText: stage 0 of a cascade with distillation.

    jest-tf train --config configs/icontext_best.py \
        --workdir icontext-work/runs/best

First train the reference with configs/icontext_reference.py. Then write its
sidecars with `jest-tf embed --model icontext-work/runs/reference --data
'icontext-work/data/pool-*.tfrecord'`; they serve all runs. Validation is
better with a reference twice as wide: train that with
`--set model.towers=benchmarks.icontext.towers:build_wide`. To surpass the
reference, train the learner longer:
`--set steps=3000 reference.distillation_steps=750 cascade.uniform_share=0.5`.
When this recipe pays: docs/recipes.md.
"""

import dataclasses
import pathlib

from jest_tf import config as config_lib


def config() -> config_lib.TrainConfig:
    """Stage 0 chooses 256 of 6,400; the reference is distilled.

    Nothing is scored by the learner: a step has 5 % more FLOPs than a uniform
    one.
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
        # Distillation bears a higher learning rate.
        optimizer=dataclasses.replace(
            uniform.optimizer, learning_rate=8e-3, warmup_steps=30
        ),
        evaluation=dataclasses.replace(uniform.evaluation, log_ids=True),
    )
