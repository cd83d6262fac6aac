"""A remote folder has one writer, and a dead one is followed by the next."""

import json
import os
import subprocess
import sys
import tempfile
import time
from unittest import mock

import pytest
import remote_files
import subprocesses
import tensorflow as tf

from jest_tf import files
from jest_tf.files import leases, remote

HOLDER = """
import sys
from jest_tf import files
from jest_tf.files import leases
leases.BEAT, leases.EXPIRY, leases.SETTLE = 0.2, 1.0, 0.0
try:
    with files.locked(sys.argv[1] + "/.lock"):
        print("held", flush=True)
        sys.stdin.readline()
        files.write_whole(sys.argv[1] + "/late", b"late")
except OSError as error:
    print(type(error).__name__, error)
"""


upload = remote.upload


class LeaseTestCase(tf.test.TestCase):
    @property
    def lock(self):
        return f"{self.folder}/.lock"

    def write(self, token):
        """Writes the lease as another process would."""
        lease = {"token": token, "beats": 0, "holder": "process 1 of b"}
        with tempfile.NamedTemporaryFile() as file:
            file.write(json.dumps(lease).encode())
            file.flush()
            upload(file.name, self.lock)

    def read(self):
        return json.loads(remote.read(self.lock))


class LeaseTest(remote_files.Ram, LeaseTestCase):
    def test_a_dead_holder_is_waited_for_and_followed(self):
        self.write("dead")
        started = time.monotonic()
        with files.locked(self.lock):
            # ram:// tells no time of change, so all of it is waited.
            self.assertGreaterEqual(
                time.monotonic() - started, leases.EXPIRY - 0.1
            )
            files.write_whole(f"{self.folder}/file", b"")

    def test_a_living_holder_is_not(self):
        with files.locked(self.lock):
            with self.assertRaisesRegex(
                BlockingIOError, f"process {os.getpid()}"
            ):
                with files.locked(self.lock):
                    self.fail("both hold it")

    def test_a_lost_lease_stops_all_writes(self):
        log = f"{self.folder}/log"
        with self.assertRaisesRegex(leases.Lost, "Received: process .* second"):
            with files.locked(self.lock):
                files.write_whole(f"{self.folder}/file", b"before")
                with open(files.appendable(log), "a") as file:
                    file.write("row")
                self.write("another")
                for write in (
                    lambda: files.write_whole(f"{self.folder}/file", b"after"),
                    lambda: files.remove(f"{self.folder}/file"),
                    lambda: files.remove_folder(self.folder),
                    lambda: files.sync(log),
                ):
                    with self.assertRaises(leases.Lost):
                        write()
                # Other folders are not concerned.
                files.write_whole("ram://leases/file", b"after")
        self.assertEqual(files.read_whole(f"{self.folder}/file"), b"before")
        self.assertEqual(files.list_folder(self.folder), [".lock", "file"])
        # It is the other's.
        self.assertEqual(self.read()["token"], "another")

    def test_a_deleted_lease_is_lost(self):
        with self.assertRaisesRegex(leases.Lost, "Received: none"):
            with files.locked(self.lock):
                remote.remove(self.lock)
                files.write_whole(f"{self.folder}/file", b"")

    def test_of_two_newcomers_one_goes_on(self):
        def upload_and_be_followed(local, path):
            upload(local, path)
            self.write("another")

        with mock.patch.object(remote, "upload", upload_and_be_followed):
            with self.assertRaisesRegex(BlockingIOError, "was faster"):
                with files.locked(self.lock):
                    self.fail("the other holds it")

    def test_a_clock_that_jumps_takes_nothing_away(self):
        with files.locked(self.lock):
            with mock.patch.object(time, "time", lambda: 0.0):
                with self.assertRaises(BlockingIOError):
                    with files.locked(self.lock):
                        self.fail("both hold it")
            time.sleep(2 * leases.BEAT)
            files.write_whole(f"{self.folder}/file", b"")

    def test_beats_that_fail_are_missed_but_not_the_lease(self):
        with files.locked(self.lock):
            with mock.patch.object(remote, "upload", side_effect=OSError(5)):
                time.sleep(3 * leases.BEAT)
            before = self.read()["beats"]
            self.assertIs(remote.upload, upload)
            deadline = time.monotonic() + 10.0
            while self.read()["beats"] == before:
                self.assertLess(time.monotonic(), deadline)
                time.sleep(0.05)

    def test_an_error_uploads_the_logs_that_tell_of_it(self):
        log = f"{self.folder}/log"
        with self.assertRaises(KeyError), files.locked(self.lock):
            with open(files.appendable(log), "a") as file:
                file.write("row")
            raise KeyError
        self.assertEqual(files.read_whole(log), b"row")
        self.assertEqual(files.list_folder(self.folder), ["log"])


class BucketTest(remote_files.Gcs, LeaseTestCase):
    def test_one_that_died_long_ago_is_not_waited_for(self):
        self.write("dead")
        time.sleep(leases.EXPIRY + leases._RESOLUTION + 0.1)
        started = time.monotonic()
        with files.locked(self.lock):
            self.assertLess(time.monotonic() - started, leases.EXPIRY)

    def test_times_in_whole_seconds_age_no_lease(self):
        # Written at 1.99 s and 2.00 s, told as 1 s and 2 s.
        times = [(0, 1_000_000_000), (0, 2_000_000_000)]
        with mock.patch.object(remote, "stat", side_effect=times):
            self.assertEqual(leases._age(self.lock), 0.0)

    def test_a_listing_that_lags_misleads_nobody(self):
        self.server.set(lag=60.0)
        with files.locked(self.lock):
            with self.assertRaises(BlockingIOError), files.locked(self.lock):
                self.fail("both hold it")

    @pytest.mark.slow
    def test_a_stopped_process_finds_that_it_has_lost(self):
        process = subprocess.Popen(
            [sys.executable, "-c", HOLDER, self.folder],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=subprocesses.environment(),
        )
        self.addCleanup(process.kill)
        self.assertEqual(process.stdout.readline(), "held\n")
        with self.assertRaises(BlockingIOError), files.locked(self.lock):
            self.fail("it lives")
        process.send_signal(19)  # SIGSTOP
        with files.locked(self.lock):
            process.send_signal(18)  # SIGCONT
            said, _ = process.communicate("\n")
            self.assertStartsWith(said, "Lost The lease")
            self.assertFalse(files.is_file(f"{self.folder}/late"))
