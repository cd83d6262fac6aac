"""Files on Amazon S3, by fsspec and s3fs, against moto's server."""

import functools
import os

import pytest
import remote_files
import tensorflow as tf
import test_files
import test_leases

from jest_tf import files
from jest_tf.files import remote

pytest.importorskip("s3fs")
moto_server = pytest.importorskip("moto.server")


@functools.cache
def _serve():
    """Starts the server, for all tests of the process."""
    server = moto_server.ThreadedMotoServer("127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    os.environ |= {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    remote._system("s3")._system.mkdir("bucket")


class S3:
    """Mix into a test case: `self.folder` is on a bucket of moto's."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        _serve()

    def setUp(self):
        super().setUp()
        remote_files.hurry(self)
        self.folder = f"s3://bucket/{self.id()}"


class S3Test(test_files.AnyObject, S3, test_files.AnySchemeTest):
    def test_ranges_are_read_at_once_if_they_are_near(self):
        content = os.urandom(2_000_000)
        files.write_whole(self.path, content)
        ranges = [[5, 10], [20, 25], [1_900_000, 2_000_000]]
        self.assertEqual(
            files.read_ranges(self.path, tf.constant(ranges).numpy()),
            b"".join(content[start:end] for start, end in ranges),
        )

    def test_a_missing_bucket_is_said(self):
        with self.assertRaises(OSError):
            files.write_whole("s3://missing/file", b"")


class S3LeaseTest(S3, test_leases.LeaseTest):
    pass


class S3ViewsTest(S3, test_leases.ViewsTest):
    pass
