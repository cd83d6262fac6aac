"""Measures by CLIP_benchmark and open_clip, in their own environment.

    .venv-peers/bin/python tests/peer_metrics.py FOLDER

`test_peers.py` writes FOLDER/given.npz and starts this; it writes
FOLDER/found.json.
"""

import json
import os
import sys

import numpy as np
import torch
from clip_benchmark.metrics import zeroshot_classification, zeroshot_retrieval
from open_clip import zero_shot_classifier
from open_clip_train import train, zero_shot

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
                [texts[place] for place in some]
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


def main(folder):
    given = np.load(os.path.join(folder, "given.npz"))
    found = {
        "digits": classify(given, "digits"),
        "icons": retrieve(given, "icons"),
    }
    with open(os.path.join(folder, "found.json"), "w") as file:
        json.dump(found, file)


if __name__ == "__main__":
    main(sys.argv[1])
