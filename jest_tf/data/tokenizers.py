"""Tokenizers of captions: WordPiece, SentencePiece, KerasHub's, and users'.

WordPiece and SentencePiece rows are as in SigLIP (Zhai et al., 2023): tokens,
then end-of-sequence as padding, always at the last position, even in a
truncated caption. So a text tower may pool there, and no mask is needed.
`KerasHubTokenizer` does what the preprocessor of a pretrained model does.
"""

import base64
import collections
import functools
import io
import itertools
import json
import os
import tempfile
from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf
import tensorflow_text as tf_text

from jest_tf import files
from jest_tf.config import checks, imports

UNKNOWN_TOKEN = "[UNK]"
END_TOKEN = "[EOS]"
RESERVED_TOKENS = (UNKNOWN_TOKEN, END_TOKEN)


def sanitize_captions(captions: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Replaces bytes that are not UTF-8 by U+FFFD.

    Returns:
        The captions, string [k] as given, and whether each changed, bool [k].
    """
    valid = tf.strings.unicode_transcode(
        captions, "UTF-8", "UTF-8", errors="replace", replacement_char=0xFFFD
    )
    return valid, tf.not_equal(valid, captions)


class Tokenizer:
    """A tokenizer in a file; equal if the files and lengths are equal.

    Attributes:
        length: L, tokens of a row, at least 1.
        vocabulary_size: token ids are in [0, vocabulary_size).
    """

    FILE = ""
    vocabulary_size: int

    def __init__(self, length, content):
        checks.check("length", length, checks.at_least(1))
        self.length = int(length)
        self._content = content

    def __eq__(self, other):
        return type(self) is type(other) and (
            (self._content, self.length) == (other._content, other.length)
        )

    def __hash__(self):
        return hash((self._content, self.length))

    def __call__(self, captions: tf.Tensor) -> tf.Tensor:
        """Tokenises valid UTF-8 string [k] to int32 [k, L]."""
        return self._graph(captions)

    def save(self, directory: str) -> None:
        """Writes the tokenizer's file into an existing directory."""
        files.write_whole(files.inside(directory, self.FILE), self._content)


class _TextTokenizer(Tokenizer):
    """A tokenizer of TensorFlow Text, with rows in SigLIP's layout.

    Attributes:
        end_id: of the end-of-sequence token.
    """

    def __init__(self, make, length, end_id, vocabulary_size, content):
        super().__init__(length, content)
        self.end_id = end_id
        self.vocabulary_size = vocabulary_size
        self._make = make

    @functools.cached_property
    def _graph(self):
        def tokenize(captions):
            tokens = self._make().tokenize(captions).merge_dims(1, -1)
            rows = tokens.to_tensor(self.end_id, shape=[None, self.length - 1])
            return tf.pad(rows, [[0, 0], [0, 1]], constant_values=self.end_id)

        # TensorFlow Text needs no AutoGraph, which would take half a second.
        return _in_graph(tokenize, autograph=False)


def _in_graph(tokenize, autograph=True):
    """Compiles `tokenize`, which must create its tokenizer itself.

    Outside of a graph, `tf.random.set_seed` would destroy the resource of a
    SentencePiece tokenizer.
    """
    signature = [tf.TensorSpec([None], tf.string)]
    return tf.function(tokenize, signature, autograph=autograph)


class WordPieceTokenizer(_TextTokenizer):
    """Lower-cased WordPiece tokens, as in BERT.

    Text is lower-cased, decomposed (NFD), stripped of accents and split at
    white space and punctuation. Each word is then split into longest pieces.

    Args:
        vocabulary: distinct tokens, including `[UNK]` and `[EOS]`; pieces
            within a word start with `##`.
    """

    FILE = "vocab.txt"  # one token per line

    def __init__(self, vocabulary: Sequence[str], length: int):
        self.vocabulary = tuple(vocabulary)
        _check_vocabulary(self.vocabulary)
        super().__init__(
            self._tokenizer,
            length,
            self.vocabulary.index(END_TOKEN),
            len(self.vocabulary),
            "".join(f"{token}\n" for token in self.vocabulary).encode(),
        )

    def _tokenizer(self):
        # The tokenizer has only tables. Within a graph, TensorFlow would check
        # every byte of them in Python, which takes seconds.
        with tf.init_scope():
            return tf_text.FastBertTokenizer(
                list(self.vocabulary),
                token_out_type=tf.int32,
                unknown_token=UNKNOWN_TOKEN,
                lower_case_nfd_strip_accents=True,
            )


class SentencePieceTokenizer(_TextTokenizer):
    """Tokens of a SentencePiece model, which also sets the normalisation.

    Args:
        model: serialized SentencePiece model with an end-of-sequence piece.
    """

    FILE = "tokenizer.model"

    def __init__(self, model: bytes, length: int):
        self.model = bytes(model)
        try:
            ending = tf_text.SentencepieceTokenizer(self.model, add_eos=True)
            end = ending.tokenize("").numpy()
            size = int(ending.vocab_size())
        except tf.errors.OpError as error:
            raise ValueError(
                "`model` must be a serialized SentencePiece model with an "
                f"end-of-sequence piece. Received: {len(self.model)} bytes "
                f"({error.message})"
            ) from error
        super().__init__(
            functools.partial(tf_text.SentencepieceTokenizer, self.model),
            length,
            int(end[0]),
            size,
            self.model,
        )


class KerasHubTokenizer(Tokenizer):
    """Tokens of a KerasHub preprocessor: canonicalised, tokenised, packed.

    Args:
        content: JSON of the preprocessor and its files, see `of`.
    """

    FILE = "preprocessor.json"

    def __init__(self, content: bytes, length: int):
        super().__init__(length, content)
        import_keras_hub(self.FILE)
        self._preprocessor = self._make()
        self.vocabulary_size = self._preprocessor.tokenizer.vocabulary_size()

    @classmethod
    def of(cls, preprocessor: keras.layers.Layer, length: int):
        """Makes a preprocessor's tokenizer, from `prompts` to `token_ids`."""
        config = keras.saving.serialize_keras_object(preprocessor)
        config["config"].pop("image_converter", None)
        for part in (config, config["config"]["tokenizer"]):
            del part["config"]["name"]  # numbered anew in each process
        content = {
            "preprocessor": config,
            "assets": _read_assets(preprocessor.tokenizer),
        }
        text = json.dumps(content, indent=1, sort_keys=True)
        return cls(text.encode(), length)

    @functools.cached_property
    def _graph(self):
        hub = import_keras_hub(self.FILE)
        tokenizer = self._preprocessor.tokenizer
        if isinstance(tokenizer, hub.tokenizers.BytePairTokenizer):
            tokenize = self._byte_pairs
        else:
            tokenize = self._whole
        return _in_graph(
            lambda captions: tf.ensure_shape(
                tokenize(captions), [None, self.length]
            )
        )

    def _whole(self, captions):
        return self._make()(
            {"prompts": captions, "images": None}, sequence_length=self.length
        )["token_ids"]

    def _byte_pairs(self, captions):
        """Tokenises in Python and packs in the graph.

        In a graph, KerasHub's BPE splits numbers and lower-cases differently
        from CLIP; in Python, it agrees with CLIP.
        """
        preprocessor = self._preprocessor

        def pieces(captions):
            tokens = preprocessor.tokenizer.tokenize(
                [caption.decode() for caption in captions]
            )
            return (
                np.array(list(itertools.chain(*tokens)), np.int32),
                np.array([len(ids) for ids in tokens], np.int64),
            )

        if getattr(preprocessor, "to_lower", False):
            captions = tf.strings.lower(captions)
        values, lengths = tf.numpy_function(
            pieces, [captions], [tf.int32, tf.int64], stateful=False
        )
        rows = tf.RaggedTensor.from_row_lengths(
            tf.ensure_shape(values, [None]), tf.ensure_shape(lengths, [None])
        )
        preprocessor.build(None)  # makes the packer
        return preprocessor.packer(
            rows,
            sequence_length=self.length,
            add_start_value=preprocessor.add_start_token,
            add_end_value=preprocessor.add_end_token,
        )[0]

    def _make(self):
        try:
            content = json.loads(self._content)
            content["preprocessor"]["config"]["sequence_length"] = self.length
            preprocessor = keras.saving.deserialize_keras_object(
                content["preprocessor"]
            )
            _load_assets(preprocessor.tokenizer, content["assets"])
        except (
            *(ValueError, KeyError, TypeError, AttributeError, OSError),
            RecursionError,
        ) as error:
            raise ValueError(
                "A vocabulary that ends in .json must be one that a run with a "
                "KerasHub model wrote. Received: "
                f"{type(error).__name__}: {error}"
            ) from error
        return preprocessor


class FunctionTokenizer(Tokenizer):
    """A user's tokenizer, named as "module:function".

    Args:
        name: of a function that takes L and returns a callable with the
            attribute `vocabulary_size`. The callable maps valid UTF-8, string
            [k], to token ids [k, L].
    """

    FILE = "tokenizer.function"

    def __init__(self, name: str, length: int):
        super().__init__(length, f"{name}\n".encode())
        build = imports.load_function("data.vocabulary", name)
        self._tokenize = build(self.length)
        size = getattr(self._tokenize, "vocabulary_size", None)
        if not callable(self._tokenize) or not isinstance(size, int):
            raise ValueError(
                "`data.vocabulary` must name a function that returns a "
                "callable with an integer `vocabulary_size`. "
                f"Received: {self._tokenize!r}, of {name}"
            )
        self.vocabulary_size = size

    def _graph(self, captions):
        rows = tf.cast(self._tokenize(captions), tf.int32)
        return tf.ensure_shape(rows, [None, self.length])


def import_keras_hub(name: str):
    """Imports KerasHub, which `name` needs."""
    try:
        import keras_hub
    except ImportError as error:
        raise ValueError(
            f"{name!r} needs KerasHub: pip install '.[keras-hub]' in a clone. "
            f"Received: {error}"
        ) from error
    return keras_hub


def _read_assets(tokenizer):
    """Returns the files of a KerasHub tokenizer, in base64, by name."""
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_assets(folder)
        assets = {}
        for name in sorted(os.listdir(folder)):
            with open(os.path.join(folder, name), "rb") as file:
                assets[name] = base64.b64encode(file.read()).decode()
    return assets


def _load_assets(tokenizer, assets):
    with tempfile.TemporaryDirectory() as folder:
        for name, content in assets.items():
            with open(files.inside(folder, name), "wb") as file:
                file.write(base64.b64decode(content))
        tokenizer.load_assets(folder)


_FILES = (
    WordPieceTokenizer.FILE,
    SentencePieceTokenizer.FILE,
    KerasHubTokenizer.FILE,
    FunctionTokenizer.FILE,
)


def read_tokenizer(path: str, length: int, function: str = "") -> Tokenizer:
    """Reads a tokenizer of any kind, for rows of L = `length` tokens.

    A path that ends in `.model` is a SentencePiece model, in `.json` KerasHub's
    preprocessor, and otherwise a WordPiece vocabulary with one token per line.
    "module:function" names a user's tokenizer; a file may hold the name of
    `function`, but of another only if it is trusted.
    """
    if not files.is_file(path):
        if ":" in path and checks.FUNCTION[1](path):
            return FunctionTokenizer(path, length)
        what = ", a folder" if files.is_folder(path) else ""
        raise ValueError(
            "`data.vocabulary` must be a file, .txt, .model or .json, or "
            f"'module:function'. Received: {path!r}{what or ', no file'}"
        )
    content = files.read_whole(path)
    if path.endswith(FunctionTokenizer.FILE):
        name = content.decode().strip()
        if name != function:
            imports.check_trust(path, [("data.vocabulary", name)])
        return FunctionTokenizer(name, length)
    if path.endswith(".json"):
        return KerasHubTokenizer(content, length)
    if path.endswith(".model"):
        return SentencePieceTokenizer(content, length)
    lines = io.StringIO(content.decode(), newline="\n")
    return WordPieceTokenizer([line.rstrip("\r\n") for line in lines], length)


def has_tokenizer(directory: str) -> bool:
    """Returns whether a directory has a saved tokenizer."""
    return bool(_tokenizer_files(directory))


def load_tokenizer(
    directory: str, length: int, function: str = ""
) -> Tokenizer:
    """Reads a tokenizer written by `save`; see `read_tokenizer`."""
    paths = _tokenizer_files(directory)
    if len(paths) != 1:
        names = " and ".join(os.path.basename(path) for path in paths)
        raise ValueError(
            f"`directory` must hold one of {', '.join(_FILES)}. "
            f"Received: {directory}, which has {names or 'none'}"
        )
    return read_tokenizer(paths[0], length, function)


def _tokenizer_files(directory):
    paths = [files.inside(directory, name) for name in _FILES]
    return [path for path in paths if files.is_file(path)]


def _check_vocabulary(vocabulary):
    reserved = " and ".join(RESERVED_TOKENS)
    missing = [token for token in RESERVED_TOKENS if token not in vocabulary]
    counts = collections.Counter(vocabulary)
    repeated = [token for token, count in counts.items() if count > 1]
    broken = [token for token in vocabulary if not token or "\n" in token]
    for is_wrong, expected, received in (
        (
            missing,
            f"hold {reserved}",
            f"{len(vocabulary)} tokens without {' and '.join(missing)}",
        ),
        (
            len(vocabulary) == len(RESERVED_TOKENS),
            "hold a piece beside the reserved tokens",
            vocabulary,
        ),
        (repeated, "not repeat a token", f"more than once {repeated[:1]}"),
        (broken, "hold tokens of one line each", broken[:1]),
    ):
        if is_wrong:
            raise ValueError(
                f"`vocabulary` must {expected}. Received: {received}"
            )
