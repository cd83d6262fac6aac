"""Picture files with their captions and metadata, as an array of records.

Unlike a `Store` it has no index and is not for training, because reading a row
opens a file. It has the methods of a `Store` that evaluations use.
"""

import hashlib
from collections.abc import Sequence

import numpy as np

from jest_tf import files
from jest_tf.data.stores import shards

PICTURES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".webp")


class Listed:
    """Records of picture files, in the order given.

    Args:
        records: with the path of a file in place of the picture.
    """

    def __init__(self, records: Sequence[shards.Record]):
        self._records = list(records)

    def __len__(self) -> int:
        return len(self._records)

    def read(self, rows: np.ndarray) -> list[shards.Record | shards.Fault]:
        """Reads records at rows, as `Store.read`."""
        rows = np.asarray(rows, np.int64).tolist()
        found = shards.read_files([self._records[row].image for row in rows])
        return [
            content
            if isinstance(content, shards.Fault)
            else self._records[row]._replace(image=content)
            for row, content in zip(rows, found, strict=True)
        ]

    def ids(self, rows: np.ndarray) -> np.ndarray:
        """Returns the rows themselves, int64 [k]."""
        return np.array(rows, np.int64)

    def columns(self, names: Sequence[str]) -> dict[str, np.ndarray | list]:
        """Returns columns, as `Store.columns`, without opening a picture."""
        whole = [(np.arange(len(self)), self._records)]
        return shards.columns(names, whole, self.ids)

    @property
    def fingerprint(self) -> str:
        """Identifies the files by path, size and time of change."""
        digest = hashlib.blake2b(digest_size=16)
        for record in self._records:
            try:
                about = files.stat(record.image)
            except OSError:
                about = ()
            digest.update(repr((record.image, about)).encode())
        return digest.hexdigest()

    def describe(self, row: int) -> str:
        """Names a row in error messages."""
        return str(self._records[row].image)


def find_pictures(folder: str) -> list[str]:
    """Returns the paths of all pictures under a folder, relative and sorted.

    A picture has an extension of `PICTURES`, in any case; hidden files and
    folders are left out.
    """
    names = [
        name
        for name in files.tree(folder)
        if name.lower().endswith(PICTURES) and "/." not in f"/{name}"
    ]
    if not names:
        raise ValueError(
            f"`folder` must hold pictures, {', '.join(PICTURES)}. Received: "
            f"{folder!r}"
        )
    return names
