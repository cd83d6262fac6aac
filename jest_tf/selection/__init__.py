"""The method: joint example selection, a pure function of embeddings.

Needs `jest_tf.embeddings`, the names in `jest_tf.config.selection`, and the
collectives that it is handed. To read it: `samplers.py` has the draw,
`scores.py` what it draws by, `tiles.py` the arithmetic, `local_rows.py` all
that several replicas change, `report.py` the result.
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
    draw,
    independent_rows,
    select_independently,
    select_jointly,
    select_top,
    select_uniformly,
    uniform_rows,
)
from jest_tf.selection.settings import Settings, chunk_sizes

__all__ = [
    "CRITERIA",
    "Draw",
    "FIRST_CHUNKS",
    "LOSSES",
    "QUOTAS",
    "SAMPLERS",
    "Settings",
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
