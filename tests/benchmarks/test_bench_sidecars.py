"""The sidecar benchmark at a small size: its block and its numbers."""

import contextlib
import io
import pathlib
import re
import tempfile

import pytest
import tensorflow as tf

from benchmarks import bench_sidecars


class ReportTest(tf.test.TestCase):
    @pytest.mark.slow
    def test_it_writes_its_block(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        with (
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            bench_sidecars.main(
                ["--small", "--out", f"{folder.name}/README.md"]
            )
        text = (pathlib.Path(folder.name) / "README.md").read_text("utf-8")
        self.assertStartsWith(text, "<!-- sidecars: written by python -m ")
        rates = re.findall(r"([\d.]+) / ([\d.]+) / ([\d.]+) \|", text)
        # Two of writing, one of the command, four of reading.
        self.assertLen(rates, 7)
        for rate in rates:
            low, median, high = map(float, rate)
            self.assertTrue(0.0 < low <= median <= high)
        # 1,300 records and 64: 16 bytes and two of each number and dimension,
        # a bit, and what a file has beside; a kilobyte at most for the one,
        # the padding of arrays for both.
        for name, records, dim in (
            ("quickstart's", 1300, 128),
            ("none", 64, 128),
        ):
            found = re.search(
                rf"\| {name}, D = {dim} \| ([\d,]+) \| ([\d.]+) \| .*"
                r" \| (\d+) \|",
                text,
            )
            self.assertEqual(int(found[1].replace(",", "")), records)
            least = 16 + 2 * dim * (1 + float(found[2]) - 0.05)
            self.assertBetween(
                int(found[3]), least, least + 0.2 * dim + 2000 / records
            )


if __name__ == "__main__":
    tf.test.main()
