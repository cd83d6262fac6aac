"""Measures by CLIP_benchmark and open_clip, in their own environment.

    .venv-peers/bin/python tests/peer_metrics.py FOLDER

`test_peers.py` writes FOLDER/given.npz and starts this; it writes
FOLDER/found.json, and FOLDER/labelled and FOLDER/captioned, data sets in
CLIP_benchmark's tars.
"""

import json
import os
import sys

import numpy as np
import torch
from clip_benchmark import webdataset_builder
from clip_benchmark.metrics import (
    zeroshot_classification,
    zeroshot_retrieval,
)
from open_clip import zero_shot_classifier
from open_clip_train import train, zero_shot
from PIL import Image

_BATCH = 64


class Model:
    """Embeds what the arrays say; texts are tokenized to their rows."""

    def __init__(self, texts, embeddings):
        self._rows = {text: row for row, text in enumerate(texts)}
        self._embeddings = torch.tensor(embeddings)

    def tokenize(self, texts):
        return torch.tensor([self._rows[text] for text in texts])

    def encode_text(self, tokens, normalize=False):
        return self._embeddings[tokens]

    def encode_image(self, images):
        return images


class Loader(list):
    """Batches, with the classes where CLIP_benchmark looks for them."""

    def __init__(self, batches, classes=()):
        super().__init__(batches)
        self.dataset = self
        self.classes = list(classes)


class Pictures(list):
    """Pictures with labels or captions, to be written as tars."""


def classify(given, name):
    """Both packages' zero-shot accuracies."""
    classes, templates = given["classes"].tolist(), given["templates"].tolist()
    model = Model(given["prompts"].tolist(), given[f"{name}_prompts"])
    images = torch.tensor(given[f"{name}_images"])
    labels = torch.tensor(given[f"{name}_labels"])
    loader = Loader(
        zip(images.split(_BATCH), labels.split(_BATCH), strict=True), classes
    )
    found = zeroshot_classification.evaluate(
        *(model, loader, model.tokenize, classes),
        [template.replace("{}", "{c}") for template in templates],
        device="cpu",
        amp=False,
    )
    weights = zero_shot_classifier.build_zero_shot_classifier(
        model, model.tokenize, classes, templates
    )
    hits = zero_shot.accuracy(100.0 * images @ weights, labels, topk=(1, 5))
    for k, count in zip((1, 5), hits, strict=True):
        found[f"open_clip_acc{k}"] = count / len(labels)
    return found | {"weights": weights.T.tolist()}


def retrieve(given, name):
    """CLIP_benchmark's recalls of all captions, open_clip's of the first."""
    images, rows = given[f"{name}_images"], given[f"{name}_rows"]
    texts = [str(row) for row in range(len(rows))]
    of = [np.flatnonzero(rows == row) for row in range(len(images))]
    model = Model(texts, given[f"{name}_texts"])
    loader = Loader(
        (
            torch.tensor(images[start : start + _BATCH]),
            [
                [texts[one] for one in some]
                for some in of[start : start + _BATCH]
            ],
        )
        for start in range(0, len(images), _BATCH)
    )
    found = zeroshot_retrieval.evaluate(
        *(model, loader, model.tokenize),
        device="cpu",
        amp=False,
        recall_k_list=[1, 5, 10],
    )
    first = given[f"{name}_texts"][[some[0] for some in of]]
    metrics = train.get_clip_metrics(
        torch.tensor(images), torch.tensor(first), 1.0
    )
    return found | {key: float(value) for key, value in metrics.items()}


def write_tars(given, folder):
    """Writes the digits as CLIP_benchmark's own tools do."""
    pictures = [
        Image.fromarray(np.uint8(one.reshape(8, 8) * 15))
        for one in given["pixels"][:30]
    ]
    labels = given["digits_labels"][:30].tolist()
    labelled = Pictures(zip(pictures, labels, strict=True))
    labelled.classes = given["classes"].tolist()
    labelled.templates = ["a {c}.", "the {c}"]
    captioned = Pictures(
        (picture, [f"a {label}", f"the {label}"]) for picture, label in labelled
    )
    transform = webdataset_builder.PIL_to_bytes("png")
    for name, data, convert in (
        ("labelled", labelled, webdataset_builder.convert_dataset),
        ("captioned", captioned, webdataset_builder.convert_retrieval_dataset),
    ):
        convert(
            *(data, "test", os.path.join(folder, name)),
            transform=transform,
            image_format="png",
            max_count=20,
        )


def main(folder):
    given = np.load(os.path.join(folder, "given.npz"))
    found = {
        "digits": classify(given, "digits"),
        "tied": classify(given, "tied"),
        "icons": retrieve(given, "icons"),
    }
    with open(os.path.join(folder, "found.json"), "w") as file:
        json.dump(found, file)
    write_tars(given, folder)


if __name__ == "__main__":
    main(sys.argv[1])
