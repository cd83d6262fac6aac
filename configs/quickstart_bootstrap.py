"""A stored stage whose reference the run renews, for those who have none.

    jest-tf train --config configs/quickstart_bootstrap.py \
        --workdir runs/bootstrap

The run starts on the curated set, and chooses by its
own earlier self (docs/bootstrap.md). Three minutes on 2 CPU cores.
"""

import dataclasses
import pathlib

from jest_tf import config as config_lib

CURATED = "examples/icontext_mini/curated-*.tfrecord"


def config() -> config_lib.TrainConfig:
    """Trains on the best-matching third of what is drawn."""
    uniform = config_lib.load_config(
        pathlib.Path(__file__).with_name("quickstart_uniform.py")
    )
    return dataclasses.replace(
        uniform,
        steps=1360,
        data=dataclasses.replace(
            uniform.data, curated=(CURATED,), curated_rows=32
        ),
        # No given reference is larger: the learner is its own.
        model=dataclasses.replace(
            uniform.model, towers="benchmarks.icontext.towers:build_small"
        ),
        # Chosen pairs, with less noise, allow a higher rate.
        optimizer=dataclasses.replace(uniform.optimizer, learning_rate=2e-3),
        selection=config_lib.SelectionConfig(
            256,
            stages=(config_lib.Stage(3, "stored", criterion="easy_reference"),),
        ),
        bootstrap=config_lib.BootstrapConfig(
            renew_at=(100, 200, 300, 450, 600, 800),
            shares=(0.4,),
            clean_start=True,
        ),
        evaluation=dataclasses.replace(uniform.evaluation, log_ids=True),
    )
