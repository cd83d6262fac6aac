"""The file format of a sidecar: a reference's embeddings of one shard.

A sidecar is an artefact (`data/artefacts.py`) with four arrays:

    ids       int64 [n], of the records
    offsets   int64 [n + 1]; row i has the captions offsets[i] to offsets[i + 1]
    image     float16 or float32 [n, D], zero where the record was unreadable
    text      the same [captions, D], zero where a caption is blank

The metadata describes the reference and the shard's version.
"""

import contextlib
import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from jest_tf import files
from jest_tf.data import artefacts

KIND = "sidecar"
DTYPES = ("float16", "float32")

# Allowed deviation of a length from 1: two steps of bfloat16 (8 bits).
_LENGTH_TOLERANCE = 2**-6


class Description(NamedTuple):
    """A reference; embeddings of equal descriptions may be mixed.

    Attributes:
        fingerprint: any text that identifies the reference and its weights;
            see `reference.describe` for a run.
        tokenizer: any text that identifies how captions were read.
        preprocessing: any text that identifies how pictures were decoded.
        dim: D, the width of an embedding.
        scale: of the logits `scale * image @ text.T + bias`.
        bias: of the logits.
    """

    fingerprint: str
    tokenizer: str
    preprocessing: str
    dim: int
    scale: float
    bias: float


class Header(NamedTuple):
    """The origin and size of a sidecar.

    Attributes:
        description: of the reference.
        dtype: of the embeddings, "float16" or "float32".
        stamp: the version of the shard, see `Store.stamp`.
        rows: n, the records of the shard.
    """

    description: Description
    dtype: str
    stamp: str
    rows: int


class Sidecar(NamedTuple):
    """The arrays of a sidecar, as views of the mapped file.

    Offsets are not checked here, as that would read them all.
    """

    ids: np.ndarray
    offsets: np.ndarray
    image: np.ndarray
    text: np.ndarray


class Writer:
    """Appends rows to a sidecar; made by `written`."""

    def __init__(self, out: artefacts.Writer, header: Header):
        self._out = out
        self._header = header
        self._rows = self._captions = 0
        out.append("offsets", np.zeros(1, np.int64))

    def append(
        self,
        ids: np.ndarray,
        image: np.ndarray,
        text: np.ndarray,
        captions: np.ndarray | None = None,
        valid: np.ndarray | None = None,
    ) -> None:
        """Adds the next k rows.

        Args:
            ids: int64 [k], of the records.
            image: float [k, D], of unit length.
            text: float [m, D], the captions of the rows in order, of unit
                length, or zero where a caption is blank.
            captions: int64 [k], the number of captions of each row; None is
                one each.
            valid: bool [k], false for unreadable records, which have no
                captions and any embedding. None is true.

        Raises:
            ValueError: shapes do not fit, or an embedding is not finite or
                not of unit length.
        """
        k, dim = len(ids), self._header.description.dim
        counts = _counts(captions, k, self._header.rows - self._rows)
        valid = np.ones(k, bool) if valid is None else np.asarray(valid, bool)
        image = _checked("image", image, (k, dim), valid)
        text = _checked("text", text, (int(counts.sum()), dim))
        self._out.append("ids", np.asarray(ids, np.int64))
        self._out.append("offsets", self._captions + np.cumsum(counts))
        self._out.append("image", image)
        self._out.append("text", text)
        self._rows += k
        self._captions += len(text)


@contextlib.contextmanager
def written(path: str, header: Header) -> Iterator[Writer]:
    """Yields a writer of a sidecar, which appears once it is complete.

    Raises:
        ValueError: a field of the header is invalid, or rows are missing.
    """
    _check(header)
    about, dtype, n = header.description, header.dtype, header.rows
    metadata = {
        "fingerprint": about.fingerprint,
        "tokenizer": about.tokenizer,
        "preprocessing": about.preprocessing,
        "scale": repr(float(about.scale)),
        "bias": repr(float(about.bias)),
        "stamp": header.stamp,
    }
    arrays = {
        "ids": ("int64", (n,)),
        "offsets": ("int64", (n + 1,)),
        "image": (dtype, (n, about.dim)),
        "text": (dtype, (None, about.dim)),
    }
    with (
        files.written_whole(path) as partial,
        artefacts.Writer(partial, KIND, metadata, arrays) as out,
    ):
        yield Writer(out, header)
        out.finish()


def read(path: str) -> tuple[Header, artefacts.Artefact]:
    """Reads the head of a sidecar and maps its arrays.

    Raises:
        ValueError: the file is unreadable, damaged or not a sidecar.
    """
    try:
        found = artefacts.read(path, KIND)
    except OSError as error:
        raise ValueError(
            f"Sidecar {path} cannot be read: {error.strerror}"
        ) from error
    texts, arrays = found.metadata, found.arrays
    try:
        n, dim = arrays["image"].shape
        header = Header(
            Description(
                texts["fingerprint"],
                texts["tokenizer"],
                texts["preprocessing"],
                dim,
                float(texts["scale"]),
                float(texts["bias"]),
            ),
            str(arrays["image"].dtype),
            texts["stamp"],
            n,
        )
        _check(header)
        captions = int(arrays["offsets"][-1])
        shapes = {
            "ids": ((n,), "int64"),
            "offsets": ((n + 1,), "int64"),
            "image": ((n, dim), header.dtype),
            "text": ((captions, dim), header.dtype),
        }
        for name, expected in shapes.items():
            if (arrays[name].shape, str(arrays[name].dtype)) != expected:
                raise ValueError(f"its `{name}` is not {expected}")
    except (KeyError, ValueError, IndexError) as error:
        raise ValueError(
            f"Sidecar {path} is damaged: {error}; {artefacts.KINDS[KIND]}"
        ) from error
    return header, found


def is_zero(embeddings: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Returns which rows are all zero; int64 [k] -> bool [k]."""
    # The first number of a row almost always settles it.
    zero = embeddings[rows, 0] == 0
    doubtful = np.flatnonzero(zero)
    zero[doubtful] = ~embeddings[rows[doubtful]].any(1)
    return zero


def _check(header):
    about = header.description
    texts = {**about._asdict(), **header._asdict()}
    for name in ("fingerprint", "tokenizer", "preprocessing", "stamp"):
        if not isinstance(texts[name], str):
            raise ValueError(
                f"`{name}` of a sidecar must be a string. "
                f"Received: {texts[name]!r}"
            )
    for name, is_good, expected in (
        ("dtype", header.dtype in DTYPES, f"one of {DTYPES}"),
        ("dim", about.dim >= 1, "at least 1"),
        ("rows", header.rows >= 1, "at least 1"),
        ("scale", math.isfinite(about.scale), "finite"),
        ("bias", math.isfinite(about.bias), "finite"),
    ):
        if not is_good:
            raise ValueError(
                f"`{name}` of a sidecar must be {expected}. "
                f"Received: {texts[name]!r}"
            )


def _counts(captions, k, rows_left):
    if k > rows_left:
        raise ValueError(
            f"`ids` must be of at most the {rows_left} rows that are left. "
            f"Received: {k}"
        )
    counts = np.ones(k, np.int64) if captions is None else np.asarray(captions)
    if (
        counts.shape != (k,)
        or counts.dtype.kind not in "iu"
        or (counts < 0).any()
    ):
        raise ValueError(
            f"`captions` must be {k} integers, none negative. "
            f"Received: {counts.tolist()}"
        )
    return counts.astype(np.int64)


def _checked(name, embeddings, shape, valid=None):
    embeddings = np.asarray(embeddings, np.float32)
    if embeddings.shape != shape or (
        valid is not None and valid.shape != shape[:1]
    ):
        raise ValueError(
            f"`{name}` must be {list(shape)}, with `valid` alike. "
            f"Received: {list(embeddings.shape)}"
        )
    if valid is not None:
        embeddings = np.where(valid[:, None], embeddings, np.float32(0))
    squares = np.einsum("ij,ij->i", embeddings, embeddings)
    good = np.abs(squares - 1) <= _LENGTH_TOLERANCE
    # A blank caption, or a record that was not read.
    good |= (squares == 0) & (True if valid is None else ~valid)
    if not good.all():
        length = math.sqrt(squares[np.argmin(good)])
        raise ValueError(
            f"`{name}` must be of unit length, so that scale and bias make "
            f"logits of it. Received: a row of length {length:.6g}"
        )
    return embeddings
