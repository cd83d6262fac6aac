"""Stores: records in shards of any format, read as a single array."""

from jest_tf.data.stores.index import in_memory as indexes_in_memory
from jest_tf.data.stores.opening import check_captions, open_store, open_stores
from jest_tf.data.stores.shards import Fault, NoFiles, Record
from jest_tf.data.stores.store import Manifest, Store, join, parsed
