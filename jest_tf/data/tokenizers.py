"""Captions to rows of tokens: WordPiece and SentencePiece.

Rows have SigLIP's layout (Zhai et al., 2023): tokens, then end-of-sequence as
padding. The last position is always end-of-sequence, even in a truncated
caption, so a text tower may pool there. No mask is needed.
"""

import collections
import os
from collections.abc import Iterable, Sequence

import tensorflow as tf
import tensorflow_text as tf_text
from tensorflow_text.python.ops import bert_tokenizer
from tensorflow_text.tools.wordpiece_vocab import (
    wordpiece_tokenizer_learner_lib as wordpiece_learner,
)

from jest_tf import files

UNKNOWN_TOKEN = "[UNK]"
END_TOKEN = "[EOS]"
RESERVED_TOKENS = (UNKNOWN_TOKEN, END_TOKEN)

_VOCABULARY_FILE = "vocab.txt"
_MODEL_FILE = "tokenizer.model"
_COUNT_BATCH = 4096


def sanitize_captions(captions: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Replaces bytes that are not UTF-8 by U+FFFD.

    Returns:
        The captions, string [k] as given, and whether each changed, bool [k].
    """
    valid = tf.strings.unicode_transcode(
        captions, "UTF-8", "UTF-8", errors="replace", replacement_char=0xFFFD
    )
    return valid, tf.not_equal(valid, captions)


class WordPieceTokenizer:
    """Lower-cased WordPiece tokens, as in BERT.

    Text is lower-cased, decomposed (NFD), stripped of accents and split at
    white space and punctuation, then each word into its longest pieces.

    Args:
        vocabulary: distinct tokens, including `[UNK]` and `[EOS]`; pieces
            within a word start with `##`.
        length: L, tokens of a row, at least 1.

    Raises:
        ValueError: the vocabulary or the length is unusable.
    """

    def __init__(self, vocabulary: Sequence[str], length: int):
        self.vocabulary = tuple(vocabulary)
        self.length = _check_length(length)
        _check_vocabulary(self.vocabulary)
        self.end_id = self.vocabulary.index(END_TOKEN)
        self._tokenizer = tf_text.FastBertTokenizer(
            list(self.vocabulary),
            token_out_type=tf.int32,
            unknown_token=UNKNOWN_TOKEN,
            lower_case_nfd_strip_accents=True,
        )

    def __eq__(self, other):
        return isinstance(other, WordPieceTokenizer) and (
            (self.vocabulary, self.length) == (other.vocabulary, other.length)
        )

    def __hash__(self):
        return hash((self.vocabulary, self.length))

    @property
    def vocabulary_size(self) -> int:
        """Token ids are in [0, vocabulary_size)."""
        return len(self.vocabulary)

    def __call__(self, captions: tf.Tensor) -> tf.Tensor:
        """Tokenises valid UTF-8 string [k] to int32 [k, L]."""
        tokens = self._tokenizer.tokenize(captions).merge_dims(1, -1)
        return _lay_out(tokens, self.length, self.end_id)

    def save(self, directory: str) -> None:
        """Writes `vocab.txt`, one token a line, into an existing directory."""
        text = "".join(f"{token}\n" for token in self.vocabulary)
        path = os.path.join(directory, _VOCABULARY_FILE)
        files.write_whole(path, text.encode())


class SentencePieceTokenizer:
    """Tokens of a SentencePiece model, which also sets the normalisation.

    Args:
        model: serialized SentencePiece model with an end-of-sequence piece.
        length: L, tokens of a row, at least 1.

    Raises:
        ValueError: the model cannot be read, or has no such piece.
    """

    def __init__(self, model: bytes, length: int):
        self.model = bytes(model)
        self.length = _check_length(length)
        try:
            self._tokenizer = tf_text.SentencepieceTokenizer(self.model)
            ending = tf_text.SentencepieceTokenizer(self.model, add_eos=True)
            end = ending.tokenize("").numpy()
            self._vocabulary_size = int(self._tokenizer.vocab_size())
        except tf.errors.OpError as error:
            raise ValueError(
                "`model` must be a serialized SentencePiece model with an "
                f"end-of-sequence piece. Received: {len(self.model)} bytes "
                f"({error.message})"
            ) from error
        self.end_id = int(end[0])

    def __eq__(self, other):
        return isinstance(other, SentencePieceTokenizer) and (
            (self.model, self.length) == (other.model, other.length)
        )

    def __hash__(self):
        return hash((self.model, self.length))

    @property
    def vocabulary_size(self) -> int:
        """Token ids are in [0, vocabulary_size)."""
        return self._vocabulary_size

    def __call__(self, captions: tf.Tensor) -> tf.Tensor:
        """Tokenises valid UTF-8 string [k] to int32 [k, L]."""
        tokens = self._tokenizer.tokenize(captions)
        return _lay_out(tokens, self.length, self.end_id)

    def save(self, directory: str) -> None:
        """Writes `tokenizer.model` into an existing directory."""
        files.write_whole(os.path.join(directory, _MODEL_FILE), self.model)


def read_tokenizer(
    path: str, length: int
) -> WordPieceTokenizer | SentencePieceTokenizer:
    """Reads a vocabulary file of either kind, for rows of L = `length` tokens.

    It is a SentencePiece model if `path` ends in `.model`, else a WordPiece
    vocabulary, one token a line.

    Raises:
        ValueError: there is no such file, or it is unusable.
    """
    if not os.path.isfile(path):
        raise ValueError(f"No vocabulary file at {path!r}")
    if path.endswith(".model"):
        with open(path, "rb") as file:
            return SentencePieceTokenizer(file.read(), length)
    with open(path, encoding="utf-8", newline="\n") as file:
        tokens = [line.rstrip("\r\n") for line in file]
    return WordPieceTokenizer(tokens, length)


def has_tokenizer(directory: str) -> bool:
    """Returns whether a directory has a saved tokenizer."""
    return bool(_tokenizer_files(directory))


def load_tokenizer(
    directory: str, length: int
) -> WordPieceTokenizer | SentencePieceTokenizer:
    """Reads a tokenizer written by `save`, for rows of L = `length` tokens.

    Raises:
        ValueError: the directory holds neither `vocab.txt` nor
            `tokenizer.model`, or both.
    """
    found = _tokenizer_files(directory)
    if len(found) != 1:
        raise ValueError(
            f"`directory` must hold either {_VOCABULARY_FILE} or "
            f"{_MODEL_FILE}. Received: {directory}, which holds "
            f"{'both' if found else 'neither'}"
        )
    return read_tokenizer(found[0], length)


def build_wordpiece_vocabulary(
    captions: Iterable[bytes | str], size: int
) -> list[str]:
    """Learns a WordPiece vocabulary; the order of captions does not matter.

    Args:
        captions: texts; bytes are read as UTF-8, bad ones as U+FFFD.
        size: limit on the tokens. The learner cuts at a count, so many words
            of equal count may leave far fewer.

    Returns:
        The reserved tokens, then characters, then pieces by falling frequency.

    Raises:
        ValueError: `size` leaves no room beside the reserved tokens, or there
            are no words.
    """
    if size <= len(RESERVED_TOKENS):
        raise ValueError(
            f"`size` must be over {len(RESERVED_TOKENS)}, the number of "
            f"reserved tokens. Received: {size}"
        )
    counts = _count_words(captions)
    if not counts:
        raise ValueError("`captions` must hold at least one word.")
    learned = wordpiece_learner.learn(
        # Sorted, because the learner drops rare words by order.
        sorted(counts.items(), key=lambda item: (-item[1], item[0])),
        vocab_size=size,
        reserved_tokens=list(RESERVED_TOKENS),
        # The learner's default of 10 would starve small sets of words.
        lower_thresh=1,
    )
    return learned[:size]


def _lay_out(tokens, length, end_id):
    """Ragged int32 [k, tokens] -> [k, length], padded with `end_id`."""
    rows = tokens.to_tensor(end_id, shape=[None, length - 1])
    return tf.pad(rows, [[0, 0], [0, 1]], constant_values=end_id)


def _count_words(captions):
    splitter = bert_tokenizer.BasicTokenizer(lower_case=True)
    counts = collections.Counter()
    batch = []

    def count():
        valid, _ = sanitize_captions(tf.constant(batch, tf.string))
        counts.update(splitter.tokenize(valid).flat_values.numpy().tolist())
        batch.clear()

    for caption in captions:
        batch.append(caption)
        if len(batch) == _COUNT_BATCH:
            count()
    if batch:
        count()
    return {word.decode("utf-8"): count for word, count in counts.items()}


def _tokenizer_files(directory):
    paths = (
        os.path.join(directory, name)
        for name in (_VOCABULARY_FILE, _MODEL_FILE)
    )
    return [path for path in paths if os.path.isfile(path)]


def _check_length(length):
    if length < 1:
        raise ValueError(f"`length` must be at least 1. Received: {length}")
    return int(length)


def _check_vocabulary(vocabulary):
    missing = [token for token in RESERVED_TOKENS if token not in vocabulary]
    if missing:
        raise ValueError(
            f"`vocabulary` must hold {' and '.join(RESERVED_TOKENS)}. "
            f"Received: {len(vocabulary)} tokens without "
            f"{' and '.join(missing)}"
        )
    if len(vocabulary) == len(RESERVED_TOKENS):
        raise ValueError(
            "`vocabulary` must hold a piece beside the reserved tokens. "
            f"Received: {vocabulary}"
        )
    repeated = [
        token
        for token, count in collections.Counter(vocabulary).items()
        if count > 1
    ]
    if repeated:
        raise ValueError(
            "`vocabulary` must not repeat a token. "
            f"Received: {repeated[0]!r} more than once"
        )
    broken = [token for token in vocabulary if not token or "\n" in token]
    if broken:
        raise ValueError(
            "`vocabulary` must hold tokens of one line each. "
            f"Received: {broken[0]!r}"
        )
