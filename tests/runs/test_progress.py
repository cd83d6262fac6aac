"""Tests of the line that tells how far a piece of work is."""

import io
from unittest import mock

import tensorflow as tf

from jest_tf.runs import progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


class ProgressTest(tf.test.TestCase):
    def show(self, stream, calls):
        """`calls` are (seconds, done, total) each."""
        with mock.patch.object(progress.time, "monotonic") as clock:
            clock.return_value = 0.0
            shown = progress.Progress("embedding", "records", stream)
            for seconds, done, total in calls:
                clock.return_value = seconds
                shown(done, total)
        return stream.getvalue()

    def test_a_file_gets_a_line_now_and_then_and_the_last(self):
        # Of 5,000 at the first call: 10 s later 1,000 more, so 100 a second.
        calls = [(5, 5000, 9000), (10, 5500, 9000), (15, 6000, 9000)]
        calls += [(20, 6500, 9000), (21, 9000, 9000)]
        self.assertEqual(
            self.show(io.StringIO(), calls).splitlines(),
            [
                "embedding [###########.........] 5,000 of 9,000 records",
                "embedding [##############......] 6,500 of 9,000 records"
                "  100/s  0:00:25 left",
                "embedding [####################] 9,000 of 9,000 records"
                "  250/s  0:00:00 left",
            ],
        )

    def test_on_a_terminal_the_line_overwrites_itself(self):
        shown = self.show(
            Terminal(), [(1, 0, 10), (1.1, 1, 10), (2, 5, 10), (3, 10, 10)]
        )
        first, second, third, last = shown.split("\r\033[K")
        self.assertEqual(first, "")
        self.assertEndsWith(second, " 0 of 10 records")
        self.assertEndsWith(third, "5 of 10 records  5/s  0:00:01 left")
        self.assertEndsWith(last, "left\n")

    def test_nothing_to_do_is_done(self):
        self.assertEqual(
            self.show(io.StringIO(), [(0, 0, 0)]),
            "embedding [####################] 0 of 0 records\n",
        )

    def test_clock(self):
        self.assertEqual(progress.clock(0.4), "0:00:00")
        self.assertEqual(progress.clock(3723), "1:02:03")
        self.assertEqual(progress.clock(360000), "100:00:00")


if __name__ == "__main__":
    tf.test.main()
