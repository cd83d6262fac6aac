"""Quickstart: uniform training on the noisy pool.

    jest-tf train --config configs/quickstart_uniform.py \
        --workdir runs/uniform

A minute or two on 2 CPU cores. Result of three seeds: docs/quickstart.md.
"""

import dataclasses
import pathlib

from jest_tf import config as config_lib

DATA = "examples/icontext_mini"


def config() -> config_lib.TrainConfig:
    """The reference's recipe on 18,000 pairs, of which 5,400 are clean."""
    reference = config_lib.load_config(
        pathlib.Path(__file__).with_name("quickstart_reference.py")
    )
    return dataclasses.replace(
        reference,
        steps=1500,
        data=dataclasses.replace(
            reference.data, train=(f"{DATA}/pool-*.tfrecord",)
        ),
        # The best of 5e-4, 1e-3 and 2e-3 on validation, seed 0.
        optimizer=dataclasses.replace(reference.optimizer, learning_rate=1e-3),
    )
