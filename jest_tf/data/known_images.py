"""Finds known images, byte for byte, among the records that a stream reads."""

from collections.abc import Iterable

import google_crc32c


def image_key(image: bytes) -> int:
    """Returns the size and CRC-32C of an encoded image; 0 if it is empty.

    Not CRC-32, which a PNG holds of its own parts: that of the whole file then
    has 16 free bits.
    """
    return len(image) << 32 | google_crc32c.value(image)


class KnownImages:
    """Looks for known images; thread-safe.

    Args:
        keys: their `image_key`s.

    Attributes:
        found: by key, a row whose image is known.
    """

    def __init__(self, keys: Iterable[int]):
        self._keys = frozenset(keys) - {0}
        # Spares images of other sizes the pass over their bytes.
        self._sizes = frozenset(key >> 32 for key in self._keys)
        self.found: dict[int, int] = {}

    def look(self, image: bytes, row: int) -> None:
        """Notes the row of an image if the image is known."""
        if len(image) in self._sizes:
            key = image_key(image)
            if key in self._keys:
                self.found.setdefault(key, row)

    def stop(self) -> None:
        """Ends the search."""
        self._sizes = frozenset()
