"""The file format of a sidecar: a reference's embeddings of a shard.

A sidecar is an artefact (`data/artefacts.py`) with four arrays:

    ids       int64 [n], of the records
    offsets   int64 [n + 1]; row i has the captions offsets[i] to offsets[i + 1]
    image     float16 or float32 [n, D], zero where the record was unreadable
    text      the same [captions, D], zero where a caption is blank

The metadata describes the reference and the shard's version.
"""

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from jest_tf.config import checks
from jest_tf.data import artefacts

KIND = "sidecar"
DTYPES = ("float16", "float32")

# Allowed deviation of a squared length from 1: two steps of bfloat16 (8 bits).
_LENGTH_TOLERANCE = 2**-6


class Description(NamedTuple):
    """Describes a reference; embeddings of equal descriptions may be mixed.

    Attributes:
        fingerprint: any text that identifies the reference and its weights;
            see `reference.describe` for a run.
        tokenizer: any text that identifies how captions were read.
        preprocessing: any text that identifies how images were decoded.
        dim: D, the width of an embedding.
        scale: of the logits `scale * image @ text.T + bias`.
        bias: of the logits.
        name: of the reference, for messages; it is not compared.
    """

    fingerprint: str
    tokenizer: str
    preprocessing: str
    dim: int
    scale: float
    bias: float
    name: str = ""


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


@contextlib.contextmanager
def written(path: str, header: Header) -> Iterator[Callable[..., None]]:
    """Yields `append(ids, image, text, captions, valid)` of a new sidecar.

    `append` adds k rows: ids int64 [k]; image [k, D]; text [m, D], all captions
    of the rows in order, zero where a caption is blank; captions int64 [k], the
    caption count of each row; valid bool [k], false for unreadable records,
    which have no captions and whose image is ignored. Embeddings have unit
    length. The sidecar appears as the block ends.
    """
    about, dtype, n = header.description, header.dtype, header.rows
    text = "a string", lambda value: isinstance(value, str)
    finite = "finite", math.isfinite
    rules = (text, text, text, checks.at_least(1), finite, finite, text)
    for name, value, rule in zip(about._fields, about, rules, strict=True):
        checks.check(name, value, rule)
    checks.check("dtype", dtype, checks.among(*DTYPES))
    metadata = about._asdict() | {
        "scale": repr(float(about.scale)),
        "bias": repr(float(about.bias)),
        "stamp": header.stamp,
    }
    del metadata["dim"]  # that of the arrays
    arrays = {
        "ids": ("int64", (n,)),
        "offsets": ("int64", (n + 1,)),
        "image": (dtype, (n, about.dim)),
        "text": (dtype, (None, about.dim)),
    }
    with artefacts.written(path, KIND, metadata, arrays) as add:
        total = np.zeros(1, np.int64)
        add("offsets", total)

        def append(ids, image, text, captions, valid):
            image, text = (
                np.asarray(part, np.float32) for part in (image, text)
            )
            image = np.where(valid[:, None], image, np.float32(0))
            _check_lengths("image", image, ~valid)
            _check_lengths("text", text, True)
            add("ids", ids)
            add("offsets", total + np.cumsum(captions))
            add("image", image)
            add("text", text)
            total[0] += len(text)

        yield append


def read(path: str) -> tuple[Header, artefacts.Artefact]:
    """Reads the head of a sidecar and maps its arrays."""
    try:
        artefact = artefacts.read(path, KIND)
    except OSError as error:
        raise ValueError(
            f"Sidecar {path} cannot be read: {error.strerror or error}"
        ) from error
    with artefacts.read_as(path, KIND):
        texts, image = artefact.metadata, artefact.arrays["image"]
        description = Description(
            texts["fingerprint"],
            texts["tokenizer"],
            texts["preprocessing"],
            image.shape[1],
            float(texts["scale"]),
            float(texts["bias"]),
            texts.get("name", ""),
        )
        header = Header(
            description, str(image.dtype), texts["stamp"], len(image)
        )
        return header, artefact


def check_header(path: str, header: Header, expected: Header) -> None:
    """Refuses a sidecar of another origin than expected."""
    values = header.description._asdict() | header._asdict()
    for name, wanted in (
        expected.description._asdict() | expected._asdict()
    ).items():
        value = values[name]
        # The last bit of a scale depends on the hardware that computed it.
        is_close = name in ("scale", "bias") and math.isclose(
            value, wanted, rel_tol=1e-6
        )
        if name in ("description", "name") or value == wanted or is_close:
            continue
        what = "stamp of the present shard" if name == "stamp" else name
        writers = [
            f" of {side.description.name}" if side.description.name else ""
            for side in (expected, header)
        ]
        raise ValueError(
            f"Sidecar {path} does not fit: expected the {what}{writers[0]}, "
            f"{wanted!r}. Received: {value!r}{writers[1]}"
        )


def _check_lengths(name, embeddings, may_be_zero):
    squares = np.einsum("ij,ij->i", embeddings, embeddings)
    good = np.abs(squares - 1) <= _LENGTH_TOLERANCE
    good |= (squares == 0) & may_be_zero
    if not good.all():
        length = math.sqrt(squares[np.argmin(good)])
        raise ValueError(
            f"`{name}` must be of unit length, so that scale and bias turn "
            f"cosines into logits. Received: a row of length {length:.6g}"
        )
