"""Small pictures in every format that can be decoded."""

import io

import numpy as np
import tensorflow as tf
from PIL import Image

HEIGHT, WIDTH = 12, 16


def smooth_picture(seed=0):
    """uint8 [12, 16, 3] that survives JPEG well."""
    rng = np.random.default_rng(seed)
    corners = rng.integers(0, 256, (2, 2, 3), np.uint8)
    return np.asarray(
        Image.fromarray(corners).resize((WIDTH, HEIGHT), Image.BILINEAR)
    )


def encode(image, kind, **settings):
    """A picture, as an array or Pillow's, encoded by Pillow."""
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image)
    file = io.BytesIO()
    image.save(file, kind, **settings)
    return file.getvalue()


def every_kind(seed=0):
    """A picture in every form that can be decoded, by name."""
    rgb = Image.fromarray(smooth_picture(seed))
    other = Image.fromarray(smooth_picture(seed + 1000))
    more = {"save_all": True, "append_images": [other, rgb]}
    rgba = rgb.convert("RGBA")
    rgba.putalpha(rgb.convert("L"))
    wide = np.asarray(rgb).astype(np.uint16) * 256 + 255
    return {
        "jpeg": encode(rgb, "JPEG", quality=95),
        "progressive": encode(rgb, "JPEG", quality=95, progressive=True),
        "grey jpeg": encode(rgb.convert("L"), "JPEG", quality=95),
        "cmyk": encode(rgb.convert("CMYK"), "JPEG", quality=95),
        "png": encode(rgb, "PNG"),
        "apng": encode(rgb, "PNG", **more),
        "palette": encode(rgb.convert("P"), "PNG"),
        "grey alpha": encode(rgba.convert("LA"), "PNG"),
        "rgba": encode(rgba, "PNG"),
        "one bit": encode(rgb.convert("1"), "PNG"),
        "16 bits": tf.io.encode_png(wide).numpy(),
        "gif": encode(rgb.convert("P"), "GIF"),
        "animated gif": encode(rgb.convert("P"), "GIF", **more),
        "bmp": encode(rgb, "BMP"),
        "grey bmp": encode(rgb.convert("L"), "BMP"),
        "webp": encode(rgb, "WEBP", quality=95),
        "lossless webp": encode(rgb, "WEBP", lossless=True),
        "webp alpha": encode(rgba, "WEBP", quality=95),
        "lossless webp alpha": encode(rgba, "WEBP", lossless=True, exact=True),
        "animated webp": encode(rgb, "WEBP", lossless=True, **more),
    }
