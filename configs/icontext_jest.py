"""IconText: the uniform learner's recipe, with JEST.

    python -m trainers.train --config configs/icontext_jest.py \
        --workdir icontext-work/runs/jest

Before that, configs/icontext_reference.py trains the reference, and
`trainers.embed` writes what it makes of `icontext-work/data/pool-*.tfrecord`
beside the shards, once for all runs. What it costs is in docs/icontext.md,
what comes out in benchmarks/icontext/results/report.md.
"""

import dataclasses
import pathlib

from jest_tf import config as config_lib


def config() -> config_lib.TrainConfig:
    """Draws 1,280, trains on the 256 that are jointly most learnable."""
    uniform = config_lib.load_config(
        pathlib.Path(__file__).with_name("icontext_uniform.py")
    )
    return dataclasses.replace(
        uniform,
        steps=1500,
        data=dataclasses.replace(uniform.data, super_batch_size=1280),
        reference=config_lib.ReferenceConfig(sidecars=True),
        selection=config_lib.SelectionConfig(method="joint", batch_size=256),
        evaluation=dataclasses.replace(uniform.evaluation, log_ids=True),
    )
