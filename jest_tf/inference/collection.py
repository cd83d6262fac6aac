"""Collections: the embedded pictures of a folder, in a single file.

A Parquet file has a row a picture, `name` and `embedding`, and the model in its
metadata. An .npy file has the embeddings, and a .json file beside it the model
and the names.
"""

import io
import json
import os
from typing import NamedTuple

import numpy as np

from jest_tf import files
from jest_tf.data import stores

_KEY = b"jest_tf"  # of Parquet's metadata


class Collection(NamedTuple):
    """Pictures of a folder and their embeddings.

    Attributes:
        names: n paths, relative to the folder.
        embeddings: float32 or float16 [n, D], of unit norm.
        about: `model`, the fingerprint of the embedder, `scale`, `bias` and
            `folder`.
    """

    names: list[str]
    embeddings: np.ndarray
    about: dict

    def check_model(self, fingerprint: str) -> None:
        """Raises ValueError unless a model of this fingerprint embedded it."""
        if self.about["model"] != fingerprint:
            raise ValueError(
                "`collection` must be embedded by the model that searches it: "
                "write it anew with `jest-tf embed --folder`. Received: a "
                f"collection of {self.about['model']}, a model "
                f"{fingerprint}"
            )


def embed_folder(
    embedder, folder: str, *, dtype: str = "float32", progress=None
) -> tuple[Collection, dict[str, str]]:
    """Embeds all pictures under a folder, see `stores.find_pictures`.

    Args:
        embedder: an `Embedder`.
        folder: its subfolders are searched, too.
        dtype: of the embeddings, "float32" or "float16".
        progress: called with the pictures done and the pictures in all.

    Returns:
        The collection of the pictures that can be read; and why the others
        cannot, by name.

    Raises:
        ValueError: there are no pictures.
    """
    names = stores.find_pictures(folder)
    paths = [os.path.join(folder, name) for name in names]
    parts, reasons, done = [], {}, 0
    for faults, part in embedder.embed_parts(paths):
        for name, fault in zip(names[done:], faults, strict=False):
            if fault:
                reasons[name] = fault.reason
        parts.append(part.astype(dtype))
        done += len(faults)
        if progress:
            progress(done, len(names))
    about = {
        "model": embedder.fingerprint,
        "scale": embedder.scale,
        "bias": embedder.bias,
        "folder": files.absolute(folder),
    }
    kept = [name for name in names if name not in reasons]
    return Collection(kept, np.concatenate(parts), about), reasons


def check_output(path: str, setting: str = "path") -> None:
    """Raises ValueError unless a collection can be written to `path`.

    `setting` is its name in errors.
    """
    if not path.endswith((".parquet", ".npy")):
        raise ValueError(
            f"`{setting}` must be a file that ends in .parquet or .npy. "
            f"Received: {path!r}"
        )
    if path.endswith(".parquet"):
        _pyarrow()


def write(path: str, collection: Collection) -> None:
    """Writes a collection whole, as its path ends: .parquet or .npy.

    Raises:
        ValueError: another ending, or pyarrow is missing.
    """
    check_output(path)
    names, embeddings, about = collection
    if path.endswith(".npy"):
        text = json.dumps({**about, "names": names}, indent=1) + "\n"
        files.write_whole(_beside(path), text.encode())
        content = io.BytesIO()
        np.save(content, embeddings)
        files.write_whole(path, content.getbuffer())
        return
    pyarrow = _pyarrow()
    values = pyarrow.array(np.ravel(embeddings))
    table = pyarrow.table(
        {
            "name": pyarrow.array(names, pyarrow.string()),
            "embedding": pyarrow.FixedSizeListArray.from_arrays(
                values, embeddings.shape[1]
            ),
        }
    )
    table = table.replace_schema_metadata({_KEY: json.dumps(about)})
    with files.written_whole(path) as partial:
        pyarrow.parquet.write_table(table, partial)


def read(path: str | os.PathLike) -> Collection:
    """Reads what `write` wrote.

    Raises:
        ValueError: it is not there, or something else.
    """
    path = os.fspath(path)
    check_output(path)
    try:
        if path.endswith(".npy"):
            about = json.loads(files.read_whole(_beside(path)))
            with files.staged(path) as local:
                embeddings = np.load(local, mmap_mode="r")
            return Collection(about.pop("names"), embeddings, about)
        with files.staged(path) as local:
            table = _pyarrow().parquet.read_table(local)
        column = table["embedding"].combine_chunks()
        width = column.type.list_size
        return Collection(
            table["name"].to_pylist(),
            column.values.to_numpy().reshape(-1, width),
            json.loads(table.schema.metadata[_KEY]),
        )
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            "A collection must be a file that `jest-tf embed --folder` wrote. "
            f"Received: {path!r} ({error})"
        ) from error


def _beside(path):
    return f"{os.path.splitext(path)[0]}.json"


def _pyarrow():
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ValueError(
            "Parquet needs pyarrow: pip install pyarrow, or let the output "
            "end in .npy"
        ) from error
    return pyarrow
