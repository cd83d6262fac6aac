"""Quickstart: a cascade and distillation, for half as many steps.

    jest-tf train --config configs/quickstart_best.py \
        --workdir runs/best --set reference.sidecar_dir=runs/sidecars

First, `jest-tf embed` writes the reference's embeddings of
`examples/icontext_mini/pool-*.tfrecord` into `runs/sidecars`. Half a minute on
2 CPU cores. Result of three seeds: docs/quickstart.md.
"""

import dataclasses
import pathlib

from jest_tf import config as config_lib


def config() -> config_lib.TrainConfig:
    """Stage 0 chooses 128 of 1,280, and the reference is distilled."""
    uniform = config_lib.load_config(
        pathlib.Path(__file__).with_name("quickstart_uniform.py")
    )
    return dataclasses.replace(
        uniform,
        steps=uniform.steps // 2,
        reference=config_lib.ReferenceConfig(
            sidecars=True, distillation_weight=16.0
        ),
        cascade=config_lib.CascadeConfig(hyper_batch_size=1280),
        evaluation=dataclasses.replace(uniform.evaluation, log_ids=True),
    )
