"""The cache of results that threads share."""

import tensorflow as tf

from jest_tf.files import cache


class CacheTest(tf.test.TestCase):
    """Threads and failures are in tests/data/test_reader.py."""

    def test_the_latest_results_are_kept_up_to_their_sizes(self):
        made = []

        def make(keys):
            made.extend(keys)
            return [len(key) * "x" for key in keys]

        kept = cache.Cache(3, len)
        for keys, missing in (
            (["a", "bb"], ["a", "bb"]),
            (["a"], []),
            (["c"], ["c"]),  # "bb" was used last long ago
            (["bb", "a"], ["bb"]),
            # Results asked for together are kept, whatever their size.
            (["dddd", "a"], ["dddd"]),
            (["dddd"], []),
        ):
            made.clear()
            found = kept.get(keys, make)
            self.assertEqual(found, {key: len(key) * "x" for key in keys})
            self.assertEqual(made, missing)

    def test_results_are_made_anew_if_stale_or_dropped(self):
        kept, first, second = cache.Cache(9), ["first"], ["second"]
        kept.get("k", lambda keys: [first])
        found = kept.get("k", lambda keys: [second], lambda key, old: True)
        self.assertIs(found["k"], second)
        kept.drop("k", first)  # which is no longer there
        self.assertIs(kept.get("k", None)["k"], second)
        kept.drop("k", second)
        self.assertIs(kept.get("k", lambda keys: [first])["k"], first)
