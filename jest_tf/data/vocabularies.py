"""Vocabularies of WordPiece tokens, learned from captions."""

import collections
import functools
import itertools
from collections.abc import Iterable

import numpy as np
import tensorflow as tf
from tensorflow_text.python.ops import bert_tokenizer
from tensorflow_text.tools.wordpiece_vocab import (
    wordpiece_tokenizer_learner_lib as wordpiece_learner,
)

from jest_tf.data import tokenizers

_COUNT_BATCH = 4096
# The share of a vocabulary that may stay empty, and the length of the longest
# words used for learning. Both are the learner's defaults.
_SLACK, _LONGEST = 0.05, 50


def build_wordpiece_vocabulary(
    captions: Iterable[bytes | str], size: int
) -> list[str]:
    """Learns a WordPiece vocabulary; the order of captions does not matter.

    Args:
        captions: texts; bytes are read as UTF-8, invalid bytes as U+FFFD.
        size: limit on the number of tokens. The learner cuts at a word count,
            so there may be far fewer if many words have equal counts.

    Returns:
        The reserved tokens, then characters, then pieces by falling frequency.
    """
    least = len(tokenizers.RESERVED_TOKENS)
    if size <= least:
        raise ValueError(
            f"`size` must be over {least}, the number of reserved tokens. "
            f"Received: {size}"
        )
    counts = _count_words(captions)
    if not counts:
        raise ValueError("`captions` must hold at least one word.")
    learn = functools.partial(
        wordpiece_learner.learn,
        # Sorted, because the order decides which rare words the learner drops.
        sorted(counts.items(), key=lambda item: (-item[1], item[0])),
        vocab_size=size,
        reserved_tokens=list(tokenizers.RESERVED_TOKENS),
        # The learner's default of 10 would starve small sets of words.
        lower_thresh=1,
        slack_ratio=_SLACK,
        max_token_length=_LONGEST,
    )
    # All pieces of a small set fit, so this avoids a dozen trials in search of
    # the least count of a piece.
    learned = learn(upper_thresh=1)
    if len(learned) > size:
        learned = learn(upper_thresh=_highest_threshold(counts, size))
    return learned[:size]


def _highest_threshold(counts, size):
    """Returns an upper end for the learner's search, past hopeless trials.

    The learner searches for the least count of a piece by bisection. Each trial
    counts all pieces of all words, and the first trials find far too few. A
    piece's count is at most its occurrences in the words. So the occurrences
    bound the number of pieces, and rule out these trials in advance.
    """
    occurrences, characters = collections.Counter(), set()
    for word, count in counts.items():
        if len(word) > _LONGEST:
            continue
        characters.update(word)
        for start in range(len(word)):
            for end in range(start + 1, len(word) + 1):
                occurrences[start > 0, word[start:end]] += count
    ordered = np.sort(np.fromiter(occurrences.values(), np.int64))
    # All characters are kept, at the start of a word and within it.
    always = len(tokenizers.RESERVED_TOKENS) + 2 * len(characters)
    lower, upper = min(counts.values()), max(counts.values())
    while lower < upper:
        threshold = (lower + upper) // 2
        most = always + len(ordered) - np.searchsorted(ordered, threshold)
        if threshold <= 1 or most >= (1 - _SLACK) * size:
            break
        upper = threshold - 1
    return upper


def _count_words(captions):
    splitter = bert_tokenizer.BasicTokenizer(lower_case=True)
    counts = collections.Counter()
    captions = iter(captions)
    while batch := list(itertools.islice(captions, _COUNT_BATCH)):
        valid, _ = tokenizers.sanitize_captions(tf.constant(batch, tf.string))
        counts.update(splitter.tokenize(valid).flat_values.numpy().tolist())
    return {word.decode("utf-8"): count for word, count in counts.items()}
