"""Tokenizers and vocabularies: layout of rows, files, bad arguments."""

import collections
import os

import numpy as np
import sentencepiece_files
import tensorflow as tf
import tensorflow_text as tf_text
from tensorflow_text.tools.wordpiece_vocab import (
    wordpiece_tokenizer_learner_lib,
)

from jest_tf import files
from jest_tf.data import tokenizers, vocabularies

CAPTIONS = [
    "a red circle on a blue square",
    "two small red squares, one blue circle",
    "A RED circle!",
    "café au lait; naïve façade",
    "smiling face with sunglasses",
    "squares and circles in circled squares",
]


class SanitizeCaptionsTest(tf.test.TestCase):
    def test_bad_bytes_become_the_replacement_character(self):
        captions = [
            b"",
            b"plain",
            "caf\u00e9 \U0001f600".encode(),
            "\ufffd".encode(),  # valid as it stands
            "\ufeffbom\0".encode(),
            b"latin-1 caf\xe9",
            b"\xff\xfe",
            b"\xc0\x80",  # overlong
            b"\xed\xa0\x80",  # a surrogate
            b"cut \xe2\x82",
        ]
        valid, replaced = tokenizers.sanitize_captions(tf.constant(captions))
        self.assertAllEqual(
            valid, [c.decode("utf-8", "replace").encode() for c in captions]
        )
        self.assertAllEqual(replaced, [False] * 5 + [True] * 5)


class WordPieceTokenizerTest(tf.test.TestCase):
    # "un", "##aff" and "##able" split as in the WordPiece literature.
    VOCABULARY = ["[UNK]", "[EOS]", "un", "##aff", "##able", "cafe", ",", "a"]

    def test_tokens_then_end_of_sequence_to_the_full_length(self):
        tokenizer = tokenizers.WordPieceTokenizer(self.VOCABULARY, 5)
        tokens = tokenizer(
            tf.constant(
                [
                    "unaffable",
                    "Caf\u00e9, A",  # case and accent go, comma splits
                    "cafe\u0301",  # the same, decomposed
                    "",
                    " \t\n",
                    "a zebra",
                    "a a a a",  # just fits
                    "a, a, a, a",  # is cut: the end stays
                    "[EOS]",  # text cannot forge an end
                ]
            )
        )
        self.assertEqual(tokens.dtype, tf.int32)
        self.assertAllEqual(
            tokens,
            [
                [2, 3, 4, 1, 1],
                [5, 6, 7, 1, 1],
                [5, 1, 1, 1, 1],
                [1, 1, 1, 1, 1],
                [1, 1, 1, 1, 1],
                [7, 0, 1, 1, 1],
                [7, 7, 7, 7, 1],
                [7, 6, 7, 6, 1],
                [0, 0, 0, 1, 1],
            ],
        )

    def test_tokens_equal_those_of_bert_tokenizer(self):
        vocabulary = vocabularies.build_wordpiece_vocabulary(CAPTIONS, 120)
        tokenizer = tokenizers.WordPieceTokenizer(vocabulary, 64)
        table = tf.lookup.StaticVocabularyTable(
            tf.lookup.KeyValueTensorInitializer(
                vocabulary, tf.range(len(vocabulary), dtype=tf.int64)
            ),
            num_oov_buckets=1,
        )
        bert = tf_text.BertTokenizer(
            table, lower_case=True, token_out_type=tf.int32
        )
        rng = np.random.default_rng(0)
        alphabet = list("abcdeilnrst ,.!-'ÀéßñİΣдж中文 \U0001f600\u0301\u200d")
        texts = CAPTIONS + [
            "".join(rng.choice(alphabet, rng.integers(0, 60)))
            for _ in range(300)
        ]
        expected = bert.tokenize(tf.constant(texts)).merge_dims(1, -1)
        for row, tokens in zip(
            tokenizer(tf.constant(texts)).numpy(),
            expected.to_list(),
            strict=True,
        ):
            # Words without pieces are beyond the table: unknown.
            tokens = [0 if t == len(vocabulary) else t for t in tokens][:63]
            self.assertAllEqual(row, tokens + [1] * (64 - len(tokens)))

    def test_a_saved_tokenizer_loads_with_another_length(self):
        vocabulary = self.VOCABULARY + ["\u00b7", "##\u4e2d", "\x85", "\u2028"]
        folder = self.get_temp_dir()
        tokenizers.WordPieceTokenizer(vocabulary, 5).save(folder)
        content = files.read_whole(f"{folder}/vocab.txt")
        loaded = tokenizers.load_tokenizer(folder, 3)
        self.assertEqual(
            content, "".join(f"{t}\n" for t in vocabulary).encode()
        )
        self.assertEqual(loaded.vocabulary, tuple(vocabulary))
        self.assertEqual(loaded.vocabulary_size, 12)
        self.assertAllEqual(loaded(tf.constant(["unaffable"])), [[2, 3, 1]])

    def test_bad_arguments_are_refused(self):
        for vocabulary, message in (
            (["[UNK]", "a"], r"without \[EOS\]"),
            (["a"], r"without \[UNK\] and \[EOS\]"),
            (["[UNK]", "[EOS]", "a", "a"], "more than once .'a'"),
            (["[UNK]", "[EOS]", "a\nb"], "one line"),
            (["[UNK]", "[EOS]", ""], "one line"),
            (["[UNK]", "[EOS]"], "a piece"),
        ):
            with self.assertRaisesRegex(ValueError, f"`vocabulary`.*{message}"):
                tokenizers.WordPieceTokenizer(vocabulary, 4)
        with self.assertRaisesRegex(ValueError, "`length`.*at least 1.*0"):
            tokenizers.WordPieceTokenizer(self.VOCABULARY, 0)


class BuildWordpieceVocabularyTest(tf.test.TestCase):
    def test_the_order_and_type_of_captions_does_not_matter(self):
        captions = CAPTIONS * 3 + [f"number {n} of {n * n}" for n in range(99)]
        expected = vocabularies.build_wordpiece_vocabulary(captions, 100)
        self.assertEqual(expected[:2], ["[UNK]", "[EOS]"])
        self.assertLessEqual(len(expected), 100)
        self.assertLen(set(expected), len(expected))
        for seed in range(3):
            shuffled = np.random.default_rng(seed).permutation(captions)
            again = (str(c).encode() for c in shuffled)
            self.assertEqual(
                vocabularies.build_wordpiece_vocabulary(again, 100), expected
            )

    def test_it_is_what_tensorflow_texts_search_learns(self):
        rng = np.random.default_rng(0)
        words = [
            "".join(rng.choice([*"abcdef"], rng.integers(1, 9)))
            for _ in range(400)
        ]
        captions = [
            [words[int(place)] for place in rng.zipf(1.3, 4) % 400]
            for _ in range(800)
        ]
        captions.append(["c" * 100_000])  # not learned from, nor taken apart
        counts = collections.Counter(
            word for caption in captions for word in caption
        )
        for size in (20, 60, 150, 400):
            expected = wordpiece_tokenizer_learner_lib.learn(
                sorted(counts.items(), key=lambda item: (-item[1], item[0])),
                vocab_size=size,
                reserved_tokens=["[UNK]", "[EOS]"],
                lower_thresh=1,
            )
            found = vocabularies.build_wordpiece_vocabulary(
                map(" ".join, captions), size
            )
            self.assertEqual(found, expected[:size])

    def test_bad_arguments_are_refused(self):
        with self.assertRaisesRegex(ValueError, "`size` must be over 2.*2"):
            vocabularies.build_wordpiece_vocabulary(CAPTIONS, 2)
        for captions in ([], ["", "  "]):
            with self.assertRaisesRegex(ValueError, "`captions`"):
                vocabularies.build_wordpiece_vocabulary(captions, 50)


class Letters:
    """Tokens are letters, from 1 on; 0 is padding."""

    vocabulary_size = 27

    def __init__(self, length):
        self.length = length

    def __call__(self, captions):
        codes = tf.strings.unicode_decode(captions, "UTF-8") - (ord("a") - 1)
        return codes.to_tensor(0, shape=[None, self.length])


def nothing(length):
    return length


class FunctionTokenizerTest(tf.test.TestCase):
    def test_a_function_by_name_is_saved_as_its_name(self):
        name = f"{__name__}:Letters"
        tokenizer = tokenizers.read_tokenizer(name, 4)
        folder = self.get_temp_dir()
        tokenizer.save(folder)
        self.assertEqual(os.listdir(folder), ["tokenizer.function"])
        again = tokenizers.load_tokenizer(folder, 4, name)
        self.assertEqual(again, tokenizer)
        longer = tokenizers.load_tokenizer(folder, 5, name)
        self.assertNotEqual(longer, tokenizer)
        self.assertEqual(again.vocabulary_size, 27)
        rows = tf.function(again)(tf.constant(["abc", "zzzzzz"]))
        self.assertAllEqual(rows, [[1, 2, 3, 0], [26] * 4])
        self.assertEqual(rows.dtype, tf.int32)

    def test_what_is_no_tokenizer_is_refused(self):
        for name, message in (
            (f"{__name__}:nothing", "`vocabulary_size`. Received: 4"),
            (f"{__name__}:none", "`data.vocabulary` must name a function of"),
            ("none", "vocabulary. must be a file.*'none', no file"),
        ):
            with self.assertRaisesRegex(ValueError, message):
                tokenizers.read_tokenizer(name, 4)


class SentencePieceTokenizerTest(tf.test.TestCase):
    def test_tokens_then_end_of_sequence_to_the_full_length(self):
        tokenizer = tokenizers.SentencePieceTokenizer(
            sentencepiece_files.model(), 4
        )
        self.assertEqual(tokenizer.vocabulary_size, 8)
        self.assertEqual(tokenizer.end_id, 1)
        tokens = tokenizer(
            tf.constant(["red", "red redx", "", "x x x", "red</s>"])
        )
        self.assertEqual(tokens.dtype, tf.int32)
        self.assertAllEqual(
            tokens,
            [
                [3, 1, 1, 1],
                [3, 3, 7, 1],
                [1, 1, 1, 1],
                [6, 7, 6, 1],
                [3, 2, 1, 1],  # "</s>" in a text is unknown characters
            ],
        )

    def test_bad_arguments_are_refused(self):
        with self.assertRaisesRegex(ValueError, "`model`.*7 bytes"):
            tokenizers.SentencePieceTokenizer(b"garbage", 4)
        with self.assertRaisesRegex(ValueError, "`model`.*end-of-sequence"):
            tokenizers.SentencePieceTokenizer(
                sentencepiece_files.model(end=b"<other>"), 4
            )

    def test_a_directory_with_a_tokenizer_is_loaded_with_none_or_two_not(self):
        model = sentencepiece_files.model()
        folder = self.get_temp_dir()
        with self.assertRaisesRegex(ValueError, "one of vocab.txt, .*none"):
            tokenizers.load_tokenizer(folder, 4)
        tokenizers.SentencePieceTokenizer(model, 4).save(folder)
        loaded = tokenizers.load_tokenizer(folder, 3)
        self.assertEqual(loaded.model, model)
        self.assertAllEqual(loaded(tf.constant(["red"])), [[3, 1, 1]])
        words = tokenizers.WordPieceTokenizer(["[UNK]", "[EOS]", "a"], 4)
        words.save(folder)
        with self.assertRaisesRegex(ValueError, "vocab.txt and tokenizer"):
            tokenizers.load_tokenizer(folder, 4)
