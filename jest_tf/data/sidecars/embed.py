"""Writes the sidecars of a store, with any model.

`write` runs a model over the images and captions of a store; `write_arrays`
takes finished embeddings. The model gets NumPy arrays and strings, so it may
use any framework. `jest-tf embed` is the command.
"""

import collections
import concurrent.futures
import contextlib
import functools
import itertools
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from jest_tf import files
from jest_tf.data import batches, reader, stores, tokenizers
from jest_tf.data import images as images_lib
from jest_tf.data.sidecars import file_format
from jest_tf.data.sidecars import reading as reading_lib

# Rows that `write_arrays` copies at a time.
_COPY_ROWS = 2**16
# Decoded batches waiting for the model, besides a batch in each thread.
_AHEAD = 2


@dataclass(frozen=True)
class Output:
    """Place and form of the sidecars to write.

    Attributes:
        directory: folder of the sidecars; "" is beside each shard.
        dtype: of the stored embeddings, "float16" or "float32".
        overwrite: replace existing sidecars that do not fit.
        shards: indices of the shards to embed; None is all.
        progress: called with the numbers of rows done and of all rows.
        rows: bool [n], the rows of the store to embed; the others are marked
            as unreadable. None embeds all.
    """

    directory: str = ""
    dtype: str = "float16"
    overwrite: bool = False
    shards: Iterable[int] | None = None
    progress: Callable[[int, int], None] | None = None
    rows: np.ndarray | None = None


class Summary(NamedTuple):
    """The result of `write` or `write_arrays`.

    Attributes:
        written, skipped: numbers of sidecars written, and of those there were.
        busy: paths that another process is writing.
        rows, invalid: numbers of rows written, and of those without embedding.
        reasons: counts of the reasons why records were unreadable.
    """

    written: int
    skipped: int
    busy: tuple[str, ...]
    rows: int
    invalid: int
    reasons: dict[str, int]


class _Batch(NamedTuple):
    """k records, prepared for a model.

    `images` are those of the `valid` records, and `places` the indices of the
    nonblank captions, `texts`, among all; each record has `captions` of these.
    """

    valid: np.ndarray
    images: np.ndarray
    texts: list[str]
    places: np.ndarray
    captions: np.ndarray
    reasons: list[str]


def write(
    store: stores.Store,
    encode: Callable[[np.ndarray, list[str]], tuple[np.ndarray, np.ndarray]],
    description: file_format.Description,
    output: Output = Output(),  # noqa: B008  (it is frozen)
    *,
    image_size: int | images_lib.Form,
    batch_size: int = 256,
) -> Summary:
    """Writes the sidecars of a store with any model.

    Finished sidecars are kept, so a further call continues an interrupted call.
    Several processes may write the sidecars of a store at once.

    Args:
        store: the records, from `stores.open_store`.
        encode: the model: `(images, captions) -> (image, text)`, from uint8
            [k, S, S, 3] and m strings to array-likes [k, D] and [m, D] of unit
            length. 1 <= k <= `batch_size` and m >= 0; blank captions and
            unreadable records are left out.
        image_size: S, pixels a side, or a form of images.
        batch_size: records read at a time.

    Example:
        A PyTorch model, with `image` and `text` of unit length:

        ```python
        def encode(images, captions):
            pixels = torch.from_numpy(images).permute(0, 3, 1, 2) / 255
            with torch.no_grad():
                image = model.encode_image((pixels - mean) / std)
                text = model.encode_text(tokenize(captions))
            return unit(image).cpu().numpy(), unit(text).cpu().numpy()

        description = file_format.Description(
            fingerprint="ViT-B-32 laion2b_s34b_b79k",
            tokenizer="CLIP, 77 tokens",
            preprocessing="224 pixels, squashed",
            dim=512,
            scale=100.0,
            bias=0.0,
        )
        store = stores.open_store("data/*.tar")
        embed.write(store, encode, description, image_size=224)
        ```
    """
    form = images_lib.make_form(image_size)
    workers = os.cpu_count() or 1
    reasons: collections.Counter = collections.Counter()

    def parts(shard):
        start, stop = _find_rows(store, shard)
        wanted = np.arange(start, stop)
        if output.rows is not None:
            wanted = wanted[output.rows[start:stop]]
        # Each span has `batch_size` of the wanted rows.
        edges = [start, *wanted[batch_size::batch_size], stop]

        def load_span(span):
            rows = wanted[slice(*np.searchsorted(wanted, span))]
            return span, rows, _load(store, rows, form)

        spans = itertools.pairwise(edges)
        for span, rows, batch in batches.in_order(
            pool, load_span, spans, _AHEAD + workers
        ):
            reasons.update(batch.reasons)
            image, text = _encode(encode, batch, description.dim)
            spread = functools.partial(_spread, rows - span[0], span)
            yield (
                store.ids(np.arange(*span)),
                spread(image),
                text,
                spread(batch.captions),
                spread(batch.valid),
            )

    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        summary = _write(store, description, output, parts)
    return summary._replace(reasons=dict(reasons.most_common()))


def write_arrays(
    store: stores.Store,
    image: np.ndarray,
    text: np.ndarray,
    description: file_format.Description,
    output: Output = Output(),  # noqa: B008  (it is frozen)
    *,
    captions: np.ndarray | None = None,
    valid: np.ndarray | None = None,
) -> Summary:
    """Writes the sidecars of a store from finished embeddings.

    Args:
        store: the n records, from `stores.open_store`.
        image: float [n, D], row for row, of unit length; may be memory-mapped.
        text: float [m, D], of unit length, all records' captions in order;
            zero where a caption is blank.
        captions: int64 [n], the number of captions of each record; None means
            1 each.
        valid: bool [n], false where there is no embedding; None means all true.

    Example:
        >>> import tempfile
        >>> folder = tempfile.TemporaryDirectory()
        >>> pattern = "examples/icontext_mini/val-*.tfrecord"
        >>> store = stores.open_store(pattern, index_dir=folder.name)
        >>> counts = [len(r.captions) for r in store.read(range(len(store)))]
        >>> description = file_format.Description(
        ...     "all equal", "none", "none", dim=4, scale=10.0, bias=-10.0
        ... )
        >>> summary = write_arrays(
        ...     store,
        ...     np.full([len(store), 4], 0.5),
        ...     np.full([sum(counts), 4], 0.5),
        ...     description,
        ...     Output(folder.name),
        ...     captions=counts,
        ... )
        >>> summary.written, summary.rows == len(store)
        (1, True)
        >>> folder.cleanup()
    """
    n, dim = len(store), description.dim
    counts = np.ones(n, np.int64) if captions is None else np.asarray(captions)
    valid = np.ones(n, bool) if valid is None else np.asarray(valid, bool)
    if counts.dtype.kind not in "iu" or (counts < 0).any():
        raise ValueError(
            "`captions` must be integers, none negative. "
            f"Received: {counts.tolist()}"
        )
    ends = np.cumsum(counts)
    for name, array, expected in (
        ("image", image, (n, dim)),
        ("captions", counts, (n,)),
        ("valid", valid, (n,)),
        ("text", text, (int(counts.sum()), dim)),
    ):
        _check_shape(f"`{name}` must be", array, expected)

    def parts(shard):
        first, stop = _find_rows(store, shard)
        for start in range(first, stop, _COPY_ROWS):
            rows = slice(start, min(start + _COPY_ROWS, stop))
            texts = slice(ends[start] - counts[start], ends[rows.stop - 1])
            ids = store.ids(np.arange(rows.start, rows.stop))
            yield ids, image[rows], text[texts], counts[rows], valid[rows]

    return _write(store, description, output, parts)


def _load(store, rows, form):
    """Reads and decodes records, int64 rows [k], with all their captions."""
    records, images = batches.read(store, rows, form)
    captions, texts, places, reasons = [], [], [], []
    total = 0
    for record in records:
        if isinstance(record, stores.Fault):
            reasons.append(record.reason)
            captions.append(0)
            continue
        choices = reader.candidates(record.captions)
        places += [total + choice for choice in choices]
        texts += [record.captions[choice] for choice in choices]
        captions.append(len(record.captions))
        total += len(record.captions)
    texts, _ = tokenizers.sanitize_captions(tf.constant(texts, tf.string))
    return _Batch(
        valid=np.array([isinstance(r, stores.Record) for r in records], bool),
        images=images,
        texts=[text.decode("utf-8", "replace") for text in texts.numpy()],
        places=np.array(places, np.int64),
        captions=np.array(captions, np.int64),
        reasons=reasons,
    )


def _write(store, description, output, parts):
    """Writes missing sidecars; `parts(shard)` yields arguments of `append`."""
    shards = output.shards
    if shards is None:
        shards = range(len(store.shards.paths))
    jobs = [
        (
            shard,
            reading_lib.sidecar_path(store, shard, output.directory),
            reading_lib.make_header(store, shard, description, output.dtype),
        )
        for shard in shards
    ]
    # All are checked before any is written, to fail early.
    left = [job for job in jobs if not _is_there(*job[1:], output.overwrite)]
    total = sum(header.rows for _, _, header in left)
    done = rows = invalid = written = 0
    progress = output.progress or (lambda done, total: None)
    busy = []
    for shard, path, header in left:
        with contextlib.ExitStack() as stack:
            folder, name = os.path.split(path)
            try:
                # On a bucket two processes may write a sidecar, each whole.
                if not files.is_remote(path):
                    lock = files.inside(folder, f".{name}.lock")
                    stack.enter_context(files.locked(lock))
            except BlockingIOError:
                busy.append(path)
                total -= header.rows
                continue
            # Another process may have finished it since the check.
            if _is_there(path, header, output.overwrite):
                total -= header.rows
                continue
            files.delete_partial(path)
            append = stack.enter_context(file_format.written(path, header))
            progress(done, total)
            for ids, *arrays, valid in parts(shard):
                append(ids, *arrays, valid)
                done += len(ids)
                invalid += int(np.sum(~valid))
                progress(done, total)
        written += 1
        rows += header.rows
    skipped = len(jobs) - written - len(busy)
    return Summary(written, skipped, tuple(busy), rows, invalid, {})


def _is_there(path, header, overwrite):
    if not files.is_file(path):
        return False
    try:
        file_format.check_header(path, file_format.read(path)[0], header)
    except ValueError as error:
        if overwrite:
            return False
        raise ValueError(
            f"{error}; set `overwrite` (`--overwrite`) to replace it, or "
            "choose another folder"
        ) from error
    return True


def _find_rows(store, shard):
    start = int(store.shards.lengths[:shard].sum())
    return start, start + int(store.shards.lengths[shard])


def _spread(places, span, values):
    """Places values of some rows among zeros for all rows of a span."""
    start, stop = span
    spread = np.zeros([stop - start, *values.shape[1:]], values.dtype)
    spread[places] = values
    return spread


def _encode(encode, batch, dim):
    image = np.zeros([len(batch.valid), dim], np.float32)
    text = np.zeros([int(batch.captions.sum()), dim], np.float32)
    if not len(batch.images):
        return image, text
    embedded = encode(batch.images, batch.texts)
    if len(embedded) != 2:
        raise ValueError(
            "`encode` must return the embeddings of images and of captions. "
            f"Received: {len(embedded)} values"
        )
    given = {"images": batch.images, "captions": batch.texts}
    for (name, values), part in zip(given.items(), embedded, strict=True):
        expected = (len(values), dim)
        _check_shape(f"`encode` must return for its {name}", part, expected)
    image[batch.valid], text[batch.places] = embedded
    return image, text


def _check_shape(what, values, expected):
    if np.shape(values) != expected:
        raise ValueError(
            f"{what} {list(expected)}. Received: {list(np.shape(values))}"
        )
