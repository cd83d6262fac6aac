"""Pixels: render a drawing, reduce its colours, compare two pictures.

resvg-py is imported where something is rendered.
"""

import io
import re

import numpy as np
from PIL import Image

# Side of the square on which drawings are compared.
_SHAPE_SIZE = 14
_WHITE_FROM = 245
# Standard deviation of the pixel values below which nothing is to be seen,
# for instance a white drawing on the white ground.
_BLANK_BELOW = 2.0


def render(drawing, size):
    """Draw on a white ground.

    Args:
        drawing: `sources.Drawing`.
        size: side of the picture in pixels.

    Returns:
        uint8 [size, size, 3], or `None` where nothing is to be seen.

    Raises:
        ValueError: the drawing cannot be read.
    """
    try:
        if drawing.format == "bitmap":
            image = Image.open(drawing.data)
        else:
            png = _svg_to_png(**_svg_arguments(drawing, size))
            image = Image.open(io.BytesIO(bytes(png)))
        image = image.convert("RGBA")
    except (OSError, SyntaxError, ValueError) as error:
        raise ValueError(f"cannot render {drawing.data[:80]!r}") from error
    image.thumbnail((size, size), Image.Resampling.LANCZOS, reducing_gap=3.0)
    ground = Image.new("RGBA", (size, size), (255, 255, 255, 255))
    corner = ((size - image.width) // 2, (size - image.height) // 2)
    ground.alpha_composite(image, corner)
    pixels = np.asarray(ground.convert("RGB"))
    return None if pixels.std() < _BLANK_BELOW else pixels


def encode(pixels):
    """Bytes of a PNG file with exactly these pixels, uint8 [size, size, 3].

    Grey pictures have a single channel.
    """
    is_grey = (pixels == pixels[..., :1]).all()
    return _png(Image.fromarray(pixels[..., 0] if is_grey else pixels))


def decode(png):
    """uint8 [height, width, 3] of a PNG file's bytes."""
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def shape_vector(pixels):
    """Returns the appearance of a drawing, independent of place and scale.

    The picture is cropped to what is not white, scaled to a small square,
    centred and normalised: the product of two such vectors is the correlation
    of the two drawings.

    Args:
        pixels: uint8 [height, width, 3].

    Returns:
        float32 [588], of unit length unless the picture has a single colour.
    """
    inked = (pixels < _WHITE_FROM).any(axis=-1)
    rows = np.flatnonzero(inked.any(axis=1))
    columns = np.flatnonzero(inked.any(axis=0))
    if rows.size:
        pixels = pixels[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    ink = 255.0 - pixels.astype(np.float32)
    height, width, _ = ink.shape
    # [y, h] x [h, w, c] -> [y, w, c], then [x, w] from the left of each row.
    square = np.tensordot(_resampling_weights(height), ink, axes=1)
    square = _resampling_weights(width) @ square
    vector = square.ravel() - square.mean()
    return (vector / (np.linalg.norm(vector) + 1e-6)).astype(np.float32)


def _svg_to_png(**arguments):
    try:
        import resvg_py
    except ImportError as error:
        raise ModuleNotFoundError(
            "rendering needs resvg-py: pip install --editable '.[icontext]'"
        ) from error
    return resvg_py.svg_to_bytes(**arguments)


def _svg_arguments(drawing, size):
    if drawing.format == "file":
        with open(drawing.data, encoding="utf-8", errors="replace") as file:
            text = file.read()
        # Clip art is measured in millimetres or points as often as in pixels,
        # which needs a resolution. Twice the size leaves room for tall art.
        return {"svg_string": text, "width": 2 * size, "dpi": 96.0}
    width, height = re.search(
        r'viewBox="\S+ \S+ (\S+) (\S+)"', drawing.data
    ).groups()
    side = "width" if float(width) >= float(height) else "height"
    return {"svg_string": drawing.data, side: size}


def _png(image):
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True)
    return file.getvalue()


def _resampling_weights(length):
    """[_SHAPE_SIZE, length] triangle filter, wide enough not to alias."""
    scale = length / _SHAPE_SIZE
    centres = (np.arange(_SHAPE_SIZE, dtype=np.float32) + 0.5) * scale
    places = np.arange(length, dtype=np.float32) + 0.5
    distances = np.abs(places - centres[:, np.newaxis])
    weights = np.maximum(1.0 - distances / max(scale, 1.0), 0.0)
    return weights / weights.sum(axis=1, keepdims=True)
