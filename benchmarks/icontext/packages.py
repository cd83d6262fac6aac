"""The upstream packages: names, fetching, paths.

`npm` and `apt-get` fetch them; no script of any package is run. The folder of a
package appears once it is complete, so an interrupted `fetch` continues where
it stopped.
"""

import os
import pathlib
import shutil
import subprocess
import sys
import tarfile
import tempfile
import urllib.parse

ICONIFY = "@iconify/json@2.2.535"
FLUENT_3D = "@lobehub/fluent-emoji-3d@1.1.0"
CLDR = "cldr-annotations-full@48.2.0"
CLDR_DERIVED = "cldr-annotations-derived-full@48.2.0"
EMOJILIB = "emojilib@4.0.3"
EMOJI_LIST = "unicode-emoji-json@0.9.0"
LUCIDE = "lucide-static@1.62.0"
TABLER = "@tabler/icons@3.51.0"
MDI = "@mdi/svg@7.4.47"
PHOSPHOR = "@phosphor-icons/core@2.1.1"
NPM_PACKAGES = (
    ICONIFY,
    FLUENT_3D,
    CLDR,
    CLDR_DERIVED,
    EMOJILIB,
    EMOJI_LIST,
    LUCIDE,
    TABLER,
    MDI,
    PHOSPHOR,
)

OPENCLIPART = "openclipart-svg@1:0.18+dfsg-19"
# Only for the texts of the licences that it carries, so any version will do.
COMMON_LICENSES = "base-files"
DEBIAN_PACKAGES = (OPENCLIPART, COMMON_LICENSES)


def fetch(cache, say=print):
    """Fetch and unpack every package that the cache lacks.

    Args:
        cache: folder, made if need be; about 170 MB down, 1 GB unpacked.
        say: called with a line of progress for each package.

    Raises:
        RuntimeError: a tool is missing or a package cannot be fetched.
    """
    jobs = [(spec, _fetch_npm) for spec in NPM_PACKAGES]
    jobs += [(spec, _fetch_debian) for spec in DEBIAN_PACKAGES]
    for number, (spec, fetch_one) in enumerate(jobs, start=1):
        target = _folder(cache, spec)
        if target.is_dir():
            say(f"[{number}/{len(jobs)}] {spec} is there")
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(
            dir=target.parent, prefix=".part-"
        ) as part:
            fetch_one(spec, pathlib.Path(part))
            os.replace(pathlib.Path(part) / "package", target)
        say(f"[{number}/{len(jobs)}] {spec} fetched")


def path(cache, spec, *parts):
    """A file or folder inside an unpacked package.

    Raises:
        FileNotFoundError: the package, or that part of it, is not there.
    """
    folder = _folder(cache, spec)
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{spec} is not in the cache {str(cache)!r}. "
            "Run `python -m benchmarks.icontext.build fetch` first."
        )
    found = folder.joinpath(*parts)
    if not found.exists():
        raise FileNotFoundError(f"{spec} has no {'/'.join(parts)!r}.")
    return found


def name_of(spec):
    """Package name without its version."""
    name, at, _ = spec.rpartition("@")
    return name if at and name else spec


def _folder(cache, spec):
    tidy = spec.lstrip("@").replace("/", "-").replace(":", "-")
    return pathlib.Path(cache) / tidy


def _fetch_npm(spec, part):
    if not hasattr(tarfile, "data_filter"):
        raise RuntimeError(
            "unpacking needs Python 3.11.4 or newer, whose `tarfile` keeps an "
            f"archive inside its folder; this is {sys.version.split()[0]}"
        )
    _run(
        "npm", "pack", "--silent", "--ignore-scripts", spec, cwd=part, what=spec
    )
    (archive,) = part.glob("*.tgz")
    with tarfile.open(archive) as tar:
        tar.extractall(part / "unpacked", filter="data")
    # An npm archive holds one folder, by custom called "package".
    (top,) = (part / "unpacked").iterdir()
    top.rename(part / "package")


def _fetch_debian(spec, part):
    name, _, version = spec.partition("@")
    wanted = f"{name}={version}" if version else name
    _run("apt-get", "download", wanted, cwd=part, what=spec)
    (archive,) = part.glob("*.deb")
    _run("dpkg-deb", "-x", archive.name, "package", cwd=part, what=spec)
    # <name>_<version>_<architecture>.deb, with ":" written as %3a.
    fetched = urllib.parse.unquote(archive.stem.split("_")[1])
    (part / "package" / "VERSION").write_text(fetched + "\n")


def _run(program, *arguments, cwd, what):
    if shutil.which(program) is None:
        raise RuntimeError(f"`{program}` is not installed; {what} needs it.")
    done = subprocess.run(
        [program, *arguments], cwd=cwd, capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(
            f"`{program}` could not fetch {what}: "
            f"{done.stderr.strip() or done.stdout.strip()}"
        )
