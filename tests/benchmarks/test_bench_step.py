"""The step benchmark: its arithmetic, its turns, its tables, a real step."""

import contextlib
import io
import pathlib
import tempfile
from unittest import mock

import numpy as np
import pytest
import tensorflow as tf

from benchmarks import bench_step
from jest_tf import config as config_lib


class FakeStep:
    """Takes a second a hundred rows."""

    made = []

    def __init__(
        self,
        sizes,
        super_batch_size,
        selection=None,
        *,
        views=(),
    ):
        del sizes
        self.views = views
        self.selection = selection
        self.rows = super_batch_size
        self.runs = 0
        FakeStep.made.append(self)

    def run(self):
        self.runs += 1
        # What traces takes long.
        tracing = 100.0 if self.runs <= 2 else 0.0
        return tracing + self.rows / 100

    def flops(self):
        """Of a forward pass, 10 GFLOPs a row."""
        trained = self.rows
        if self.selection is not None:
            trained = self.selection.batch_size
        scored = self.rows if self.selection is not None else 0
        steps = 3 * trained + scored
        step = 10**10 * steps
        reuse = step - 10**10 * trained * bool(scored)
        return {"step": step, "no_reuse": step, "reuse": reuse}


class BenchStepTest(tf.test.TestCase):
    def setUp(self):
        super().setUp()
        FakeStep.made = []

    def faked(self, measure):
        with (
            mock.patch.object(bench_step, "Step", FakeStep),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            text = measure(True)
        rows = [line.strip("| ") for line in text.splitlines() if "|" in line]
        return [[cell.strip() for cell in row.split("|")] for row in rows[2:]]

    def test_steps_take_turns_and_do_not_time_their_tracing(self):
        order = []

        class Step:
            def __init__(self, name):
                self.name = name

            def run(self):
                order.append(self.name)
                return len(order)

        seconds = bench_step.take_turns([Step("a"), Step("b")], 3)
        self.assertEqual("".join(order), "abab" + "ababab")
        self.assertEqual(seconds, [[5, 7, 9], [6, 8, 10]])

    def test_kinds_of_steps_stand_side_by_side(self):
        rows = self.faked(bench_step.measure_kinds)
        # b = 16 and B = 80.
        self.assertEqual(
            rows,
            [
                [
                    *("uniform", "0.16 / 0.16 / 0.16", "1.00 / 1.00 / 1.00"),
                    *("480.0", "1.00", "1.00", "1.00"),
                ],
                *(
                    [
                        *(kind, "0.80 / 0.80 / 0.80", "5.00 / 5.00 / 5.00"),
                        # (3 * 16 + 80) / (3 * 16), and (3 + 5 - 1) / 3
                        *("1,280.0", "2.67", "2.67", "2.33"),
                    ]
                    for kind in ("JEST", "Flexi-JEST")
                ),
            ],
        )
        uniform, jest, flexi = FakeStep.made
        self.assertIsNone(uniform.selection)
        self.assertEqual(jest.selection.stages[0].view, config_lib.View())
        self.assertEqual(flexi.selection.stages[0].view.patch_size, 32)
        self.assertEqual([view.patch_size for view in flexi.views], [None, 32])

    def test_the_block_is_written_where_it_is_wanted(self):
        with (
            tempfile.TemporaryDirectory() as folder,
            mock.patch.object(bench_step, "Step", FakeStep),
            contextlib.redirect_stdout(io.StringIO()) as printed,
            contextlib.redirect_stderr(io.StringIO()),
        ):
            bench_step.main(["--small", "--out", f"{folder}/README.md"])
            text = pathlib.Path(folder, "README.md").read_text()
        self.assertIn(printed.getvalue().strip(), text)
        self.assertStartsWith(text, "<!-- step: written by python -m bench")
        self.assertIn("tensorflow 2.", text)

    @pytest.mark.slow
    def test_a_real_step_trains(self):
        selection = config_lib.SelectionConfig(
            4, stages=(config_lib.Stage(2, num_chunks=2),)
        )
        step = bench_step.Step(bench_step._QUICK, 8, selection)
        with mock.patch.object(
            step, "_function", wraps=step._function
        ) as function:
            seconds = step.run()
        function.assert_called_once()
        self.assertGreater(seconds, 0.0)
        losses = [
            float(step._function(step._batches)["loss"]) for _ in range(3)
        ]
        self.assertTrue(np.all(np.isfinite(losses)))
        # The mean since the start moves, as steps differ.
        self.assertLen(set(losses), 3)


if __name__ == "__main__":
    tf.test.main()
