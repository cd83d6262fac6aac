"""Data: from files to super-batches.

`stores` reads every format as an array of records, `stream` orders its rows,
`reader` replaces unreadable records, `images` and `tokenizers` decode, and
`pipeline` makes the training dataset. `stored_stages` chooses the positions
that `loading` reads, by the reference's embeddings in `sidecars`. To add a
format, add a module to `stores` with two methods, `scan` and `read`.
"""
