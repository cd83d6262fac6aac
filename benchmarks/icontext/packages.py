"""The upstream packages: names, fetching, paths.

`npm` and `apt-get` fetch them; no script of any package is run. The folder of a
package appears once it is complete, so an interrupted `fetch` continues where
it stopped.
"""

import os
import pathlib
import subprocess
import tempfile

from benchmarks import report

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
    *(ICONIFY, FLUENT_3D, CLDR, CLDR_DERIVED, EMOJILIB, EMOJI_LIST),
    *(LUCIDE, TABLER, MDI, PHOSPHOR),
)

OPENCLIPART = "openclipart-svg@1:0.18+dfsg-19"


def fetch(cache):
    """Fetch and unpack every package that the cache lacks.

    Args:
        cache: folder, made if need be; about 170 MB down, 1 GB unpacked.

    Raises:
        RuntimeError: a tool is missing or a package cannot be fetched.
    """
    jobs = [(spec, _fetch_npm) for spec in NPM_PACKAGES]
    jobs.append((OPENCLIPART, _fetch_debian))
    for number, (spec, fetch_one) in enumerate(jobs, start=1):
        target = _folder(cache, spec)
        is_there = target.is_dir()
        if not is_there:
            target.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(
                dir=target.parent, prefix=".part-"
            ) as part:
                fetch_one(spec, pathlib.Path(part))
                os.replace(pathlib.Path(part) / "package", target)
        what = "is there" if is_there else "fetched"
        report.log(f"[{number}/{len(jobs)}] {spec} {what}")


def path(cache, spec, *parts):
    """A file or folder inside an unpacked package.

    Raises:
        FileNotFoundError: the package, or that part of it, is not there.
    """
    found = _folder(cache, spec).joinpath(*parts)
    if not found.exists():
        raise FileNotFoundError(
            f"{'/'.join((spec, *parts))} is not in the cache {str(cache)!r}. "
            "Run `python -m benchmarks.icontext.build fetch` first."
        )
    return found


def _folder(cache, spec):
    tidy = spec.lstrip("@").replace("/", "-").replace(":", "-")
    return pathlib.Path(cache) / tidy


def _fetch_npm(spec, part):
    _run("npm", "pack", "--loglevel=error", "--ignore-scripts", spec, cwd=part)
    (archive,) = part.glob("*.tgz")
    (part / "package").mkdir()
    # An archive of npm holds a single folder, by custom called "package".
    _run(
        *("tar", "-xzf", archive.name, "-C", "package"),
        *("--strip-components=1", "--no-same-owner", "--no-same-permissions"),
        cwd=part,
    )


def _fetch_debian(spec, part):
    _run("apt-get", "download", spec.replace("@", "="), cwd=part)
    (archive,) = part.glob("*.deb")
    _run("dpkg-deb", "-x", archive.name, "package", cwd=part)


def _run(*command, cwd):
    try:
        subprocess.run(
            command, cwd=cwd, capture_output=True, text=True, check=True
        )
    except FileNotFoundError as error:
        raise RuntimeError(
            f"`{command[0]}` is not installed; fetching needs npm, apt-get, "
            "dpkg-deb and tar"
        ) from error
    except subprocess.CalledProcessError as error:
        raise RuntimeError(
            f"`{' '.join(command)}` failed: {error.stderr or error.stdout}"
        ) from error
