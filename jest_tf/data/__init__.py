"""From files to super-batches: stores, their order, decoding, the stream.

`stores` reads every format as one array of records, `stream` orders its rows,
`reader` replaces unreadable records, `pictures` and `tokenizers` decode, and
`pipeline` makes the training dataset. `sidecars` hold a reference's embeddings,
from which `cascade` chooses what is read. A new format is a module in `stores`
with two methods, `scan` and `read`.
"""
