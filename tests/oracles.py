"""Slow NumPy twins, in float64 and written from the paper's formulas.

They hold whole matrices and loop where the package does not, and share no code
with it.
"""

import itertools

import numpy as np


def softplus(values):
    return np.logaddexp(0.0, values)


def log_sum_exp(values, axis):
    top = values.max(axis=axis, keepdims=True)
    total = np.exp(values - top).sum(axis=axis, keepdims=True)
    return np.squeeze(np.log(total) + top, axis)


def logits(embeddings):
    """[B, B]: image i with text j."""
    image, text, scale, bias = (np.float64(part) for part in embeddings)
    return scale * image @ text.T + bias


def kept_pairs(size, ids=None, reference=None, margin=0.0):
    """bool [b, b]: the pairs of the data, and those that are negatives."""
    kept = np.ones([size, size], bool)
    for i, j in itertools.permutations(range(size), 2):
        if ids is not None:
            kept[i, j] = ids[i] != ids[j]
        if reference is not None:
            image, text = np.float64(reference[0]), np.float64(reference[1])
            own = max(image[i] @ text[i], image[j] @ text[j])
            kept[i, j] &= image[i] @ text[j] < own - margin - 1e-4
    return kept


def sigmoid_loss(embeddings, **omitted):
    values = logits(embeddings)
    kept = kept_pairs(len(values), **omitted)
    signs = 2.0 * np.eye(len(values)) - 1.0
    return (softplus(-signs * values) * kept).sum() / len(values)


def softmax_loss(embeddings, **omitted):
    values = logits(embeddings)
    kept, total = kept_pairs(len(values), **omitted), 0.0
    for row in range(len(values)):
        # Its texts, its images.
        for line, counts in (
            (values[row], kept[row]),
            (values[:, row], kept[:, row]),
        ):
            total += 0.5 * (log_sum_exp(line[counts], 0) - line[row])
    return total / len(values)


def feature_distillation(learner, reference):
    total = 0.0
    for ours, theirs in zip(learner[:2], reference[:2], strict=True):
        for row, other in zip(ours, theirs, strict=True):
            total += np.sum((np.float64(row) - np.float64(other)) ** 2)
    return total / len(learner[0])


def similarity_distillation(learner, reference):
    ours, theirs, total = logits(learner), logits(reference), 0.0
    for row in range(len(ours)):
        for left, right in (
            (theirs[row], ours[row]),  # its texts
            (theirs[:, row], ours[:, row]),  # its images
        ):
            left = left - log_sum_exp(left, 0)
            right = right - log_sum_exp(right, 0)
            total += 0.5 * np.sum(np.exp(left) * (left - right))
    return total / len(ours)


def pair_losses(embeddings):
    """[B, B] of pairwise sigmoid losses: positive on the diagonal."""
    values = logits(embeddings)
    return np.where(
        np.eye(len(values), dtype=bool), softplus(-values), softplus(values)
    )


CRITERIA = {
    "learnability": lambda learner, reference: learner - reference,
    "easy_reference": lambda learner, reference: -reference,
    "hard_learner": lambda learner, reference: learner,
}


def chunk_sizes(batch_size, num_chunks):
    return [len(part) for part in np.array_split(range(batch_size), num_chunks)]


def pick(scores, noise, taken, size):
    """The rows that `scores + noise` puts first, the taken rows left out."""
    keys = scores + np.float64(noise)
    keys[taken] = -np.inf
    return list(np.argsort(-keys, kind="stable")[:size])


def select_jointly(
    learner,
    reference,
    *,
    batch_size,
    noise,
    criterion="learnability",
    loss="sigmoid",
    gain=1.0,
    num_replicas=1,
):
    """Algorithm 1 over whole matrices; softmax as docs/method.md says.

    Args:
        noise: [N, B], the Gumbel noise of each chunk.
        criterion: a name, or a function of the two models' losses.
        loss: a name, or a function of embeddings to [B, B] pair losses.
        num_replicas: replicas that each draw equally many of their own rows,
            given all chosen anywhere.
    """
    conditional = _conditional(
        CRITERIA.get(criterion, criterion), loss, learner, reference
    )
    owners = np.arange(noise.shape[1]) // (noise.shape[1] // num_replicas)
    chosen = []

    sizes = chunk_sizes(batch_size // num_replicas, len(noise))
    for of_chunk, size in zip(noise, sizes, strict=True):
        scores, drawn = gain * conditional(chosen), []
        for replica in range(num_replicas):
            others = list(np.flatnonzero(owners != replica))
            drawn += pick(scores, of_chunk, chosen + others, size)
        chosen += drawn
    return np.array(chosen)


def _conditional(combine, loss, learner, reference):
    """The scores of all rows, as a function of the chosen rows."""

    def by_pairs(embeddings, chosen):
        matrix = _pairs(loss, embeddings)
        own = np.diag(matrix)
        return own + matrix[:, chosen].sum(1) + matrix[chosen].sum(0)

    def by_normalisers(embeddings, chosen):
        values = logits(embeddings._replace(bias=0.0))
        own = -np.diag(values)
        if not chosen:
            return own
        over_texts = log_sum_exp(values[:, chosen], 1)
        over_images = log_sum_exp(values[chosen, :], 0)
        return own + 0.5 * (over_texts + over_images)

    of_model = by_normalisers if loss == "softmax" else by_pairs
    return lambda chosen: combine(
        *(
            None if embeddings is None else of_model(embeddings, chosen)
            for embeddings in (learner, reference)
        )
    )


def _pairs(loss, embeddings):
    return (pair_losses if loss == "sigmoid" else loss)(embeddings)


def row_losses(embeddings, chosen, loss):
    """[B]: each row's share of the loss of the chosen rows and itself.

    For sums over pairs the pairs with others count half in each direction; for
    softmax the normalisers of a row run over the chosen rows and the row
    itself.
    """
    is_softmax = loss == "softmax"
    values = logits(embeddings) if is_softmax else _pairs(loss, embeddings)
    result = []
    for row in range(len(values)):
        others = [other for other in chosen if other != row]
        if is_softmax:
            members = [*others, row]
            total = -values[row, row]
            total += 0.5 * log_sum_exp(values[row, members], 0)
            total += 0.5 * log_sum_exp(values[members, row], 0)
        else:
            total = values[row, row] + 0.5 * values[row, others].sum()
            total += 0.5 * values[others, row].sum()
        result.append(total)
    return np.array(result)


def deal(indices, super_batch_size, num_replicas):
    """For each replica the places of the draw dealt to it, card by card."""
    hands = [[] for _ in range(num_replicas)]
    share = super_batch_size // num_replicas
    dealt = 0
    for owner in range(num_replicas):
        for place, row in enumerate(indices):
            if row // share == owner:
                hands[dealt % num_replicas].append(place)
                dealt += 1
    return hands


def masked_crc32c(data):
    """Masked CRC-32C as its definition states it: one bit at a time."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) % 2**32 + 0xA282EAD8) % 2**32


MASK = 2**64 - 1


GOLDEN = 0x9E3779B97F4A7C15


def mix(value):
    value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 & MASK
    value = (value ^ value >> 27) * 0x94D049BB133111EB & MASK
    return value ^ value >> 31


def position_hash(seed, position, salt):
    key = mix(mix(seed + GOLDEN & MASK) + 3 * mix(salt + GOLDEN & MASK) & MASK)
    return mix(mix(position + GOLDEN & MASK) ^ key)


def row_at(num_records, seed, position):
    """The row at a position in Python integers, a value at a time."""
    epoch, value = divmod(position, num_records)
    key = position_hash(seed, epoch, int.from_bytes(b"order", "big"))
    half = 1
    while 4**half < num_records:
        half += 1
    while True:
        left, right = divmod(value, 2**half)
        for i in range(1, 13):
            mixed = mix((key + i * GOLDEN & MASK) ^ right)
            left, right = right, left ^ mixed >> 64 - half
        value = left * 2**half + right
        if value < num_records:
            break
    if num_records > 1 and value < 2 and key & 1:
        value = 1 - value
    return value
