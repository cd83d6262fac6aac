"""Paths and names of files, without opening any."""

import os
import re
from collections.abc import Iterable

PARTIAL = ".partial"
VIEWS = ".view"  # a folder, see `files.keep_views`


def is_remote(path: str | os.PathLike) -> bool:
    """Returns whether a path has a scheme, such as `gs://`."""
    return "://" in os.fspath(path)


def local_path(path: str | os.PathLike) -> str:
    """Removes a scheme of local files, `file://` or `local://`, from a path."""
    return re.sub("^(file://[^/]*|local://)", "", os.fspath(path))


def absolute(path: str) -> str:
    """Returns the path without relative parts; a remote path as it is."""
    return path if is_remote(path) else os.path.abspath(path)


def inside(folder: str, name: str) -> str:
    """Joins a folder and a name that comes from a file or a listing."""
    if not name or name in (".", "..") or {"/", "\0"} & {*name}:
        raise ValueError(
            f"Files in {folder} must have plain names, not paths. Received: "
            f"{name!r}; delete the file, or take the folder from a source that "
            "you trust"
        )
    path = os.path.join(folder, name)
    if not is_remote(local_path(path)):
        check_links([local_path(path)], local_path(folder))
    return path


def check_links(paths: Iterable[str], folder: str) -> None:
    """Raises ValueError if a path is a link that leads out of a folder.

    Also raises it for a device, pipe or socket: opening one may wait for ever.
    """
    root = os.path.realpath(folder)
    for path in paths:
        if os.path.exists(path) and not (
            os.path.isfile(path) or os.path.isdir(path)
        ):
            raise ValueError(
                f"{folder} may contain only files and folders. Received: "
                f"{path}, a device, pipe or socket; delete it"
            )
        if not os.path.islink(path):
            continue
        real = os.path.realpath(path)
        if os.path.commonpath([real, root]) != root:
            raise ValueError(
                f"Links within {folder} must not lead out of it: replace them "
                f"with copies of their targets. Received: {path}, to {real}"
            )


def checked(folder: str, names: Iterable[str]) -> list[str]:
    """Sorts and checks names in a remote folder, where any name is possible."""
    for name in names:
        place = folder
        for part in name.split("/"):
            place = inside(place, part)
    return sorted(names)


def local_tree(path: str) -> list[str]:
    """Returns the files under a local folder, relative to it and sorted."""
    return sorted(
        os.path.relpath(os.path.join(root, name), path)
        for root, _, names in os.walk(path)
        for name in names
    )
