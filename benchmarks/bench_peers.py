"""A training step beside open_clip's, for the same towers on the same machine.

    python -m benchmarks.bench_peers

Two towers of ViT-S/16 class (224 pixels, 64 tokens), sigmoid loss, AdamW,
float32, random data, nothing selected. Each run is a process of its own; the
sides take turns. open_clip runs in `.venv-peers`, since PyTorch and TensorFlow
need not share an environment, and JAX in `.venv-jax`; `make bench-peers` builds
both first. JAX keeps compiled steps in a cache, as under `jest-tf`, which is
empty in the first round. The table goes into README.md.

Pooling differs: our image tower pools by attention with an MLP, open_clip's by
its class token. The parameters of both stand in the table.
"""

import argparse
import importlib.metadata
import itertools
import json
import math
import pathlib
import statistics
import sys
import tempfile
import time

_COMMAND = "python -m benchmarks.bench_peers"
_ROOT = pathlib.Path(__file__).resolve().parent.parent
_PYTHONS = {
    "open_clip": _ROOT / ".venv-peers" / "bin" / "python",
    "jest_tf on JAX": _ROOT / ".venv-jax" / "bin" / "python",
}

_IMAGE_SIZE = 224
_PATCH_SIZE = 16
_TEXT_LENGTH = 64
_VOCABULARY_SIZE = 32_000
_WIDTH = 384
_DEPTH = 12
_NUM_HEADS = 6
_RATE = 1e-3


def main(argv: list[str] | None = None) -> None:
    """Runs both sides in turn and writes the block, or a single side."""
    parser = argparse.ArgumentParser(prog=_COMMAND, description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="runs a side")
    parser.add_argument("--steps", type=int, default=8, help="steps a run")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--out", type=pathlib.Path, help="folder of README.md")
    parser.add_argument("--side", choices=sorted(_SIDES), help="print one run")
    options = parser.parse_args(argv)
    if options.steps < 2 or options.rounds < 1:
        parser.error("expected `--steps` of at least 2 and `--rounds` of 1")
    if options.side:
        run = _SIDES[options.side](options.steps, options.batch_size)
        print(json.dumps(run))
        return
    for python in _PYTHONS.values():
        if not python.exists():
            parser.error(
                f"expected an environment at {python}; make it with `make "
                "bench-peers`"
            )
    from benchmarks import report  # the peer's environment lacks NumPy's kin

    runs = {side: [] for side in _SIDES}
    cache = tempfile.TemporaryDirectory()
    on_jax = {
        "KERAS_BACKEND": "jax",
        "JAX_COMPILATION_CACHE_DIR": cache.name,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    for number in range(options.rounds):
        for side in _SIDES:
            report.log(f"round {number + 1} of {options.rounds}: {side}")
            printed = report.command(
                *("benchmarks.bench_peers", "--side", side),
                *("--steps", options.steps),
                *("--batch-size", options.batch_size),
                python=_PYTHONS.get(side, sys.executable),
                environment=on_jax if side == "jest_tf on JAX" else {},
            )
            runs[side].append(json.loads(printed.splitlines()[-1]))
    out = options.out or _ROOT / "benchmarks"
    report.write_block(
        out / "README.md", "peers", _text(runs, options, report), _COMMAND
    )


def _text(runs, options, report):
    """The block: a row a side, then the ratios of the paired rounds."""
    rows = []
    for side, of_side in runs.items():
        rows.append(
            [
                side,
                f"{of_side[0]['parameters'] / 1e6:.1f}",
                *(
                    report.spread([run[name] for run in of_side])
                    for name in ("import", "first_step", "step", "step_cpu")
                ),
            ]
        )
    peer = runs["open_clip"]
    for side in _SIDES:
        ratios = [
            report.spread(
                [
                    ours[name] / theirs[name]
                    for ours, theirs in zip(runs[side], peer, strict=True)
                ]
            )
            for name in ("import", "first_step", "step", "step_cpu")
        ]
        if runs[side] is not peer:
            rows.append([f"{side} / open_clip", "", *ratios])
    versions = "; ".join(of_side[0]["versions"] for of_side in runs.values())
    header = [
        "package",
        "million parameters",
        "import, s",
        "build to the end of step 1, s",
        "a step after that, s",
        "CPU seconds of a step",
    ]
    return (
        "## A step beside open_clip's\n\n"
        f"ViT-S/16, {_IMAGE_SIZE} pixels, {_TEXT_LENGTH} tokens, "
        f"b = {options.batch_size}, float32, sigmoid loss, AdamW; "
        f"{options.rounds} runs a side in turn, {options.steps} steps each; "
        "lowest / median / highest, the steps of a run by their median.\n\n"
        f"{report.table(header, rows)}\n\n"
        f"{report.processor()}; {versions}."
    )


def _run_jest_tf(steps, batch_size):
    start = time.perf_counter()
    import keras
    import numpy as np
    import tensorflow as tf

    import jest_tf

    model_class = jest_tf.JESTModel  # public names load on first use
    imported = time.perf_counter()

    class Clock(keras.callbacks.Callback):
        """Wall-clock and CPU seconds at the end of every step."""

        ends = []

        def on_train_batch_end(self, batch, logs=None):
            float(logs["loss"])
            self.ends.append((time.perf_counter(), time.process_time()))

    learner = jest_tf.build_two_tower(
        "s16",
        image_size=_IMAGE_SIZE,
        vocabulary_size=_VOCABULARY_SIZE,
        text_length=_TEXT_LENGTH,
        seed=0,
    )
    model = model_class(learner)
    model.compile(jest_tf.AdamW(_RATE))
    generator = np.random.default_rng(0)
    batch = {
        "image": generator.integers(
            256, size=[batch_size, _IMAGE_SIZE, _IMAGE_SIZE, 3], dtype=np.uint8
        ),
        "text": generator.integers(
            _VOCABULARY_SIZE, size=[batch_size, _TEXT_LENGTH], dtype=np.int32
        ),
    }
    dataset = tf.data.Dataset.from_tensors(batch).repeat(steps)
    model.fit(dataset, verbose=0, callbacks=[Clock()])
    return _measured(
        start,
        imported,
        Clock.ends,
        learner.count_params(),
        ("keras", "jax" if keras.backend.backend() == "jax" else "tensorflow"),
    )


def _run_open_clip(steps, batch_size):
    start = time.perf_counter()
    import open_clip
    import torch
    from open_clip import loss as loss_lib

    imported = time.perf_counter()
    model = open_clip.CLIP(
        embed_dim=_WIDTH,
        vision_cfg=open_clip.CLIPVisionCfg(
            layers=_DEPTH,
            width=_WIDTH,
            head_width=_WIDTH // _NUM_HEADS,
            patch_size=_PATCH_SIZE,
            image_size=_IMAGE_SIZE,
        ),
        text_cfg=open_clip.CLIPTextCfg(
            context_length=_TEXT_LENGTH,
            vocab_size=_VOCABULARY_SIZE,
            width=_WIDTH,
            heads=_NUM_HEADS,
            layers=_DEPTH,
        ),
        init_logit_scale=math.log(10.0),
        init_logit_bias=-10.0,
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=_RATE)
    loss_of = loss_lib.SigLipLoss()
    image = torch.rand([batch_size, 3, _IMAGE_SIZE, _IMAGE_SIZE])
    text = torch.randint(_VOCABULARY_SIZE, [batch_size, _TEXT_LENGTH])
    ends = []
    for _ in range(steps):
        optimizer.zero_grad()
        features = model(image, text)
        loss = loss_of(*features)
        loss.backward()
        optimizer.step()
        loss.item()
        ends.append((time.perf_counter(), time.process_time()))
    parameters = sum(weight.numel() for weight in model.parameters())
    return _measured(
        start, imported, ends, parameters, ("open_clip_torch", "torch")
    )


def _measured(start, imported, ends, parameters, packages):
    """The figures of a run."""
    wall, cpu = zip(*ends, strict=True)
    return {
        "import": imported - start,
        "first_step": wall[0] - imported,
        "step": _median_step(wall),
        "step_cpu": _median_step(cpu),
        "parameters": int(parameters),
        "versions": ", ".join(
            f"{name} {importlib.metadata.version(name)}" for name in packages
        ),
    }


def _median_step(ends):
    return statistics.median(b - a for a, b in itertools.pairwise(ends))


_SIDES = {
    "jest_tf": _run_jest_tf,
    "jest_tf on JAX": _run_jest_tf,
    "open_clip": _run_open_clip,
}


if __name__ == "__main__":
    main()
