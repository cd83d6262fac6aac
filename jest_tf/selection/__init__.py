"""Joint example selection, a pure function of embeddings.

Depends only on `embeddings`, `losses`, the settings in `config`, and the
collectives passed in. `samplers.py` draws, `scores.py` scores, `local_rows.py`
handles replicas, `report.py` has the result.
"""

from jest_tf.selection.noise import Placed, gumbel_noise, salted
from jest_tf.selection.report import UNIFORM_ROWS, Draw, summarize
from jest_tf.selection.samplers import (
    chunk_sizes,
    draw,
    draw_flops,
    independent_rows,
    select_jointly,
    uniform_rows,
)
from jest_tf.selection.scores import check_criterion

__all__ = [
    "Draw",
    "Placed",
    "UNIFORM_ROWS",
    "check_criterion",
    "chunk_sizes",
    "draw",
    "draw_flops",
    "gumbel_noise",
    "independent_rows",
    "salted",
    "select_jointly",
    "summarize",
    "uniform_rows",
]
