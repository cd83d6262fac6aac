"""Curation: choosing records of a whole data set, once, into a manifest.

`choice` chooses by a reference's sidecars. The result is a pure function of
settings, sidecars and shards; the same call continues an interrupted call.
`survey` measures a pool by `estimates`; `advice` says whether to choose.
"""

from jest_tf.curation.choice import STAGE, Choice, curate
