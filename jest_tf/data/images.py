"""Decodes stored images to upright, square uint8 arrays.

`prepare` reads the size from the header and refuses images that are too large
or of an unknown format. JPEG, PNG and, if this TensorFlow reads it, plain WebP
pass through. Pillow converts the first frame of GIF, BMP and other WebP to PNG,
because `tf.io.decode_image` decodes some of these to wrong pixels or
uninitialized memory. `decode` then decodes a single image, and `decode_batch`
decodes many in a graph. All turn an image as the orientation in its EXIF says.
"""

import contextlib
import dataclasses
import functools
import io
import re
import struct
from collections.abc import Mapping
from typing import Protocol

import keras
import numpy as np
import tensorflow as tf
from PIL import Image

from jest_tf.config import checks
from jest_tf.data.stores import shards

MAX_PIXELS = 2**26  # 8,192 x 8,192, 200 MB decoded
# Each scan of a JPEG costs a pass over all pixels, so a small file could
# occupy a worker for minutes. Encoders write about ten scans.
MAX_SCANS = 100

JPEG_MAGIC = b"\xff\xd8\xff"
PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
# JPEG markers without a length: TEM, RST0-7, SOI, EOI (ITU-T T.81), padding.
_BARE_MARKERS = frozenset([0x00, 0x01, 0xFF, *range(0xD0, 0xDA)])
# Start of frame: C0-CF except DHT (C4), JPG (C8) and DAC (CC).
_FRAME_MARKERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
SCAN = b"\xff\xda"
# EXIF (CIPA DC-008): the tag of the orientation, 1 to 8, and its type, SHORT;
# the size of an entry.
_ORIENTATION, _SHORT, _ENTRY = 0x0112, 3, 12
# The EXIF of a JPEG or PNG is looked for in this many bytes and segments.
_EXIF_BYTES, _EXIF_SEGMENTS = 2**17, 64
_EXIF = b"Exif\0\0"
# Whether this TensorFlow reads WebP; 2.18 does not, 2.20 does.
READS_WEBP = hasattr(tf.io, "decode_webp")


@dataclasses.dataclass(frozen=True)
class Resizing:
    """Resizes decoded images to a square, as a model expects them.

    The defaults are SigLIP's (Zhai et al., 2023) and ignore the aspect. Other
    values give what `keras.layers.Resizing` gives for 8-bit images outside of
    a graph; in a graph that layer does not round.

    Attributes:
        size: S, pixels a side.
        interpolation: "bilinear", "bicubic", "nearest", "lanczos3" or
            "lanczos5".
        antialias: filter before reducing the size.
        crop_to_aspect_ratio: keep the aspect, and crop the longer side.
    """

    size: int
    interpolation: str = "bilinear"
    antialias: bool = True
    crop_to_aspect_ratio: bool = False

    dtype = tf.uint8

    def __post_init__(self):
        checks.check("image_size", self.size, checks.at_least(1))

    @property
    def shape(self) -> tuple[int, int, int]:
        """Returns the shape of a resized image."""
        return self.size, self.size, 3

    def __call__(self, image: tf.Tensor) -> tf.Tensor:
        """Resizes uint8 [H, W, 3] to uint8 [S, S, 3]."""
        if self == Resizing(self.size):
            return resize_image(image, self.size)
        return tf.ensure_shape(_resized(image, self), self.shape)

    def __str__(self):
        shape = "cropped" if self.crop_to_aspect_ratio else "squashed"
        text = f"RGB, {shape} to {self.size} x {self.size}"
        if self == Resizing(self.size):
            return f"{text} by preprocessing.py"
        kind = "with" if self.antialias else "without"
        return f"{text}, {self.interpolation} {kind} antialiasing"


# In a graph Keras' layer runs on TensorFlow, whatever the backend.
@functools.partial(tf.function, autograph=False, reduce_retracing=True)
def _resized(image, form):
    options = dataclasses.asdict(form)
    size = options.pop("size")
    resize = keras.layers.Resizing(size, size, **options, dtype="float32")
    levels = resize(tf.cast(image, tf.float32))
    return tf.saturate_cast(tf.round(levels), tf.uint8)


class Form(Protocol):
    """Maps an image, uint8 [H, W, 3], to a tensor for a model.

    Attributes:
        shape: of the tensor.
        dtype: of the tensor.
    """

    shape: tuple[int, ...]
    dtype: tf.DType

    def __call__(self, image: tf.Tensor) -> tf.Tensor:
        """Makes the tensor, in a graph."""


def make_form(image_size: int | Form) -> Form:
    """Returns a form unchanged, or the `Resizing` to a size."""
    return image_size if callable(image_size) else Resizing(image_size)


def prepare(encoded: bytes) -> bytes | shards.Fault:
    """Checks an image's header; converts formats that TensorFlow misreads.

    Returns:
        Bytes for `tf.io.decode_image`: `encoded` itself, or a PNG of the first
        frame; a fault if the image must not be decoded, for example because
        it has more than `MAX_PIXELS`.
    """
    if not encoded:
        return shards.Fault("empty image")
    try:
        return _prepare(encoded)
    except (IndexError, ValueError, struct.error):
        reason = f"truncated image: {len(encoded)} bytes"
    except Image.UnidentifiedImageError:
        reason = (
            "unknown image format: neither JPEG, PNG, GIF, BMP nor WebP, or "
            f"damaged, {len(encoded)} bytes"
        )
    except Exception as error:  # Pillow's decoders raise errors of all kinds.
        reason = f"damaged image: {shards.one_line(error)}"
    return shards.Fault(reason)


def decode(encoded: bytes) -> np.ndarray | shards.Fault:
    """Decodes a stored image eagerly to uint8 [H, W, 3], or a fault."""
    prepared = prepare(encoded)
    if isinstance(prepared, shards.Fault):
        return prepared
    try:
        with tf.device("CPU:0"):
            image = _decoded(prepared)
            return _turned(image, orientation(prepared)).numpy()
    except tf.errors.OpError as error:
        reason = re.sub(r"{{.*}} | \[Op:.*", "", error.message)
        return shards.Fault(f"damaged image: {shards.one_line(reason)}")


def decode_all(encoded: tf.Tensor, form: Form) -> tf.Tensor:
    """Decodes strings [k] to [k, *form.shape] with TensorFlow alone.

    This is for exported graphs. JPEG, PNG and, if this TensorFlow reads it,
    still, opaque WebP without EXIF give the same pixels as `prepare` and
    `decode_batch`. Other images, which `prepare` converts or refuses, raise
    `tf.errors.InvalidArgumentError`; sizes and scans are not limited.
    """

    def decode_one(encoded):
        message = "Images must be JPEG, PNG, or still, opaque WebP, no EXIF."
        check = tf.debugging.Assert(decodes_alike(encoded), [message])
        with tf.control_dependencies([check]):
            return form(_turned(_decoded(encoded), _orientation(encoded)))

    return tf.map_fn(
        tf.autograph.experimental.do_not_convert(decode_one),
        encoded,
        fn_output_signature=tf.TensorSpec(form.shape, form.dtype),
    )


def resize_image(image: tf.Tensor, image_size: int) -> tf.Tensor:
    """Resizes uint8 [H, W, 3] to [S, S, 3], ignoring its aspect."""
    size = [image_size, image_size]

    def resize():
        # Bitwise equal to `tf.image.resize(image, size, "bilinear",
        # antialias=True)`, without a dozen small operations around it.
        resized = tf.raw_ops.ScaleAndTranslate(
            images=image[tf.newaxis],
            size=size,
            scale=tf.cast(size, tf.float32)
            / tf.cast(tf.shape(image)[:2], tf.float32),
            translation=[0.0, 0.0],
            kernel_type="triangle",
            antialias=True,
        )
        # A weighted mean of levels needs no clipping.
        return tf.cast(tf.round(resized[0]), tf.uint8)

    fits = tf.reduce_all(tf.equal(tf.shape(image)[:2], size))
    square = tf.cond(fits, lambda: image, resize)
    return tf.ensure_shape(square, [*size, 3])


def decode_batch(
    encoded: tf.Tensor, orientations: tf.Tensor, forms: Mapping[str, Form]
) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
    """Decodes many images, dropping damaged images.

    Args:
        encoded: string [k], from `prepare`.
        orientations: int64 [k], from `orientation`.
        forms: forms by name; each image is converted to every form.

    Returns:
        Indices of the images that decode, int64 [m], and these images by
        name, [m, *form.shape] in the form's dtype.
    """

    def decode_one(is_turned, place, example):
        encoded, orientation = example
        image = _decoded(encoded)
        if is_turned:
            image = _turned(image, orientation)
        return place, {name: form(image) for name, form in forms.items()}

    empty = {
        name: tf.zeros([0, *form.shape], form.dtype)
        for name, form in forms.items()
    }
    # A graph cannot catch an error, but a dataset can drop the element that
    # raised it. The empty batch is for the case that all are dropped.
    nothing = tf.zeros([0], tf.int64), empty

    def decode_each(is_turned):
        return (
            tf.data.Dataset.from_tensor_slices((encoded, orientations))
            .enumerate()
            .map(functools.partial(decode_one, is_turned))
            .ignore_errors()
            .batch(tf.size(encoded, tf.int64))
            .concatenate(tf.data.Dataset.from_tensors(nothing))
            .take(1)
            .get_single_element()
        )

    return tf.cond(
        tf.reduce_all(orientations == 1),
        lambda: decode_each(False),
        lambda: decode_each(True),
    )


def orientation(encoded: bytes) -> int:
    """Returns the EXIF orientation of an image from `prepare`, from 1 to 8.

    A JPEG's EXIF is among its first segments, all for applications or comments;
    that of a PNG is in a chunk before the pixels. Without EXIF, with damaged
    EXIF, or for another format, returns 1: upright.
    """
    is_png = encoded.startswith(PNG_MAGIC)
    if not is_png and not encoded.startswith(JPEG_MAGIC):
        return 1
    size, place = min(len(encoded), _EXIF_BYTES), 8 if is_png else 2
    for _ in range(_EXIF_SEGMENTS):
        if place + 10 > size:
            return 1
        if is_png:
            length, kind = struct.unpack_from(">I4s", encoded, place)
            start, after = place + 8, place + 12 + length
            is_exif, is_last = kind == b"eXIf", kind == b"IDAT"
        else:
            marker, length = struct.unpack_from(">HH", encoded, place)
            start, after = place + 10, place + 2 + length
            is_exif = marker == 0xFFE1 and encoded[start - 6 : start] == _EXIF
            is_last = marker >> 4 != 0xFFE and marker != 0xFFFE
        if is_exif:
            end = min(after - 4 * is_png, size)
            return _tiff_orientation(encoded, start, end)
        if is_last:
            return 1
        place = after
    return 1


def _prepare(encoded):
    image = None
    if encoded.startswith(JPEG_MAGIC):
        width, height, scans = _jpeg_head(encoded)
        if scans > MAX_SCANS:
            return shards.Fault(f"JPEG of {scans} scans, more than {MAX_SCANS}")
    elif encoded.startswith(PNG_MAGIC):
        width, height = struct.unpack_from(">II", encoded, 16)
    else:
        image = Image.open(io.BytesIO(encoded), formats=("GIF", "BMP", "WEBP"))
        width, height = image.size
    if not width or not height:
        return shards.Fault(f"image without pixels: {width} x {height}")
    if width * height > MAX_PIXELS:
        return shards.Fault(
            f"oversized image: {width} x {height} pixels, more than "
            f"{MAX_PIXELS:,}"
        )
    if image is None:
        return encoded
    # TensorFlow decodes WebP only if it has a single frame and no alpha.
    animated = encoded[12:16] == b"VP8X" and encoded[20] & 0x02
    plain = image.format == "WEBP" and image.mode == "RGB" and not animated
    turn = 1
    if encoded[12:16] == b"VP8X" and encoded[20] & 0x08:
        with contextlib.suppress(Exception):  # of Pillow, on damaged EXIF
            turn = image.getexif().get(_ORIENTATION, 1)
    if plain and READS_WEBP and turn == 1:
        return encoded
    image = image.convert("RGB")
    if turn in range(2, 9):
        image = Image.fromarray(_flipped(np.asarray(image), turn).numpy())
    png = io.BytesIO()
    image.save(png, "PNG", compress_level=1)
    return png.getvalue()


def _decoded(encoded):
    image = tf.io.decode_image(encoded, channels=3, expand_animations=False)
    return tf.ensure_shape(image, [None, None, 3])


def _tiff_orientation(encoded, start, end):
    """Reads the orientation from EXIF at bytes `start` to `end`."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(encoded[start : start + 4])
    if order is None or start + 8 > end:
        return 1
    (offset,) = struct.unpack_from(f"{order}I", encoded, start + 4)
    place = start + offset
    if place + 2 > end:
        return 1
    (count,) = struct.unpack_from(f"{order}H", encoded, place)
    place += 2
    count = min(count, (end - place) // _ENTRY)
    words = np.frombuffer(encoded[place : place + count * _ENTRY], f"{order}u2")
    tag, kind, _, _, value, _ = words.reshape(-1, _ENTRY // 2).T
    value = value[(tag == _ORIENTATION) & (kind == _SHORT)].max(initial=0)
    return int(value) if 1 <= value <= 8 else 1


def _turned(image, orientation):
    """Turns an image, [H, W, 3], upright, by EXIF's orientation."""
    return tf.cond(
        tf.equal(orientation, 1),
        lambda: image,
        lambda: _flipped(image, orientation),
    )


def _flipped(image, orientation):
    image = tf.cond(
        orientation > 4, lambda: tf.transpose(image, [1, 0, 2]), lambda: image
    )
    rest = orientation % 4
    dims = [(rest == 0) | (rest == 3), (rest == 2) | (rest == 3), False]
    return tf.raw_ops.Reverse(tensor=image, dims=dims)


def _orientation(encoded):
    """Returns `orientation` in a graph, int64."""
    head = tf.io.decode_raw(encoded, tf.uint8, fixed_length=_EXIF_BYTES)
    size = tf.minimum(tf.strings.length(encoded), _EXIF_BYTES)
    size = tf.cast(size, tf.int64)
    is_png = head[0] == PNG_MAGIC[0]

    def octets(places, count):
        places = tf.expand_dims(places, -1) + tf.range(count, dtype=tf.int64)
        # Beyond the end, zeros.
        found = tf.gather(head, tf.clip_by_value(places, 0, _EXIF_BYTES - 1))
        return tf.where(places < size, tf.cast(found, tf.int64), 0)

    def number(places, count, is_big):
        values = octets(places, count)
        powers = 256 ** np.arange(count)
        powers = tf.where(is_big, powers[::-1], powers)
        return tf.reduce_sum(values * powers, -1)

    def has(place, text):
        return tf.reduce_all(octets(place, len(text)) == [*text])

    def is_exif(place):
        jpeg = has(place, b"\xff\xe1") & has(place + 4, _EXIF)
        return tf.where(is_png, has(place + 4, b"eXIf"), jpeg)

    def length(place):
        jpeg = 2 + number(place + 2, 2, True)
        return tf.where(is_png, 12 + number(place, 4, True), jpeg)

    def goes_on(place):
        first, marker = tf.unstack(octets(place, 2))
        jpeg = (first == 0xFF) & ((marker // 16 == 0xE) | (marker == 0xFE))
        png = ~has(place + 4, b"IDAT")
        inside = (place < size) & ~is_exif(place)
        return inside & tf.where(is_png, png, jpeg)

    (place,) = tf.while_loop(
        goes_on,
        lambda place: [place + length(place)],
        [tf.where(is_png, np.int64(8), np.int64(2))],
        maximum_iterations=_EXIF_SEGMENTS,
    )
    start = place + tf.where(is_png, np.int64(8), np.int64(10))
    end = place + length(place) - tf.where(is_png, np.int64(4), np.int64(0))
    end = tf.minimum(end, size)
    is_big = has(start, b"MM\0*")
    entries = start + number(start + 4, 4, is_big)
    room = tf.maximum(end - entries - 2, 0) // _ENTRY
    count = tf.minimum(number(entries, 2, is_big), room)
    entries += 2 + _ENTRY * tf.range(count)
    known = (number(entries, 2, is_big) == _ORIENTATION) & (
        number(entries + 2, 2, is_big) == _SHORT
    )
    values = number(entries + 8, 2, is_big)
    value = tf.reduce_max(tf.where(known, values, 0))
    sound = is_exif(place) & (is_big | has(start, b"II*\0"))
    sound &= start + 8 <= end
    return tf.where(sound & (value >= 1) & (value <= 8), value, 1)


def decodes_alike(encoded):
    """Returns a boolean tensor: whether `_prepare` passes an image through."""
    head = tf.io.decode_raw(
        tf.strings.substr(tf.strings.join([encoded, "\0" * 25]), 0, 25),
        tf.uint8,
    )

    def has(start, magic):
        return tf.reduce_all(head[start : start + len(magic)] == [*magic])

    def lacks(place, flags):
        return tf.bitwise.bitwise_and(head[place], flags) == 0

    # Flags: alpha in VP8L; alpha, animation and EXIF in VP8X.
    return (
        has(0, JPEG_MAGIC)
        | has(0, PNG_MAGIC)
        | (
            READS_WEBP
            & has(0, b"RIFF")
            & has(8, b"WEBPVP8")
            & (
                has(15, b" ")
                | (has(15, b"L") & lacks(24, 0x10))
                | (has(15, b"X") & lacks(20, 0x1A))
            )
        )
    )


def _jpeg_head(encoded):
    position, marker = 2, 0
    while marker not in _FRAME_MARKERS:
        # Bytes between segments are skipped, as libjpeg does.
        position = encoded.index(b"\xff", position) + 1
        marker = encoded[position]
        if marker not in _BARE_MARKERS and marker not in _FRAME_MARKERS:
            (length,) = struct.unpack_from(">H", encoded, position + 1)
            position += 1 + length
    height, width = struct.unpack_from(">HH", encoded, position + 4)
    return width, height, encoded.count(SCAN, position)
