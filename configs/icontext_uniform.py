"""IconText: uniform training on the noisy pool.

    jest-tf train --config configs/icontext_uniform.py \
        --workdir icontext-work/runs/uniform

First build the data with `make icontext-data`. Cost: docs/icontext.md; results:
benchmarks/icontext/results/report.md.
"""

import dataclasses
import pathlib

from jest_tf import config as config_lib

DATA = "icontext-work/data"


def config() -> config_lib.TrainConfig:
    """The reference's recipe on the pool only, longer and without crops.

    The pool is seen a few times only, and crops made no difference on
    validation.
    """
    reference = config_lib.load_config(
        pathlib.Path(__file__).with_name("icontext_reference.py")
    )
    return dataclasses.replace(
        reference,
        steps=5000,
        data=dataclasses.replace(
            reference.data,
            train=(f"{DATA}/pool-*.tfrecord",),
            weights=(),
            flip=False,
            min_crop_area=1.0,
        ),
    )
