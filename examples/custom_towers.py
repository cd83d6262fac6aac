"""JEST with towers of your own: a small ConvNet and a bag of words.

    python examples/custom_towers.py --steps 40
    jest-tf train --config configs/quickstart_uniform.py \\
        --workdir runs/convnet --set model.towers=examples.custom_towers:build

Any two Keras layers or models that map to embeddings of equal width will do.
The first command is a Keras program. It trains a reference on a small curated
set, then a learner with the same towers on the noisy pool, on the most
learnable fifth of each super-batch. The second gives `build` to a recipe.
"""

import argparse
import pathlib

import keras

import jest_tf
from jest_tf import evaluation
from jest_tf.data import stores, tokenizers, vocabularies

DATA = pathlib.Path(__file__).parent / "icontext_mini"
IMAGE_SIZE, TEXT_LENGTH, EMBEDDING_DIM = 32, 16, 64


def build(config, vocabulary_size):
    """Returns the image and the text tower, also for a recipe."""
    del config  # all settings of the run, for towers that depend on them
    convolutions = [
        keras.layers.Conv2D(width, 3, 2, padding="same", activation="relu")
        for width in (16, 32, 64)
    ]
    image_tower = keras.Sequential(
        [
            *convolutions,
            keras.layers.Flatten(),
            keras.layers.Dense(EMBEDDING_DIM),
        ]
    )
    text_tower = keras.Sequential(
        [
            # Without this, mixed precision would round the ids.
            keras.Input([None], dtype="int32"),
            keras.layers.Embedding(vocabulary_size, EMBEDDING_DIM),
            keras.layers.GlobalAveragePooling1D(),
            keras.layers.Dense(EMBEDDING_DIM),
        ]
    )
    return image_tower, text_tower


def train(learner, funnel, tokenizer, steps):
    """Trains on a funnel's super-batches, with Keras' own `fit`."""
    model = jest_tf.JESTModel(learner, selection=funnel)
    model.compile(optimizer=keras.optimizers.AdamW(1e-3))
    super_batches = funnel.super_batches(tokenizer, IMAGE_SIZE)
    # By default, Keras warns that it cannot shuffle the stream.
    model.fit(super_batches, steps_per_epoch=steps, shuffle=False, verbose=2)


def main(argv=None):
    """Trains a reference and a learner, and measures both."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--steps", type=int, default=40, help="training steps of each model"
    )
    steps = parser.parse_args(argv).steps

    keras.utils.set_random_seed(0)
    curated, pool, held_out = (
        stores.open_store(f"{DATA}/{name}-*.tfrecord")
        for name in ("curated", "pool", "test")
    )
    captions = [
        caption
        for store in (curated, pool)
        for choice in store.columns(["caption"])["caption"]
        for caption in choice
    ]
    vocabulary = vocabularies.build_wordpiece_vocabulary(captions, 4096)
    tokenizer = tokenizers.WordPieceTokenizer(vocabulary, TEXT_LENGTH)

    reference = jest_tf.TwoTower(*build(None, tokenizer.vocabulary_size))
    uniform = jest_tf.SelectionConfig(batch_size=128)
    train(reference, jest_tf.Funnel(uniform, curated), tokenizer, steps)

    learner = jest_tf.TwoTower(*build(None, tokenizer.vocabulary_size))
    jest = jest_tf.SelectionConfig(128, stages=(jest_tf.Stage(candidates=5),))
    funnel = jest_tf.Funnel(jest, pool, reference=reference)
    train(learner, funnel, tokenizer, steps)

    for name, tower in (("reference", reference), ("learner", learner)):
        encoder = evaluation.Encoder(tower, tokenizer, IMAGE_SIZE)
        results = evaluation.StoreEvaluation(held_out).measure(encoder)
        print(
            f"{name}: {steps} steps of 128 pairs; of {len(held_out)} held-out "
            f"images {results['image_to_text/recall@10']:.1%} find their "
            "caption among the first ten"
        )


if __name__ == "__main__":
    main()
