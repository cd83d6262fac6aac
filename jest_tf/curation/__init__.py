"""Curation: choosing records of a whole data set, once, into a manifest.

`choice` chooses by the scores of `models`. The result is a pure function of
settings, models and shards; the same call continues an interrupted call.
`survey` measures a pool with `estimates`; `advice` says whether to choose.
"""

from jest_tf.curation.choice import Choice, curate
from jest_tf.curation.models import Model

__all__ = ["Choice", "Model", "curate"]
