"""The rival's workflow in PyTorch, which `bench_rival` prepares and times.

A teacher embeds all pairs, of which the third with the highest cosines is kept.
A learner trains on it, and learns from the teacher's logits. The towers are
PhotoText's (`phototext/towers.py`), the other parts the field's own.
"""

# `forward` is described by its class.
# ruff: noqa: D102

import json
import pathlib
import statistics
import sys
import time

import numpy as np
import open_clip
import torch
from PIL import Image
from timm import layers
from torch import nn, optim
from torch.nn import functional
from torch.utils import data


class Pairs(data.Dataset):
    """Images, tokens and the teacher's embeddings of the pairs in `rows`."""

    def __init__(self, folder, rows=None, teacher=(), **transform):
        self.folder, self.teacher = folder, teacher
        self.tokens = np.load(folder / "tokens.npy")
        self.rows = range(len(self.tokens)) if rows is None else rows
        self.transform = open_clip.image_transform(64, **transform)

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, place):
        row = self.rows[place]
        image = self.transform(Image.open(self.folder / f"{row}.jpg"))
        return image, self.tokens[row], *(side[row] for side in self.teacher)


class TwoTower(nn.Module):
    """PhotoText's towers, to unit norm; an error if they have other sizes."""

    def __init__(self, folder, width, dim):
        super().__init__()
        vocabulary, *counts = json.loads((folder / "towers.json").read_text())
        self.image = nn.Sequential(
            *_block(3, width, 4, 4),
            *_block(width, 2 * width),
            Residual(*_block(2 * width, 2 * width, 1)),
            *_block(2 * width, 4 * width),
            Residual(*_block(4 * width, 4 * width, 1)),
            *(nn.Flatten(), *_mlp(16 * 4 * width, dim)),
        ).to(memory_format=torch.channels_last)
        self.words = nn.Embedding(vocabulary, dim)
        self.normalisation = nn.LayerNorm(dim)
        self.neighbours = nn.Conv1d(dim, dim, 3, padding=1)
        self.text = nn.Sequential(nn.LayerNorm(dim), *_mlp(dim, dim))
        if sum(weights.numel() for weights in self.parameters()) not in counts:
            raise RuntimeError(f"towers must have {counts} parameters")
        self.log_scale = nn.Parameter(torch.tensor(10.0).log())

    def forward(self, images, tokens):
        images = images.contiguous(memory_format=torch.channels_last)
        is_word = (tokens != 0)[:, :, None]
        words = self.normalisation(self.words(tokens)) * is_word
        near = self.neighbours(words.transpose(1, 2)).transpose(1, 2)
        summed = ((words + functional.gelu(near)) * is_word).sum(1)
        text = self.text(summed / is_word.sum(1).clamp(min=1))
        image = self.image(images)
        return functional.normalize(image), functional.normalize(text)


class Residual(nn.Sequential):
    """Layers that are added to what they read."""

    def forward(self, features):
        return features + super().forward(features)


def _block(inputs, width, stride=2, size=3):
    convolution = nn.Conv2d(inputs, width, size, stride, padding=size % 2)
    return convolution, layers.LayerNorm2d(width), nn.ReLU()


def _mlp(inputs, dim):
    return nn.Linear(inputs, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim)


def embed(folder):
    """Stores the teacher's embeddings, and the rows of the best third."""
    teacher = TwoTower(folder, 48, 128).eval()
    loader = data.DataLoader(Pairs(folder, is_train=False), 256)
    with torch.inference_mode():
        sides = zip(*(teacher(*batch) for batch in loader), strict=True)
        image, text = (torch.cat(side).numpy() for side in sides)
    rows = np.argsort(-np.sum(image * text, axis=1))[: len(image) // 3]
    np.savez(folder / "teacher.npz", image=image, text=text, rows=rows)


def train(folder, steps):
    """Trains a learner on these rows; returns the median seconds of a step."""
    stored = np.load(folder / "teacher.npz")
    teacher, rows = (stored["image"], stored["text"]), stored["rows"]
    cropped = {"is_train": True, "aug_cfg": {"scale": (0.6, 1.0)}}
    pairs = Pairs(folder, rows, teacher, **cropped)
    loader = data.DataLoader(pairs, 256, shuffle=True, drop_last=True)
    model = TwoTower(folder, 24, 64)
    averaging = optim.swa_utils.get_ema_multi_avg_fn(0.98)
    average = optim.swa_utils.AveragedModel(model, multi_avg_fn=averaging)
    optimizer = optim.AdamW(model.parameters(), 4e-3, weight_decay=0.05)
    loss_of = open_clip.loss.DistillClipLoss()
    ends = []
    while len(ends) < steps:
        for images, tokens, *targets in loader:
            scale = model.log_scale.exp()
            features = model(images, tokens)
            losses = loss_of(*features, scale, *targets, scale.detach())
            optimizer.zero_grad()
            sum(losses).backward()
            optimizer.step()
            average.update_parameters(model)
            ends.append(time.perf_counter())
    torch.save(average.state_dict(), folder / "learner.pt")
    return statistics.median(np.diff(ends))


if __name__ == "__main__":
    place, *numbers = sys.argv[1:]
    print(
        (train if numbers else embed)(pathlib.Path(place), *map(int, numbers))
    )
