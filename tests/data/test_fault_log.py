"""Tests of the log of records that cannot be had, and of its limit."""

import concurrent.futures
import json
import os
import tempfile
import tracemalloc

import tensorflow as tf

from jest_tf.data import reader


class FaultLogTest(tf.test.TestCase):
    def setUp(self):
        super().setUp()
        directory = self.enterContext(tempfile.TemporaryDirectory())
        self.path = os.path.join(directory, "faults.jsonl")

    def line(self, position, reason="empty image", setting="data.train"):
        return {
            "step": position // 10,
            "setting": setting,
            "position": position,
            "id": 100 + position,
            "place": f"record {position} of {setting}",
            "reason": reason,
        }

    def lines(self):
        with open(self.path) as file:
            return [json.loads(line) for line in file]

    def test_lines_are_there_at_once_and_sorted_when_closed(self):
        log = reader.FaultLog(self.path, 1.0)
        order = [31, 2, 17, 17, 5]
        for position in order:
            log.add(self.line(position))
        self.assertEqual(self.lines(), [self.line(p) for p in order])
        # Of a fault that is met again the first line stays.
        log.add(self.line(31, "another reason"))
        log.close(4)
        self.assertEqual(self.lines(), [self.line(p) for p in (2, 5, 17, 31)])

    def test_a_resumed_log_goes_on_as_if_unbroken(self):
        log = reader.FaultLog(self.path, 0.01)
        for position in (3, 3, 19, 20, 44):
            log.add(self.line(position))
        curated = self.line(3, setting="data.curated")
        log.add(curated)
        with open(self.path, "a") as file:
            file.write('{"step": 4, "posi')  # a kill in the middle of a line
        log = reader.FaultLog(self.path, 0.01)
        log.start(2, 10)
        first = [curated, self.line(3), self.line(19)]
        self.assertEqual(self.lines(), first)
        # Equal positions of two settings are two.
        self.assertEqual((log.num_drawn, log.num_replaced), (20, 3))
        for position, count in ((20, 10), (31, 10), (44, 10)):
            log.add(self.line(position))
            log.count(count, 1)
        # The replacement at 20 is unreadable, too; 44 was only read ahead.
        again = self.line(20) | {"place": "b"}
        log.add(again)
        log.close(4)
        expected = [*first, self.line(20), again, self.line(31)]
        self.assertEqual(self.lines(), expected)
        self.assertEqual(
            (log.num_drawn, log.num_replaced, log.num_lines), (40, 5, 6)
        )

    def test_bytes_that_a_power_cut_left_end_the_log(self):
        for rest in (b"\xff\xfe\xfd\n", b'{"step": 0, "reason": "\xff"}\n'):
            log = reader.FaultLog(self.path, 1.0)
            for position in (3, 19):
                log.add(self.line(position))
            with open(self.path, "ab") as file:
                file.write(rest)
            log = reader.FaultLog(self.path, 1.0)
            log.start(9, 10)
            self.assertEqual(self.lines(), [self.line(p) for p in (3, 19)])
            os.remove(self.path)

    def test_a_long_log_is_not_held_in_memory(self):
        line = json.dumps(self.line(0, 2000 * "long ")) + "\n"
        with open(self.path, "w") as file:
            file.writelines(
                line.replace('"position": 0', f'"position": {position}')
                for position in range(1000)
            )
        log = reader.FaultLog(self.path, 1.0)
        tracemalloc.start()
        self.addCleanup(tracemalloc.stop)
        log.start(1, 1000)
        log.close(1)
        _, peak = tracemalloc.get_traced_memory()
        self.assertLen(self.lines(), 1000)
        self.assertEqual(log.num_replaced, 1000)
        self.assertLess(peak, os.path.getsize(self.path) / 4)

    def test_no_faults_make_no_file(self):
        log = reader.FaultLog(self.path, 0.01)
        log.start(0, 0)
        log.count(5000, 0)
        log.close(1)
        self.assertFalse(os.path.exists(self.path))

    def test_the_limit_is_a_share_of_what_was_drawn(self):
        log = reader.FaultLog(None, 0.01)
        # 1 % of 1,024 positions, however few were drawn.
        log.count(10, 10)
        with self.assertRaisesRegex(ValueError, "11 of 11 drawn, 100.00%"):
            log.count(1, 1)
        log = reader.FaultLog(None, 0.01)
        log.count(5000, 50)
        with self.assertRaisesRegex(ValueError, "51 of 5,000 drawn, 1.02%"):
            log.count(0, 1)
        with self.assertRaisesRegex(ValueError, "1 of 5,000"):
            reader.FaultLog(None, 0.0).count(5000, 1)
        reader.FaultLog(None, 1.0).count(5000, 5000)

    def test_what_damaged_shards_have_lost_counts_from_the_start(self):
        reader.FaultLog(None, 0.01, lost_share=0.01).count(0, 0)
        with self.assertRaisesRegex(ValueError, "2.00% are .*at most 1.00%"):
            reader.FaultLog(None, 0.01, lost_share=0.02).count(0, 0)
        log = reader.FaultLog(None, 0.02, lost_share=0.01)
        log.count(5000, 50)
        with self.assertRaisesRegex(ValueError, "1.02%, and 1.00% are lost"):
            log.count(0, 1)

    def test_the_error_names_the_limit_the_reasons_and_the_log(self):
        log = reader.FaultLog(self.path, 0.0)
        reasons = ["empty image", *(f"truncated: {n} bytes" for n in (3, 4))]
        for position, reason in enumerate(reasons):
            log.add(self.line(position, reason))
        log.check()
        for _ in range(2):
            with self.assertRaisesRegex(
                ValueError,
                r"Expected at most 0.00%. The commonest "
                r"reasons: 2 x truncated: N bytes; 1 x empty image; all of "
                rf"them are in {self.path}",
            ):
                log.count(100, 3)
        with self.assertRaisesRegex(ValueError, "3 of 100 drawn"):
            log.check()

    def test_threads_lose_nothing(self):
        log = reader.FaultLog(self.path, 1.0)

        def work(start):
            for position in range(start, start + 200):
                log.add(self.line(position))
                log.count(2, 1)

        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            list(pool.map(work, range(0, 1600, 200)))
        self.assertEqual((log.num_drawn, log.num_replaced), (3200, 1600))
        log.close(160)
        self.assertEqual(self.lines(), [self.line(p) for p in range(1600)])
