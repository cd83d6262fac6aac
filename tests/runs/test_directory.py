"""The run directory: rows, cutting back, and the lock."""

import os

import remote_files
import tensorflow as tf

from jest_tf import files
from jest_tf.files import remote
from jest_tf.runs import directory, loading

LOGS = (directory.METRICS_FILE, directory.DRAWS_FILE, directory.EVALUATION_FILE)


class DirectoryTest(tf.test.TestCase):
    def setUp(self):
        super().setUp()
        self.workdir = self.get_temp_dir()

    def test_a_copy_of_a_bucket_is_read_by_the_name_that_its_error_gives(self):
        bucket, rows = f"ram://{self.id()}", [{"step": 1}, {"step": 2}]
        with directory.locked(bucket):
            for row in rows:
                directory.append(bucket, directory.METRICS_FILE, row)
                directory.write(bucket, directory.FLOPS_FILE, row)
                directory.sync_logs(bucket)
        for name in remote.tree(bucket):
            copy = os.path.join(self.workdir, name)
            os.makedirs(os.path.dirname(copy), exist_ok=True)
            remote.download(f"{bucket}/{name}", copy)
        name = f"file://{os.path.abspath(self.workdir)}"
        for call in (
            lambda: directory.locked(self.workdir).__enter__(),
            lambda: directory.load_config(self.workdir),
            lambda: loading.check_finished(self.workdir, "--workdir"),
        ):
            with self.assertRaisesRegex(ValueError, f"give it as '{name}'"):
                call()
        self.assertEqual(
            directory.read_rows(name, directory.METRICS_FILE), rows
        )
        self.assertEqual(directory.read(name, directory.FLOPS_FILE), rows[-1])
        self.assertEqual(
            files.list_folder(name),
            [directory.FLOPS_FILE, directory.METRICS_FILE],
        )

    def test_the_logs_are_cut_back_to_the_step(self):
        whole = '{"step": 2, "a": 1}\n{"step": 4, "a": 2}\n'
        for text in (
            whole[:-1],  # a line that lacks its end alone is completed
            whole,
            whole + '{"step": 5}\n',
            whole + '{"step": 5}\n{"step": 6}\n{"st',
            whole + '{"step": 3, "a',
            whole + '{"a": 1}\n',
        ):
            with self.subTest(text):
                paths = [os.path.join(self.workdir, name) for name in LOGS]
                for path in paths:
                    files.write_whole(path, text.encode())
                directory.cut_back(self.workdir, 4)
                for path in paths:
                    self.assertEqual(files.read_whole(path), whole.encode())
        self.assertLen(os.listdir(self.workdir), 3)  # nothing beside them
        self.assertTrue(directory.has_begun(self.workdir))


class RemoteDirectoryTest(remote_files.Gcs, tf.test.TestCase):
    """A run directory on a bucket that does not do is refused, unharmed."""

    def assert_refused(self, workdir, message):
        before = self.server.names()
        with self.assertRaisesRegex(ValueError, message):
            with directory.locked(workdir):
                self.fail("it is held")
        self.assertEqual(self.server.names(), before)

    def test_what_cannot_be_written_or_read(self):
        self.assert_refused(
            "gs://missing/run", "written to.*'gs://missing/run'"
        )
        for method in ("POST", "GET"):
            self.server.fail(f"{method} ", status=403, times=9)
            self.assert_refused(self.folder, "PermissionError.*403")
            self.server.heal()

    def test_a_file(self):
        files.write_whole(self.folder, b"not a folder")
        self.assert_refused(self.folder, "NotADirectoryError: it is a file")

    def test_two_runs(self):
        with directory.locked(self.folder):
            self.assert_refused(self.folder, "Another process is training")
