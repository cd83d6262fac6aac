"""A stored stage for users without a reference: the run makes and renews it.

    jest-tf train --config configs/quickstart_bootstrap.py \
        --workdir runs/bootstrap

The run starts on the curated set, and then chooses by its own earlier learner
(docs/bootstrap.md). It takes three minutes on 2 CPU cores.
"""

import dataclasses
import pathlib

from jest_tf import config as config_lib

CURATED = "examples/icontext_mini/curated-*.tfrecord"


def config() -> config_lib.TrainConfig:
    """Trains on the best-matching third of the candidates."""
    uniform = config_lib.load_config(
        pathlib.Path(__file__).with_name("quickstart_uniform.py")
    )
    return dataclasses.replace(
        uniform,
        steps=1360,
        data=dataclasses.replace(
            uniform.data, curated=(CURATED,), curated_rows=32
        ),
        # The learner is its own reference, so it has the size of a reference.
        model=dataclasses.replace(
            uniform.model, towers="benchmarks.icontext.towers:build_small"
        ),
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
