"""The page of an evaluation, by its elements."""

import pathlib

import html_elements
import suite_files
import tensorflow as tf
from evaluation_cases import Oracle, number_of

from jest_tf import evaluation
from jest_tf.reports import evaluation_page


class PageTest(tf.test.TestCase):
    def test_it_shows_measures_confusions_and_mistakes(self):
        folder = pathlib.Path(self.get_temp_dir())
        # Two of class 1 look like class 2.
        suite_files.write_classes(
            folder / "classes", {"class 1": [1, 2, 2], "<i> 2": [2]}
        )
        suite_files.write_tars(
            folder / "pairs",
            [(1, {"txt": "a 1"}), (2, {"txt": "the 1"}), (3, {"txt": "3"})],
            {"dataset_type.txt": "retrieval"},
        )
        suite = folder / "suite.toml"
        suite.write_text(
            '[numbers]\ndata = "classes"\n'
            '[pairs]\ntask = "retrieval"\ndata = "pairs"\n'
        )
        opened = evaluation.open_suite(str(suite))
        encoder = evaluation.Encoder(Oracle(), number_of, 4)
        for entry in opened.values():
            entry.attach(encoder)
        outcomes = {name: entry.outcomes() for name, entry in opened.items()}
        page = folder / "evaluation.html"
        evaluation_page.write(
            str(page), "tiny", evaluation.results(outcomes, "tiny", ""), opened
        )
        text = page.read_text(encoding="utf-8")
        self.assertIn("Evaluation of <em>tiny</em>", text)
        self.assertIn("<td>numbers</td>\n<td>0.5000</td>", text)
        # The pair, how often, of how many, and the cosine of the two texts.
        self.assertIn(
            "<tr><td>class 1</td><td>&lt;i&gt; 2</td><td>2</td>\n"
            "<td>66.7%</td><td>0.000</td></tr>",
            text,
        )
        self.assertIn("class 1, taken for &lt;i&gt; 2", text)
        self.assertNotIn("<i>", text)
        # Two mistakes of classification. Picture 1 has two captions alike, and
        # picture 2 none, so both are found late, as is picture 2's caption.
        images = html_elements.parse(text).images
        self.assertLen(images, 1 + 2 + 2 + 1)
        self.assertEqual(images[0]["class"], "matrix")
