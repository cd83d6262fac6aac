"""TFRecord shards of `tf.train.Example`s.

Two schemas are known by name: ours (`image`, `caption`, `id` and string
features) and that of img2dataset (`jpg`, `txt`, `key` and more). A shard is a
sequence of frames, all integers little-endian: length (8 bytes), masked CRC-32C
of those 8 bytes (4), payload, masked CRC-32C of the payload (4). Lengths are
checked. Payload checksums are not, for no CRC-32C at the speed of reading comes
with Python or TensorFlow's Python API: a payload is checked when it is parsed
and its picture decoded. Compressed files have no random access and are refused.
"""

import array
import struct
from collections.abc import Sequence

import numpy as np
import tensorflow as tf
from google.protobuf import message

from jest_tf.data import shards

IMAGE_FIELDS = ("image", "jpg", "jpeg", "png", "webp", "gif", "bmp")
CAPTION_FIELDS = ("caption", "txt", "text", "captions", "captions/text")

_HEADER = struct.Struct("<QI")
# Looked through for the next frame after a damaged one, in one go.
_SEARCH = 2**20


class TFRecords:
    """Frames of `tf.train.Example`s.

    Args:
        image_field: feature of the picture; "" takes the first of the usual
            names that a record has.
        caption_fields: features of the captions; () likewise.
        labels: names of the classes of integer features, by feature, to give
            out as strings.
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
        """Walks the frames; see `shards.py`."""
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
        """Records at byte ranges; see `shards.py`."""
        return [
            payload
            if isinstance(payload, shards.Fault)
            else self.examples.parse(payload)
            for payload in shards.read_spans(path, spans)
        ]


class Examples:
    """Turns a serialized `tf.train.Example` into a record.

    Args:
        image_field: see `TFRecords`.
        caption_fields: see `TFRecords`.
        labels: see `TFRecords`.
    """

    def __init__(self, image_field="", caption_fields=(), labels=None):
        self._image_fields = (image_field,) if image_field else IMAGE_FIELDS
        self._given_captions = tuple(caption_fields)
        self._labels = labels or {}

    def parse(self, payload: bytes) -> shards.Record | shards.Fault:
        """A record, or why there is none."""
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
        """The id that a record carries, if any."""
        try:
            example = tf.train.Example.FromString(payload)
        except message.DecodeError:
            return None
        # `in` first: looking up a feature that is not there adds it.
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


def frame_size(header: bytes) -> int | None:
    """The payload's size that a frame's 12 bytes tell, None if damaged."""
    if len(header) < 12:
        return None
    size, checksum = _HEADER.unpack(header)
    crc = 0xFFFFFFFF
    for octet in header[:8]:
        crc = _CRC_LIST[(crc ^ octet) & 0xFF] ^ (crc >> 8)
    crc ^= 0xFFFFFFFF
    masked = ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
    # 2**62: a sum of an offset and a size stays within int64.
    return size if masked == checksum and size < 2**62 else None


def masked_crc32c(values: np.ndarray) -> np.ndarray:
    """Masked CRC-32C of 8-byte little-endian integers, as TFRecord frames do.

    Args:
        values: uint64 [n].

    Returns:
        uint32 [n]: `rotate_right(crc, 15) + 0xa282ead8`.
    """
    octets = values.astype("<u8").view(np.uint8).reshape(-1, 8)
    crc = np.full(len(values), 0xFFFFFFFF, np.uint32)
    for i in range(8):
        crc = _CRC_TABLE[(crc ^ octets[:, i]) & 0xFF] ^ (crc >> 8)
    crc = ~crc
    return ((crc >> 15) | (crc << 17)) + np.uint32(0xA282EAD8)


def _frames(window):
    """Yields offset and size of every payload, and of stretches of damage.

    Where no frame follows a frame, its own end may be wrong: bytes of its
    payload were lost, say, and it covers the next header. So the next sound
    header is sought from within it.
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
    """Where the next sound frame starts, or the size of the file."""
    while position + 12 <= window.size:
        data = window.get(position, _SEARCH + 11)
        octets = np.frombuffer(data, np.uint8)
        places = np.arange(len(octets) - 11)
        # Nearly every eight bytes make a length beyond the file's end.
        plausible = octets[places + 7] == 0
        for i in range(4, 7):
            places = places[plausible]
            plausible = octets[places + i] == 0
        places = places[plausible]
        frames = octets[places[:, None] + np.arange(12)]  # [places, 12]
        sizes = frames[:, :8].copy().view("<u8")[:, 0]
        checksums = frames[:, 8:].copy().view("<u4")[:, 0]
        ends = sizes.astype(np.int64) + places + position + 16
        good = (masked_crc32c(sizes) == checksums) & (ends <= window.size)
        if good.any():
            return position + int(places[np.argmax(good)])
        position += len(octets) - 11
    return window.size


def _names(names):
    return shards.one_line(", ".join(names)) if names else "nothing"


def _crc_table():
    """CRC-32C of every byte: polynomial 0x1EDC6F41, bits reflected."""
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = (table >> 1) ^ np.where(table & 1, 0x82F63B78, 0).astype(
            np.uint32
        )
    return table


_CRC_TABLE = _crc_table()
_CRC_LIST = _CRC_TABLE.tolist()
