"""IconText: JEST with scores from small pictures (Flexi-JEST).

    jest-tf train --config configs/icontext_flexi.py \
        --workdir icontext-work/runs/flexi

Needs the sidecars of configs/icontext_jest.py. Cost: docs/icontext.md; results:
benchmarks/icontext/results/report.md.
"""

import dataclasses
import pathlib

from jest_tf import config as config_lib


def config() -> config_lib.TrainConfig:
    """Scores at 16 pixels; trains half at 16, half at 32.

    The towers are convolutional: the coarse view is a smaller picture.
    """
    jest = config_lib.load_config(
        pathlib.Path(__file__).with_name("icontext_jest.py")
    )
    fine, coarse = config_lib.View(), config_lib.View(image_size=16)
    return dataclasses.replace(
        jest,
        model=dataclasses.replace(jest.model, views=(fine, coarse)),
        selection=dataclasses.replace(jest.selection, view=coarse),
    )
