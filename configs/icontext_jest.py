"""IconText: JEST on the noisy pool.

    jest-tf train --config configs/icontext_jest.py \
        --workdir icontext-work/runs/jest

First train the reference with configs/icontext_reference.py. Then write its
sidecars with `jest-tf embed --model icontext-work/runs/reference --data
'icontext-work/data/pool-*.tfrecord'`; they serve all runs. Cost:
docs/icontext.md; results: benchmarks/icontext/results/report.md.
"""

import dataclasses
import pathlib

from jest_tf import config as config_lib


def config() -> config_lib.TrainConfig:
    """Draws 1,280 pairs and trains on the jointly most learnable 256."""
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
