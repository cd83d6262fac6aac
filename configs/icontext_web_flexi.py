"""IconText's web-like benchmark: JEST with scores from small images.

    jest-tf train --config configs/icontext_web_flexi.py \
        --workdir icontext-work/runs/web-flexi \
        --set reference.sidecar_dir=icontext-work/sidecars/web-curated

First build the data and train a reference on the curated set with
configs/icontext_web.py, `--set data.train=icontext-work/web/curated-*.tfrecord
steps=1000`, and write its sidecars of the pool with `jest-tf embed`.
"""

import dataclasses

from configs import icontext_web
from jest_tf import config as config_lib


def config() -> config_lib.TrainConfig:
    """Scores at 16 pixels; trains on one half at 16, the other at 32."""
    baseline = icontext_web.config()
    coarse = config_lib.View(image_size=16)
    return dataclasses.replace(
        baseline,
        model=dataclasses.replace(baseline.model, train_views=True),
        selection=config_lib.SelectionConfig(
            batch_size=256,
            stages=(config_lib.Stage(candidates=5, view=coarse),),
        ),
    )
