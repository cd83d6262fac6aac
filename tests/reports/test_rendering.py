"""Captions of strangers stay text."""

import html_elements
import numpy as np
import tensorflow as tf

from jest_tf.reports import rendering

HOSTILE = (
    "<script>alert(1)</script>",
    '" onload="alert(1)',
    "' onload='alert(1)",
    "</figcaption></style><img src=x>",
    "{{ 7 * 7 }}{% raw %}",
    "\u202eright to left",
    "",
    "x" * 10**6,
)


class RenderingTest(tf.test.TestCase):
    def test_hostile_captions_stay_text(self):
        image = np.zeros([2, 2, 3], np.uint8)
        cards = [
            {
                "image": image,
                "caption": caption,
                "id": 1,
                "score": 0.5,
                "kept": True,
            }
            for caption in HOSTILE
        ]
        page = rendering.render(
            "manifest.html",
            name=HOSTILE[0],
            made_by={HOSTILE[1]: HOSTILE[3]},
            counts={HOSTILE[0]: 3},
            kept=cards,
            dropped=[],
        ).decode()
        found = html_elements.parse(page)
        self.assertNotIn("script", found.tags)
        self.assertEqual(
            [card["alt"] for card in found.images],
            [*HOSTILE[:-1], "x" * 297 + "..."],
        )
        for card in found.images:
            self.assertCountEqual(card, ["src", "alt"])
        self.assertLess(len(page), 20_000)
