"""Joint example selection, a pure function of embeddings.

Depends only on `embeddings`, `losses`, the settings in `config`, and the
collectives passed in. `samplers.py` draws, `scores.py` scores, on any number of
replicas, and `summary.py` sums a draw up for logs.
"""

from jest_tf.selection.noise import Placed, gumbel_noise, salted
from jest_tf.selection.samplers import (
    Draw,
    chunk_sizes,
    draw,
    draw_flops,
    select_jointly,
    summarize,
    uniform_rows,
)
from jest_tf.selection.scores import check_criterion
