"""Quickstart: the uniform learner's recipe, with JEST.

    jest-tf train --config configs/quickstart_jest.py \
        --workdir runs/jest --set reference.model=runs/reference

A minute on 2 CPU cores. Result of three seeds: docs/quickstart.md.
"""

import dataclasses
import pathlib

from jest_tf import config as config_lib


def config() -> config_lib.TrainConfig:
    """Draws 2,560, trains on the 256 that are jointly most learnable."""
    uniform = config_lib.load_config(
        pathlib.Path(__file__).with_name("quickstart_uniform.py")
    )
    return dataclasses.replace(
        uniform,
        steps=225,
        # Chosen pairs, with less noise, allow a higher rate.
        optimizer=dataclasses.replace(uniform.optimizer, learning_rate=2e-3),
        reference=config_lib.ReferenceConfig(model="runs/reference"),
        selection=config_lib.SelectionConfig(
            256, stages=(config_lib.Stage(candidates=10),)
        ),
        evaluation=dataclasses.replace(uniform.evaluation, log_ids=True),
    )
