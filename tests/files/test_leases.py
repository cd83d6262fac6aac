"""A remote folder has one writer, and a dead writer is followed by the next."""

import json
import os
import re
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
leases.BEAT, leases.EXPIRY = 0.2, 1.0
files.keep_views(sys.argv[1] + "/.lock")
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
        files.keep_views(f"{self.folder}/.lock")
        return f"{self.folder}/.lock"

    def write(self, name, content=b""):
        """Writes an object as another process would."""
        with tempfile.NamedTemporaryFile() as file:
            file.write(content)
            file.flush()
            upload(file.name, f"{self.folder}/{name}")

    def claim(self, number):
        """Claims a number as another process would, which then is silent."""
        name = f".lock/{number:06d}-{number:016x}"
        lease = {"beats": 0, "holder": f"process {number} of b"}
        self.write(name, json.dumps(lease).encode())

    def numbers(self):
        """The numbers of all claims."""
        return [
            int(name[:6])
            for name in remote.names(self.lock)
            if leases._CLAIM.fullmatch(name)
        ]

    def objects(self):
        """Those that are files, but for their counts."""
        return sorted(
            name.partition("-")[0]
            for name in remote.tree(self.folder)
            if name[0] != "."
        )


class LeaseTest(remote_files.Ram, LeaseTestCase):
    def test_a_dead_holder_is_waited_for_and_followed(self):
        self.claim(1)
        started = time.monotonic()
        with files.locked(self.lock):
            # ram:// tells no time of change, so all of it is waited.
            waited = time.monotonic() - started
            self.assertGreaterEqual(waited, leases.EXPIRY - 0.1)
            files.write_whole(f"{self.folder}/file", b"")
            self.assertEqual(self.numbers(), [2])
        self.assertEqual(self.objects(), ["file~000002"])

    def test_one_that_has_ended_is_not_waited_for(self):
        with mock.patch.object(leases, "EXPIRY", 60.0):
            for _ in range(3):
                with files.locked(self.lock):
                    pass
        self.assertEqual(self.numbers(), [3])

    def test_a_lost_lease_stops_all_writes(self):
        log = f"{self.folder}/log"
        message = "holder, number 000001. Received: 000002, process 2 of"
        with self.assertRaisesRegex(leases.Lost, message):
            with files.locked(self.lock):
                files.write_whole(f"{self.folder}/file", b"before")
                with open(files.appendable(log), "a") as file:
                    file.write("row")
                self.claim(2)
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
        self.assertEqual(self.objects(), ["file~000001"])

    def test_a_lease_lost_in_the_last_write_is_an_error_too(self):
        def upload_late(local, path):
            if "/file~" in path:
                self.claim(2)
            upload(local, path)

        with mock.patch.object(remote, "upload", upload_late):
            with self.assertRaises(leases.Lost), files.locked(self.lock):
                files.write_whole(f"{self.folder}/file", b"")

    def test_a_lock_deleted_by_hand_is_lost_and_its_numbers_stay_used(self):
        with self.assertRaisesRegex(leases.Lost, "Received: nobody"):
            with files.locked(self.lock):
                files.write_whole(f"{self.folder}/file", b"before")
                for name in remote.names(self.lock):
                    remote.remove(f"{self.lock}/{name}")
                files.write_whole(f"{self.folder}/file", b"after")
        self.assertEqual(files.read_whole(f"{self.folder}/file"), b"before")
        with files.locked(self.lock):
            self.assertEqual(self.numbers(), [2])
            files.write_whole(f"{self.folder}/file", b"anew")
        self.assertEqual(files.read_whole(f"{self.folder}/file"), b"anew")

    def test_of_two_newcomers_one_goes_on(self):
        rivals = iter(".lock/000001-" + letter * 16 for letter in "ab")

        def upload_and_be_met(local, path):
            upload(local, path)
            if re.fullmatch(".*/000001-[0-9a-f]{16}", path):
                # A rival that gives up, too, and another that begins and ends.
                rival = next(rivals)
                self.write(rival, b"{}")
                if rival[-1] == "a":
                    remote.remove(f"{self.folder}/{rival}")
                    self.write(rival[:-1] + "c", b"{}")
                self.write(rival[:-1] + "c.end")

        with mock.patch.object(remote, "upload", upload_and_be_met):
            with files.locked(self.lock):
                self.assertEqual(self.numbers(), [2])

    def test_a_clock_that_jumps_takes_nothing_away(self):
        with files.locked(self.lock):
            with mock.patch.object(time, "time", lambda: 0.0):
                holder = f"process {os.getpid()}"
                with self.assertRaisesRegex(BlockingIOError, holder):
                    with files.locked(self.lock):
                        self.fail("both hold it")
            time.sleep(2 * leases.BEAT)
            files.write_whole(f"{self.folder}/file", b"")

    def test_beats_that_fail_are_missed_but_not_the_lease(self):
        def beats():
            (claim,) = leases._newest(self.lock)
            return json.loads(remote.read(f"{self.lock}/{claim}"))["beats"]

        with files.locked(self.lock):
            with mock.patch.object(remote, "upload", side_effect=OSError(5)):
                time.sleep(3 * leases.BEAT)
            before = beats()
            self.assertIs(remote.upload, upload)
            deadline = time.monotonic() + 10.0
            while beats() == before:
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

    def test_a_beat_makes_no_lease_that_is_gone_or_of_another(self):
        with files.locked(self.lock):
            lease = leases.of(f"{self.folder}/file")
            self.assertTrue(lease.beat())
            self.claim(2)
            before = remote.read(lease.path + "/000002-" + "2".zfill(16))
            self.assertFalse(lease.beat())
            for name in remote.names(self.lock):
                if not name.startswith("000002"):
                    remote.remove(f"{self.lock}/{name}")
            self.assertFalse(lease.beat())
        self.assertEqual(self.numbers(), [2])
        self.assertEqual(remote.read(f"{self.lock}/000002-{2:016x}"), before)


class ViewsTest(remote_files.Ram, LeaseTestCase):
    """The last writer's view counts, whatever else is in the folder."""

    def read(self, name):
        return files.read_whole(f"{self.folder}/{name}")

    def write_files(self, *names):
        for name in names:
            files.write_whole(f"{self.folder}/{name}", b"1")

    def send_late(self):
        """The first writer's requests, sent again or delayed."""
        for count, name in enumerate(
            ("kept", "replaced", "deleted", "deep/kept", "deep/late")
        ):
            self.write(f"{name}~000001-{count + 9}", b"late")
        view = {"late": "deep/late~000001-13"}
        self.write(".view/000001-00000099", json.dumps(view).encode())

    def test_what_an_earlier_writer_sends_later_is_never_read(self):
        self.write("plain", b"0")
        with files.locked(self.lock):
            self.write_files("kept", "replaced", "deleted", "deep/kept")
        found = ["deep", "deleted", "kept", "plain", "replaced"]
        with files.locked(self.lock):
            self.assertEqual(files.list_folder(self.folder), found)
            self.send_late()
            files.write_whole(f"{self.folder}/replaced", b"2")
            files.remove(f"{self.folder}/deleted")
            self.send_late()
            self.check_all()
        self.check_all()
        with files.locked(self.lock):
            # It clears away what is in no view.
            self.assertEqual(
                self.objects(),
                [
                    *("deep/kept~000001", "kept~000001", "plain"),
                    "replaced~000002",
                ],
            )
            self.check_all()
            files.write_whole(f"{self.folder}/plain", b"3")
            self.assertEqual(self.read("plain"), b"3")
            files.remove(f"{self.folder}/plain")
            self.assertFalse(files.is_file(f"{self.folder}/plain"))
        self.assertEqual(self.numbers(), [3])

    def check_all(self):
        names = ["deep/kept", "kept", "plain", "replaced"]
        self.assertEqual(files.tree(self.folder), names)
        self.assertEqual(self.read("replaced"), b"2")
        self.assertEqual(self.read("deep/kept"), b"1")
        self.assertEqual(files.stat(f"{self.folder}/kept")[0], 1)
        for name in ("late", "deleted", "deep/late"):
            self.assertFalse(files.is_file(f"{self.folder}/{name}"))
        self.assertEqual(files.list_folder(f"{self.folder}/deep"), ["kept"])

    def test_a_folder_appears_whole_and_is_moved(self):
        first, other = f"{self.folder}/one", f"{self.folder}/other"

        def names(folder):
            with mock.patch.object(leases, "_held", {}):  # to another process
                return files.tree(folder)

        def upload_and_look(local, path):
            if "one/" in path:
                self.assertEqual(names(first), [])
            upload(local, path)

        with files.locked(self.lock):
            with mock.patch.object(remote, "upload", upload_and_look):
                with files.written_folder(first) as local:
                    for name in ("data", "index"):
                        with open(os.path.join(local, name), "w") as file:
                            file.write(name)
            self.assertEqual(names(first), ["data", "index"])
            self.write_files("other/old")
            files.move_folder(first, other)
            self.assertEqual(names(first), [])
            self.assertEqual(names(other), ["data", "index"])
            self.assertEqual(self.read("other/index"), b"index")
            files.remove_folder(other)
            self.assertEqual(names(other), [])
        self.assertEqual(self.objects(), [])

    def test_a_folder_of_a_time_before_views_is_moved(self):
        self.write("one/data", b"0")
        with files.locked(self.lock):
            files.move_folder(f"{self.folder}/one", f"{self.folder}/other")
            self.assertEqual(files.tree(self.folder), ["other/data"])
            self.assertEqual(self.read("other/data"), b"0")

    def test_who_reads_what_the_next_writer_has_deleted_has_lost(self):
        with self.assertRaisesRegex(leases.Lost, "Received: 000002"):
            with files.locked(self.lock):
                self.write_files("file")
                self.claim(2)
                remote.remove(files.place(f"{self.folder}/file"))
                self.read("file")

    def test_a_folder_that_was_deleted_begins_anew(self):
        for name in ("first", "second"):
            with files.locked(self.lock):
                self.write_files(name, "both")
            self.assertEqual(files.tree(self.folder), ["both", name])
            for left in remote.tree(self.folder):
                remote.remove(f"{self.folder}/{left}")

    def test_copies_have_the_name_of_the_file(self):
        with files.locked(self.lock):
            self.write_files("final.weights.h5", "step/index")
        with files.staged(f"{self.folder}/final.weights.h5") as local:
            self.assertEndsWith(local, "/final.weights.h5")
        with files.staged_folder(f"{self.folder}/step") as local:
            self.assertEqual(os.listdir(local), ["index"])

    def test_a_reader_follows_what_is_replaced_meanwhile(self):
        place, replaced = leases.place, []

        def place_and_replace(path):
            found = place(path)
            if not replaced:
                replaced.append(found)
                files.write_whole(path, b"2")
            return found

        with files.locked(self.lock):
            self.write_files("file")
            with mock.patch.object(leases, "place", place_and_replace):
                self.assertEqual(self.read("file"), b"2")
            self.assertFalse(remote.is_file(replaced[0]))

    def test_files_of_other_folders_have_their_own_names(self):
        lock = f"{self.folder}-other/.lock"
        with files.locked(lock):
            files.write_whole(f"{self.folder}-other/file", b"")
        self.assertIn("file", remote.names(f"{self.folder}-other"))


class BucketTest(remote_files.Gcs, LeaseTestCase):
    def test_one_that_died_long_ago_is_not_waited_for(self):
        self.claim(1)
        time.sleep(leases.EXPIRY + leases._RESOLUTION + 0.1)
        clock = mock.Mock(monotonic=time.monotonic)
        with mock.patch.object(leases, "time", clock), files.locked(self.lock):
            clock.sleep.assert_not_called()

    def test_times_in_whole_seconds_age_no_lease(self):
        # Written at 1.99 s and 2.00 s, told as 1 s and 2 s.
        times = [(0, 1_000_000_000), (0, 2_000_000_000)]
        with mock.patch.object(remote, "stat", side_effect=times):
            self.assertEqual(leases._age(f"{self.lock}/000001-a"), 0.0)

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
