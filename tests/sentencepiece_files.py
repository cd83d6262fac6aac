"""A small SentencePiece model, without the library that trains them."""

import numpy as np


def model(end=b"</s>"):
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

    data = b""
    for text, score, kind in pieces:
        number = np.array(score, "<f4").tobytes()
        data += field(
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
    return data + field(2, trainer) + field(3, normalizer)
