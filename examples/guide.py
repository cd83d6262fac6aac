# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
"""
# Train a two-tower model on the pairs that are worth it

Image-text data from the web is large and noisy: many captions belong to
another image. This guide trains a small two-tower Keras model on such data.
At each step [JEST](https://arxiv.org/abs/2406.17711) chooses the pairs to
train on, and you see how it avoids the wrong captions.

You need to know Keras' `compile` and `fit`. The guide takes under five minutes
on two CPU cores. It is a notebook, and a [script with cells](guide.py).

## Setup

The images are icons of 32 x 32 pixels, which ship with the repository. In a
clone of it, `pip install --editable '.[notebook]'` installs all that the guide
needs.
"""

# %%
import pathlib

import keras
import matplotlib.pyplot as plt
import numpy as np
import tensorflow as tf

import jest_tf
from jest_tf.data import batches, stores, tokenizers, vocabularies

DATA = pathlib.Path(jest_tf.__file__).parents[1] / "examples/icontext_mini"
IMAGE_SIZE, TEXT_LENGTH, EMBEDDING_DIM = 32, 16, 64
REFERENCE_STEPS, STEPS = 400, 800

# %% [markdown]
"""
## Load images and captions

JEST needs two sets of pairs:

- a *pool*, large and noisy, to train on;
- a *curated set*, small and clean, which says what a good pair looks like.

Here the curated set is 1,908 icons with their names. The pool is 18,000 others.
Three in five of its captions are wrong: they belong to another image, or are
a file name. The array `is_wrong` records which. Only the figures below use it;
no model sees it.
"""


# %%
def load(split):
    """Returns images, uint8 `[n, 32, 32, 3]`, captions and noise, `[n]`."""
    store = stores.open_store(f"{DATA}/{split}-*.tfrecord")
    examples = batches.examples(store, batch_size=500, image_size=IMAGE_SIZE)
    images = [batch["image"] for batch in examples.as_numpy_iterator()]
    columns = store.columns(["caption", "noise"])
    captions = [texts[0] for texts in columns["caption"]]
    return np.concatenate(images), np.array(captions), columns["noise"]


curated, curated_captions, _ = load("curated")
pool, pool_captions, noise = load("pool")
is_wrong = np.isin(noise, [b"moved", b"uninformative"])
print(f"{len(curated):,} curated pairs, {len(pool):,} pairs in the pool")
print(f"{is_wrong.mean():.1%} of the captions in the pool are wrong")

# %% [markdown]
"""
## Batches of your own

`JESTModel` takes any `tf.data` dataset of dicts. It needs `image`, uint8
images, and `text`, token ids. The `id` is optional: with it the model
reports which pairs it chose.
"""

# %%
vocabulary = vocabularies.build_wordpiece_vocabulary(
    [*curated_captions, *pool_captions], 4096
)
tokenizer = tokenizers.WordPieceTokenizer(vocabulary, TEXT_LENGTH)


def dataset(images, captions, batch_size):
    """Returns endless shuffled batches."""
    pairs = {
        "image": images,
        "text": tokenizer(tf.constant(captions)),
        "id": np.arange(len(images)),
    }
    shuffled = tf.data.Dataset.from_tensor_slices(pairs).shuffle(
        len(images), seed=0
    )
    return shuffled.repeat().batch(batch_size, drop_remainder=True).prefetch(2)


# %% [markdown]
"""
## Two towers of your own

The image tower is a small ConvNet, and the text tower is a bag of words. Any
two Keras models will do, if their embeddings are equally wide. `TwoTower`
normalises the embeddings and holds the temperature and the bias of the
contrastive loss.
"""


# %%
def build():
    """Returns an untrained model; always with the same weights."""
    keras.utils.set_random_seed(0)
    convolutions = [
        keras.layers.Conv2D(width, 3, 2, padding="same", activation="relu")
        for width in (32, 64, 128)
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
            keras.Input([None], dtype="int32"),
            keras.layers.Embedding(tokenizer.vocabulary_size, EMBEDDING_DIM),
            keras.layers.GlobalAveragePooling1D(),
            keras.layers.Dense(EMBEDDING_DIM),
        ]
    )
    return jest_tf.TwoTower(image_tower, text_tower)


# %% [markdown]
"""
## Train the reference

The *reference* learns from the curated set what a matching pair is. Without a
selection, `JESTModel` trains on every pair of a batch.
"""

# %%
reference = build()
model = jest_tf.JESTModel(reference)
model.compile(optimizer=keras.optimizers.AdamW(1e-3))
history = model.fit(
    dataset(curated, curated_captions, 128),
    epochs=4,
    steps_per_epoch=REFERENCE_STEPS // 4,
    verbose=0,
)
for loss in history.history["loss"]:
    print(f"loss {loss:.2f}")

# %% [markdown]
"""
## Train the learner on what it chooses

A selection is a list of *stages*, and each stage passes one of so many pairs.
Here a single stage passes one of five. Each step goes like this:

1. **Offer.** The dataset yields a *super-batch* of 640 pairs.
2. **Score.** The learner and the reference embed all pairs. The score of a
   pair is the learner's loss on it minus the reference's: its *learnability*.
   It is high for a pair that the learner does not know yet and the reference
   finds easy.
3. **Choose.** 128 pairs are drawn by their scores, in 16 chunks. How hard a
   pair is depends on the other pairs of the batch, so each chunk is scored
   given the chunks before it.
4. **Train.** The learner takes a gradient step on these 128 pairs, the
   *sub-batch*.

A wrong caption is hard for both models, so its score is low. A callback keeps
the `id`s of what was offered and of what was chosen.
"""


# %%
class Choices(keras.callbacks.Callback):
    """Keeps the pairs that each step was offered and those that it chose."""

    def __init__(self):
        super().__init__()
        self.offered, self.chosen = [], []

    def on_train_batch_end(self, batch, logs=None):
        """Reads the ids of the step, `[640]` and `[128]`."""
        self.offered.append(self.model.rows.scored(0)["id"])
        self.chosen.append(self.model.drawn_ids.numpy())


learner = build()
choices = Choices()
selection = jest_tf.SelectionConfig(
    batch_size=128, stages=(jest_tf.Stage(candidates=5),)
)
model = jest_tf.JESTModel(learner, reference, selection)
model.compile(optimizer=keras.optimizers.AdamW(1e-3))
model.fit(
    dataset(pool, pool_captions, 640),
    steps_per_epoch=STEPS,
    callbacks=[choices],
    verbose=0,
)
offered_wrong = np.array([is_wrong[ids].mean() for ids in choices.offered])
chosen_wrong = np.array([is_wrong[ids].mean() for ids in choices.chosen])
print(f"offered: {offered_wrong.mean():.1%} of the captions are wrong")
print(f"chosen: {chosen_wrong.mean():.1%} of the captions are wrong")

# %% [markdown]
"""
## Look at the scores

A point is a pair of the last super-batch. The higher it is, the harder the pair
is for the learner; the further left, the easier for the reference. So the score
is highest along the upper left edge. There are the black points, the chosen
pairs. Crosses have wrong captions, and most lie to the right of that edge.
"""

# %%
scored = model.rows.scored(0)
is_chosen = np.isin(scored["id"], choices.chosen[-1])
figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
for marker, caption, of_caption in (
    ("o", "right", ~is_wrong[scored["id"]]),
    ("x", "wrong", is_wrong[scored["id"]]),
):
    for colour, choice, of_choice in (
        ("silver", "not chosen", ~is_chosen),
        ("black", "chosen", is_chosen),
    ):
        axes.scatter(
            scored["reference_loss"][of_caption & of_choice],
            scored["learner_loss"][of_caption & of_choice],
            s=18,
            marker=marker,
            color=colour,
            label=f"{caption} caption, {choice}",
        )
axes.set(xlabel="loss of the reference", ylabel="loss of the learner")
axes.spines[["top", "right"]].set_visible(False)
axes.legend(fontsize=8)
plt.show()

# %% [markdown]
"""
## Look at what was chosen

On the left are 20 random pairs of those that the first 300 steps were offered,
on the right 20 random pairs of those that they chose. A wrong caption has a
cross and a red frame. Count the crosses: the right half should have fewer.
"""


# %%
def show(figure, title, ids):
    """Draws 20 random pairs with their captions."""
    figure.suptitle(title)
    shown = random.choice(ids, 20, replace=False)
    for axes, row in zip(figure.subplots(5, 4).flat, shown, strict=True):
        colour = "crimson" if is_wrong[row] else "black"
        caption = pool_captions[row].decode()[:14]
        axes.imshow(pool[row], interpolation="nearest")
        axes.set_title(
            f"× {caption}" if is_wrong[row] else caption,
            fontsize=7,
            color=colour,
        )
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set(color=colour, linewidth=2 if is_wrong[row] else 0.5)


figure = plt.figure(figsize=(8, 5.4), layout="constrained")
random = np.random.default_rng(0)
left, right = figure.subfigures(1, 2, wspace=0.08)
show(left, "Offered", np.concatenate(choices.offered[:300]))
show(right, "Chosen", np.concatenate(choices.chosen[:300]))
plt.show()

# %% [markdown]
"""
## Watch the choice over time

The next figure follows the share of wrong captions through the training. The
upper line is what the steps were offered, the lower line what they chose. The
gap is the work of the selection. It narrows late: once the learner knows the
easy pairs, more of those that it finds hard are wrong.
"""

# %%
steps = np.arange(10, STEPS + 1, 10)
figure, axes = plt.subplots(figsize=(7, 3.2), layout="constrained")
for name, shares, style in (
    ("offered", offered_wrong, "--"),
    ("chosen", chosen_wrong, "-"),
):
    means = shares.reshape(-1, 10).mean(axis=1)
    axes.plot(steps, 100 * means, style, color="black")
    axes.annotate(
        f" {name}", (steps[-1], 100 * means[-1]), verticalalignment="center"
    )
axes.set(
    xlabel="step, in means of ten",
    ylabel="wrong captions, %",
    xlim=(0, STEPS * 1.15),
    ylim=(0, 70),
)
axes.spines[["top", "right"]].set_visible(False)
plt.show()

# %% [markdown]
"""
## Compare with uniform training

Did the choice help? A second learner starts from the same weights and takes as
many steps of 128 pairs, drawn uniformly. Then every model searches for the
captions of icons from sets that none has seen. *Recall* is the share of
images whose caption is among the first ten of 1,300; by chance it is 0.8 %.
"""

# %%
uniform_learner = build()
model = jest_tf.JESTModel(uniform_learner)
model.compile(optimizer=keras.optimizers.AdamW(1e-3))
model.fit(dataset(pool, pool_captions, 128), steps_per_epoch=STEPS, verbose=0)

held_out, held_out_captions, _ = load("test")
pairs = {"image": held_out, "text": tokenizer(tf.constant(held_out_captions))}
for name, towers in (
    ("uniform", uniform_learner),
    ("JEST", learner),
    ("reference", reference),
):
    embeddings = towers(pairs)
    similarity = tf.matmul(embeddings.image, embeddings.text, transpose_b=True)
    found = tf.math.in_top_k(tf.range(len(held_out)), similarity, k=10)
    print(f"{name}: recall {np.mean(found):.1%}")

# %% [markdown]
"""
After as many steps, the learner that chose finds more captions than the learner
that did not. The reference saw right captions only, and few of them.

Selection is not free. Each JEST step embeds 640 pairs with both models to train
on 128, and the reference took steps of its own. Where you may train on the
curated set, compare with mixing it into the pool, too. [Which
method](../docs/recipes.md) says when selection pays.

## Where to go on

- Replace `load` and `build` by your data and your towers.
- Take a [public model](../docs/models.md), such as SigLIP 2, as the reference.
- Choose by a [criterion of your own](../docs/towers.md), or [before pairs are
  read](../docs/funnel.md).
- Train with checkpoints, evaluations and pages by
  [`jest-tf train`](../docs/tutorials/your_pairs.md).
"""
