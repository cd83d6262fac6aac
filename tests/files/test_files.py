"""Files are written whole or not at all, wherever they are."""

import errno
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import unittest
import urllib.parse
from unittest import mock

import numpy as np
import pytest
import remote_files
import subprocesses
import tensorflow as tf

from jest_tf import files
from jest_tf.files import disks, remote, retries

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
TEMPORARY = """
import sys, tempfile
from jest_tf.files import disks
with disks.temporary():
    tempfile.mkdtemp()
    print("held", flush=True)
    sys.stdin.read()
"""
READER = """
import json, sys
from jest_tf import cli
cli.main(["--help"])  # as all commands, it sets what a request brings
import numpy as np
from jest_tf import files
for start, end in json.loads(sys.argv[2]):
    path = f"{sys.argv[1]}/{start}"
    assert len(files.read_ranges(path, np.array([[start, end]]))) == end - start
"""


class FilesTestCase(remote_files.Local, tf.test.TestCase):
    @property
    def path(self):
        return os.path.join(self.folder, "sub", "file")

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


class AnySchemeTest(FilesTestCase):
    """These hold on every kind of storage; subclasses name others."""

    def names(self):
        return files.list_folder(os.path.dirname(self.path))

    def test_a_file_is_written_whole_and_replaced_or_kept(self):
        files.write_whole(self.path, b"one ", memoryview(b"two"))
        self.assertEqual(files.read_whole(self.path), b"one two")
        files.write_whole(self.path, b"old")
        with self.assertRaises(KeyboardInterrupt):
            with files.written_whole(self.path) as partial:
                with open(partial, "wb") as file:
                    file.write(b"new")
                raise KeyboardInterrupt
        self.assertEqual(files.read_whole(self.path), b"old")
        self.assertEqual(self.names(), ["file"])

    def test_files_and_folders_are_told_apart(self):
        files.write_whole(self.path, b"123")
        folder = os.path.dirname(self.path)
        self.assertTrue(files.is_file(self.path))
        self.assertFalse(files.is_folder(self.path))
        self.assertFalse(files.is_file(folder))
        self.assertTrue(files.is_folder(folder))
        for missing in (f"{self.path}x", f"{self.folder}/none"):
            self.assertFalse(files.is_file(missing))
            self.assertFalse(files.is_folder(missing))
            self.assertEqual(files.list_folder(missing), [])
            with self.assertRaises(FileNotFoundError):
                files.read_whole(missing)
        self.assertEqual(files.stat(self.path)[0], 3)
        for _ in range(2):
            files.remove(self.path)
        self.assertFalse(files.is_file(self.path))

    def test_files_are_found_and_listed_in_order(self):
        for name in ("b.x", "a.x", "a.y", "deep/a.x"):
            files.write_whole(f"{self.folder}/{name}", name.encode())
        names = ["a.x", "a.y", "b.x", "deep"]
        self.assertEqual(files.list_folder(self.folder), names)
        self.assertEqual(
            files.find(f"{self.folder}/*.x"),
            [f"{self.folder}/a.x", f"{self.folder}/b.x"],
        )
        names = ["a.x", "a.y", "b.x", "deep/a.x"]
        self.assertEqual(files.tree(self.folder), names)

    def test_names_of_a_folder_do_not_lead_out_of_it(self):
        folder = f"{self.folder}/here"
        files.write_whole(f"{folder}/inside", b"")
        self.assertEqual(files.inside(folder, "inside"), f"{folder}/inside")
        for name in ("", ".", "..", "../a", "/a", "a/b", "a/../b", "a\0b"):
            with self.assertRaisesRegex(ValueError, "plain names, not paths"):
                files.inside(folder, name)
        self.plant(folder)
        above = self.enterContext(tempfile.TemporaryDirectory())
        os.mkdir(f"{above}/inner")
        with (
            mock.patch.object(tempfile, "tempdir", f"{above}/inner"),
            self.assertRaisesRegex(ValueError, "lead out|not paths"),
            files.staged_folder(folder),
        ):
            self.fail("it is staged")
        self.assertEqual([*os.walk(above)][1:], [(f"{above}/inner", [], [])])

    def plant(self, folder):
        """Puts something into a folder that lies outside of it."""
        os.symlink("../elsewhere", f"{folder}/link")
        with self.assertRaisesRegex(ValueError, "to .*/elsewhere"):
            files.inside(folder, "link")
        os.symlink("inside", f"{folder}/harmless")
        files.inside(folder, "harmless")
        os.mkfifo(f"{folder}/pipe")
        with self.assertRaisesRegex(ValueError, "pipe, a device, pipe or"):
            files.inside(folder, "pipe")

    def test_a_folder_is_written_moved_and_deleted(self):
        first, other = f"{self.folder}/one", f"{self.folder}/other"
        with files.written_folder(first) as local:
            for name in ("data", "index"):
                with open(os.path.join(local, name), "w") as file:
                    file.write(name)
        self.assertEqual(files.tree(first), ["data", "index"])
        files.move_folder(first, other)
        self.assertEqual(files.list_folder(self.folder), ["other"])
        with files.staged_folder(other) as local:
            self.assertEqual(files.tree(local), ["data", "index"])
        files.remove_folder(other)
        self.assertEqual(files.list_folder(self.folder), [])
        files.remove_folder(other)
        with self.assertRaises(FileNotFoundError):
            files.move_folder(first, other)
        with self.assertRaises(KeyboardInterrupt):
            with files.written_folder(first):
                raise KeyboardInterrupt
        self.assertEqual(files.list_folder(self.folder), [])

    def test_a_locked_folder_has_logs_to_append_to(self):
        log = f"{self.folder}/log"
        files.write_whole(log, b"one\n")
        lock = f"{self.folder}/.lock"
        files.keep_views(lock)
        with files.locked(lock):
            for row in ("two\n", "three\n"):
                with open(files.appendable(log), "a") as file:
                    file.write(row)
                files.sync(log)
            with open(files.appendable(log), "a") as file:
                file.write("four\n")
            self.assertEqual(files.read_whole(log), b"one\ntwo\nthree\nfour\n")
            files.write_whole(log, b"anew\n")
            with open(files.appendable(log), "a") as file:
                file.write("more\n")
        self.assertEqual(files.read_whole(log), b"anew\nmore\n")
        self.assertEqual(files.list_folder(self.folder), ["log"])

    def test_a_lock_is_held_once(self):
        lock = f"{self.folder}/.lock"
        for _ in range(2):
            with files.locked(lock):
                with self.assertRaises(BlockingIOError), files.locked(lock):
                    self.fail("both hold it")
        self.assertFalse(files.is_file(lock))


class AnyObject:
    """Mix into a test case on a bucket: objects may be called anything."""

    def plant(self, folder):
        remote.upload(os.devnull, f"{folder}/../../x.py")
        for listed in (files.tree, files.list_folder):
            with self.assertRaisesRegex(ValueError, "Received: '..'"):
                listed(folder)


class RamTest(AnyObject, remote_files.Ram, AnySchemeTest):
    pass


class GcsTest(AnyObject, remote_files.Gcs, AnySchemeTest):
    pass


class FsspecTest(unittest.TestCase):
    """As `s3://`, which these names would need a server for."""

    def test_names_of_a_folder_do_not_lead_out_of_it(self):
        folder = "memory://bucket/here"
        files.write_whole(f"{folder}/inside", b"")
        self.assertEqual(files.tree(folder), ["inside"])
        store = remote._system("memory")._system.store
        store["/bucket/here/../../x.py"] = store["/bucket/here/inside"]
        for listed in (files.tree, files.list_folder):
            with self.assertRaisesRegex(ValueError, "Received: '..'"):
                listed(folder)


@pytest.mark.slow
class RequestsTest(remote_files.Gcs, tf.test.TestCase):
    def test_under_a_command_requests_bring_what_is_asked_for_and_no_more(self):
        size = 2**23
        ranges = ((0, size), (2**20 + 7, size), (77, 77 + 2**20))
        for start, _ in ranges:
            files.write_whole(f"{self.folder}/{start}", os.urandom(size))
        environment = subprocesses.environment()
        del environment[remote.READAHEAD]  # the tests' own
        self.server.requests()
        subprocess.run(
            [sys.executable, "-c", READER, self.folder, json.dumps(ranges)],
            env=environment,
            check=True,
            stdout=subprocess.DEVNULL,
        )
        lines = [
            urllib.parse.unquote(line)
            for line in self.server.requests()
            if "GET storage" in line
        ]
        for start, end in ranges:
            asked = [line for line in lines if f"/{start} " in line]
            sizes = [int(line.split()[3]) for line in asked]
            # A megabyte each, and the byte before it.
            self.assertLen(sizes, -(-(end - start) // 2**20))
            self.assertLessEqual(sum(sizes), end - start + 2**20)


class LocalTest(FilesTestCase):
    def test_what_a_killed_process_leaves_is_swept_up_by_the_next(self):
        self.addCleanup(setattr, tempfile, "tempdir", tempfile.tempdir)
        self.enterContext(mock.patch.dict(os.environ, TMPDIR=self.folder))
        tempfile.tempdir = None
        living, killed = (self.start(TEMPORARY) for _ in range(2))
        self.assertLen(os.listdir(self.folder), 2)
        killed.kill()
        killed.wait()
        with disks.temporary():
            self.assertLen(os.listdir(self.folder), 2)
            here = tempfile.gettempdir()
            self.assertEqual(os.environ["TMPDIR"], here)
            self.assertEqual(os.path.dirname(here), self.folder)
        self.assertLen(os.listdir(self.folder), 1)
        self.assertEqual(os.environ["TMPDIR"], self.folder)
        living.communicate()
        self.assertEqual(os.listdir(self.folder), [])

    def test_a_users_own_folders_are_no_temporary_ones(self):
        self.enterContext(mock.patch.object(tempfile, "tempdir", self.folder))
        names = ["jest-tf-baseline", "jest-tf-runs", "jest-tf-temporary-files"]
        for name in names:
            os.mkdir(f"{self.folder}/{name}")
        with disks.temporary():
            pass
        self.assertEqual(sorted(os.listdir(self.folder)), names)

    def test_a_killed_writer_leaves_the_old_content(self):
        files.write_whole(self.path, b"old")
        process = self.start(WRITER)
        process.kill()
        process.wait()
        self.assertEqual(files.read_whole(self.path), b"old")
        self.assertLen(os.listdir(os.path.dirname(self.path)), 2)
        files.delete_partial(self.path)
        self.assertEqual(os.listdir(os.path.dirname(self.path)), ["file"])

    def test_two_processes_cannot_hold_a_lock_until_one_is_killed(self):
        process = self.start(HOLDER)
        with self.assertRaises(BlockingIOError), files.locked(self.path):
            self.fail("both hold it")
        process.kill()
        process.wait()
        with files.locked(self.path):
            pass


class DisksTest(remote_files.Local, tf.test.TestCase):
    def test_a_full_disk_is_told_from_a_full_device(self):
        path = os.path.join(self.folder, "new", "file")
        for error, is_full in (
            (OSError(errno.ENOSPC, "No space left on device"), True),
            (OSError(errno.EDQUOT, "Disk quota exceeded", "a"), True),
            (
                RuntimeError("errno = 28, message = 'No space left on dev"),
                False,
            ),
            (RuntimeError("message = 'No space left on device'"), True),
            (full_of(f"{path}.tempstate; No space left on device"), True),
            (full_of("OOM when allocating tensor with shape[9,9]"), False),
            (OSError(errno.EIO, "Input/output error"), False),
        ):
            kind = disks.Full if is_full else type(error)
            with self.assertRaises(kind) as raised, disks.room_for(path):
                raise error
            self.assertEqual(raised.exception is error, not is_full)
            if is_full:
                place = getattr(error, "filename", None) or path
                self.assertEqual(raised.exception.filename, place)
        with (
            mock.patch.object(shutil, "disk_usage") as usage,
            self.assertRaisesRegex(
                disks.Full, "room for 3,000 bytes. Received: 2,999 free bytes"
            ) as raised,
        ):
            usage.return_value = mock.Mock(total=0, free=0)
            disks.check_room(path, 3000)
            usage.return_value = mock.Mock(total=9999, free=2999)
            disks.check_room(path, 2999)
            disks.check_room(path, 3000)
        self.assertEqual(raised.exception.filename, path)
        usage.assert_called_with(self.folder)
        blocks = dict.fromkeys(
            ("f_blocks", "f_bfree", "f_bavail", "f_frsize"), 9
        )
        # As on btrfs, which has no inodes.
        state = mock.Mock(f_files=0, f_favail=0, **blocks)
        with mock.patch.object(os, "statvfs", return_value=state):
            disks.check_room(path, 1)
            state.f_files = 9
            with (
                self.assertRaisesRegex(
                    disks.Full, "for a file. Received: no free inode. Delete"
                ),
                disks.room_for(path),
            ):
                raise OSError(errno.ENOSPC, "No space left on device")
            with self.assertRaisesRegex(disks.Full, "no free inode"):
                disks.check_room(path, 1)


def full_of(text):
    return tf.errors.ResourceExhaustedError(None, None, text)


class RemoteTest(tf.test.TestCase):
    def test_what_cannot_be_opened_is_refused(self):
        with self.assertRaisesRegex(ValueError, "ram://.*Received: nope://"):
            files.read_whole("nope://a/b")
        with self.assertRaisesRegex(ValueError, "locked. Received: ram://a/b"):
            files.appendable("ram://a/b")


class PagesTest(remote_files.Ram, tf.test.TestCase):
    """Pages of 10 bytes of a file of 95."""

    def setUp(self):
        super().setUp()
        self.path = f"{self.folder}/file"
        self.content = bytes(range(95))
        files.write_whole(self.path, self.content)
        self.file = files.open_pages(self.path)
        self.fetched = []
        read = remote.read_ranges

        def read_ranges(path, ranges, gap):
            self.fetched += [tuple(span) for span in ranges.tolist()]
            return read(path, ranges, gap)

        self.enterContext(mock.patch.object(remote, "read_ranges", read_ranges))
        self.enterContext(
            mock.patch.object(remote, "PAGES", remote.Pages(page=10, kept=30))
        )

    def read(self, *ranges):
        found = self.file.read(np.array(ranges))
        expected = b"".join(self.content[start:end] for start, end in ranges)
        self.assertEqual(found, expected)

    def test_ranges_within_and_across_pages_are_read(self):
        self.read((3, 4), (8, 12), (12, 13), (35, 61), (94, 95))
        self.read((0, 95))

    def test_a_page_that_is_kept_is_not_fetched(self):
        self.read((3, 4), (25, 26))
        self.read((5, 9), (20, 30))
        self.assertEqual(self.fetched, [(0, 10), (20, 30)])
        self.read((5, 25))
        self.assertEqual(self.fetched[2:], [(10, 20)])

    def test_the_pages_used_last_are_kept(self):
        for place in (0, 10, 20, 0, 30):  # drops 10
            self.read((place, place + 1))
        del self.fetched[:]
        for place in (0, 20, 30):
            self.read((place, place + 1))
        self.assertEqual(self.fetched, [])
        self.read((10, 11))
        self.assertEqual(self.fetched, [(10, 20)])

    def test_a_file_in_the_place_of_another_is_noticed(self):
        self.read((3, 4))
        self.content = bytes(94)
        files.write_whole(self.path, self.content)
        with self.assertRaisesRegex(ValueError, "was replaced by another"):
            self.read((13, 14))
        self.file = files.open_pages(self.path)
        self.read((3, 4))


class FaultTest(remote_files.Gcs, tf.test.TestCase):
    """What a bucket may do for a while."""

    def setUp(self):
        super().setUp()
        self.path = f"{self.folder}/file"
        self.content = os.urandom(300_000)
        files.write_whole(self.path, self.content)

    def test_a_bucket_that_is_busy_is_asked_again(self):
        for status in (429, 503):
            with self.subTest(status):
                for match in ("PUT ", "POST ", "GET storage"):
                    self.server.fail(match, status=status, times=3)
                files.write_whole(self.path, b"%d" % status)
                self.assertEqual(files.read_whole(self.path), b"%d" % status)

    def test_a_long_outage_is_sat_out_and_said(self):
        # More than TensorFlow's own ten retries.
        self.server.fail("GET storage", times=11)
        with self.assertLogs("absl", "WARNING") as log:
            self.assertEqual(files.read_whole(self.path), self.content)
        message = "Failed to read gs://.*; trying again in 0 s"
        self.assertRegex(log.output[0], message)

    def test_a_request_that_takes_long_is_said_again_and_again(self):
        self.enterContext(mock.patch.object(retries, "SILENCE", 0.2))
        self.server.fail("GET .*/o/", hold=True)

        def heal_later(lines):
            deadline = time.monotonic() + 10.0
            while len(lines) < 2 and time.monotonic() < deadline:
                time.sleep(0.05)
            self.server.heal()

        with self.assertLogs("absl", "WARNING") as log:
            healer = threading.Thread(target=heal_later, args=[log.output])
            healer.start()
            files.is_file(self.path)
            healer.join()
        for line in log.output[:2]:
            message = f"Still trying to look up {self.path} after . s: "
            self.assertRegex(line, message)

    def test_an_outage_without_end_is_an_error(self):
        self.server.fail("GET storage", times=1000)
        with self.assertLogs("absl"), self.assertRaises(OSError):
            files.read_whole(self.path)

    def test_a_connection_that_ends_in_mid_read_loses_nothing(self):
        self.server.fail("GET storage", cut=100_000, times=3)
        self.assertEqual(files.read_whole(self.path), self.content)
        self.server.fail("GET storage", cut=0, times=3)
        with files.staged(self.path) as local:
            self.assertEqual(files.read_whole(local), self.content)

    def test_an_upload_that_is_cut_off_is_continued(self):
        files.write_whole(self.path, b"old")
        self.server.fail("PUT ", cut=0, times=2)
        files.write_whole(self.path, self.content)
        self.assertEqual(files.read_whole(self.path), self.content)

    def test_a_token_that_has_expired_is_renewed(self):
        self.server.fail("GET storage", status=401)
        with self.assertLogs("absl", "WARNING"):
            self.assertEqual(files.read_whole(self.path), self.content)

    def test_what_may_not_be_read_is_said_at_once(self):
        self.server.fail("GET storage", status=403)
        with self.assertRaises(PermissionError):
            files.read_whole(self.path)
        with self.assertRaises(FileNotFoundError):
            files.write_whole("gs://missing/file", b"")
