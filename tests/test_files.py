"""Files are written whole or not at all, and locks end with their holder."""

import os
import subprocess
import sys
import tempfile

import tensorflow as tf

from jest_tf import files

HOLDER = """
import sys
from jest_tf import files
with files.locked(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""
WRITER = """
import sys
from jest_tf import files
with files.written_whole(sys.argv[1]) as partial:
    open(partial, "wb").write(b"half")
    print("held", flush=True)
    sys.stdin.read()
"""


class FilesTestCase(tf.test.TestCase):
    def setUp(self):
        super().setUp()
        self.folder = self.enterContext(tempfile.TemporaryDirectory())
        self.path = os.path.join(self.folder, "sub", "file")

    def start(self, script):
        """A process in the middle of a script."""
        process = subprocess.Popen(
            [sys.executable, "-c", script, self.path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self.addCleanup(process.communicate)
        self.assertEqual(process.stdout.readline(), b"held\n")
        return process

    def content(self, path=None):
        with files.open_file(path or self.path) as file:
            return file.read()


class WriteTest(FilesTestCase):
    def test_a_file_holds_its_parts_one_after_another(self):
        files.write_whole(self.path, b"one ", memoryview(b"two"))
        self.assertEqual(self.content(), b"one two")
        self.assertEqual(os.listdir(os.path.dirname(self.path)), ["file"])

    def test_an_error_leaves_the_old_content_and_no_other_file(self):
        files.write_whole(self.path, b"old")
        with self.assertRaises(KeyboardInterrupt):
            with files.written_whole(self.path) as partial:
                with open(partial, "wb") as file:
                    file.write(b"new")
                raise KeyboardInterrupt
        self.assertEqual(self.content(), b"old")
        self.assertEqual(os.listdir(os.path.dirname(self.path)), ["file"])

    def test_a_killed_writer_leaves_the_old_content(self):
        files.write_whole(self.path, b"old")
        process = self.start(WRITER)
        process.kill()
        process.wait()
        self.assertEqual(self.content(), b"old")
        self.assertLen(os.listdir(os.path.dirname(self.path)), 2)
        files.delete_partial(self.path)
        self.assertEqual(os.listdir(os.path.dirname(self.path)), ["file"])

    def test_the_temporary_name_is_hidden_and_has_the_suffix(self):
        with files.written_whole(self.path, ".h5") as partial:
            name = os.path.basename(partial)
            self.assertStartsWith(name, ".file.")
            self.assertEndsWith(name, ".partial.h5")
            with open(partial, "wb") as file:
                file.write(b"new")
        self.assertEqual(self.content(), b"new")

    def test_a_remote_file_is_replaced(self):
        path = "ram://files/sub/file"
        for content in (b"one", b"another"):
            files.write_whole(path, content)
            self.assertEqual(self.content(path), content)
        self.assertEqual(tf.io.gfile.listdir("ram://files/sub"), ["file"])


class LockTest(FilesTestCase):
    def test_two_processes_cannot_hold_a_lock(self):
        self.start(HOLDER)
        with self.assertRaises(BlockingIOError), files.locked(self.path):
            self.fail("both hold it")

    def test_a_killed_holder_gives_the_lock_back(self):
        process = self.start(HOLDER)
        process.kill()
        process.wait()
        with files.locked(self.path):
            pass

    def test_a_released_lock_leaves_no_file(self):
        for _ in range(2):
            with files.locked(self.path):
                self.assertTrue(os.path.exists(self.path))
            self.assertFalse(os.path.exists(self.path))


if __name__ == "__main__":
    tf.test.main()
