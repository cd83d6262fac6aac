"""What stands beside the shards: stats.json, the tables and the licences.

The prose of README.md is written by hand; only the part between the two
marks below is replaced. LICENSES.md and licenses/ are made whole.
"""

import collections
import importlib.metadata
import json
import pathlib

from benchmarks import report
from benchmarks.icontext import packages, sources

TABLES_BEGIN = "<!-- tables: written by the builder -->"
TABLES_END = "<!-- end of tables -->"

_APACHE = "Apache-2.0.txt"
_MIT = "MIT.txt"
_ISC = "ISC.txt"
_CC0 = "CC0-1.0.txt"
_PUBLIC_DOMAIN = "CC-PDDC.txt"
_LICENSE_FILES = {
    "MIT": _MIT,
    "Apache-2.0": _APACHE,
    "ISC": _ISC,
    "CC0-1.0": _CC0,
    sources.CLIP_ART_LICENSE: _PUBLIC_DOMAIN,
}
# Sets whose own notice comes with a package that also lends texts.
_STYLE_FILES = {
    "lucide": "ISC-lucide.txt",
    "tabler": "MIT-tabler.txt",
    "mdi": "mdi.txt",
    "ph": "MIT-phosphor.txt",
}
# Packages that lend texts: what is taken, licence, file of the notice.
_TEXT_PACKAGES = (
    (
        packages.CLDR,
        "names and keywords of emoji",
        "Unicode-3.0",
        "Unicode-3.0.txt",
    ),
    (
        packages.CLDR_DERIVED,
        "names and keywords of emoji sequences",
        "Unicode-3.0",
        "Unicode-3.0.txt",
    ),
    (packages.EMOJILIB, "more keywords of emoji", "MIT", "MIT-emojilib.txt"),
    (
        packages.EMOJI_LIST,
        "list of emoji and their groups",
        "MIT",
        "MIT-unicode-emoji-json.txt",
    ),
    (packages.LUCIDE, "tags of the set lucide", "ISC", "ISC-lucide.txt"),
    (packages.TABLER, "tags of the set tabler", "MIT", "MIT-tabler.txt"),
    (packages.MDI, "tags of the set mdi", "Apache-2.0", "mdi.txt"),
    (packages.PHOSPHOR, "tags of the set ph", "MIT", "MIT-phosphor.txt"),
)


def statistics(splits, num_bytes):
    """Counts of a data set, ready for JSON.

    Args:
        splits: `{split: list of selection.Record}`.
        num_bytes: `{split: bytes of its shards}`.
    """
    styles = {}
    licenses = collections.Counter()
    for split, records in splits.items():
        for record in records:
            row = record.row
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
                "pairs": len(splits[split]),
                "bytes": num_bytes[split],
                "kinds": _by_kind(splits[split]),
            }
            for split in num_bytes
        },
        "bytes": sum(num_bytes.values()),
        "curated_share_of_pool": round(
            sum(r.row.kind == sources.EMOJI for r in splits["pool"])
            / len(splits["pool"]),
            4,
        ),
        "licenses": dict(sorted(licenses.items())),
        "styles": dict(sorted(styles.items())),
    }


def versions(cache):
    """Versions of everything that the bytes depend on."""
    debian = {
        packages.name_of(spec): packages.path(cache, spec, "VERSION")
        .read_text()
        .strip()
        for spec in packages.DEBIAN_PACKAGES
    }
    return {
        "npm": list(packages.NPM_PACKAGES),
        "debian": debian,
        "python": {
            name: importlib.metadata.version(name)
            for name in ("numpy", "pillow", "resvg-py", "tensorflow")
        },
    }


def write(cache, out, stats):
    """Write stats.json, the tables of README.md, LICENSES.md and licenses/."""
    out = pathlib.Path(out)
    readme = out / "README.md"
    text = readme.read_text(encoding="utf-8") if readme.exists() else ""
    readme.write_text(_with_tables(text, tables(stats)), encoding="utf-8")
    (out / "LICENSES.md").write_text(
        _licenses(sources.load_collections(cache), stats), encoding="utf-8"
    )
    folder = out / "licenses"
    folder.mkdir(exist_ok=True)
    for name, content in _license_texts(cache).items():
        (folder / name).write_text(content, encoding="utf-8")
    # Comes last: a folder with it is whole.
    (out / "stats.json").write_text(
        json.dumps(stats, indent=1, ensure_ascii=False) + "\n",
        encoding="utf-8",
    )


def tables(stats):
    """The part of README.md that lists what is in the data set."""
    composition = [
        (
            split,
            kind,
            f"{counts['pairs']:,}",
            f"{counts['pictures']:,}",
            f"{counts['captions']:,}",
            f"{counts['words']:.1f}",
            f"{counts['concepts']:,}" if counts["concepts"] else "",
            counts["styles"],
        )
        for split, entry in stats["splits"].items()
        for kind, counts in entry["kinds"].items()
    ]
    totals = [
        (split, f"{entry['pairs']:,}", f"{entry['bytes']:,}")
        for split, entry in stats["splits"].items()
    ]
    totals.append(
        (
            "all",
            f"{sum(e['pairs'] for e in stats['splits'].values()):,}",
            f"{stats['bytes']:,}",
        )
    )
    return "\n\n".join(
        (
            report.table(("split", "pairs", "bytes"), totals),
            report.table(
                (
                    "split",
                    "kind",
                    "pairs",
                    "pictures",
                    "primary captions",
                    "words each",
                    "concepts",
                    "styles",
                ),
                composition,
            ),
            f"Emoji art is {stats['curated_share_of_pool']:.1%} of the pool.",
            report.table(
                ("licence", "pairs"),
                [(name, f"{n:,}") for name, n in stats["licenses"].items()],
            ),
            report.table(
                ("turned away because", "pictures"),
                [(name, f"{n:,}") for name, n in stats["dropped"].items()],
            ),
            report.table(
                ("icons left out, by licence of their set", "icons"),
                [(name, f"{n:,}") for name, n in stats["left_out"].items()],
            ),
        )
    )


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


def _with_tables(text, new):
    block = f"{TABLES_BEGIN}\n\n{new}\n\n{TABLES_END}"
    if TABLES_BEGIN not in text:
        return f"{text.rstrip()}\n\n{block}\n".lstrip()
    before, _, rest = text.partition(TABLES_BEGIN)
    _, end, after = rest.partition(TABLES_END)
    if not end:
        raise ValueError(f"README.md has {TABLES_BEGIN!r} but no end mark")
    return before + block + after


def _licenses(descriptions, stats):
    pictures = []
    for style, entry in stats["styles"].items():
        author, address = _origin(style, descriptions)
        license_id = entry["license"]
        file = _STYLE_FILES.get(style, _LICENSE_FILES.get(license_id))
        pictures.append(
            (
                style,
                entry["kind"],
                f"[{license_id}](licenses/{file})" if file else license_id,
                author,
                address,
                entry["source"],
                sum(entry["pairs"].values()),
            )
        )
    texts = [
        (spec, what, f"[{license_id}](licenses/{file})")
        for spec, what, license_id, file in _TEXT_PACKAGES
    ]
    settings = stats["settings"]
    reduced = (
        ", and where it is in colour reduced to at most "
        f"{settings['num_colours']} colours"
        if settings["num_colours"]
        else ""
    )
    header = ("set", "kind", "licence", "author", "terms", "package", "pairs")
    sections = (
        "# Licences of the pictures and texts",
        "Written by `benchmarks/icontext/build.py`. Each record names its own "
        "package, set and licence in the features `source`, `style` and "
        "`license`.",
        "Every picture was changed: it was rendered at "
        f"{settings['size']} x {settings['size']} pixels on white{reduced}. "
        "Captions are names and keywords "
        "of the packages below, tidied; of a set without keywords, they are "
        "the names and categories of its icons. Open Clip Art has its own.",
        "Logos are trademarks of their owners. The licences below cover the "
        "drawings, not the marks, and some owners publish terms of their own "
        "for their mark.",
        "## Pictures",
        "For each set under MIT or ISC, the notice is that of the file in "
        "`licenses/`, with the copyright held by the author named here.",
        report.table(header, pictures),
        "## Texts",
        report.table(("package", "what", "licence"), texts),
    )
    return "\n\n".join(sections) + "\n"


def _origin(style, descriptions):
    """Author, and address of the terms, of a style."""
    if style == sources.FLUENT_3D_STYLE:
        return (
            "Microsoft Corporation; packed by LobeHub",
            "https://github.com/microsoft/fluentui-emoji",
        )
    if style == sources.CLIP_ART_STYLE:
        return (
            "authors named in each file upstream",
            "licenses/" + _PUBLIC_DOMAIN,
        )
    entry = descriptions[style]
    author = entry["author"]["name"]
    if "url" in entry["author"]:
        author = f"[{author}]({entry['author']['url']})"
    return author, entry["license"].get("url", "")


def _license_texts(cache):
    common = "usr", "share", "common-licenses"

    def read(spec, *parts):
        return packages.path(cache, spec, *parts).read_text(encoding="utf-8")

    texts = {
        _APACHE: read(packages.COMMON_LICENSES, *common, "Apache-2.0"),
        _CC0: read(packages.COMMON_LICENSES, *common, "CC0-1.0"),
        _PUBLIC_DOMAIN: read(
            packages.OPENCLIPART,
            *("usr", "share", "doc", "openclipart-svg", "copyright"),
        ),
        _MIT: _for_every_author(read(packages.TABLER, "LICENSE")),
        # Lucide's file goes on with the notice of a set that it grew from.
        _ISC: _for_every_author(
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
