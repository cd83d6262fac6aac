"""Stores: records in shards of any format, read as a single array."""

from jest_tf.data.stores.index import in_memory as indexes_in_memory
from jest_tf.data.stores.store import (
    Fault,
    NoFiles,
    Record,
    Shards,
    Store,
    check_captions,
    join,
    open_store,
    open_stores,
    parsed,
)

__all__ = [
    "Fault",
    "NoFiles",
    "Record",
    "Shards",
    "Store",
    "check_captions",
    "indexes_in_memory",
    "join",
    "open_store",
    "open_stores",
    "parsed",
]
