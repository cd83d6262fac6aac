"""IconText: a learner trained on the noisy pool as it comes.

    python -m trainers.train --config configs/icontext_uniform.py \
        --workdir icontext-work/runs/uniform

`make icontext-data` makes the data before that. What it costs is in
docs/icontext.md, what comes out in benchmarks/icontext/results/report.md.
"""

import dataclasses
import pathlib

from jest_tf import config as config_lib

DATA = "icontext-work/data"


def config() -> config_lib.TrainConfig:
    """The reference's recipe on the pool alone, for longer, and as it is.

    What is seen a few times only needs no crops, and by validation they make
    no difference beyond that of equal settings.
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
