"""Reads the sidecars of a store, refusing those that do not fit.

Joint scores depend on all rows of a batch, so a sidecar has a reference's
embeddings, with the scale and bias of its logits, instead of its scores.
`data/sidecars/file_format.py` describes a file.
"""

import functools
import hashlib
import math
import os
import shlex

import numpy as np

from jest_tf import files
from jest_tf.config import imports
from jest_tf.data import artefacts, stores
from jest_tf.data.sidecars import file_format
from jest_tf.files import retries

SUFFIX = ".sidecar"

# Each mapped file uses a file descriptor; processes often may have only 1,024.
_MAX_MAPPED = 256
# Limit on bytes fetched from buckets to compare checksums; this takes seconds.
_FETCHED = 2**28


class Sidecars:
    """The sidecars of a store, as a single array of rows; thread-safe.

    All heads are checked on opening; a file is mapped when it is first read.

    Args:
        store: the records, from `stores.open_store`.
        directory: folder of the sidecars; "" looks beside each shard.
        expected: the reference; None takes any that all sidecars share.

    Attributes:
        description: of the reference, a `file_format.Description`.
        fingerprint, dim, scale, bias: of the description.
        dtype: of the embeddings, "float16" or "float32".
    """

    def __init__(
        self,
        store: stores.Store,
        directory: str = "",
        expected: file_format.Description | None = None,
    ):
        self.store = store
        shards = range(len(store.shards.paths))
        find = functools.partial(_find, store, directory, expected)
        opened = retries.map_parallel(find, shards, True)  # for slow storage
        self._paths, headers, self._heads = zip(*opened, strict=True)
        self.description, self.dtype = headers[0].description, headers[0].dtype
        for shard, path, header in zip(
            shards, self._paths, headers, strict=True
        ):
            wanted = make_header(
                store, shard, expected or self.description, self.dtype
            )
            try:
                file_format.check_header(path, header, wanted)
            except ValueError as error:
                command = _command(store, directory, expected)
                raise ValueError(
                    f"{error}; `{command} --overwrite` rewrites it"
                ) from error
        about = self.description
        self.fingerprint, self.dim = about.fingerprint, about.dim
        self.scale, self.bias = about.scale, about.bias
        self._map = functools.lru_cache(_MAX_MAPPED)(artefacts.read_again)

    def __len__(self) -> int:
        return len(self.store)

    @property
    def is_remote(self) -> bool:
        """True if any sidecar is on a bucket; pages of it are cached."""
        return any(map(files.is_remote, self._paths))

    @property
    def identity(self) -> str:
        """A string that is equal for equal descriptions and dtypes."""
        shown = self.description._replace(
            # Rounded, as headers with different last digits are accepted.
            scale=f"{self.scale:.4g}",
            bias=f"{self.bias:.4g}",
            name="",
        )
        text = repr((shown, self.dtype))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def read(
        self, rows: np.ndarray, captions: np.ndarray, ids: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Reads the embeddings of records, in any order, repeats allowed.

        Args:
            rows: int64 [k], rows of the store; sorted rows are read fastest.
            captions: int64 [k], the index of a caption of each record.
            ids: int64 [k], the records' ids.

        Returns:
            The embeddings of the images and of the captions, each [k, D] in
            the sidecars' dtype.
        """
        numbers, image, text = self._read(
            rows,
            ids,
            lambda part, local, starts, ends, places: np.where(
                captions[places] < ends - starts, captions[places], -1
            ),
        )
        self._require(
            numbers >= 0,
            rows,
            "an embedding of caption {}. Received: none, as the record could "
            "not be read when the sidecar was written, or has fewer captions",
            captions,
        )
        return image, text

    def read_numbered(
        self, rows: np.ndarray, numbers: np.ndarray | None, ids: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Reads the embeddings of records and of captions chosen by hashes.

        Chooses the same captions as `reader.Reader`. Marks records without an
        embedding or a nonblank caption instead of refusing them.

        Args:
            rows: as in `read`, like `ids`.
            numbers: int64 [k], `reader.caption_numbers`. None chooses each
                record's best caption, the first of those that are most similar
                to its image.

        Returns:
            The index of each record's caption, int64 [k], -1 if the record was
            unreadable or has no nonblank caption; and the embeddings of the
            images and captions, each [k, D] in the sidecars' dtype, arbitrary
            where the index is -1.
        """

        def choose(part, local, starts, ends, places):
            if numbers is None:
                return _best(part["text"], starts, ends, part["image"][local])
            return _numbered(part["text"], starts, ends, numbers[places])

        return self._read(rows, ids, choose)

    def verify(self, most: float = math.inf) -> None:
        """Compares the checksums of files, which reads the files.

        The shards are not read: a sidecar of other content is refused on
        opening, by the checksums in the shard's index, and a record that has
        changed since it was indexed is a fault when it is read.

        Skips those beyond `most` bytes, or beyond 256 MiB on buckets.
        """
        chosen = []
        for is_remote, bound in ((False, most), (True, min(most, _FETCHED))):
            paths = [p for p in self._paths if files.is_remote(p) == is_remote]
            sizes = np.cumsum([files.stat(path)[0] for path in paths])
            chosen += paths[: np.searchsorted(sizes, bound, side="right")]
        check = functools.partial(
            artefacts.read, kind=file_format.KIND, verify=True
        )
        retries.map_parallel(check, chosen, True)

    def read_shard(self, shard: int) -> dict[str, np.ndarray]:
        """Returns the arrays of a shard's sidecar, unchecked, and `valid`."""
        part = {
            name: np.asarray(values)
            for name, values in self._part(shard).items()
        }
        rows = np.arange(len(part["ids"]))
        return part | {"valid": ~_is_zero(part["image"], rows)}

    def valid(self, rows: np.ndarray) -> np.ndarray:
        """Returns which rows have embeddings; int64 [k] -> bool [k]."""
        valid = np.empty(len(rows), bool)
        for places, part, local in self._excerpts(rows):
            valid[places] = ~_is_zero(part["image"], local)
        return valid

    def _read(self, rows, ids, choose):
        """Reads as `read_numbered`, with the captions that `choose` returns."""
        captions = np.empty(len(rows), np.int64)
        image = np.empty([len(rows), self.dim], self.dtype)
        text = np.empty_like(image)
        for places, part, local in self._excerpts(rows):
            self._require(
                part["ids"][local] == ids[places],
                rows[places],
                "the record's id, {}. Received: {}",
                ids[places],
                part["ids"][local],
            )
            starts, ends = part["offsets"][local], part["offsets"][local + 1]
            self._check_spans(part, rows[places], starts, ends)
            chosen = choose(part, local, starts, ends, places)
            chosen[_is_zero(part["image"], local)] = -1
            captions[places] = chosen
            if chosen.min() < 0:
                good = chosen >= 0
                places = np.arange(len(rows))[places][good]
                local, starts, chosen = local[good], starts[good], chosen[good]
            image[places] = part["image"][local]
            text[places] = part["text"][starts + chosen]
        return captions, image, text

    def _part(self, shard) -> dict[str, np.ndarray]:
        return self._map(
            self._paths[shard], file_format.KIND, self._heads[shard]
        ).arrays

    def _excerpts(self, rows):
        """Returns indices in `rows`, a shard's arrays, and rows in those."""
        pieces = self.store.by_shard(rows)
        if self.is_remote:
            return retries.map_parallel(
                lambda piece: self._excerpt(rows, *piece), list(pieces), True
            )
        # Lazily: a single file mapped at a time.
        return (
            (places, self._part(shard), local)
            for shard, places, local in pieces
        )

    def _excerpt(self, rows, shard, places, local):
        part = self._part(shard)
        if not isinstance(part["ids"], artefacts.RemoteArray):
            return places, part, local
        distinct, inverse = np.unique(local, return_inverse=True)
        edges = np.unique([distinct, distinct + 1])
        ids, edge, image = retries.map_parallel(
            lambda job: part[job[0]][job[1]],
            [("ids", distinct), ("offsets", edges), ("image", distinct)],
            True,
        )
        at = np.searchsorted(edges, distinct)
        starts, ends = edge[at], edge[at + 1]
        before = rows[places][0] - local[0]
        self._check_spans(part, distinct + before, starts, ends)
        _, firsts, texts = _in_line(starts, ends)
        excerpt = {
            "ids": ids,
            "offsets": np.append(firsts, len(texts)),
            "image": image,
            "text": part["text"][texts],
        }
        return places, excerpt, inverse

    def _check_spans(self, part, rows, starts, ends):
        self._require(
            # Compares without sums, which could overflow.
            (starts >= 0) & (starts <= ends) & (ends <= len(part["text"])),
            rows,
            "captions within the file. Received: {} to {}",
            starts,
            ends,
        )

    def _require(self, good, rows, expected, *values):
        if not good.all():
            first = int(np.argmin(good))
            row = int(rows[first])
            ((shard, *_),) = self.store.by_shard([row])
            expected = expected.format(*(each[first] for each in values))
            raise ValueError(
                f"Sidecar {self._paths[shard]}, of {self.store.describe(row)},"
                f" must have {expected}; {artefacts.KINDS[file_format.KIND]}"
            )


def sidecar_path(store: stores.Store, shard: int, directory: str = "") -> str:
    """Returns the path of a shard's sidecar: in a folder or, for "", beside it.

    In a folder the name holds part of the shard's stamp, as shards of several
    folders may share a name.
    """
    path = store.shards.paths[shard]
    place = path + SUFFIX
    if directory:
        name = f"{os.path.basename(path)}-{store.stamp(shard)[:8]}{SUFFIX}"
        place = os.path.join(directory, name)
    return place


def make_header(
    store: stores.Store,
    shard: int,
    description: file_format.Description,
    dtype: str,
) -> file_format.Header:
    """Returns the header that a shard's sidecar must have."""
    rows = int(store.shards.lengths[shard])
    return file_format.Header(description, dtype, store.stamp(shard), rows)


def _find(store, directory, expected, shard):
    """Returns the path, the header and the checksums of a shard's sidecar."""
    path = sidecar_path(store, shard, directory)
    if files.is_file(path):
        header, artefact = file_format.read(path)
        known = [(key, artefact.metadata[key]) for key in ("checksum", "crc32")]
        return path, header, tuple(known)
    raise ValueError(
        f"No sidecar of {store.shards.paths[shard]}: expected {path}. "
        f"`{_command(store, directory, expected)}` writes missing ones"
    )


def _command(store, directory, expected):
    """Returns the command that writes the sidecars of a store."""
    model = expected.name if expected and expected.name else "REFERENCE"
    words = ["jest-tf", "embed", "--model", model]
    words += ["--trust"] * imports.needed_trust(model) + ["--data"]
    paths = sorted({*store.shards.paths})
    start = os.path.commonprefix(paths)
    if len(paths) == 1:
        words.append(start)
    else:
        ends = [path[len(start) :][::-1] for path in paths]
        words.append(f"{start}*{os.path.commonprefix(ends)[::-1]}")
    if directory:
        words += ["--output", directory]
    if store.fields.image:
        words += ["--image-field", store.fields.image]
    if store.fields.captions:
        words += ["--caption-fields", *store.fields.captions]
    return shlex.join(words)


def _numbered(text, starts, ends, numbers):
    """Returns captions chosen by hashes: indices int64 [k], -1 if all blank.

    `text` has the captions of all rows; those of a row begin and end at
    `starts` and `ends`, int64 [k].
    """
    counts, firsts, line = _in_line(starts, ends)
    blank = _is_zero(text, line)
    whole = np.append(0, np.cumsum(~blank))
    counts = whole[ends - starts + firsts] - whole[firsts]
    # The n-th nonblank caption is where their running count reaches n.
    wanted = whole[firsts] + numbers % np.maximum(counts, 1) + 1
    choices = np.searchsorted(whole, wanted) - 1 - firsts
    choices[counts == 0] = -1
    return choices


def _best(text, starts, ends, images):
    """Returns captions most like the images: indices, -1 if all are blank."""
    counts, firsts, line = _in_line(starts, ends)
    owners = np.repeat(np.arange(len(counts)), counts)
    captions = np.asarray(text[line], np.float32)
    similarity = np.einsum(
        "cd,cd->c", captions, np.asarray(images, np.float32)[owners]
    )
    similarity[~captions.any(1)] = -np.inf
    choices = np.full(len(counts), -1)
    # Row by row, the most similar caption first; the sort is stable.
    order = np.lexsort((-similarity, owners))
    some = np.flatnonzero(counts)
    best = order[firsts[some]]
    is_blank = np.isneginf(similarity[best])
    choices[some] = np.where(is_blank, -1, best - firsts[some])
    return choices


def _in_line(starts, ends):
    """Returns rows' caption counts and offsets, and all captions' indices."""
    counts = ends - starts
    firsts = np.cumsum(counts) - counts
    line = np.repeat(starts - firsts, counts) + np.arange(counts.sum())
    return counts, firsts, line


def _is_zero(embeddings, rows):
    """Returns which rows are all zero; int64 [k] -> bool [k]."""
    # The first number of a row almost always decides.
    zero = embeddings[rows, 0] == 0
    doubtful = np.flatnonzero(zero)
    zero[doubtful] = ~embeddings[rows[doubtful]].any(1)
    return zero
