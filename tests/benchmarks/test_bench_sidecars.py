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
        # One of writing, four of reading.
        self.assertLen(rates, 5)
        for rate in rates:
            low, median, high = map(float, rate)
            self.assertTrue(0.0 < low <= median <= high)
        # 16 bytes and two of each number and dimension; beside it a bit, what a
        # file has, and the padding of arrays.
        found = re.search(r"\| 64 \| ([\d.]+) \| .* \| (\d+) \|", text)
        least = 16 + 2 * 128 * (1 + float(found[1]) - 0.05)
        self.assertBetween(int(found[2]), least, least + 26 + 2000 / 64)


if __name__ == "__main__":
    tf.test.main()
