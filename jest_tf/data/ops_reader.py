"""Records at positions of the stream, by TensorFlow's ops alone.

A dataset of these ops runs on a server that has TensorFlow and nothing else,
and what it reads goes through no other process (docs/gpus.md).
Its rows, captions, pictures and replacements are those of `data/reader.py`.

TensorFlow's own reader of TFRecords, started at an offset of the index, checks
a frame's checksums. A graph cannot catch an error, but a dataset can drop the
element that raised it: so every fault is an error here, and what is missing
then is replaced in a further round.
"""

from collections.abc import Iterable, Mapping

import numpy as np
import tensorflow as tf

from jest_tf import files
from jest_tf.data import (
    batches,
    fault_log,
    ops_records,
    ops_sidecars,
    pictures,
    stores,
    stream,
    tokenizers,
)
from jest_tf.data import reader as reader_lib
from jest_tf.data import sidecars as sidecars_lib
from jest_tf.data.stores import shards, tfrecords

# Records that a chunk reads at the same time. Remote reads mostly wait; chunks
# run in parallel anyway.
_REMOTE_READS, _LOCAL_READS = 64, 1
_SHARDS_AT_A_TIME = 64
# Records whose tokens are compared with the tokenizer's.
_PROBES = 16
# Pictures that TensorFlow does not read, or reads otherwise than Pillow.
_NEEDS_PILLOW = (
    "a GIF, a BMP, or an animated or transparent WebP"
    if pictures.READS_WEBP
    else "a GIF, a BMP or a WebP"
)


class OpsReader:
    """Reads positions of a stream; to be made on the device that reads.

    The indexes are read on that device and stay there, 24 bytes a record.

    Args:
        store: shards of TFRecords, with indexes in files.
        order: of the stream; row weights are held, 16 bytes a drawn record.
        seed: the run's seed, for the choice of captions.
        forms: of the pictures, by name.
        token_field: feature of token ids, L for each caption; "" has none.
        length: L.
        sidecars: of a reference over the store; None has none. 24 bytes a
            record of them are held, too.

    Raises:
        ValueError: the store or the sidecars cannot be read by ops.
    """

    def __init__(
        self,
        store: stores.Store,
        order: stream.AnyOrder,
        *,
        seed: int,
        forms: Mapping[str, pictures.Form],
        token_field: str = "",
        length: int = 0,
        sidecars: sidecars_lib.Sidecars | None = None,
    ):
        check(store)
        self._order = stream.in_graph(order)
        self._seed, self._forms = seed, forms
        self._token_field, self._length = token_field, length
        self._fields = store.formats[0].fields
        self._max_pixels = store.max_image_pixels
        paths = [files.absolute(path) for path in store.shards.paths]
        self._paths = tf.constant(paths)
        self._ends = tf.constant(store.shards.lengths.cumsum())
        remote = any(map(files.is_remote, paths))
        self._parallel = _REMOTE_READS if remote else _LOCAL_READS
        try:
            self._records = _read_indexes(
                tf.constant([files.absolute(i.path) for i in store.indexes]),
                len(store),
            )
        except tf.errors.OpError as error:
            raise ValueError(
                "`data.reader` 'ops' needs indexes that every host can read; "
                "`data.index_dir` is their folder. Received: "
                f"{shards.one_line(error.message)}"
            ) from error
        self._sidecars = None
        if sidecars is not None:
            layouts = sidecars.layouts()
            check_schemes(layout.path for layout in layouts)
            self._sidecars = ops_sidecars.Sidecars(
                sidecars, layouts, store, self._records[:, 2], self._ends
            )

    def read(self, positions: tf.Tensor) -> dict[str, tf.Tensor]:
        """Reads and decodes records at positions, int64 [k], in a graph.

        Returns:
            `id`; `caption`, string [k]; `tokens`, int32 [k, L], with a token
            field; `record_replaced`; pictures and embeddings, as in
            `pipeline.super_batches`.

        Raises:
            tf.errors.InvalidArgumentError: at iteration, a record is readable
                by NumPy's reader alone, or too many cannot be read in a row.
        """
        size = positions.shape[0]
        numbers = reader_lib.caption_numbers(self._seed, positions)
        whole = {
            "row": tf.zeros([size], tf.int64),
            "record_replaced": tf.zeros([size], tf.bool),
            **{
                name: tf.zeros([size, *spec.shape], spec.dtype)
                for name, spec in self._specs.items()
            },
        }

        def pending(attempt, missing, whole):
            del whole
            return (tf.size(missing) > 0) & (attempt <= reader_lib.MAX_ATTEMPTS)

        def fill(attempt, missing, whole):
            here = tf.gather(positions, missing)
            rows = tf.cond(
                attempt > 0,
                lambda: self._order.substitutes(here, attempt),
                lambda: self._order.rows(here),
            )
            kept, found = self._load(rows, tf.gather(numbers, missing))
            found["row"] = tf.gather(rows, kept)
            found["record_replaced"] = tf.fill(tf.shape(kept), attempt > 0)
            places = tf.gather(missing, kept)[:, tf.newaxis]
            whole = {
                name: tf.tensor_scatter_nd_update(value, places, found[name])
                for name, value in whole.items()
            }
            left = tf.raw_ops.ListDiff(
                x=tf.range(tf.size(missing, tf.int64)),
                y=kept,
                out_idx=tf.int64,
            ).out
            with tf.control_dependencies([self._refuse(tf.gather(rows, left))]):
                missing = tf.gather(missing, left)
            return attempt + 1, missing, whole

        _, missing, whole = tf.while_loop(
            pending,
            fill,
            [tf.zeros([], tf.int64), tf.range(size, dtype=tf.int64), whole],
            shape_invariants=[
                tf.TensorShape([]),
                tf.TensorShape([None]),
                {name: value.shape for name, value in whole.items()},
            ],
        )
        some = tf.strings.as_string(tf.gather(positions, missing[:1]))
        text = tf.strings.join(
            [
                f"{reader_lib.MAX_ATTEMPTS} records of `data.train` in a row "
                "cannot be read in place of the record at position ",
                tf.strings.reduce_join(some),
            ]
        )
        check = tf.debugging.Assert(tf.size(missing) == 0, [text])
        with tf.control_dependencies([check]):
            whole["id"] = tf.gather(self._records[:, 2], whole.pop("row"))
        return whole

    @property
    def _specs(self):
        specs = {
            name: tf.TensorSpec(form.shape, form.dtype)
            for name, form in self._forms.items()
        }
        specs["caption"] = tf.TensorSpec([], tf.string)
        if self._token_field:
            specs["tokens"] = tf.TensorSpec([self._length], tf.int32)
        if self._sidecars:
            for name in ("reference_image", "reference_text"):
                specs[name] = self._sidecars.spec
        return specs

    def _load(self, rows, numbers):
        """Indices of readable rows, int64 [m], and their records by name."""

        def load(place, row, number):
            found, choice = self._decode(self.payload(row), number)
            if self._sidecars:
                found |= self._sidecars.read(row, choice)
            return place, found

        size = tf.size(rows, tf.int64)
        records = tf.data.Dataset.from_tensor_slices(
            (tf.range(size), rows, numbers)
        ).map(load, self._parallel, deterministic=True)
        specs = tf.TensorSpec([], tf.int64), self._specs
        return pictures.readable(records, size, specs)

    def payload(self, row):
        """Reads the bytes of a record by its row, int64 []; checks them."""
        place, size = self._records[row, 0], self._records[row, 1]
        shard = tf.searchsorted(self._ends, row[tf.newaxis], "right")
        with tf.control_dependencies(
            [
                tf.debugging.Assert(
                    (size >= 0) & (size <= shards.MAX_RECORD_BYTES), ["size"]
                )
            ]
        ):
            frames = tf.raw_ops.TFRecordDatasetV2(
                filenames=tf.gather(self._paths, shard),
                compression_type="",
                buffer_size=size + tfrecords.FRAME,
                byte_offsets=[place - tfrecords.HEAD],
            )
        payload = (
            tf.data.experimental.from_variant(
                frames, tf.TensorSpec([], tf.string)
            )
            .take(1)
            .get_single_element()
        )
        # Another file may have taken the shard's place.
        length = tf.cast(tf.strings.length(payload), tf.int64)
        return ops_records.required(length == size, payload)

    def _decode(self, payload, number):
        """A readable record's tensors by name, and the number of its caption.

        An error for any other record.
        """
        features = ops_records.features(payload)
        encoded = self._picture(features)
        captions = ops_records.captions(features, self._fields.captions)
        choices = tf.where(~ops_records.is_blank(captions))[:, 0]
        number = ops_records.required(tf.size(choices) > 0, number)
        choice = choices[number % tf.size(choices, tf.int64)]
        found = {"caption": captions[choice]}
        if self._token_field:
            tokens = ops_records.integers(features, self._token_field)
            tokens = tf.reshape(tokens, [tf.size(captions), self._length])
            found["tokens"] = tf.cast(tokens[choice], tf.int32)
        encoded = ops_records.required(
            ops_records.is_decodable(encoded, self._max_pixels), encoded
        )
        image = tf.io.decode_image(encoded, channels=3, expand_animations=False)
        # A WebP's size is known only now.
        pixels = tf.reduce_prod(tf.shape(image, tf.int64)[:2])
        image = ops_records.required(pixels <= self._max_pixels, image)
        found |= {name: form(image) for name, form in self._forms.items()}
        return found, choice

    def _picture(self, features):
        wanted = tfrecords.IMAGE_FIELDS
        if self._fields.image:
            wanted = (self._fields.image,)
        found = ops_records.strings(
            features, ops_records.first(features, wanted)
        )
        return ops_records.required(tf.size(found) == 1, found)[0]

    def _refuse(self, rows):
        """Raises if NumPy's reader can read any of the rows."""

        def reason(row):
            features = ops_records.features(self.payload(row))
            reason = tf.where(
                ops_records.needs_pillow(self._picture(features)),
                _NEEDS_PILLOW,
                "",
            )
            if self._token_field:
                captions = ops_records.captions(features, self._fields.captions)
                tokens = ops_records.integers(features, self._token_field)
                lacks = tf.size(tokens) != self._length * tf.size(captions)
                text = f"no {self._length} integers to a caption in its "
                text += f"`data.token_field`, {self._token_field}"
                reason = tf.where(lacks, text, reason)
            if self._sidecars:
                count = self._sidecars.num_captions(row)
                captions = ops_records.captions(features, self._fields.captions)
                reason = tf.where(
                    (count > 0) & (count < tf.size(captions, tf.int64)),
                    "it has more captions than its sidecar",
                    reason,
                )
            return row, reason

        refused = (
            tf.data.Dataset.from_tensor_slices(rows)
            .map(reason)
            .ignore_errors()
            .filter(lambda row, reason: reason != "")
            .take(1)
        )

        def describe(state, refused):
            del state
            row, reason = refused
            shard = tf.searchsorted(self._ends, row[tf.newaxis], "right")[0]
            return tf.strings.join(
                [
                    "`data.reader=ops` cannot read record ",
                    *(tf.strings.as_string(row), " of the store, in "),
                    *(self._paths[shard], ": ", reason),
                ]
            )

        message = refused.reduce("", describe)
        return tf.debugging.Assert(message == "", [message])


def check_schemes(paths: Iterable[str]) -> None:
    """Refuses paths that TensorFlow does not open, such as `s3://`.

    Raises:
        ValueError: names the first of them.
    """
    registered = tf.io.gfile.get_registered_schemes()
    for path in paths:
        scheme, separator, _ = path.partition("://")
        if separator and scheme not in registered:
            raise ValueError(
                "`data.reader` 'ops' reads what TensorFlow opens, gs:// and "
                "folders that all hosts share: copy the data there, or take "
                f"'numpy'. Received: {path}"
            )


def check(store: stores.Store) -> None:
    """Refuses what cannot be read by ops.

    Raises:
        ValueError: the records are no TFRecords, an index is not in a file, or
            TensorFlow does not open a path.
    """
    check_schemes(store.shards.paths)
    check_schemes(index.path for index in store.indexes)
    names = sorted({form.name for form in store.formats})
    if names != ["tfrecord"]:
        raise ValueError(
            "`data.reader` 'ops' reads TFRecords. Received: shards of format "
            f"{', '.join(names)}"
        )
    for path, index in zip(store.shards.paths, store.indexes, strict=True):
        if not index.path:
            raise ValueError(
                "`data.reader` 'ops' needs indexes in files: set "
                "`data.index_dir` to a folder that can be written and that "
                f"every host can read. Received: none of {path}"
            )


def check_tokens(
    store: stores.Store, tokenizer: batches.Tokenizer, token_field: str
) -> None:
    """Compares the tokens of a few records with a tokenizer's.

    Raises:
        ValueError: they differ, or are missing.
    """
    first = store.of_shard(0)
    # Not on a host that may lack the tokenizer's ops.
    with tf.device(None):
        order = stream.Order(len(first), 0)
        reader = OpsReader(first, order, seed=0, forms={})
        for row in np.unique(
            np.linspace(0, len(first) - 1, _PROBES, dtype=int)
        ):
            try:
                features = ops_records.features(
                    reader.payload(tf.constant(row))
                )
                captions = ops_records.captions(
                    features, first.formats[0].fields.captions
                )
                tokens = ops_records.integers(features, token_field).numpy()
            except tf.errors.OpError:
                continue  # a fault
            captions, _ = tokenizers.sanitize_captions(captions)
            expected = tokenizer(captions).numpy().ravel()
            if not np.array_equal(tokens, expected):
                raise ValueError(
                    "`data.token_field` must hold the tokens of the run's "
                    f"tokenizer, {tokenizer.length} for each caption. "
                    f"Received: {tokens[: tokenizer.length].tolist()} in "
                    f"{first.describe(int(row))}, expected "
                    f"{expected[: tokenizer.length].tolist()}"
                )


def limited(
    dataset: tf.data.Dataset, faults: fault_log.FaultLog
) -> tf.data.Dataset:
    """Stops a dataset of super-batches at too many replacements.

    At the limit of `faults`, but of this dataset's positions alone.
    """

    def count(state, batch):
        replaced = batch["record_replaced"]
        drawn = state[0] + tf.size(replaced, tf.int64)
        count = state[1] + tf.math.count_nonzero(replaced)
        least = tf.maximum(drawn, fault_log.MIN_DRAWN)
        limit = faults.max_rate - faults.lost_share
        limit *= tf.cast(least, tf.float64)
        text = tf.strings.format(
            "Too many records cannot be read: {} of {} drawn. Expected at most "
            f"`data.max_fault_rate`={faults.max_rate}",
            (count, drawn),
        )
        check = tf.debugging.Assert(tf.cast(count, tf.float64) <= limit, [text])
        with tf.control_dependencies([check]):
            return tf.nest.map_structure(tf.identity, ((drawn, count), batch))

    start = tf.zeros([], tf.int64), tf.zeros([], tf.int64)
    return dataset.scan(start, tf.autograph.experimental.do_not_convert(count))


@tf.function
def _read_indexes(paths, num_records):
    """The records of all shards, int64 [n, 3], from their indexes' files."""
    # A file's first eight bytes are the size of the head, which follows.
    whole = tf.map_fn(
        tf.io.read_file, paths, parallel_iterations=_SHARDS_AT_A_TIME
    )
    heads = tf.io.decode_raw(tf.strings.substr(whole, 0, 8), tf.int64)
    starts = 8 + heads[:, 0]
    sizes = tf.cast(tf.strings.length(whole), tf.int64) - starts
    arrays = tf.strings.substr(whole, starts, sizes)
    numbers = tf.io.decode_raw(tf.strings.reduce_join(arrays), tf.int64)
    records = tf.reshape(numbers, [-1, 3])
    tf.debugging.Assert(
        tf.shape(records)[0] == num_records, ["an index was replaced"]
    )
    return records
