"""Small data of every form that a suite reads, on disk."""

import io
import json
import pathlib
import tarfile

import numpy as np
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
    with tarfile.open(folder / "test" / "0.tar", "w") as tar:
        for number, (gray, parts) in enumerate(samples):
            for ending, content in {"png": picture(gray), **parts}.items():
                info = tarfile.TarInfo(f"s{number:07}.{ending}")
                data = (
                    content if isinstance(content, bytes) else content.encode()
                )
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    for name, text in dict(texts).items():
        (folder / name).write_text(text)


def write_karpathy(folder, images):
    """`dataset.json` and pictures; an image is a gray, split and captions."""
    folder = pathlib.Path(folder)
    (folder / "val").mkdir(parents=True)
    described = []
    for number, (gray, split, captions) in enumerate(images):
        name = f"{number}.png"
        (folder / "val" / name).write_bytes(picture(gray))
        described.append(
            {
                "filepath": "val",
                "filename": name,
                "split": split,
                "sentences": [{"raw": text} for text in captions],
            }
        )
    path = folder / "dataset.json"
    path.write_text(json.dumps({"images": described}))
    return str(path)


def write_crossmodal(folder, images):
    """`captions.jsonl` and pictures; an image is a gray and its captions."""
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True)
    lines = []
    for number, (gray, captions) in enumerate(images):
        (folder / f"{number}.jpg").write_bytes(picture(gray, "jpeg"))
        described = {
            language: {"caption": some} for language, some in captions.items()
        }
        lines.append(json.dumps({"image/key": str(number), **described}))
    path = folder / "captions.jsonl"
    path.write_text("\n".join(lines))
    return str(path)


def write_open_clip(folder, names):
    """A package `open_clip` of class names and a template, "a {}"."""
    package = pathlib.Path(folder) / "open_clip"
    package.mkdir()
    (package / "__init__.py").write_text("raise ImportError")
    (package / "zero_shot_metadata.py").write_text(
        "OPENAI_IMAGENET_TEMPLATES = (lambda c: f'a {c}',)\n"
        f"IMAGENET_CLASSNAMES = {names}"
    )
