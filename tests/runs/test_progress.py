"""Progress of long work, on a terminal and in a file."""

import contextlib
import io
from unittest import mock

import tensorflow as tf

from jest_tf.runs import progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


class ProgressTest(tf.test.TestCase):
    def show(self, calls, unit="records"):
        """`calls` are (seconds, done, total) each."""
        shown = progress.Progress("embedding", unit)
        clock = mock.Mock()
        with (
            mock.patch.object(progress, "time", clock),
            contextlib.redirect_stderr(io.StringIO()) as stream,
        ):
            for clock.monotonic.return_value, done, total in calls:
                shown(done, total)
        return stream.getvalue().splitlines()

    def test_a_file_gets_a_line_now_and_then_and_the_last(self):
        # Of 5,000 at the first call: 15 s later 1,500 more, so 100 a second.
        calls = [(5, 5000, 9000), (10, 5500, 9000), (15, 6000, 9000)]
        calls += [(20, 6500, 9000), (21, 9000, 9000)]
        self.assertEqual(
            self.show(calls),
            [
                "embedding: 5000 of 9000 records [00:00<?, ? records/s]",
                "embedding: 6500 of 9000 records "
                "[00:15<00:25, 100.00 records/s]",
                "embedding: 9000 of 9000 records "
                "[00:16<00:00, 250.00 records/s]",
            ],
        )

    def test_bytes_are_scaled(self):
        self.assertEqual(
            self.show([(0, 0, 2 * 10**9), (20, 10**9, 2 * 10**9)], "bytes")[1],
            "embedding: 1.00G of 2.00GB [00:20<00:20, 50.0MB/s]",
        )

    def test_on_a_terminal_the_bar_overwrites_itself(self):
        with contextlib.redirect_stderr(Terminal()) as stream:
            shown = progress.Progress("embedding", "records")
            for done in (3, 5, 10):
                shown(done, 10, "note")
        first, *others = stream.getvalue().split("\r")
        self.assertEqual(first, "")
        self.assertStartsWith(others[0], "embedding:  30%|")
        self.assertStartsWith(others[-1], "embedding: 100%|")
        self.assertIn("note", others[-1])
        self.assertEqual(stream.getvalue().count("\n"), 1)
        self.assertEndsWith(stream.getvalue(), "\n")
