"""NumPy twins of the towers' layers, in float64 and from their formulas.

They share no code with the package. Weights are read from a built layer by
name; blocks and heads are looped over, and queries, keys and values taken
apart.
"""

import math

import numpy as np


def weight(variable):
    return np.float64(variable.numpy())


def parameters(layer, index=...):
    """The weights of a transformer layer, or of a block, by name."""
    return {
        name: weight(stacked)[index]
        for name, stacked in layer.parameters.items()
    }


def dense(layer, values):
    return values @ weight(layer.kernel) + weight(layer.bias)


def project(weights, name, values):
    return values @ weights[f"{name}_kernel"] + weights[f"{name}_bias"]


def layer_norm(values, gamma, beta):
    mean = values.mean(axis=-1, keepdims=True)
    variance = ((values - mean) ** 2).mean(axis=-1, keepdims=True)
    return (values - mean) / np.sqrt(variance + 1e-6) * gamma + beta


def gelu(values):
    inner = math.sqrt(2.0 / math.pi) * (values + 0.044715 * values**3)
    return 0.5 * values * (1.0 + np.tanh(inner))


def mlp(weights, tokens):
    """With the normalisation before it."""
    tokens = layer_norm(
        tokens, weights["mlp_norm_gamma"], weights["mlp_norm_beta"]
    )
    hidden = gelu(project(weights, "mlp_expand", tokens))
    return project(weights, "mlp_contract", hidden)


def attention(query, key, value, num_heads):
    """An example: [S, width], [T, width] twice -> [S, width]."""
    depth = query.shape[-1] // num_heads
    parts = []
    for head in range(num_heads):
        columns = slice(head * depth, (head + 1) * depth)
        logits = query[:, columns] @ key[:, columns].T / math.sqrt(depth)
        weights = np.exp(logits - logits.max(axis=1, keepdims=True))
        weights /= weights.sum(axis=1, keepdims=True)
        parts.append(weights @ value[:, columns])
    return np.concatenate(parts, axis=1)


def self_attention(weights, tokens, num_heads):
    outputs = []
    for example in tokens:
        qkv = project(weights, "attention_qkv", example)
        mixed = attention(*np.split(qkv, 3, axis=1), num_heads)
        outputs.append(project(weights, "attention_out", mixed))
    return np.stack(outputs)


def block(weights, tokens, num_heads):
    normal = layer_norm(
        tokens, weights["attention_norm_gamma"], weights["attention_norm_beta"]
    )
    tokens = tokens + self_attention(weights, normal, num_heads)
    return tokens + mlp(weights, tokens)


def encoder(layer, tokens):
    for index in range(layer.depth):
        tokens = block(parameters(layer, index), tokens, layer.num_heads)
    return layer_norm(tokens, weight(layer.norm.gamma), weight(layer.norm.beta))


def pooling(layer, tokens):
    weights = parameters(layer)
    query = project(weights, "query", weights["probe"])
    outputs = []
    for example in tokens:
        key, value = np.split(project(weights, "key_value", example), 2, axis=1)
        mixed = attention(query, key, value, layer.num_heads)
        outputs.append(project(weights, "out", mixed)[0])
    pooled = np.stack(outputs)
    return pooled + mlp(weights, pooled)


def nearest_four(source, target):
    """Bilinear resizing of a square, pixel by pixel: [target^2, source^2].

    A pixel of the target mixes the four that surround its place in the
    source; beyond the border the border's pixels stand in.
    """
    matrix = np.zeros([target, target, source, source])
    for row in range(target):
        for column in range(target):
            y = (row + 0.5) * source / target - 0.5
            x = (column + 0.5) * source / target - 0.5
            for below in (0, 1):
                for right in (0, 1):
                    i, j = math.floor(y) + below, math.floor(x) + right
                    share = (1 - abs(i - y)) * (1 - abs(j - x))
                    i, j = (min(max(k, 0), source - 1) for k in (i, j))
                    matrix[row, column, i, j] += share
    return matrix.reshape(target**2, source**2)


def smoothed(values, rows, columns):
    """Antialiased bilinear resizing of [H, W, C], pixel by pixel.

    A pixel of the target is the weighted mean of the source under a tent,
    which reaches over a pixel of either grid, whichever is larger.
    """
    height, width = values.shape[:2]
    tall, wide = height / rows, width / columns
    result = np.zeros([rows, columns, values.shape[2]])
    for row in range(rows):
        y = np.abs(np.arange(height) + 0.5 - (row + 0.5) * tall)
        for column in range(columns):
            x = np.abs(np.arange(width) + 0.5 - (column + 0.5) * wide)
            tent = np.outer(
                np.maximum(0, 1 - y / max(tall, 1)),
                np.maximum(0, 1 - x / max(wide, 1)),
            )
            mixed = np.einsum("hw,hwc->c", tent, values)
            result[row, column] = mixed / tent.sum()
    return result


def pi_resized(kernel, size):
    """A patch kernel [p, p, C, W] at another size, as FlexiViT does it."""
    native = kernel.shape[0]
    flat = kernel.reshape(native**2, -1)
    resized = np.linalg.pinv(nearest_four(native, size).T) @ flat
    return resized.reshape(size, size, *kernel.shape[2:])


def patches(layer, images, size=None):
    """Patch by patch, the sum of its pixels times the kernel's."""
    size = size or layer.patch_size
    rows, columns = (side // size for side in images.shape[1:3])
    kernel, positions = weight(layer.kernel), weight(layer.positions)
    if size != layer.patch_size:
        kernel = pi_resized(kernel, size)
    if positions.shape[:2] != (rows, columns):
        positions = smoothed(positions, rows, columns)
    tokens = []
    for row in range(rows):
        for column in range(columns):
            patch = images[
                :,
                row * size : (row + 1) * size,
                column * size : (column + 1) * size,
            ]
            token = np.einsum("byxc,yxcw->bw", patch, kernel)
            tokens.append(token + weight(layer.bias) + positions[row, column])
    return np.stack(tokens, axis=1)


def token_embedding(layer, tokens):
    return weight(layer.table)[tokens] + weight(layer.positions)


def image_tower(tower, images, *, patch_size=None, image_size=None):
    if image_size:
        images = np.stack(
            [smoothed(image, image_size, image_size) for image in images]
        )
    tokens = patches(tower.patches, images, patch_size)
    tokens = encoder(tower.encoder, tokens)
    pooled = pooling(tower.pooling, tokens)
    return pooled if tower.head is None else dense(tower.head, pooled)


def text_tower(tower, tokens):
    encoded = encoder(tower.encoder, token_embedding(tower.tokens, tokens))
    return dense(tower.head, encoded[:, -1])


def unit_norm(vectors):
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
