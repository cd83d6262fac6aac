"""IconText's estimates of `jest-tf advise`, beside what labels say."""

import tensorflow as tf

from benchmarks.icontext import estimates
from jest_tf.curation import advice


def level(noise, share=None):
    share = 1.0 - noise if share is None else share
    precision = {
        str(factor): min(1.0, share * factor) for factor in range(2, 11)
    }
    return {
        "noise": noise,
        "matched": {"mean": share, "low": share, "high": share},
        "labelled_matched": 1.0 - noise,
        "near_duplicates": 0.01,
        "repeated": 0.07 * noise,
        "precision": precision,
        "labelled_precision": precision,
        "apart": 0.5,
    }


class BlockTest(tf.test.TestCase):
    def test_the_block_has_estimates_beside_labels(self):
        content = {"sample": 10, "levels": [level(0.0), level(0.7)]}
        text = estimates.block(content)
        self.assertIn("| 70% | 0.30 | 0.30 [0.30, 0.30] | 0.90 / 0.90 |", text)
        self.assertIn("4.9% of the sample at", text)
        self.assertIn("finds 1.0%. Without added noise it finds 1.0%.", text)
        self.assertNotIn("emoji", text)

    def test_the_block_says_whether_the_curated_set_covers_the_tests(self):
        content = {"sample": 10, "levels": [level(0.0), level(0.7)]}
        emoji = {"covered": 0.8, "apart": 0.9, "num_tests": 400}
        emoji |= {"covered_error": 0.04}
        text = estimates.block(content | {"emoji": emoji})
        self.assertIn(
            f"80% of the 400 validation pictures (the rule needs "
            f"{advice.APART:.0%}; two standard errors are 4 points) and 90% of",
            text,
        )
        self.assertIn("The rule `covered` applies. ", text)
        emoji |= {"covered": 0.65}
        self.assertIn(
            "The rule `covered` does not apply, by less than that error. ",
            estimates.block(content | {"emoji": emoji}),
        )


if __name__ == "__main__":
    tf.test.main()
