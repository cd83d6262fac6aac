"""The public git repositories that hold the photographs, at fixed commits.

A clone is read by `git cat-file` at its commit; nothing is checked out, and no
file of a repository is run. A clone appears in the cache once it is complete.
"""

import os
import pathlib
import subprocess
import tempfile
from typing import NamedTuple

from benchmarks import report


class Repository(NamedTuple):
    """A repository on GitHub, at a commit that may be in its history alone."""

    name: str
    commit: str

    @property
    def url(self):
        """Address to clone from."""
        return f"https://github.com/{self.name}"

    @property
    def folder(self):
        """Name of its clone in a folder of clones."""
        return self.name.replace("/", "+")


FLICKR_PHOTOS = Repository(
    "RlNZLER/Image-Text-Matching", "56a15d913c3f290e2ee896386ece6076c1eea02e"
)
FLICKR_TEXT = Repository(
    "nicnl31/image-captioning-flickr8k",
    "0dba7b5b6427c3c6695b095675fc16271503bbb8",
)
CONCEPTUAL = Repository(
    "heon01px2020/csci1470-prismer-final-project",
    "e059e1606aef04521e399c2b421438a46658a018",
)
FASHION = Repository(
    "tanmay0401/multimodal-recommendation-engine",
    "a86a10b3b5cc961819c7912124d0a86fe64c6f67",
)
AERIAL_PHOTOS = Repository(
    "RitaRamo/image-caption-remote-sensing-images",
    "160b24710763499705548eaf295cedc71c9c63d9",
)
AERIAL_TEXT = Repository(
    "arampacha/CLIP-rsicd", "0f3abaf052e6689d2ad46abc85bc1df497ff6734"
)
ELECTRONICS = Repository(
    "smdsoud-oss/AI---Recommedation-system",
    "2f6d7391ef183d46c81107056b728b05ee4665cf",
)
ALL = (
    *(FLICKR_PHOTOS, FLICKR_TEXT, CONCEPTUAL, FASHION),
    *(AERIAL_PHOTOS, AERIAL_TEXT, ELECTRONICS),
)


def fetch(clones):
    """Clones every repository that a folder lacks.

    Args:
        clones: folder, made if need be; 2 GB if all are cloned.

    Raises:
        RuntimeError: git is missing, or a repository is not cloned whole.
    """
    for number, repository in enumerate(ALL, start=1):
        target = clones / repository.folder
        if is_there := target.exists():
            Clone(clones, repository)  # refuses what was cloned in part
        else:
            clones.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(
                dir=clones, prefix=".part-"
            ) as part:
                clone = pathlib.Path(part) / "clone"
                _git(None, "clone", "--quiet", "--bare", repository.url, clone)
                _git(clone, "cat-file", "-e", repository.commit)
                os.replace(clone, target)
        what = "is there" if is_there else "cloned"
        report.log(f"[{number}/{len(ALL)}] {repository.name} {what}")


class Clone:
    """A clone, read at its repository's commit.

    Args:
        clones: folder of the clones.
        repository: `Repository`.

    Raises:
        FileNotFoundError: there is no clone.
        RuntimeError: it lacks the commit.
    """

    def __init__(self, clones, repository):
        self.repository = repository
        self._path = clones / repository.folder
        if not self._path.exists():
            raise FileNotFoundError(
                f"'{self._path}' must be a clone of {repository.url}. "
                "Received: no such folder; run `python -m "
                "benchmarks.phototext.build fetch` or clone it there"
            )
        if (self._path / ".git").exists():
            self._path /= ".git"
        kind = repository.commit + "^{commit}"
        try:
            _git(self._path, "cat-file", "-e", kind)
        except RuntimeError as error:
            raise RuntimeError(
                f"'{self._path}' must have the commit {repository.commit} of "
                f"{repository.name}. Received: a clone without it; a shallow "
                "clone has the last commit alone, so clone all of it"
            ) from error
        listed = _git(self._path, "ls-tree", "-r", "-z", repository.commit)
        # "mode blob id<tab>path", of each file.
        entries = [
            line.split("\t") for line in listed.decode().split("\0")[:-1]
        ]
        self._ids = {path: facts.split()[2] for facts, path in entries}

    def paths(self, folder, suffix=""):
        """The files of a folder and those below it, sorted."""
        return sorted(
            path
            for path in self._ids
            if path.startswith(f"{folder}/") and path.endswith(suffix)
        )

    def read(self, path):
        """The bytes of a file."""
        ((_, content),) = self.contents([path])
        return content

    def contents(self, paths):
        """Yields each path with its file's bytes, from one process of git.

        Raises:
            RuntimeError: the clone lacks a file, as a partial clone does.
        """
        command = ["git", "--git-dir", self._path, "cat-file", "--batch"]
        # No promisor remote is asked for what a partial clone lacks.
        environment = os.environ | {"GIT_NO_LAZY_FETCH": "1"}
        with subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        ) as process:
            for path in paths:
                # By its id, as git would read all of a folder for a path.
                identifier = self._ids.get(path, path)
                process.stdin.write(f"{identifier}\n".encode())
                process.stdin.flush()
                header = process.stdout.readline().split()
                if header[1:2] != [b"blob"]:
                    process.kill()
                    raise RuntimeError(
                        f"'{self._path}' must have every file of "
                        f"{self.repository.name} at {self.repository.commit}. "
                        f"Received: none of {path!r}; clone all of it"
                    )
                content = process.stdout.read(int(header[2]))
                process.stdout.read(1)  # the end of the line
                yield path, content
            process.stdin.close()


def _git(folder, *arguments):
    where = ("--git-dir", folder) if folder else ()
    try:
        result = subprocess.run(
            ["git", *where, *arguments], capture_output=True, check=True
        )
    except FileNotFoundError as error:
        raise RuntimeError(
            "`git` is not installed; the photographs are in git repositories"
        ) from error
    except subprocess.CalledProcessError as error:
        words = " ".join(map(str, arguments))
        said = error.stderr.decode(errors="replace").strip()
        raise RuntimeError(f"`git {words}` failed: {said}") from error
    return result.stdout
