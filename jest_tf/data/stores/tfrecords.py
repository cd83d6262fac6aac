"""TFRecord shards of `tf.train.Example`s.

Two schemas are known: ours (`image`, `caption`, `id` and string features) and
img2dataset's (`jpg`, `txt`, `key` and more). A shard is a sequence of frames,
all integers little-endian: length (8 bytes), masked CRC-32C of those 8 bytes
(4), payload, masked CRC-32C of the payload (4). Indexing checks lengths, every
read its payload. Compressed files have no random access and are refused.
"""

import array
import struct
from collections.abc import Sequence

import google_crc32c
import numpy as np
import tensorflow as tf
from google.protobuf import message

from jest_tf.data.stores import shards

IMAGE_FIELDS = ("image", "jpg", "jpeg", "png", "webp", "gif", "bmp")
CAPTION_FIELDS = ("caption", "txt", "text", "captions", "captions/text")

_HEADER = struct.Struct("<QI")
_CHECKSUM = struct.Struct("<I")
# Bytes searched at a time for the next frame after damage.
_SEARCH = 2**20


class TFRecords:
    """Frames of `tf.train.Example`s.

    Args:
        image_field: feature of the picture; "" is the first of `IMAGE_FIELDS`.
        caption_fields: those of captions; () is the first of `CAPTION_FIELDS`.
        labels: class names of integer features, which become metadata.
    """

    name = "tfrecord"
    index_key = "tfrecord"
    index_variant = ""

    def __init__(
        self,
        image_field: str = "",
        caption_fields: Sequence[str] = (),
        labels: dict[str, Sequence[str]] | None = None,
    ):
        self.fields = repr((image_field, tuple(caption_fields)))
        self.examples = Examples(image_field, caption_fields, labels)

    def scan(self, path: str, advance) -> shards.Entries:
        """Walks the frames; see `data/stores/shards.py`."""
        spans, ids = array.array("q"), array.array("q")
        has_id = bytearray()
        with shards.Window(path, advance) as window:
            for offset, size in _frames(window):
                stored = None
                if 0 <= size <= shards.MAX_RECORD_BYTES:
                    stored = self.examples.stored_id(window.get(offset, size))
                spans.extend((offset, size))
                ids.append(stored or 0)
                has_id.append(stored is not None)
            if window.size and spans[0] == 0 and len(spans) == 2:
                raise ValueError(
                    f"Shard {path} is not an uncompressed TFRecord file, or is "
                    "corrupt: the length at byte 0 fails its checksum."
                )
        return shards.Entries(
            np.frombuffer(spans, np.int64).reshape(-1, 2),
            np.frombuffer(ids, np.int64),
            np.frombuffer(has_id, bool),
        )

    def read(self, path: str, spans: np.ndarray) -> list:
        """Reads records at byte ranges; see `data/stores/shards.py`."""
        frames = shards.read_spans(path, spans, _CHECKSUM.size)
        return [
            frame if isinstance(frame, shards.Fault) else self._parse(frame)
            for frame in frames
        ]

    def _parse(self, frame):
        payload, checksum = frame[: -_CHECKSUM.size], frame[-_CHECKSUM.size :]
        if masked_crc32c(payload) != _CHECKSUM.unpack(checksum)[0]:
            return shards.Fault(
                f"damaged: {len(payload)} bytes that fail their checksum"
            )
        return self.examples.parse(payload)


class Examples:
    """Parses serialized `tf.train.Example`s; arguments as in `TFRecords`."""

    def __init__(self, image_field="", caption_fields=(), labels=None):
        self._image_fields = (image_field,) if image_field else IMAGE_FIELDS
        self._given_captions = tuple(caption_fields)
        self._labels = labels or {}

    def parse(self, payload: bytes) -> shards.Record | shards.Fault:
        """Returns a record, or a fault with the reason."""
        try:
            example = tf.train.Example.FromString(payload)
        except message.DecodeError:
            return shards.Fault(
                f"no tf.train.Example: {len(payload)} other bytes"
            )
        features = dict(example.features.feature)
        image = next((f for f in self._image_fields if f in features), None)
        if image is None:
            return shards.Fault(
                f"no picture: expected {_names(self._image_fields)} among "
                f"{_names(sorted(features))}"
            )
        pictures = features[image].bytes_list.value
        if len(pictures) != 1:
            return shards.Fault(
                f"`{image}` holds {len(pictures)} pictures, expected one"
            )
        names = self._given_captions or [
            next((f for f in CAPTION_FIELDS if f in features), None)
        ]
        captions = tuple(
            caption
            for name in names
            if name in features
            for caption in features[name].bytes_list.value
        )
        return shards.Record(
            pictures[0], captions, self._metadata(features, {image, *names})
        )

    def stored_id(self, payload: bytes) -> int | None:
        """Returns the id that a record stores, if any."""
        try:
            example = tf.train.Example.FromString(payload)
        except message.DecodeError:
            return None
        # `in` first: looking up a missing feature adds it.
        if "id" not in example.features.feature:
            return None
        feature = example.features.feature["id"]
        values = feature.int64_list.value or feature.bytes_list.value
        return shards.stored_id(values[0]) if len(values) == 1 else None

    def _metadata(self, features, taken):
        metadata = {}
        for name, feature in features.items():
            if name in taken:
                continue
            strings = feature.bytes_list.value
            if len(strings) == 1:
                metadata[name] = strings[0]
            elif name in self._labels and len(feature.int64_list.value) == 1:
                label = feature.int64_list.value[0]
                if 0 <= label < len(self._labels[name]):
                    metadata[name] = self._labels[name][label].encode()
        return metadata


def masked_crc32c(data: bytes) -> int:
    """Returns `rotate_right(crc32c(data), 15) + 0xa282ead8`, modulo 2**32."""
    crc = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def frame_size(header: bytes) -> int | None:
    """Returns the payload's size from a frame's 12 bytes, None if damaged."""
    if len(header) < 12:
        return None
    size, checksum = _HEADER.unpack(header)
    sound = masked_crc32c(header[:8]) == checksum
    # 2**62: a sum of an offset and a size stays within int64.
    return size if sound and size < 2**62 else None


def _frames(window):
    """Yields offset and size of every payload, and of damaged stretches.

    Lost payload bytes make a frame cover the next header, so the search for
    the next sound header starts within the frame.
    """
    position, pending = 0, None
    while position < window.size or pending:
        size = frame_size(window.get(position, 12))
        if size is not None or (position == window.size and pending):
            if pending:
                yield pending
                pending = None
            if size is not None:
                pending = position + 12, size
                position += size + 16
            continue
        start = pending[0] if pending else position + 1
        found = _next_frame(window, start)
        if pending:
            if found < min(position, window.size):
                position = pending[0] - 12
            else:
                # Whole, or cut off by the end of the file.
                yield pending
            pending = None
        if position < found:
            yield position, position - found
        position = found


def _next_frame(window, position):
    while position + 12 <= window.size:
        data = window.get(position, _SEARCH + 11)
        octets = np.frombuffer(data, np.uint8)
        lengths = np.lib.stride_tricks.sliding_window_view(octets, 8)
        # Nearly every eight bytes are a length beyond the file's end.
        plausible = ~lengths[:, 4:].any(1) & lengths[:, :4].any(1)
        for place in np.flatnonzero(plausible).tolist():
            size = frame_size(data[place : place + 12])
            start = position + place
            if size is not None and start + size + 16 <= window.size:
                return start
        position += len(octets) - 11
    return window.size


def _names(names):
    return shards.one_line(", ".join(names)) if names else "nothing"
