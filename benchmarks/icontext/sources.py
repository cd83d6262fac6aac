"""Rows of the packages: a drawing, its texts and its origin.

There are three families: emoji art (one row for a concept in a style), icon
sets (logos among them) and Open Clip Art. Rows are lazy and have no pixels;
splits are made elsewhere.
"""

import collections
import dataclasses
import functools
import json
import os
import re
import unicodedata
from typing import NamedTuple
from xml.etree import ElementTree

from benchmarks.icontext import concepts, packages

EMOJI = "emoji"
MONO_ICON = "mono icon"
LOGO = "logo"
COLOUR_ICON = "colour icon"
CLIP_ART = "clip art"

FLUENT_3D_STYLE = "fluent-3d"
CLIP_ART_STYLE = "openclipart"
CLIP_ART_LICENSE = "CC-PDDC"
# Licences that ask for no more than a notice. No CC-BY, no copyleft.
PERMISSIVE_LICENSES = frozenset(
    ("MIT", "Apache-2.0", "ISC", "CC0-1.0", CLIP_ART_LICENSE)
)
# Licences that no data set here takes.
NONCOMMERCIAL_LICENSES = frozenset(("CC-BY-NC-4.0", "CC-BY-NC-SA-4.0"))
# Sets that draw the emoji concepts. None of them may serve as an ordinary
# icon set, because those do not obey the split by concept.
EMOJI_SETS = frozenset(
    "noto noto-v1 fluent-emoji fluent-emoji-flat fluent-emoji-high-contrast "
    "twemoji openmoji emojione emojione-v1 emojione-monotone fxemoji "
    "streamline-emojis".split()
)

_DC = "{http://purl.org/dc/elements/1.1/}"
_RDF = "{http://www.w3.org/1999/02/22-rdf-syntax-ns#}"


class Drawing(NamedTuple):
    """A picture to render: SVG text, or the path of a file."""

    format: str  # "svg" (text), "file" (path of an SVG) or "bitmap" (path)
    data: str


@dataclasses.dataclass(frozen=True)
class Row:
    """One drawing with its texts.

    Attributes:
        kind: one of the five kinds named in this module.
        style: icon set or art style.
        source: package@version.
        license: SPDX identifier.
        name: upstream's name, unique in the style.
        captions: distinct texts, the primary one first.
        drawing: the picture to render; `None` once it is rendered.
        concept: concept key of emoji art, else "".
        label: concept name of emoji art, else "".
    """

    kind: str
    style: str
    source: str
    license: str
    name: str
    captions: tuple[str, ...]
    drawing: Drawing | None
    concept: str = ""
    label: str = ""


def load_concepts(cache):
    """Every emoji without skin tone, as `{key: concepts.Concept}`."""
    annotations = {}
    for spec, part in (
        (packages.CLDR, "annotations"),
        (packages.CLDR_DERIVED, "annotationsDerived"),
    ):
        content = _read_json(cache, spec, part, "en", "annotations.json")
        for text, entry in content[part]["annotations"].items():
            annotations[concepts.key_of_text(text)] = entry
    more = {
        concepts.key_of_text(text): words
        for text, words in _read_json(
            cache, packages.EMOJILIB, "dist", "emoji-en-US.json"
        ).items()
    }
    found = {}
    emoji = _read_json(cache, packages.EMOJI_LIST, "data-by-emoji.json")
    for text, entry in emoji.items():
        key = concepts.key_of_text(text)
        if concepts.has_skin_tone(key) or "tts" not in annotations.get(key, {}):
            continue
        found[key] = concepts.Concept(
            key=key,
            name=annotations[key]["tts"][0],
            keywords=tuple(annotations[key].get("default", ())),
            more_keywords=tuple(
                word.replace("_", " ")
                for word in more.get(key, ())
                if not concepts.has_symbol(word)
            ),
            category=entry["group"],
        )
    return found


@functools.cache
def load_collections(cache):
    """Iconify's description of each set: author, licence, palette, category."""
    return _read_json(cache, packages.ICONIFY, "collections.json")


def emoji_rows(cache, table, style):
    """Yields emoji art of a style, at most one row for a concept of `table`."""
    if style == FLUENT_3D_STYLE:
        yield from _fluent_3d_rows(cache, table)
        return
    if style not in EMOJI_SETS:
        raise ValueError(
            f"`style` must be {FLUENT_3D_STYLE!r} or one of "
            f"{sorted(EMOJI_SETS)}. Received: {style!r}"
        )
    icons = _read_json(cache, packages.ICONIFY, "json", f"{style}.json")
    license_id = load_collections(cache)[style]["license"]["spdx"]
    keys = _keys_by_icon_name(cache, icons, table)
    seen = set()
    for name, icon in icons["icons"].items():
        key = keys.get(name)
        if key is None or key in seen:
            continue
        seen.add(key)
        yield Row(
            kind=EMOJI,
            style=style,
            source=packages.ICONIFY,
            license=license_id,
            name=name,
            captions=concepts.emoji_captions(table[key]),
            drawing=Drawing("svg", _icon_svg(icons, icon)),
            concept=key,
            label=table[key].name,
        )


def icon_sets(cache):
    """Names of the iconify sets that are not emoji art, sorted."""
    return sorted(set(load_collections(cache)) - EMOJI_SETS)


def icon_rows(cache, style):
    """Yields the visible icons of an iconify set."""
    description = load_collections(cache)[style]
    icons = _read_json(cache, packages.ICONIFY, "json", f"{style}.json")
    tags = _icon_tags(cache, style)
    categories = collections.defaultdict(list)
    for category, names in icons.get("categories", {}).items():
        for name in names:
            categories[name].append(category)
    for name, icon in icons["icons"].items():
        if icon.get("hidden"):
            continue
        yield Row(
            kind=kind_of_set(description),
            style=style,
            source=packages.ICONIFY,
            license=description["license"].get("spdx", ""),
            name=name,
            captions=concepts.icon_captions(
                name, tags.get(name) or categories[name]
            ),
            drawing=Drawing("svg", _icon_svg(icons, icon)),
        )


def kind_of_set(description):
    """Kind of the icons of a set, from iconify's description of it."""
    if description.get("category") == "Logos":
        return LOGO
    return COLOUR_ICON if description.get("palette") else MONO_ICON


def clip_art_rows(cache):
    """Open Clip Art, with the title, keywords and description of each file."""
    root = packages.path(
        cache, packages.OPENCLIPART, "usr", "share", "openclipart", "svg"
    )
    for file in sorted(root.rglob("*.svg")):
        if file.is_symlink():
            continue
        captions = _clip_art_captions(file)
        if captions:
            yield Row(
                kind=CLIP_ART,
                style=CLIP_ART_STYLE,
                source=packages.OPENCLIPART,
                license=CLIP_ART_LICENSE,
                name=file.relative_to(root).as_posix(),
                captions=captions,
                drawing=Drawing("file", os.fspath(file)),
            )


def _read_json(cache, spec, *parts):
    with open(packages.path(cache, spec, *parts), encoding="utf-8") as file:
        return json.load(file)


def _fluent_3d_rows(cache, table):
    folder = packages.path(cache, packages.FLUENT_3D, "assets")
    for file in sorted(folder.glob("*.webp")):
        concept = table.get(concepts.key_of_codes(file.stem))
        if concept is not None:
            yield Row(
                kind=EMOJI,
                style=FLUENT_3D_STYLE,
                source=packages.FLUENT_3D,
                license="MIT",
                name=file.stem,
                captions=concepts.emoji_captions(concept),
                drawing=Drawing("bitmap", os.fspath(file)),
                concept=concept.key,
                label=concept.name,
            )


def _keys_by_icon_name(cache, icons, table):
    """Concept key of each icon: by its code points if listed, else by name."""
    listed = icons.get("chars")
    if listed is None and icons["prefix"] == "fluent-emoji":
        # The same names as in its flat sibling, which lists code points.
        sibling = "fluent-emoji-flat.json"
        listed = _read_json(cache, packages.ICONIFY, "json", sibling)["chars"]
    keys = {}
    for key, concept in table.items():
        for name in _icon_names(concept):
            keys.setdefault(name, key)
    for codes, name in (listed or {}).items():
        key = concepts.key_of_codes(codes)
        # An icon listed under a skin tone, say, is not the concept that its
        # name suggests.
        keys[name] = key if key in table else None
    return keys


def _icon_names(concept):
    """Names that icon sets give a concept."""
    names = [concept.name, concept.name.replace("flag: ", "flag for ")]
    if "-" not in concept.key:
        names.append(unicodedata.name(chr(int(concept.key, 16)), ""))
    slugs = [concepts.slug(name) for name in names]
    slugs += [slug.replace("-", "") for slug in slugs]
    return [slug for slug in slugs if slug]


def _icon_svg(icons, icon):
    def measure(name, default):
        return icon.get(name, icons.get(name, default))

    left, top = measure("left", 0), measure("top", 0)
    width, height = measure("width", 16), measure("height", 16)
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" '
        'xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{left} {top} {width} {height}" '
        f'width="{width}" height="{height}" color="#000">{icon["body"]}</svg>'
    )


def _icon_tags(cache, style):
    """Search terms that upstream publishes for the icons of a set."""
    if style == "lucide":
        return _read_json(cache, packages.LUCIDE, "tags.json")
    if style == "tabler":
        entries = _read_json(cache, packages.TABLER, "icons.json")
        tags = {
            name: [str(tag).replace("-", " ") for tag in entry["tags"]]
            for name, entry in entries.items()
        }
        return tags | {f"{name}-filled": tags[name] for name in tags}
    if style == "mdi":
        return {
            entry["name"]: [
                *(alias.replace("-", " ") for alias in entry["aliases"]),
                *entry["tags"],
            ]
            for entry in _read_json(cache, packages.MDI, "meta.json")
        }
    if style == "ph":
        return _phosphor_tags(cache)
    return {}


def _phosphor_tags(cache):
    # The tags are published as a TypeScript declaration only.
    file = packages.path(cache, packages.PHOSPHOR, "dist", "icons.d.ts")
    entry = re.compile(
        r'readonly name: "([^"]+)";.*?readonly tags: readonly \[([^]]*)]',
        re.DOTALL,
    )
    weights = ("", "-thin", "-light", "-bold", "-fill", "-duotone")
    tags = {}
    for name, listed in entry.findall(file.read_text(encoding="utf-8")):
        words = [
            word
            for word in re.findall('"([^"]*)"', listed)
            if not word.startswith("*")  # "*new*" and the like
        ]
        tags |= {name + weight: words for weight in weights}
    return tags


def _clip_art_captions(file):
    try:
        root = ElementTree.parse(file).getroot()
    except ElementTree.ParseError:
        return ()
    work = next((e for e in root.iter() if e.tag.endswith("}Work")), None)
    if work is None:
        return ()
    title = (work.findtext(_DC + "title") or "").strip()
    title = title or concepts.icon_captions(file.stem)[-1]
    description = (work.findtext(_DC + "description") or "").strip()
    keywords = [
        (item.text or "").strip().replace("_", " ")
        for item in work.iter(_RDF + "li")
    ]
    keywords = [
        word
        for word in dict.fromkeys(keywords)
        if word and word.lower() not in ("hash", "unsorted")
    ]
    captions = [title]
    if keywords:
        captions.append(f"{title}: {', '.join(keywords[:8])}")
    if description.lower() != title.lower():
        captions.append(description[:200])
    return concepts.tidy_captions(captions)
