"""IconText's web-like benchmark: JEST with scores from small images.

    jest-tf train --config configs/icontext_web.py \
        --workdir icontext-work/runs/web-curated \
        --set 'data.train=icontext-work/web/curated-*.tfrecord' steps=1000
    jest-tf embed --model icontext-work/runs/web-curated --trust \
        --data 'icontext-work/web/pool70/pool-*.tfrecord' \
        --output icontext-work/sidecars/web-curated
    jest-tf train --config configs/icontext_web_flexi.py \
        --workdir icontext-work/runs/web-flexi \
        --set reference.sidecar_dir=icontext-work/sidecars/web-curated

First build the data, see configs/icontext_web.py.
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
