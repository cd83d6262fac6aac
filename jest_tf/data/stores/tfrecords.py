"""TFRecord shards of `tf.train.Example`s.

Two schemas are read: ours (`image`, `caption`, `id` and string features) and
img2dataset's (`jpg`, `txt`, `key` and more). A shard is a sequence of frames,
all integers little-endian: length (8 bytes), masked CRC-32C of those 8 bytes
(4), payload, masked CRC-32C of the payload (4), which is the record's checksum.
Indexing checks lengths, and a read checks its whole frame. Indexing stops at a
length that is damaged or goes beyond the file. Compressed files have no random
access and are refused.
"""

import functools
import struct

import google_crc32c
import numpy as np
import tensorflow as tf
from google.protobuf import message

from jest_tf.data.stores import shards

IMAGE_FIELDS = ("image", "jpg", "jpeg", "png", "webp", "gif", "bmp")
CAPTION_FIELDS = ("caption", "txt", "text", "captions", "captions/text")

_HEADER = struct.Struct("<QI")
_CHECKSUM = struct.Struct("<I")
# Bytes of a frame before its payload, and before and after it together.
HEAD, FRAME = _HEADER.size, _HEADER.size + _CHECKSUM.size


class TFRecords:
    """Frames of `tf.train.Example`s; arguments as those of `parse`."""

    name = "tfrecord"
    index_key = "tfrecord 3"
    index_variant = ""
    damage = "is damaged or cut off"

    def __init__(self, fields=shards.USUAL):
        self.fields = fields
        self._parse = functools.partial(parse, fields=fields)

    def scan(self, path: str, advance):
        """Walks the frames; see `data/stores/shards.py`."""
        with shards.open_scan(path, advance) as file:
            place, end = 0, file.raw.size
            while place < end:
                size = frame_size(file.read(_HEADER.size))
                if size is None or place + size + FRAME > end:
                    break
                place += _HEADER.size
                stored, checksum = None, 0
                if size <= shards.MAX_RECORD_BYTES:
                    stored = stored_id(file.read(size))
                    (checksum,) = _CHECKSUM.unpack(file.read(_CHECKSUM.size))
                yield place, size, stored, checksum
                place += size + _CHECKSUM.size
                file.seek(place)
        if place == 0 and size is None:
            reason = shards.contents(path) or (
                "the length at byte 0 fails its checksum. Files of other "
                "formats need their usual endings: .tar, .csv, .tsv, .parquet"
            )
            raise ValueError(
                f"Shard {path} is not an uncompressed TFRecord file, or is "
                f"corrupt: {reason}"
            )
        if place < end:
            yield place, place - end, None, 0

    def read(self, path: str, spans: np.ndarray) -> list:
        """Reads records at byte ranges; see `data/stores/shards.py`."""

        def parse(frame, indexed):
            payload = frame[HEAD : HEAD - FRAME]
            if frame_size(frame[:HEAD]) != len(payload):
                return shards.Fault(
                    f"damaged: wrong length before {len(payload)} bytes"
                )
            (checksum,) = _CHECKSUM.unpack(frame[HEAD - FRAME :])
            if masked_crc32c(payload) != checksum:
                return shards.Fault(
                    f"damaged: {len(payload)} bytes that fail their checksum"
                )
            if indexed not in (0, checksum):
                return shards.CHANGED
            return self._parse(payload)

        return shards.read_records(
            path, spans, parse, HEAD, FRAME - HEAD, later=True
        )


def parse(
    payload: bytes, fields: shards.Fields = shards.USUAL
) -> shards.Record | shards.Fault:
    """Converts a serialized `tf.train.Example`.

    By default, takes the first of `IMAGE_FIELDS` and of `CAPTION_FIELDS`.
    """
    features = _features(payload)
    if features is None:
        return shards.Fault(f"not a tf.train.Example: {len(payload)} bytes")
    wanted = (fields.image,) if fields.image else IMAGE_FIELDS
    image = next((name for name in wanted if name in features), None)
    if image is None:
        present = ", ".join(sorted(features)) or "nothing"
        return shards.Fault(
            f"no image: expected {shards.one_line(', '.join(wanted))} among "
            f"{shards.one_line(present)}"
        )
    images = features[image].bytes_list.value
    if len(images) != 1:
        return shards.Fault(
            f"`{image}` holds {len(images)} images, expected one"
        )
    names = (
        fields.captions
        or [name for name in CAPTION_FIELDS if name in features][:1]
    )
    captions = []
    for name in names:
        if name in features:
            captions += features[name].bytes_list.value
    metadata = {}
    for name, feature in features.items():
        strings, numbers = feature.bytes_list.value, feature.int64_list.value
        if name == image or name in names:
            continue
        if len(strings) == 1:
            metadata[name] = strings[0]
        elif name in shards.CLASS_NUMBERS and len(numbers) == 1:
            metadata["cls"] = str(numbers[0]).encode()
        elif name != "id" and len(numbers) == 1:
            metadata[name] = str(numbers[0]).encode()
    return shards.Record(images[0], tuple(captions), metadata)


def stored_id(payload: bytes) -> int | None:
    """Returns the id that a serialized `tf.train.Example` stores, if any."""
    features = _features(payload) or {}
    # Looking up a missing feature would add it.
    if "id" not in features:
        return None
    values = features["id"].int64_list.value or features["id"].bytes_list.value
    return shards.stored_id(values[0]) if len(values) == 1 else None


def masked_crc32c(data: bytes) -> int:
    """Returns `rotate_right(crc32c(data), 15) + 0xa282ead8`, modulo 2**32."""
    crc = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def frame_size(header: bytes) -> int | None:
    """Returns the payload's size from a frame's 12 bytes, None if damaged."""
    if len(header) < _HEADER.size:
        return None
    size, checksum = _HEADER.unpack(header)
    sound = masked_crc32c(header[:8]) == checksum
    # Below 2**62, the sum of an offset and a size stays within int64.
    return size if sound and size < 2**62 else None


def _features(payload):
    try:
        return tf.train.Example.FromString(payload).features.feature
    except message.DecodeError:
        return None
