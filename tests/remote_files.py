"""Test cases that run alike on local files, `ram://` and `gs://`."""

import tempfile
from unittest import mock

import fake_gcs
import pytest

from jest_tf.files import leases, retries

_server = None


def server():
    """The storage behind `gs://`, started once; skips without openssl."""
    global _server
    _server = _server or fake_gcs.start()
    if _server is None:
        pytest.skip("the fake storage needs the command `openssl`")
    return _server


class Local:
    """Mix into a test case: `self.folder` is new and local."""

    def setUp(self):
        super().setUp()
        self.folder = self.enterContext(tempfile.TemporaryDirectory())


class Ram:
    """Mix into a test case: `self.folder` is in TensorFlow's memory."""

    def setUp(self):
        super().setUp()
        hurry(self)
        self.folder = f"ram://{self.id()}"


class Gcs:
    """Mix into a test case: `self.folder` is on a fake bucket, `self.server`.

    No fault of a test outlives it.
    """

    def setUp(self):
        super().setUp()
        hurry(self)
        self.server = server()
        self.addCleanup(self.server.heal)
        self.folder = f"gs://{fake_gcs.BUCKET}/{self.id()}"


def hurry(test):
    """Shortens what waits for clocks."""
    for module, name, value in (
        (leases, "BEAT", 0.2),
        (leases, "EXPIRY", 1.0),
        (leases, "PAUSE", 0.1),
        (retries, "WAITS", (0.0, 0.0, 0.0)),
        (retries, "FILE_WAITS", (0.0, 0.0)),
    ):
        test.enterContext(mock.patch.object(module, name, value))
