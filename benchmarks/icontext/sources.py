"""Rows of the packages: a drawing, its texts and its origin.

There are three families: emoji art (a row for a concept in a style), icon
sets (logos among them) and Open Clip Art. Rows are lazy and have no pixels;
splits are made elsewhere.
"""

import collections
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


class Row(NamedTuple):
    """A drawing with its texts."""

    kind: str  # of the five kinds named in this module
    style: str  # icon set or art style
    source: str  # package@version
    license: str  # SPDX identifier
    name: str  # upstream's name, unique in the style
    captions: tuple[str, ...]  # distinct texts, the primary text first
    drawing: Drawing | None  # None once it is rendered
    concept: str = ""  # concept key of emoji art
    label: str = ""  # concept name of emoji art


def load_concepts(cache):
    """Every emoji without skin tone, as `{key: concepts.Concept}`."""
    annotations = {}
    for spec, part in (
        (packages.CLDR, "annotations"),
        (packages.CLDR_DERIVED, "annotationsDerived"),
    ):
        content = _read_json(cache, spec, part, "en", "annotations.json")
        annotations |= _by_key(content[part]["annotations"])
    more = _by_key(
        _read_json(cache, packages.EMOJILIB, "dist", "emoji-en-US.json")
    )
    emoji = _read_json(cache, packages.EMOJI_LIST, "data-by-emoji.json")
    return {
        key: concepts.Concept(
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
        for key, entry in _by_key(emoji).items()
        if "tts" in annotations.get(key, {}) and not concepts.has_skin_tone(key)
    }


@functools.cache
def load_collections(cache):
    """Iconify's description of each set: author, licence, palette, category."""
    return _read_json(cache, packages.ICONIFY, "collections.json")


def emoji_rows(cache, table, style):
    """Yields emoji art of a style, rows of the concepts of `table`."""
    if style == FLUENT_3D_STYLE:
        source, license_id = packages.FLUENT_3D, "MIT"
        drawn = _fluent_3d(cache)
    else:
        source = packages.ICONIFY
        license_id = load_collections(cache)[style]["license"]["spdx"]
        drawn = _emoji_icons(cache, table, style)
    for name, key, drawing in drawn:
        if key in table:
            yield Row(
                kind=EMOJI,
                style=style,
                source=source,
                license=license_id,
                name=name,
                captions=concepts.emoji_captions(table[key]),
                drawing=drawing,
                concept=key,
                label=table[key].name,
            )


def emoji_of_part(cache, table, styles, part):
    """Yields emoji art of styles with concepts of a part: train, val, test."""
    for style in styles:
        for row in emoji_rows(cache, table, style):
            if table[row.concept].split == part:
                yield row


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


def objection(row, descriptions):
    """Why the licence of a row is not permissive enough, or ""."""
    if row.license not in PERMISSIVE_LICENSES:
        return row.license or "none"
    # Emoji in 3D and clip art come with a notice of their own.
    terms = descriptions.get(row.style, {"license": {"url": "its package"}})
    return "" if terms["license"].get("url") else "no address of the licence"


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


def _by_key(entries):
    return {
        concepts.key_of_text(text): entry for text, entry in entries.items()
    }


def _fluent_3d(cache):
    """(name, concept key, drawing) of each picture."""
    folder = packages.path(cache, packages.FLUENT_3D, "assets")
    for file in sorted(folder.glob("*.webp")):
        key = concepts.key_of_codes(file.stem)
        yield file.stem, key, Drawing("bitmap", os.fspath(file))


def _emoji_icons(cache, table, style):
    """The same of an iconify set, an icon for each concept."""
    icons = _read_json(cache, packages.ICONIFY, "json", f"{style}.json")
    keys = _keys_by_icon_name(cache, icons, table)
    seen = set()
    for name, icon in icons["icons"].items():
        key = keys.get(name)
        if key not in seen:
            seen.add(key)
            yield name, key, Drawing("svg", _icon_svg(icons, icon))


def _keys_by_icon_name(cache, icons, table):
    """Concept key of each icon: by its code points if listed, else by name."""
    listed = icons.get("chars")
    if listed is None and icons["prefix"] == "fluent-emoji":
        # The same names as in its flat sibling, which lists code points.
        sibling = "fluent-emoji-flat.json"
        listed = _read_json(cache, packages.ICONIFY, "json", sibling)["chars"]
    keys = {}
    for key, concept in table.items():
        names = [concept.name, concept.name.replace("flag: ", "flag for ")]
        if "-" not in key:
            names.append(unicodedata.name(chr(int(key, 16)), ""))
        slugs = [concepts.slug(name) for name in names]
        for slug in slugs + [slug.replace("-", "") for slug in slugs]:
            keys.setdefault(slug, key)
    for codes, name in (listed or {}).items():
        # An icon listed under a skin tone, say, is not the concept that its
        # name suggests, but none of the table.
        keys[name] = concepts.key_of_codes(codes)
    return keys


def _icon_svg(icons, icon):
    sizes = {"left": 0, "top": 0, "width": 16, "height": 16}
    left, top, width, height = (
        icon.get(name, icons.get(name, default))
        for name, default in sizes.items()
    )
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
    return _phosphor_tags(cache) if style == "ph" else {}


def _phosphor_tags(cache):
    # The tags are published as a TypeScript declaration only.
    file = packages.path(cache, packages.PHOSPHOR, "dist", "icons.d.ts")
    entry = re.compile(
        r'readonly name: "([^"]+)";.*?readonly tags: readonly \[([^]]*)]',
        re.DOTALL,
    )
    tags = {}
    for name, listed in entry.findall(file.read_text(encoding="utf-8")):
        words = re.findall('"([^"]*)"', listed)
        # Without "*new*" and the like.
        words = [word for word in words if not word.startswith("*")]
        for weight in ("", "-thin", "-light", "-bold", "-fill", "-duotone"):
            tags[name + weight] = words
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
    keywords = dict.fromkeys(
        (item.text or "").strip().replace("_", " ")
        for item in work.iter(_RDF + "li")
    )
    keywords = [
        word
        for word in keywords
        if word and word.lower() not in ("hash", "unsorted")
    ]
    captions = [title]
    if keywords:
        captions.append(f"{title}: {', '.join(keywords[:8])}")
    if description.lower() != title.lower():
        captions.append(description[:200])
    return concepts.tidy_captions(captions)
