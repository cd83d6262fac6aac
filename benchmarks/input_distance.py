"""What distance costs: streams over a link with latency and bandwidth."""

import gc
import io
import os
import tempfile
import threading
import time
from unittest import mock

import fsspec
import numpy as np
import tensorflow as tf
from fsspec.implementations import local

from benchmarks import input_streams, report
from jest_tf import config as config_lib
from jest_tf.data import cascade as cascade_lib
from jest_tf.data import sidecars as sidecars_lib
from jest_tf.data import stores
from jest_tf.data.sidecars import embed, file_format
from jest_tf.files import remote, retries

_READAHEAD = 2**20 + 1  # as `jest-tf` sets it
_LATENCIES = (0.0, 0.02, 0.1)  # seconds
_PADDED = 44_000  # bytes of a picture that decodes at once
_WIDTH = 768  # of the embeddings in sidecars
_CASCADE = 4  # rows that a cascade chooses one from
_PACE = 450  # records a second, half of what two cores decode


class _FarFile(io.FileIO):
    """A local file at the end of the link."""

    def read(self, count=-1):
        left = os.fstat(self.fileno()).st_size - self.tell()
        # A request brings as much as TensorFlow reads ahead.
        Link.transfer(min(max(count if count >= 0 else left, _READAHEAD), left))
        return super().read(count)


class Link(local.LocalFileSystem):
    """Local files at a distance, with the scheme `far://`.

    Attributes:
        latency: seconds to an answer's first byte.
        bandwidth: bytes a second, of all requests together.
        requests, bytes: what was read.
    """

    protocol = "far"
    latency = 0.0
    bandwidth = 125e6
    requests = bytes = 0
    _lock = threading.Lock()
    _free_at = 0.0

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(path.removeprefix("far://"))

    def info(self, path, **options):
        """Looks up a file, in one request."""
        time.sleep(self.latency)
        return super().info(path, **options)

    def open(self, path, mode="rb", **options):
        """Opens a file whose reads take their time."""
        del options
        return _FarFile(self._strip_protocol(path), mode)

    @classmethod
    def transfer(cls, count):
        """Waits as long as a request for so many bytes takes."""
        now = time.monotonic()
        with cls._lock:
            begin = max(now + cls.latency, cls._free_at)
            cls._free_at = begin + count / cls.bandwidth
            cls.requests += 1
            cls.bytes += count
            end = cls._free_at
        time.sleep(end - now)


def measure(small: bool, command: str) -> str:
    """Compares reads at a distance with local ones.

    Args:
        small: measure little.
        command: that the text names, without its part.

    Returns:
        Markdown.
    """
    num_records, copies, batch_size, steps, latencies = (
        (256, 1, 64, 1, (0.02,)) if small else (2048, 24, 1024, 8, _LATENCIES)
    )
    fsspec.register_implementation(Link.protocol, Link, clobber=True)
    with (
        tempfile.TemporaryDirectory() as directory,
        mock.patch.object(remote, "PIECE", _READAHEAD - 1),
    ):
        _write_padded(f"{directory}/padded", num_records, copies)
        padded = _Distances(f"{directory}/padded", 8, batch_size, latencies)
        block_rows = [
            # Every record costs a request, so this takes long.
            ["none", *padded.row(None, 1, only=(0.02,))],
            [64, *padded.row(64, steps)],
            # A window is four times as long.
            [256, *padded.row(256, 2 * steps)],
        ]
        request_rows, sidecar_rows = [], []
        for requests in (1, 4):
            with mock.patch.object(retries, "_REMOTE_REQUESTS", requests):
                row = padded.row(64, steps, only=(0.02, 0.1))
            request_rows.append([requests, *row])
        for kind in ("selection", "cascade"):
            sidecar_rows.append([kind, *padded.row(64, steps, kind=kind)])
        pace = padded.row(64, steps, kind="cascade", pace=_PACE)
        sidecar_rows.append([f"cascade, at {_PACE} a second", *pace])
    warm_up = input_streams.WARM_UP
    header = [
        "local",
        *(f"{1000 * one:.0f} ms" for one in latencies),
        "kB fetched a record",
    ]
    return f"""## What distance costs

    {command} distance

Records a second that a stream brings, where decoding takes no time:

{report.table(["`shuffle_block_size`", *header], block_rows)}

With blocks of 64, by the requests at a time that one read may make, 16 above:

{report.table(["requests", *header], request_rows)}

With blocks of 64 and sidecars at the same distance, of a reference of width
{_WIDTH} in float16: for a selection, which takes them with the pictures, and
for a cascade, which chooses from {_CASCADE} times as many rows, read as fast as
possible, or by steps that take {_PACE} records a second:

{report.table(["sidecars of a", *header], sidecar_rows)}

`pipeline.super_batches`, B = {batch_size:,}, {num_records * copies:,} records
of {_PADDED // 1000} kB in {copies} shards; a picture of 8 pixels a side, and
zeros. At a distance local files are read through a link of 1 Gbit/s, shared by
all requests. Each of these, lookups included, has the latency and brings at
least {_READAHEAD / 2**20:.0f} MB, as those of `gs://` under `jest-tf`. Local
and far streams take turns, each {steps} super-batches after {warm_up}; with
blocks of 256 {2 * steps}, without blocks one. A stream that decodes no faster
than its records come is as fast as a local one.

{report.environment()}"""


def _write_padded(directory, num_records, copies):
    """Writes a shard of tiny pictures, each as long as a photograph."""
    os.mkdir(directory)
    image = tf.io.encode_jpeg(np.zeros([8, 8, 3], np.uint8)).numpy()
    shard = f"{directory}/shard"
    with tf.io.TFRecordWriter(shard) as writer:
        for i in range(num_records):
            example = tf.train.Example()
            features = example.features.feature
            features["image"].bytes_list.value.append(
                image.ljust(_PADDED, b"\0")
            )
            features["caption"].bytes_list.value.append(b"a b c")
            features["id"].int64_list.value.append(i)
            writer.write(example.SerializeToString())
    for i in range(copies):
        os.symlink(shard, f"{directory}/{i}.rec")


class _Distances:
    """Measures streams of one store, local and at a distance."""

    def __init__(self, directory, size, batch_size, latencies):
        self._directory, self._size = directory, size
        self._batch_size, self._latencies = batch_size, latencies
        indexes = f"{directory}/indexes"
        self._stores = [
            stores.open_store(
                f"{scheme}{directory}/*.rec",
                format="tfrecord",
                index_dir=indexes,
            )
            for scheme in ("", "far://")
        ]
        rng = np.random.default_rng(input_streams.SEED)
        n = len(self._stores[0])
        unit = rng.normal(size=[1024, _WIDTH]).astype(np.float32)
        unit /= np.linalg.norm(unit, axis=1, keepdims=True)
        unit = unit[np.arange(n) % len(unit)]
        captions = [
            len(one) for one in self._stores[0].columns(["caption"])["caption"]
        ]
        description = file_format.Description(
            "random", "none", "none", _WIDTH, 10.0, -10.0
        )
        embed.write_arrays(
            self._stores[0],
            unit,
            np.repeat(unit, captions, axis=0),
            description,
            embed.Output(f"{directory}/sidecars"),
            captions=captions,
        )

    def row(self, block, steps, *, only=_LATENCIES, kind="", pace=None):
        """Records a second, local and far, and what was fetched for one."""
        wanted = [one for one in self._latencies if one in only]
        rates = dict.fromkeys((None, *wanted))
        for latency in rates:
            report.log(f"distance: {block}, {kind}, {latency} s")
            Link.latency, Link.bytes = latency or 0.0, 0
            is_far = latency is not None
            rates[latency] = self._rate(is_far, block, steps, kind, pace)
            gc.collect()
        drawn = self._batch_size * (steps + input_streams.WARM_UP)
        return [
            *(
                f"{rates[latency]:,.0f}" if latency in rates else ""
                for latency in (None, *self._latencies)
            ),
            f"{Link.bytes / drawn / 1000:,.0f}",
        ]

    def _rate(self, is_far, block, steps, kind, pace):
        store = self._stores[is_far]
        options = {"shuffle_block_size": block}
        remote.PAGES = remote.Pages()
        if kind:
            scheme = "far://" if is_far else ""
            found = sidecars_lib.Sidecars(
                store, f"{scheme}{self._directory}/sidecars"
            )
            options["sidecars"] = found
        if kind == "cascade":
            settings = config_lib.CascadeConfig(
                hyper_batch_size=_CASCADE * self._batch_size
            )
            del options["sidecars"]
            options["cascade"] = cascade_lib.Cascade(settings, found, "sigmoid")
        return input_streams.rate(
            input_streams.open_stream(
                store, self._batch_size, self._size, **options
            ),
            self._batch_size,
            steps,
            pace,
        )
