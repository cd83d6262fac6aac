"""Charts are small, self-contained SVG elements."""

import re

import html_elements
import numpy as np
import tensorflow as tf

from jest_tf.reports import charts


class ChartsTest(tf.test.TestCase):
    def test_a_chart_is_one_element_that_refers_to_nothing(self):
        line = charts.Line("<b>", charts.KEPT, range(5), range(5))
        svg = charts.draw("title", [line], "step").svg
        self.assertEqual(html_elements.parse(svg).tags[0], "svg")
        self.assertNotRegex(svg, r"http|href|url\(| id=|<b>")
        self.assertIn("currentColor", svg)

    def test_histograms_count_outliers_in_the_last_bins(self):
        edges = np.linspace(0.0, 1.0, 3)
        values = np.array([-5.0, 0.1, 0.7, 9.0])
        inside = np.array([0.1, 0.1, 0.7, 0.7])
        found, expected = (
            charts.histogram("t", [("all", charts.KEPT, some)], edges, "x").svg
            for some in (values, inside)
        )
        self.assertEqual(found, expected)
        self.assertNotEmpty(re.findall("<path", found))
