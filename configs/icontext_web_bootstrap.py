"""IconText's web-like benchmark: a run that makes its own reference.

    jest-tf train --config configs/icontext_web_bootstrap.py \
        --workdir icontext-work/runs/web-bootstrap

First build the data, see configs/icontext_web.py. The run starts on the curated
set and renews its reference six times (docs/bootstrap.md): the benchmark's cell
`web_bootstrapped_4500`.
"""

import dataclasses

from configs import icontext_web
from jest_tf import config as config_lib


def config() -> config_lib.TrainConfig:
    """Trains on pairs that its own earlier learners find easy."""
    baseline = icontext_web.config()
    return dataclasses.replace(
        baseline,
        data=dataclasses.replace(
            baseline.data,
            curated=(f"{icontext_web.DATA}/curated-*.tfrecord",),
        ),
        selection=config_lib.SelectionConfig(
            batch_size=256,
            stages=(
                config_lib.Stage(
                    candidates=3,
                    embeddings="stored",
                    criterion="easy_reference",
                ),
            ),
        ),
        bootstrap=config_lib.BootstrapConfig(
            renew_at=(150, 300, 600, 1000, 2000, 3000),
            shares=(0.3, 0.3, 0.3, 1, 1, 1),
            clean_start=True,
        ),
    )
