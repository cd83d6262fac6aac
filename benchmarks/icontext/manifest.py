"""A data set's files: shards, stats.json, tables and licences.

The prose of README.md is written by hand: only its block of tables is replaced.
LICENSES.md and licenses/ are made whole.
"""

import collections
import importlib.metadata
import json
import pathlib

from benchmarks import report
from benchmarks.icontext import packages, selection, sources

_COMMAND = "python -m benchmarks.icontext.build"
_TEMPLATES = pathlib.Path(__file__).with_name("templates")

# Files of notices, by licence; for sets whose notice comes with a package that
# also provides texts, by style.
_FILES = {
    "MIT": "MIT.txt",
    "Apache-2.0": "Apache-2.0.txt",
    "ISC": "ISC.txt",
    "CC0-1.0": "CC0-1.0.txt",
    sources.CLIP_ART_LICENSE: "CC-PDDC.txt",
    "lucide": "ISC-lucide.txt",
    "tabler": "MIT-tabler.txt",
    "mdi": "mdi.txt",
    "ph": "MIT-phosphor.txt",
}
_UNICODE = ("Unicode-3.0", "Unicode-3.0.txt")
# Packages that provide texts: use, licence, file of the notice.
_TEXT_PACKAGES = (
    (packages.CLDR, "names and keywords of emoji", *_UNICODE),
    (packages.CLDR_DERIVED, "names and keywords of emoji sequences", *_UNICODE),
    (packages.EMOJILIB, "more keywords of emoji", "MIT", "MIT-emojilib.txt"),
    (
        *(packages.EMOJI_LIST, "list of emoji and their groups"),
        *("MIT", "MIT-unicode-emoji-json.txt"),
    ),
    (packages.LUCIDE, "tags of the set lucide", "ISC", "ISC-lucide.txt"),
    (packages.TABLER, "tags of the set tabler", "MIT", "MIT-tabler.txt"),
    (packages.MDI, "tags of the set mdi", "Apache-2.0", "mdi.txt"),
    (packages.PHOSPHOR, "tags of the set ph", "MIT", "MIT-phosphor.txt"),
)


def write(cache, out, splits, settings, drops, left_out, num_pool_shards=1):
    """Write a data set, stats.json last: a folder that has it is whole.

    Args:
        cache: folder that `packages.fetch` filled.
        out: folder to write to.
        splits: `{split: list of selection.Record}`.
        settings: as stats.json lists them; `seed` is that of the order.
        drops: counts of pictures turned away, by reason.
        left_out: counts of icons left out, by licence.
        num_pool_shards: files of the pool; the other splits have one each.

    Returns:
        The contents of stats.json.

    Raises:
        ValueError: two rows have the same id.
    """
    from benchmarks.icontext import shards  # imports TensorFlow

    identifiers = collections.Counter(
        record.identifier for records in splits.values() for record in records
    )
    if len(identifiers) < identifiers.total():
        raise ValueError(f"two rows have id {identifiers.most_common(1)[0][0]}")
    out = pathlib.Path(out)
    (out / "licenses").mkdir(parents=True, exist_ok=True)
    sizes = {}
    for split, records in splits.items():
        count = num_pool_shards if split == "pool" else 1
        records = selection.shuffled(records, split, settings["seed"])
        sizes[split] = shards.write(out, split, records, count)
    stats = {
        **_statistics(splits, sizes),
        "settings": settings,
        "dropped": dict(sorted(drops.items())),
        "left_out": dict(sorted(left_out.items())),
        "versions": versions(cache),
    }
    report.write_block(out / "README.md", "tables", tables(stats), _COMMAND)
    texts = {"LICENSES.md": _licenses(cache, stats)}
    for name, content in _license_texts(cache).items():
        texts[f"licenses/{name}"] = content
    texts["stats.json"] = json.dumps(stats, indent=1, ensure_ascii=False) + "\n"
    for name, content in texts.items():
        (out / name).write_text(content, encoding="utf-8")
    return stats


def versions(cache):
    """Versions of everything that the bytes depend on."""
    return {
        "npm": list(packages.NPM_PACKAGES),
        "debian": {
            spec.partition("@")[0]: packages.path(cache, spec, "VERSION")
            .read_text()
            .strip()
            for spec in packages.DEBIAN_PACKAGES
        },
        "python": {
            name: importlib.metadata.version(name)
            for name in ("numpy", "pillow", "resvg-py", "tensorflow")
        },
    }


def tables(stats):
    """Returns the part of README.md that lists the contents of the data set."""
    return report.render(
        _TEMPLATES, "tables.md", **stats, number="{:,}".format
    ).strip()


def _statistics(splits, sizes):
    styles, licenses = {}, collections.Counter()
    for split, records in splits.items():
        for row in (record.row for record in records):
            licenses[row.license] += 1
            style = styles.setdefault(
                row.style,
                {
                    "kind": row.kind,
                    "source": row.source,
                    "license": row.license,
                    "pairs": collections.Counter(),
                },
            )
            style["pairs"][split] += 1
    return {
        "splits": {
            split: {
                "pairs": len(records),
                "bytes": sizes[split],
                "kinds": _by_kind(records),
            }
            for split, records in splits.items()
        },
        "bytes": sum(sizes.values()),
        **_of_pool(splits["pool"]),
        "licenses": dict(sorted(licenses.items())),
        "styles": dict(sorted(styles.items())),
    }


def _of_pool(records):
    noise = collections.Counter(record.noise or "pairs" for record in records)
    if noise["pairs"] < len(records):
        return {"noise_of_pool": dict(sorted(noise.items()))}
    is_emoji = [record.row.kind == sources.EMOJI for record in records]
    return {"curated_share_of_pool": round(sum(is_emoji) / len(is_emoji), 4)}


def _by_kind(records):
    groups = collections.defaultdict(list)
    for record in records:
        groups[record.row.kind].append(record)
    return {
        kind: {
            "pairs": len(group),
            "pictures": len({r.png for r in group}),
            "captions": len({r.row.captions[0] for r in group}),
            "texts": len({c for r in group for c in r.row.captions}),
            "words": round(
                sum(len(r.row.captions[0].split()) for r in group) / len(group),
                2,
            ),
            "concepts": len({r.row.concept for r in group} - {""}),
            "styles": len({r.row.style for r in group}),
            "png_bytes": sum(len(r.png) for r in group),
        }
        for kind, group in sorted(groups.items())
    }


def _licenses(cache, stats):
    descriptions = sources.load_collections(cache)

    def origin(style):
        """Author, and address of the terms."""
        if style == sources.FLUENT_3D_STYLE:
            return (
                "Microsoft Corporation; packed by LobeHub",
                "https://github.com/microsoft/fluentui-emoji",
            )
        if style == sources.CLIP_ART_STYLE:
            file = _FILES[sources.CLIP_ART_LICENSE]
            return "authors named in each file upstream", f"licenses/{file}"
        entry = descriptions[style]
        author = entry["author"]["name"]
        if "url" in entry["author"]:
            author = f"[{author}]({entry['author']['url']})"
        return author, entry["license"].get("url", "")

    return report.render(
        _TEMPLATES,
        "LICENSES.md",
        **stats,
        origin=origin,
        licence=lambda name, file: (
            f"[{name}](licenses/{file})" if file else name
        ),
        files=_FILES,
        text_packages=_TEXT_PACKAGES,
    )


def _license_texts(cache):
    common = "usr", "share", "common-licenses"
    documents = "usr", "share", "doc", "openclipart-svg"

    def read(spec, *parts):
        return packages.path(cache, spec, *parts).read_text(encoding="utf-8")

    texts = {
        "Apache-2.0.txt": read(packages.COMMON_LICENSES, *common, "Apache-2.0"),
        "CC0-1.0.txt": read(packages.COMMON_LICENSES, *common, "CC0-1.0"),
        "CC-PDDC.txt": read(packages.OPENCLIPART, *documents, "copyright"),
        "MIT.txt": _for_every_author(read(packages.TABLER, "LICENSE")),
        # Lucide's file continues with the notice of the set it is based on.
        "ISC.txt": _for_every_author(
            read(packages.LUCIDE, "LICENSE").partition("\n---")[0] + "\n"
        ),
    }
    for spec, _, _, name in _TEXT_PACKAGES:
        texts[name] = read(spec, "LICENSE")
    return texts


def _for_every_author(text):
    lines = [
        "Copyright (c) the author that LICENSES.md names for the set"
        if line.startswith("Copyright")
        else line
        for line in text.splitlines()
    ]
    return "\n".join(lines) + "\n"
