"""Joint example selection, a pure function of embeddings.

Depends only on `jest_tf.embeddings`, the settings in `jest_tf.config`, and the
collectives passed in. `samplers.py` draws, `scores.py` scores, `tiles.py`
sums over pairs, `local_rows.py` handles replicas, `report.py` has the result.
"""

from jest_tf.config import CRITERIA, FIRST_CHUNKS, LOSSES, QUOTAS
from jest_tf.selection.noise import gumbel_noise
from jest_tf.selection.report import (
    UNIFORM_ROWS,
    Draw,
    sub_batch_score,
    summarize,
)
from jest_tf.selection.samplers import (
    SAMPLERS,
    chunk_sizes,
    draw,
    independent_rows,
    select_independently,
    select_jointly,
    select_top,
    select_uniformly,
    uniform_rows,
)

__all__ = [
    "CRITERIA",
    "Draw",
    "FIRST_CHUNKS",
    "LOSSES",
    "QUOTAS",
    "SAMPLERS",
    "UNIFORM_ROWS",
    "chunk_sizes",
    "draw",
    "gumbel_noise",
    "independent_rows",
    "select_independently",
    "select_jointly",
    "select_top",
    "select_uniformly",
    "sub_batch_score",
    "summarize",
    "uniform_rows",
]
