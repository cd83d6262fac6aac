"""The five sources of photographs with texts, as rows.

| source | photographs | texts |
| --- | ---: | --- |
| fashion | 44,072 studio photographs of clothes | titles of a shop |
| flickr8k | 8,091 photographs of people and animals | five captions each |
| cc3m | 18,643 photographs of the web and some drawings | alternative texts |
| aerial | 10,921 photographs from above | up to five captions each |
| electronics | 9,599 product photographs | titles of a shop |

A source reads clones of its repositories (`repositories.py`), or a folder in
which it is packed: a zip with a JSON object for each photograph in
`pairs.jsonl`, and the i-th photograph in `00000i.jpg`.
"""

import csv
import io
import json
import zipfile
import zlib
from typing import NamedTuple

from benchmarks.phototext import repositories

TEST, VALIDATION = "test", "val"


class Photo(NamedTuple):
    """A photograph as its source has it.

    Attributes:
        source: a key of `SOURCES`.
        name: its file's, unique in the source.
        captions: its texts.
        content: bytes of an image file.
        kind: what it shows, if the source says it: the article.
        split: `TEST` or `VALIDATION` if the source has official splits and
            this is in one of them; "" elsewhere.
    """

    source: str
    name: str
    captions: tuple[str, ...]
    content: bytes
    kind: str = ""
    split: str = ""


class Judged(NamedTuple):
    """A photograph and a caption of flickr8k that people judged.

    Attributes:
        judges: "experts" or "crowd".
        photograph: name of its `Photo`.
        caption: its text.
        is_own: whether the caption is the photograph's own.
        ratings: marks of three experts, 1 to 4, or the crowd's share of yes.
    """

    judges: str
    photograph: str
    caption: str
    is_own: bool
    ratings: tuple[float, ...]


_FLICKR = "Flickr8k_text"
# A line has the names of a photograph and a caption, and three columns, of
# which these are ratings between the two numbers.
JUDGED = {
    "experts": (f"{_FLICKR}/ExpertAnnotations.txt", slice(2, 5), 1, 4),
    "crowd": (f"{_FLICKR}/CrowdFlowerAnnotations.txt", slice(2, 3), 0, 1),
}
# The names that official splits have.
_SPLITS = {
    "test": TEST,
    "dev": VALIDATION,
    "val": VALIDATION,
    "valid": VALIDATION,
}


def _flickr(clones):
    texts = repositories.Clone(clones, repositories.FLICKR_TEXT)
    photos = repositories.Clone(clones, repositories.FLICKR_PHOTOS)
    captions, splits = {}, {}
    for name, caption in _flickr_captions(texts).items():
        captions.setdefault(name.partition("#")[0], []).append(caption)
    for split in ("test", "dev"):
        path = f"{_FLICKR}/Flickr_8k.{split}Images.txt"
        for name in _lines(texts.read(path)):
            splits[name] = _SPLITS[split]
    for path, content in photos.contents(photos.paths("data/images", ".jpg")):
        name = path.rpartition("/")[2]
        if name in captions:
            found = captions[name]
            yield Photo(
                *("flickr8k", name, _tidy(found), content),
                split=splits.get(name, ""),
            )


def _flickr_captions(texts):
    """The captions by their names, "photograph#number"."""
    lines = _lines(texts.read(f"{_FLICKR}/Flickr8k.token.txt"))
    return dict(line.split("\t", 1) for line in lines)


def _conceptual(clones):
    clone = repositories.Clone(clones, repositories.CONCEPTUAL)
    paths = clone.paths("data", ".jpg")
    texts = [path.replace(".jpg", ".txt") for path in paths]
    captions = [content.decode() for _, content in clone.contents(texts)]
    for caption, (path, content) in zip(
        captions, clone.contents(paths), strict=True
    ):
        yield Photo("cc3m", path, _tidy([caption]), content)


def _fashion(clones):
    from pyarrow import parquet

    clone = repositories.Clone(clones, repositories.FASHION)
    table = parquet.read_table(io.BytesIO(clone.read("data/products.parquet")))
    products = {
        f"data/images/{row['product_id']}.jpg": row for row in table.to_pylist()
    }
    paths = [path for path in clone.paths("data/images") if path in products]
    for path, content in clone.contents(paths):
        row = products[path]
        # Gender, then master and sub-category, article, colour.
        parts = row["description"].split(" - ")
        kind = parts[2] if len(parts) > 2 else ""
        yield Photo("fashion", path, _tidy([row["title"]]), content, kind)


def _aerial(clones):
    texts = repositories.Clone(clones, repositories.AERIAL_TEXT)
    photos = repositories.Clone(clones, repositories.AERIAL_PHOTOS)
    rows = {}
    for split in ("train", "valid", "test"):
        for line in _lines(texts.read(f"data/textaug_{split}_rsicd.jsonl")):
            row = json.loads(line)
            # What people wrote ends in " ."; the rest is translated back.
            captions = [text for text in row["captions"] if text[-2:] == " ."]
            rows[row["filename"].rpartition("/")[2]] = captions, split
    folder = "src/datasets/RSICD/raw_dataset/RSICD_images"
    for path, content in photos.contents(photos.paths(folder, ".jpg")):
        captions, split = rows.get(path.rpartition("/")[2], ((), ""))
        if captions:
            yield Photo(
                *("aerial", path, _tidy(captions), content),
                split=_SPLITS.get(split, ""),
            )


def _electronics(clones):
    clone = repositories.Clone(clones, repositories.ELECTRONICS)
    table = clone.read("data/raw/electronics_products.csv").decode()
    rows = list(csv.DictReader(io.StringIO(table)))
    for path, content in clone.contents(clone.paths("data/images", ".jpg")):
        row = rows[int(path.rpartition("/")[2].removesuffix(".jpg"))]
        yield Photo(*("electronics", path, _tidy([row["name"]]), content))


# Readers of clones, and names of the packed files.
SOURCES = {
    "fashion": (_fashion, "fashion44k"),
    "flickr8k": (_flickr, "flickr8k"),
    "cc3m": (_conceptual, "cc3m"),
    "aerial": (_aerial, "rsicd"),
    "electronics": (_electronics, "electronics"),
}


def read(source, clones):
    """Yields the `Photo`s of a source from clones of its repositories."""
    return SOURCES[source][0](clones)


def read_packed(source, folder):
    """Yields the `Photo`s of a source from the folder of packed files.

    Raises:
        FileNotFoundError: the source is not there.
        RuntimeError: its file is damaged.
    """
    path = folder / f"{SOURCES[source][1]}.zip"
    if not path.exists():
        raise FileNotFoundError(f"{source!r} must be packed in '{path}'")
    try:
        with zipfile.ZipFile(path) as packed:
            for number, line in enumerate(_lines(packed.read("pairs.jsonl"))):
                row = json.loads(line)
                yield Photo(
                    *(source, row["file"], _tidy(row["captions"])),
                    packed.read(f"{number:06d}.jpg"),
                    row.get("article", ""),
                    _SPLITS.get(row.get("split"), ""),
                )
    except (KeyError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise RuntimeError(f"'{path}' is damaged: {error}") from error


def read_judged(clones):
    """The `Judged` pairs of flickr8k, from clones.

    Raises:
        RuntimeError: a file of judgements is missing or damaged.
    """
    texts, found = repositories.Clone(clones, repositories.FLICKR_TEXT), []
    captions = _flickr_captions(texts)
    for judges, (path, columns, least, most) in JUDGED.items():
        for number, line in enumerate(_lines(texts.read(path)), start=1):
            try:
                photograph, caption, *_ = fields = line.split("\t")
                (text,) = _tidy([captions[caption]])
                ratings = tuple(map(float, fields[columns]))
                if len(fields) != 5 or not all(
                    least <= rating <= most for rating in ratings
                ):
                    raise ValueError(ratings)
            except (KeyError, ValueError) as error:
                raise RuntimeError(
                    f"Line {number} of {path} must have a photograph, the name "
                    f"of a caption and ratings from {least} to {most}, between "
                    f"tabs. Received: {line!r}; clone the repository anew"
                ) from error
            is_own = caption.partition("#")[0] == photograph
            found.append(Judged(judges, photograph, text, is_own, ratings))
    return found


def _lines(content):
    return content.decode().splitlines()


def _tidy(captions):
    """Distinct captions with single spaces, without the empty ones."""
    tidy = (" ".join(caption.split()) for caption in captions)
    return tuple(dict.fromkeys(caption for caption in tidy if caption))
