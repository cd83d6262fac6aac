"""Small data of every form that a suite reads, on disk."""

import io
import pathlib

import numpy as np
import shard_files
import tensorflow as tf
from PIL import Image


def picture(gray, ending="png"):
    """An encoded picture of a single gray."""
    content = io.BytesIO()
    Image.fromarray(np.full([4, 4, 3], gray, np.uint8)).save(content, ending)
    return content.getvalue()


def write_classes(folder, grays):
    """A folder with a subfolder a class; `grays` by its name."""
    for label, some in grays.items():
        (pathlib.Path(folder) / label).mkdir(parents=True)
        for number, gray in enumerate(some):
            path = pathlib.Path(folder) / label / f"{number}.png"
            path.write_bytes(picture(gray))


def write_tars(folder, samples, texts=()):
    """CLIP_benchmark's layout: `test/0.tar`, and files by name beside it.

    A sample is a gray and the content of its files by extension.
    """
    folder = pathlib.Path(folder)
    (folder / "test").mkdir(parents=True)
    members = [
        (f"s{number:07}.{ending}", tf.compat.as_bytes(content))
        for number, (gray, parts) in enumerate(samples)
        for ending, content in {"png": picture(gray), **parts}.items()
    ]
    shard_files.write_tar(folder / "test" / "0.tar", members)
    for name, text in dict(texts).items():
        (folder / name).write_text(text)


def write_open_clip(folder, names):
    """A package `open_clip` of class names and a template, "a {}"."""
    package = pathlib.Path(folder) / "open_clip"
    package.mkdir()
    (package / "__init__.py").write_text("raise ImportError")
    (package / "zero_shot_metadata.py").write_text(
        "OPENAI_IMAGENET_TEMPLATES = (lambda c: f'a {c}',)\n"
        f"IMAGENET_CLASSNAMES = {names}"
    )
