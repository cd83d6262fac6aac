"""examples/guide.ipynb is made from examples/guide.py, and runs.

PYTHONPATH=. python tests/test_guide.py --write

makes the notebook: it executes the script's cells in a new kernel.
"""

import os
import pathlib
import re
import sys

import pytest
import tensorflow as tf

jupytext = pytest.importorskip("jupytext")
nbclient = pytest.importorskip("nbclient")
nbformat = pytest.importorskip("nbformat")

ROOT = pathlib.Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "examples" / "guide.py"
NOTEBOOK = ROOT / "examples" / "guide.ipynb"
LARGEST = 300_000  # bytes


def made():
    """The notebook of the script, without outputs."""
    notebook = jupytext.reads(SCRIPT.read_text("utf-8"), "py:percent")
    del notebook.metadata["jupytext"]
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number}"  # random otherwise
        cell.metadata.clear()
    return notebook


def executed(notebook):
    """A notebook with the outputs of a new kernel."""
    client = nbclient.NotebookClient(
        notebook,
        timeout=600,
        record_timing=False,
        coalesce_streams=True,
        resources={"metadata": {"path": str(SCRIPT.parent)}},
    )
    client.execute(env={**os.environ, "PYTHONPATH": str(ROOT)})
    notebook.metadata.pop("language_info")  # the version of this Python
    for cell in code(notebook):
        cell.outputs = [
            output
            for output in cell.outputs
            if output.get("name") != "stderr"  # TensorFlow's remarks
        ]
    return notebook


def code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def without_outputs(notebook):
    for cell in code(notebook):
        cell.outputs, cell.execution_count = [], None
    return notebook


def printed(notebook):
    """The text that the cells print."""
    return "".join(
        output.text
        for cell in code(notebook)
        for output in cell.outputs
        if output.output_type == "stream"
    )


def pictures(notebook):
    """The images that the cells show, as PNG in base64."""
    return [
        output.data["image/png"]
        for cell in code(notebook)
        for output in cell.outputs
        if output.output_type == "display_data"
    ]


def wrong_captions(text):
    """The printed shares of wrong captions, in per cent, by name."""
    return {
        name: float(share)
        for name, share in re.findall(
            r"(\w+): ([\d.]+)% of the captions are wrong", text
        )
    }


class GuideTest(tf.test.TestCase):
    def test_the_notebook_has_the_cells_of_the_script(self):
        written = nbformat.read(NOTEBOOK, as_version=4)
        self.assertEqual(without_outputs(written), made())

    def test_the_notebook_has_the_outputs_of_one_run_and_is_small(self):
        written = nbformat.read(NOTEBOOK, as_version=4)
        self.assertEqual(
            [cell.execution_count for cell in code(written)],
            [1 + number for number in range(len(code(written)))],
        )
        self.assertLen(pictures(written), 3)
        self.check_claims(printed(written))
        self.assertLess(NOTEBOOK.stat().st_size, LARGEST)

    @pytest.mark.slow
    def test_a_new_kernel_runs_it_and_selection_drops_wrong_captions(self):
        notebook = made()
        (setup,) = (cell for cell in code(notebook) if "STEPS =" in cell.source)
        # The written notebook is of all steps.
        setup.source = setup.source.replace("400, 800", "400, 40")
        self.assertIn("REFERENCE_STEPS, STEPS = 400, 40", setup.source)
        executed(notebook)
        self.assertLen(pictures(notebook), 3)
        wrong = wrong_captions(printed(notebook))
        # Five standard deviations, in per cent, of a share of all rows chosen.
        spread = 100 * 5 * (0.6 * 0.4 / (40 * 128)) ** 0.5
        self.assertLess(wrong["chosen"], wrong["offered"] - spread)

    def check_claims(self, text):
        """The guide's prose holds for what its cells print."""
        wrong = wrong_captions(text)
        self.assertBetween(wrong["offered"], 59.0, 62.0)
        self.assertLess(wrong["chosen"], 0.8 * wrong["offered"])
        losses = [float(loss) for loss in re.findall(r"loss ([\d.]+)", text)]
        self.assertEqual(losses, sorted(losses, reverse=True))
        recall = {
            name: float(share)
            for name, share in re.findall(r"(\w+): recall ([\d.]+)%", text)
        }
        self.assertGreater(recall["uniform"], 0.8)  # chance
        self.assertGreater(recall["JEST"], 1.5 * recall["uniform"])


if __name__ == "__main__":
    if sys.argv[1:] == ["--write"]:
        nbformat.write(executed(made()), NOTEBOOK)
    else:
        tf.test.main()
