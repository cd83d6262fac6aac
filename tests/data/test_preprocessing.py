"""Tests of decoding, tokenising and augmentation."""

import os
import tempfile

import numpy as np
import tensorflow as tf
import tensorflow_text as tf_text

from jest_tf.data import augmentation, pictures, tokenizers

CAPTIONS = [
    "a red circle on a blue square",
    "two small red squares, one blue circle",
    "A RED circle!",
    "café au lait; naïve façade",
    "smiling face with sunglasses",
    "squares and circles in circled squares",
]


def random_images(*shape, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, shape, np.uint8)


def resize_by_definition(image, size):
    """Triangle-filter resampling, stretched by the scale when shrinking."""

    def weights(length):
        scale = length / size
        reach = max(scale, 1.0)
        centres = (np.arange(size) + 0.5) * scale - 0.5
        distance = np.abs(np.arange(length) - centres[:, None]) / reach
        kernel = np.maximum(0.0, 1.0 - distance)
        return kernel / kernel.sum(1, keepdims=True)

    height, width, _ = image.shape
    return np.einsum(
        "ij,jkc,lk->ilc", weights(height), image.astype(float), weights(width)
    )


class DecodeImageTest(tf.test.TestCase):
    def test_a_picture_of_the_size_passes_untouched(self):
        image = random_images(8, 8, 3)
        for encode in (tf.io.encode_png, self.encode_bmp):
            decoded = pictures.decode_image(encode(image), 8)
            self.assertEqual(decoded.dtype, tf.uint8)
            self.assertAllEqual(decoded, image)

    def encode_bmp(self, image):
        """24-bit BMP of a picture whose rows need no padding."""
        height, width, _ = image.shape
        pixels = image[::-1, :, ::-1].tobytes()
        fields = [54 + len(pixels), 0, 54, 40, width, height]
        header = b"BM" + np.array(fields, "<u4").tobytes()
        header += np.array([1, 24], "<u2").tobytes()
        header += np.array([0, len(pixels), 0, 0, 0, 0], "<u4").tobytes()
        return tf.constant(header + pixels)

    def test_another_size_is_squashed_with_antialiasing_and_rounded(self):
        # Up, down, one side fitting, not square.
        for shape in ((5, 7), (16, 16), (33, 8), (8, 20)):
            image = random_images(*shape, 3)
            resized = pictures.decode_image(tf.io.encode_png(image), 8)
            expected = resize_by_definition(image, 8)
            # Half a level of rounding, and float32 against float64.
            error = np.abs(resized.numpy() - expected).max()
            self.assertLess(error, 0.5 + 1e-3)

    def test_resizing_equals_that_of_tensorflow_bit_for_bit(self):
        for shape in ((5, 7), (16, 16), (33, 8), (250, 301), (1, 90)):
            image = random_images(*shape, 3)
            resized = tf.image.resize(image, [8, 8], antialias=True)
            self.assertAllEqual(
                pictures.resize_image(image, 8),
                tf.saturate_cast(tf.round(resized), tf.uint8),
            )

    def test_a_jpeg_is_decoded(self):
        # Flat gray survives JPEG's quantisation of differences.
        image = np.full((8, 8, 3), 77, np.uint8)
        decoded = pictures.decode_image(tf.io.encode_jpeg(image), 8)
        self.assertAllClose(decoded, image, atol=1)

    def test_the_first_frame_of_a_gif_is_decoded(self):
        # One pixel, a palette of two colours, two frames. LZW codes of three
        # bits, lowest first: clear (4), the colour's index, end (5).
        def frame(index):
            data = (4 | index << 3 | 5 << 6).to_bytes(2, "little")
            place = bytes([0, 0, 0, 0, 1, 0, 1, 0, 0])
            return b"," + place + b"\2\2" + data + b"\0"

        screen = b"GIF89a" + bytes([1, 0, 1, 0, 0x80, 0, 0])
        palette = bytes([10, 20, 30, 40, 50, 60])
        encoded = tf.constant(screen + palette + frame(0) + frame(1) + b";")
        decoded = pictures.decode_image(encoded, 1)
        self.assertAllEqual(decoded, [[[10, 20, 30]]])

    def test_gray_becomes_rgb_and_alpha_is_dropped(self):
        gray = random_images(4, 4, 1)
        decoded = pictures.decode_image(tf.io.encode_png(gray), 4)
        self.assertAllEqual(decoded, np.repeat(gray, 3, 2))
        rgba = random_images(4, 4, 4)
        decoded = pictures.decode_image(tf.io.encode_png(rgba), 4)
        self.assertAllEqual(decoded, rgba[..., :3])

    def test_shape_is_static_in_a_graph(self):
        dataset = tf.data.Dataset.from_tensors("").map(
            lambda encoded: pictures.decode_image(encoded, 8)
        )
        self.assertEqual(dataset.element_spec.shape, [8, 8, 3])


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

    def test_length_one_is_the_end_alone(self):
        tokenizer = tokenizers.WordPieceTokenizer(self.VOCABULARY, 1)
        self.assertAllEqual(tokenizer(tf.constant(["a", ""])), [[1], [1]])

    def test_tokens_equal_those_of_bert_tokenizer(self):
        vocabulary = tokenizers.build_wordpiece_vocabulary(CAPTIONS, 120)
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

    def test_a_dataset_gives_the_same_tokens_of_static_length(self):
        tokenizer = tokenizers.WordPieceTokenizer(self.VOCABULARY, 5)
        captions = tf.constant(["unaffable a", "", "cafe"])
        dataset = tf.data.Dataset.from_tensors(captions).map(tokenizer)
        self.assertEqual(dataset.element_spec.shape[1], 5)
        self.assertAllEqual(next(iter(dataset)), tokenizer(captions))

    def test_a_saved_tokenizer_loads_with_another_length(self):
        vocabulary = self.VOCABULARY + ["\u00b7", "##\u4e2d", "\x85", "\u2028"]
        with tempfile.TemporaryDirectory() as directory:
            tokenizers.WordPieceTokenizer(vocabulary, 5).save(directory)
            with open(os.path.join(directory, "vocab.txt"), "rb") as file:
                content = file.read()
            loaded = tokenizers.load_tokenizer(directory, 3)
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
            (["[UNK]", "[EOS]", "a", "a"], "'a' more than once"),
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
        expected = tokenizers.build_wordpiece_vocabulary(captions, 100)
        self.assertEqual(expected[:2], ["[UNK]", "[EOS]"])
        self.assertLessEqual(len(expected), 100)
        self.assertLen(set(expected), len(expected))
        for seed in range(3):
            shuffled = np.random.default_rng(seed).permutation(captions)
            again = (str(c).encode() for c in shuffled)
            self.assertEqual(
                tokenizers.build_wordpiece_vocabulary(again, 100), expected
            )

    def test_frequent_words_are_tokens_in_lower_case_without_accents(self):
        vocabulary = tokenizers.build_wordpiece_vocabulary(
            ["Café CIRCLE"] * 50 + ["rare"], 60
        )
        self.assertContainsSubset(["cafe", "circle"], vocabulary)

    def test_every_known_character_can_be_written(self):
        vocabulary = tokenizers.build_wordpiece_vocabulary(CAPTIONS, 500)
        tokenizer = tokenizers.WordPieceTokenizer(vocabulary, 32)
        reversed_words = [caption[::-1] for caption in CAPTIONS]
        self.assertNotIn(0, tokenizer(tf.constant(reversed_words)).numpy())

    def test_bad_bytes_do_not_stop_it(self):
        vocabulary = tokenizers.build_wordpiece_vocabulary(
            [b"caf\xe9 red", b"red"], 60
        )
        self.assertIn("red", vocabulary)

    def test_a_small_size_is_kept(self):
        vocabulary = tokenizers.build_wordpiece_vocabulary(CAPTIONS, 9)
        self.assertLen(vocabulary, 9)
        tokenizers.WordPieceTokenizer(vocabulary, 4)

    def test_bad_arguments_are_refused(self):
        with self.assertRaisesRegex(ValueError, "`size` must be over 2.*2"):
            tokenizers.build_wordpiece_vocabulary(CAPTIONS, 2)
        for captions in ([], ["", "  "]):
            with self.assertRaisesRegex(ValueError, "`captions`"):
                tokenizers.build_wordpiece_vocabulary(captions, 50)


def sentencepiece_model(end=b"</s>"):
    """A serialized unigram model written field by field, without the library.

    Ids: 0 <pad>, 1 end, 2 <unk>, 3 "_red", 4 "_r", 5 "ed", 6 "_", 7 "x", where
    _ is SentencePiece's mark of a word's start.
    """
    pieces = [
        (b"<pad>", 0.0, 3),  # control
        (end, 0.0, 3),
        (b"<unk>", 0.0, 2),
        ("\u2581red".encode(), -1.0, 1),
        ("\u2581r".encode(), -2.0, 1),
        (b"ed", -2.0, 1),
        ("\u2581".encode(), -3.0, 1),
        (b"x", -3.0, 1),
    ]

    def field(number, payload):
        return bytes([number << 3 | 2, len(payload)]) + payload

    model = b""
    for text, score, kind in pieces:
        number = np.array(score, "<f4").tobytes()
        model += field(
            1, field(1, text) + bytes([2 << 3 | 5]) + number + bytes([24, kind])
        )
    # TrainerSpec: model_type 3 = unigram 1; ids of unk 40, bos 41, eos 42 and
    # pad 43, where bos is -1, off, as a ten-byte varint.
    trainer = bytes([24, 1])
    for number, value in ((40, 2), (42, 1), (43, 0)):
        key = number << 3
        trainer += bytes([key & 127 | 128, key >> 7, value])
    key = 41 << 3
    trainer += bytes([key & 127 | 128, key >> 7]) + b"\xff" * 9 + b"\x01"
    normalizer = field(1, b"identity")
    return model + field(2, trainer) + field(3, normalizer)


class SentencePieceTokenizerTest(tf.test.TestCase):
    def test_tokens_then_end_of_sequence_to_the_full_length(self):
        tokenizer = tokenizers.SentencePieceTokenizer(sentencepiece_model(), 4)
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

    def test_a_dataset_gives_the_same_tokens_of_static_length(self):
        tokenizer = tokenizers.SentencePieceTokenizer(sentencepiece_model(), 4)
        captions = tf.constant(["red x", ""])
        dataset = tf.data.Dataset.from_tensors(captions).map(tokenizer)
        self.assertEqual(dataset.element_spec.shape[1], 4)
        self.assertAllEqual(next(iter(dataset)), tokenizer(captions))

    def test_a_saved_tokenizer_loads(self):
        model = sentencepiece_model()
        with tempfile.TemporaryDirectory() as directory:
            tokenizers.SentencePieceTokenizer(model, 4).save(directory)
            loaded = tokenizers.load_tokenizer(directory, 3)
        self.assertEqual(loaded.model, model)
        self.assertAllEqual(loaded(tf.constant(["red"])), [[3, 1, 1]])

    def test_bad_arguments_are_refused(self):
        with self.assertRaisesRegex(ValueError, "`model`.*7 bytes"):
            tokenizers.SentencePieceTokenizer(b"garbage", 4)
        with self.assertRaisesRegex(ValueError, "`model`.*end-of-sequence"):
            tokenizers.SentencePieceTokenizer(
                sentencepiece_model(end=b"<other>"), 4
            )
        with self.assertRaisesRegex(ValueError, "`length`"):
            tokenizers.SentencePieceTokenizer(sentencepiece_model(), 0)

    def test_a_directory_with_no_or_two_tokenizers_is_refused(self):
        with tempfile.TemporaryDirectory() as directory:
            with self.assertRaisesRegex(ValueError, "`directory`.*neither"):
                tokenizers.load_tokenizer(directory, 4)
            tokenizers.SentencePieceTokenizer(sentencepiece_model(), 4).save(
                directory
            )
            tokenizers.WordPieceTokenizer(["[UNK]", "[EOS]", "a"], 4).save(
                directory
            )
            with self.assertRaisesRegex(ValueError, "`directory`.*both"):
                tokenizers.load_tokenizer(directory, 4)


def augment_slowly(images, uniform, flip, min_area):
    """`augment` for one picture and pixel at a time, in float64."""
    height, width = images.shape[1:3]
    views = np.zeros(images.shape)
    for n, (area, aspect, top, left, mirror) in enumerate(uniform.T):
        area = min_area + (1 - min_area) * area
        # The crop fits if neither side is longer than the picture's.
        low, high = max(3 / 4, area), min(4 / 3, 1 / area)
        aspect = low * (high / low) ** aspect
        tall, wide = (area / aspect) ** 0.5, (area * aspect) ** 0.5
        for i in range(height):
            for j in range(width):
                y = (top * (1 - tall) + (i + 0.5) / height * tall) * height
                x = (left * (1 - wide) + (j + 0.5) / width * wide) * width
                y = np.clip(y - 0.5, 0, height - 1)
                x = np.clip(x - 0.5, 0, width - 1)
                above, before = int(y), int(x)
                below = min(above + 1, height - 1)
                after = min(before + 1, width - 1)
                image = images[n].astype(float)
                if flip and mirror < 0.5:
                    image = image[:, ::-1]
                upper, lower = (
                    image[row, before] * (1 - x % 1)
                    + image[row, after] * (x % 1)
                    for row in (above, below)
                )
                views[n, i, j] = upper * (1 - y % 1) + lower * (y % 1)
    return views


class AugmentTest(tf.test.TestCase):
    def augment(self, images, seed=(1, 2), flip=True, min_area=0.3, jit=False):
        function = tf.function(
            lambda images, seed: augmentation.augment(
                images, seed, flip=flip, min_area=min_area
            ),
            jit_compile=jit,
        )
        return function(images, tf.constant(seed, tf.int32)).numpy()

    def uniform(self, count, seed=(1, 2)):
        """The 24 high bits of the same philox integers."""
        bits = tf.random.stateless_uniform(
            [5, count], seed, None, None, tf.uint32, alg="philox"
        )
        return (bits.numpy() >> 8) / 2.0**24

    def test_whole_pictures_without_flip_are_the_pictures(self):
        images = random_images(3, 6, 5, 3)
        self.assertAllEqual(
            self.augment(images, flip=False, min_area=1), images
        )

    def test_whole_pictures_are_flipped_exactly_or_kept(self):
        images = random_images(64, 7, 6, 3)
        views = self.augment(images, min_area=1)
        flipped = self.uniform(64)[4] < 0.5
        self.assertBetween(flipped.mean(), 0.2, 0.8)
        self.assertAllEqual(
            views,
            np.where(flipped[:, None, None, None], images[:, :, ::-1], images),
        )

    def test_crops_equal_a_slow_implementation(self):
        for flip in (False, True):
            for min_area in (0.05, 0.3, 0.9):
                images = random_images(12, 9, 8, 3)
                views = self.augment(images, flip=flip, min_area=min_area)
                expected = augment_slowly(
                    images, self.uniform(12), flip, min_area
                )
                self.assertEqual(views.dtype, np.uint8)
                # Half a level of rounding, and float32 weights.
                self.assertLess(np.abs(views - expected).max(), 0.5 + 0.01)

    def test_crops_cover_the_areas_and_aspects_they_should(self):
        # A ramp of slope 1 shows where a view begins and ends.
        size = 200
        ramp = np.arange(size, dtype=np.uint8)
        images = np.zeros((256, size, size, 3), np.uint8)
        images[..., 0], images[..., 1] = ramp[:, None], ramp[None, :]
        views = self.augment(images, flip=False, min_area=0.25).astype(float)
        # First and last pixel are one view less one view pixel apart.
        stretch = 1 / (size - 1)
        tall = (views[:, -1, 0, 0] - views[:, 0, 0, 0]) * stretch
        wide = (views[:, 0, -1, 1] - views[:, 0, 0, 1]) * stretch
        slack = 0.02  # a level of rounding at either end, doubled
        self.assertAllInRange(tall * wide, 0.25 - slack, 1.0)
        self.assertAllInRange(wide / tall, 3 / 4 - slack, 4 / 3 + slack)
        # Mean area of a uniform on [1/4, 1]; five standard errors.
        self.assertAllClose((tall * wide).mean(), 0.625, atol=0.07)

    def test_eager_graph_and_xla_agree(self):
        images = random_images(32, 8, 8, 3)
        eager = augmentation.augment(
            tf.constant(images), tf.constant([1, 2]), flip=True, min_area=0.3
        ).numpy()
        self.assertAllEqual(self.augment(images), eager)
        # A sum in another order may round to the neighbouring level.
        compiled = self.augment(images, jit=True).astype(int)
        self.assertLessEqual(np.abs(compiled - eager).max(), 1)
        self.assertLess((compiled != eager).mean(), 0.01)

    def test_views_depend_on_the_seed_alone(self):
        images = random_images(8, 8, 8, 3)
        views = self.augment(images)
        self.assertAllEqual(self.augment(images), views)
        for seed in ((1, 3), (2, 2), (2, 1)):
            self.assertNotAllEqual(self.augment(images, seed=seed), views)

    def test_pictures_of_a_batch_get_views_of_their_own(self):
        images = np.repeat(random_images(1, 8, 8, 3), 16, 0)
        views = self.augment(images)
        self.assertLen(np.unique(views.reshape(16, -1), axis=0), 16)

    def test_extreme_values_stay_in_range(self):
        images = np.where(random_images(8, 8, 8, 3) < 128, 0, 255)
        views = self.augment(images.astype(np.uint8), min_area=0.01)
        self.assertEqual((views.min(), views.max()), (0, 255))

    def test_a_batch_of_unknown_size_keeps_its_static_sides(self):
        function = tf.function(
            lambda images: augmentation.augment(
                images, tf.constant([1, 2]), flip=True, min_area=0.3
            ),
            input_signature=[tf.TensorSpec([None, 8, 8, 3], tf.uint8)],
        )
        views = function.get_concrete_function().structured_outputs
        self.assertEqual(views.shape.as_list(), [None, 8, 8, 3])
        images = random_images(4, 8, 8, 3)
        self.assertAllEqual(function(images), self.augment(images))

    def test_a_bad_area_is_refused(self):
        for area in (0, -0.1, 1.1):
            with self.assertRaisesRegex(ValueError, f"`min_area`.*{area}"):
                self.augment(random_images(1, 2, 2, 3), min_area=area)


if __name__ == "__main__":
    tf.test.main()
