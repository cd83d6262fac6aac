"""Two-tower models: towers, layers, patches and the frozen reference."""

from jest_tf.config import PRESETS
from jest_tf.models.building import (
    adapted,
    build_learner,
    build_two_tower,
    from_json,
    start_from,
    to_json,
)
from jest_tf.models.two_tower import TwoTower, unit_norm
