"""What the first bytes of a stored picture say, before anything is decoded.

`prepare` refuses what cannot or must not be decoded: unknown formats, pictures
of too many pixels, and those that TensorFlow would decode to something else
than the picture. Of an animation it cuts out the first frame, so that the
others cost nothing. `decode` goes on to the pixels, one picture at a time;
`pipeline.py` has the fast way there.

Headers are as in ITU-T T.81 (JPEG), the PNG specification, GIF89a, Microsoft's
BITMAPINFOHEADER and Google's WebP container.
"""

import io
import re
import struct

import numpy as np
import tensorflow as tf

from jest_tf.data.stores import shards

# A JPEG of many scans costs a pass over all pixels for each, so that a
# small file could hold a worker up for minutes. Encoders write about ten.
_MAX_SCANS = 100

_PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
# JPEG markers without a length: TEM, RST0-7, SOI.
_BARE_MARKERS = frozenset([0x01, *range(0xD0, 0xD9)])
# Start of frame: C0-CF without DHT (C4), JPG (C8) and DAC (CC).
_FRAME_MARKERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_SCAN = b"\xff\xda"
# A BMP palette in which index i is the grey of level i.
_GREYS = bytes(value for i in range(256) for value in (i, i, i, 0))


def prepare(encoded: bytes, max_pixels: int) -> bytes | shards.Fault:
    """Checks a picture's header.

    Args:
        encoded: the picture as stored.
        max_pixels: width times height, at most.

    Returns:
        Bytes that `tf.io.decode_image` can be given: `encoded` itself, or the
        first frame of an animation as a picture of its own. A fault where the
        header forbids it.
    """
    if not encoded:
        return shards.Fault("empty picture")
    try:
        read, check = _reader(encoded)
        encoded, width, height = read(encoded)
        if not width or not height:
            raise _Unreadable(f"picture without pixels: {width} x {height}")
        if width * height > max_pixels:
            raise _Unreadable(
                f"oversized picture: {width} x {height} pixels, more than "
                f"{max_pixels:,}"
            )
        if check:
            check(encoded)
    except _Unreadable as error:
        return shards.Fault(str(error))
    except (IndexError, struct.error):
        return shards.Fault(f"truncated picture: {len(encoded)} bytes")
    return encoded


def decode(encoded: bytes, max_pixels: int) -> np.ndarray | shards.Fault:
    """Decodes one picture, eagerly.

    Args:
        encoded: the picture as stored.
        max_pixels: width times height, at most.

    Returns:
        uint8 [H, W, 3], or why there is none.
    """
    prepared = prepare(encoded, max_pixels)
    if isinstance(prepared, shards.Fault):
        return prepared
    try:
        with tf.device("CPU:0"):
            image = tf.io.decode_image(
                prepared, channels=3, expand_animations=False
            )
        return image.numpy()
    except tf.errors.OpError as error:
        reason = re.sub(r"{{.*}} | \[Op:.*", "", error.message)
        return shards.Fault(f"damaged picture: {' '.join(reason.split())}")


class _Unreadable(Exception):
    """The header forbids decoding; the text says why."""


def _reader(encoded):
    """What reads the header, and what else there is to check, or None."""
    if encoded.startswith(b"\xff\xd8\xff"):
        return _read_jpeg, None
    if encoded.startswith(_PNG_MAGIC):
        return _read_png, None
    if encoded.startswith(b"RIFF") and encoded[8:12] == b"WEBP":
        return _read_webp, None
    if encoded.startswith(b"GIF8"):
        return _read_gif, _check_gif
    if encoded.startswith(b"BM"):
        return _read_bmp, None
    raise _Unreadable(
        "unknown picture format: neither JPEG, PNG, GIF, BMP nor WebP, "
        f"{len(encoded)} bytes"
    )


def _read_jpeg(encoded):
    position = 2
    while True:
        # As libjpeg does: bytes between segments are passed over.
        position = encoded.find(b"\xff", position)
        if position < 0:
            raise IndexError
        marker = encoded[position + 1]
        if marker == 0xFF:
            position += 1
            continue
        position += 2
        if marker in _FRAME_MARKERS:
            break
        if marker == 0xD9:
            raise IndexError
        if marker and marker not in _BARE_MARKERS:
            position += encoded[position] << 8 | encoded[position + 1]
    height, width = struct.unpack_from(">HH", encoded, position + 3)
    scans = encoded.count(_SCAN, position)
    if scans > _MAX_SCANS:
        raise _Unreadable(f"JPEG of {scans} scans, more than {_MAX_SCANS}")
    return encoded, width, height


def _read_png(encoded):
    return encoded, *struct.unpack_from(">II", encoded, 16)


def _read_bmp(encoded):
    start, header, width, height, _, bits, coding = struct.unpack_from(
        "<IIiiHHI", encoded, 10
    )
    # TensorFlow takes 8 bits for a level of grey, and 24 and 32 bits for blue,
    # green, red, whatever palette or coding the header names.
    palette = encoded[14 + header : 14 + header + len(_GREYS)]
    grey = bits == 8 and palette == _GREYS
    if coding not in (0, 3) or not (grey or bits in (24, 32)):
        raise _Unreadable(
            f"BMP of {bits} bits a pixel and coding {coding}: only grey, RGB "
            "and RGBA without compression can be decoded"
        )
    if start > len(encoded):
        raise IndexError
    return encoded, abs(width), abs(height)


def _read_gif(encoded):
    """The first frame alone: TensorFlow would decode them all."""
    width, height, flags = struct.unpack_from("<HHB", encoded, 6)
    position = _after_palette(13, flags)
    while encoded[position] == 0x21:  # an extension
        position = _after_blocks(encoded, position + 2)
    if encoded[position] != 0x2C:
        raise _Unreadable("GIF without a picture")
    left, top, frame_width, frame_height, flags = struct.unpack_from(
        "<HHHHB", encoded, position + 1
    )
    width = max(width, left + frame_width)
    height = max(height, top + frame_height)
    end = _after_blocks(encoded, _after_palette(position + 10, flags) + 1)
    return encoded[:end] + b";", width, height


def _check_gif(encoded):
    # TensorFlow returns whatever memory held where the data breaks off, so
    # Pillow decodes it first; tf-models-official brings it.
    from PIL import Image

    try:
        Image.open(io.BytesIO(encoded)).load()
    except Exception as error:  # Pillow's decoders raise all kinds.
        raise _Unreadable(f"damaged GIF: {error}") from error


def _after_palette(position, flags):
    return position + (3 * 2 ** ((flags & 7) + 1) if flags & 0x80 else 0)


def _after_blocks(encoded, position):
    while encoded[position]:
        position += encoded[position] + 1
    return position + 1


def _read_webp(encoded):
    """A still picture without alpha; of an animation the first frame."""
    kind, stored = encoded[12:16], encoded
    if kind == b"VP8X":
        width, height = (_uint24(encoded, place) + 1 for place in (24, 27))
        if encoded[20] & 0x02:  # animated
            encoded = _first_webp_frame(encoded, width, height)
        elif encoded[20] & 0x10:  # has alpha
            encoded = _plain_webp(encoded, 12, len(encoded))
    elif kind == b"VP8L":
        bits = struct.unpack_from("<I", encoded, 21)[0]
        width, height = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
        if bits >> 28 & 1:
            encoded = _plain_webp(encoded, 12, len(encoded))
    elif kind == b"VP8 ":
        width, height = struct.unpack_from("<HH", encoded, 26)
        width, height = width & 0x3FFF, height & 0x3FFF
    else:
        raise _Unreadable(f"WebP that starts with a chunk {kind!r}")
    if kind == b"VP8X" and encoded is not stored:
        # libwebp, given the picture alone, cannot compare it with the canvas.
        size = _read_webp(encoded)[1:]
        if size != (width, height):
            raise _Unreadable(
                f"WebP of {width} x {height} whose picture is {size[0]} x "
                f"{size[1]}"
            )
    return encoded, width, height


def _first_webp_frame(encoded, width, height):
    for kind, start, end in _webp_chunks(encoded, 12, len(encoded)):
        if kind == b"ANMF":
            corner = _uint24(encoded, start), _uint24(encoded, start + 3)
            size = tuple(_uint24(encoded, start + 6 + at) + 1 for at in (0, 3))
            if corner != (0, 0) or size != (width, height):
                raise _Unreadable(
                    "animated WebP whose first frame is a part of the picture"
                )
            return _plain_webp(encoded, start + 16, end)
    raise _Unreadable("animated WebP without a frame")


def _plain_webp(encoded, start, end):
    """A file of the first picture among chunks, without its alpha.

    TensorFlow decodes a WebP to the channels that it has and no others. Lossy
    ones hold alpha in a chunk of its own, lossless ones have a bit that
    announces it.
    """
    for kind, first, last in _webp_chunks(encoded, start, end):
        if kind in (b"VP8 ", b"VP8L"):
            picture = bytearray(encoded[first:last])
            if kind == b"VP8L":
                picture[4] &= ~0x10
            chunk = kind + struct.pack("<I", len(picture)) + picture
            body = b"WEBP" + chunk + bytes(len(picture) % 2)
            return b"RIFF" + struct.pack("<I", len(body)) + body
    raise _Unreadable("WebP without a picture")


def _webp_chunks(encoded, position, end):
    """Kind, start and end of each chunk's content."""
    while position + 8 <= end:
        kind = encoded[position : position + 4]
        size = struct.unpack_from("<I", encoded, position + 4)[0]
        start = position + 8
        if start + size > end:
            raise IndexError
        yield kind, start, start + size
        position = start + size + size % 2


def _uint24(encoded, position):
    low, high = struct.unpack_from("<HB", encoded, position)
    return high << 16 | low
