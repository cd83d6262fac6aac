"""The page of an evaluation, by its elements."""

import pathlib

import html_elements
import tensorflow as tf
from evaluation_cases import Oracle, number_of, write_shard

from jest_tf import config, evaluation
from jest_tf.reports import evaluation_page
from jest_tf.runs import evaluations


class PageTest(tf.test.TestCase):
    def test_it_shows_measures_confusions_and_mistakes(self):
        folder = pathlib.Path(self.get_temp_dir())
        # Two of class 1 look like class 2.
        labels = [(1, "class 1"), (2, "class 1"), (2, "class 1"), (2, "<i> 2")]
        rows = [(gray, "", "", label) for gray, label in labels]
        write_shard(f"{folder}/numbers.tfrecord", rows)
        captions = [(1, "a 1"), (2, "the 1"), (3, "3")]
        rows = [(gray, text, "", "") for gray, text in captions]
        write_shard(f"{folder}/pairs.tfrecord", rows)
        store = config.EvaluationStore(
            "numbers", (f"{folder}/numbers.tfrecord",)
        )
        settings = config.EvaluationConfig(
            (f"{folder}/pairs.tfrecord",), (store,)
        )
        stores = evaluation.open_stores(settings.named)
        encoder = evaluation.Encoder(Oracle(), number_of, 2)
        results = evaluations.measure(stores, encoder)
        page = folder / "evaluation.html"
        evaluation_page.write(str(page), "tiny", stores, encoder, results)
        text = page.read_text(encoding="utf-8")
        self.assertIn("Evaluation of <em>tiny</em>", text)
        self.assertIn("<h2>numbers</h2>", text)
        self.assertIn("<td>zero_shot/accuracy@1</td><td>0.5000</td>", text)
        # The pair, how often, of how many, and the cosine of the two texts.
        self.assertIn(
            "<tr><td>class 1</td><td>&lt;i&gt; 2</td><td>2</td>\n"
            "<td>66.7%</td><td>0.000</td></tr>",
            text,
        )
        self.assertIn("class 1, taken for &lt;i&gt; 2", text)
        self.assertNotIn("<i>", text)
        # Two mistakes of classification. Image 1 has two captions alike, and
        # image 2 none, so both are found late, as is image 2's caption.
        self.assertLen(html_elements.parse(text).images, 2 + 2 + 1)
        self.assertNotRegex(text, r"<b>\d+\.0")  # of a rank
