"""From a preset of KerasHub to a search without this package.

    python -m examples.end_to_end

1. A small SigLIP of KerasHub is trained on the curated pictures, and saved as a
   preset.
2. A smaller learner is trained on the noisy pool, with a stored stage and
   distillation from that preset, named `keras_hub:FOLDER`.
3. The learner is exported as a SavedModel, and a program with TensorFlow alone
   searches the pool's pictures with it (`examples/search.py`).

It takes five to ten minutes on 2 CPU cores, and does not repeat finished parts.
The figure shows the best hits of each query.
"""

import argparse
import contextlib
import io
import os
import pathlib
import shutil
import subprocess
import sys
from collections.abc import Sequence

from jest_tf import cli

ROOT = pathlib.Path(__file__).resolve().parent.parent
DATA = f"{ROOT}/examples/icontext_mini"
QUERIES = (
    *("arrow left", "heart", "clock", "shopping cart"),
    *("user", "calendar"),
)


def main(argv: Sequence[str] | None = None) -> None:
    """Parses the flags and runs the unfinished parts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    folder = "runs/end_to_end"
    parser.add_argument("--runs", default=folder, help="folder of all results")
    parser.add_argument(
        "--figure", default=f"{folder}/search.png", help="figure to write"
    )
    parser.add_argument(
        "--queries", nargs="+", default=QUERIES, help="texts to search for"
    )
    parser.add_argument(
        "--set",
        nargs="+",
        action="extend",
        default=[],
        metavar="A.B=C",
        help="settings to override in both recipes",
    )
    flags = parser.parse_args(argv)
    runs = pathlib.Path(flags.runs).resolve()
    vocabulary, reference = runs / "pieces.model", runs / "reference"
    preset, learner = runs / "preset", runs / "learner"
    exported, photos = runs / "exported", runs / "photos"
    if not vocabulary.exists():
        write_vocabulary(vocabulary)
    train(
        *("uniform", reference, f"data.train={DATA}/curated-*.tfrecord"),
        *(f"data.vocabulary={vocabulary}", "steps=400"),
        "optimizer.learning_rate=2e-3",
        *("model.towers=examples.end_to_end:towers", "model.loss=sigmoid"),
        *flags.set,
    )
    if not preset.exists():
        export("keras_hub", reference, preset)
    name = f"keras_hub:{preset}"
    jest_tf(
        *("embed", "--model", name, "--output", runs / "sidecars"),
        *("--data", f"{DATA}/pool-*.tfrecord"),
    )
    train(
        *("uniform", learner, f"reference.model={name}", "steps=1000"),
        "reference.distillation_weight=16",
        *(f"reference.sidecar_dir={runs / 'sidecars'}", "model.loss=sigmoid"),
        "reference.projection=64",
        *("selection.stages.0.candidates=5",),
        *("selection.stages.0.embeddings=stored",),
        *("selection.stages.0.criterion=easy_reference",),
        *flags.set,
    )
    if not exported.exists():
        export("saved_model", learner, exported)
    if not photos.exists():
        write_pictures(photos)
    # A process that imports TensorFlow but not `jest_tf`.
    program = [sys.executable, ROOT / "examples" / "search.py"]
    words = [exported, photos, *flags.queries, "--figure", flags.figure]
    subprocess.run([*program, *words], check=True, cwd=ROOT)


def towers(config, vocabulary_size):
    """Returns the encoders of a small SigLIP, for `model.towers`."""
    import keras
    from keras_hub import models

    size, length = config.data.image_size, config.data.text_length
    shared = {"hidden_dim": 64, "num_layers": 4, "num_heads": 4}
    shared["intermediate_dim"] = 256
    image = models.SigLIPVisionEncoder(
        patch_size=8, image_shape=(size, size, 3), **shared
    )
    text = models.SigLIPTextEncoder(
        vocabulary_size=vocabulary_size,
        embedding_dim=64,
        max_sequence_length=length,
        **shared,
    )
    # KerasHub's encoders name their inputs.
    pixels = keras.Input([size, size, 3])
    tokens = keras.Input([length], dtype="int32")
    return (
        keras.Model(pixels, image({"images": pixels})),
        keras.Model(tokens, text({"token_ids": tokens})),
    )


def write_vocabulary(path: pathlib.Path) -> None:
    """Trains a SentencePiece model like SigLIP's on the curated captions."""
    import sentencepiece

    from jest_tf.data import stores

    store = stores.open_store(f"{DATA}/curated-*.tfrecord")
    captions = [
        caption.decode("utf-8", "replace").lower()
        for texts in store.columns(["caption"])["caption"]
        for caption in texts
    ]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(captions),
        model_writer=model,
        vocab_size=2000,
        hard_vocab_limit=False,
        minloglevel=2,
        unk_id=2,
        eos_id=1,
        pad_id=0,
        bos_id=-1,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(model.getvalue())


def write_pictures(folder: pathlib.Path) -> None:
    """Writes the pool's pictures to files, as a user would have them."""
    from jest_tf.data import stores

    store = stores.open_store(f"{DATA}/pool-*.tfrecord")
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for number, record in enumerate(store.read(range(len(store)))):
        (partial / f"{number:05d}.png").write_bytes(record.image)
    partial.rename(folder)


def train(recipe: str, workdir: pathlib.Path, *settings: str) -> None:
    """Trains a recipe of the quickstart; returns at once if it is finished."""
    jest_tf(
        *("train", "--config", f"configs/quickstart_{recipe}.py"),
        *("--workdir", workdir, "--set", *settings),
    )


def export(kind: str, workdir: pathlib.Path, output: pathlib.Path) -> None:
    """Exports the learner of a run."""
    jest_tf("export", "--model", workdir, "--format", kind, "--output", output)


def jest_tf(command: str, *arguments) -> None:
    """Runs a command of `jest-tf`; exits if it fails."""
    words = [command, *map(os.fspath, arguments)]
    with contextlib.chdir(ROOT):
        if cli.main(words):
            sys.exit(f"error: {command} failed")


if __name__ == "__main__":
    main()
