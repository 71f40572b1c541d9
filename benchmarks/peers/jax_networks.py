"""The benchmark's networks in JAX, as a loss of one flat parameter vector in PyTorch's order and shapes.

Two ways to convolve: ``conv`` is XLA's own in NHWC, its fastest layout on a CPU; ``im2col`` gathers the nine shifted
images and multiplies matrices. Which is faster depends on the size, so both are offered. Max pooling is a maximum over
a reshaped axis: ``reduce_window``'s derivative is slower here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax

Loss: TypeAlias = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
Convolution: TypeAlias = Callable[..., jax.Array]


def conv(h: jax.Array, kernel: jax.Array, stride: int = 1) -> jax.Array:
    return lax.conv_general_dilated(
        h, kernel.transpose(2, 3, 1, 0), (stride, stride), ((1, 1), (1, 1)), dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def im2col(h: jax.Array, kernel: jax.Array, stride: int = 1) -> jax.Array:
    _, height, width, channels = h.shape
    padded = jnp.pad(h, ((0, 0), (1, 1), (1, 1), (0, 0)))
    shifted = [padded[:, i : i + height : stride, j : j + width : stride] for i in range(3) for j in range(3)]
    columns = jnp.concatenate(shifted, -1)
    matrix = kernel.transpose(2, 3, 1, 0).reshape(9 * channels, -1)
    return (columns.reshape(-1, 9 * channels) @ matrix).reshape(*columns.shape[:3], -1)


def pool(h: jax.Array) -> jax.Array:
    rows, height, width, channels = h.shape
    return h.reshape(rows, height // 2, 2, width // 2, 2, channels).max((2, 4))


def batch_norm(h: jax.Array, weight: jax.Array, bias: jax.Array) -> jax.Array:
    centred = h - h.mean((0, 1, 2))
    return centred * lax.rsqrt((centred * centred).mean((0, 1, 2)) + 1e-5) * weight + bias


def mlp(p: Sequence[jax.Array], h: jax.Array, network: Mapping[str, Any], convolve: Convolution) -> jax.Array:
    for i in range(0, len(p), 2):
        h = h @ p[i].T + p[i + 1]
        if i < len(p) - 2:
            h = jax.nn.relu(h)
    return h


def cnn(p: Sequence[jax.Array], h: jax.Array, network: Mapping[str, Any], convolve: Convolution) -> jax.Array:
    h = h.transpose(0, 2, 3, 1)
    for i in (0, 2, 4):
        h = pool(jax.nn.relu(convolve(h, p[i]) + p[i + 1]))
    h = h.transpose(0, 3, 1, 2).reshape(len(h), -1)
    return jax.nn.relu(h @ p[6].T + p[7]) @ p[8].T + p[9]


def resnet(p: Sequence[jax.Array], h: jax.Array, network: Mapping[str, Any], convolve: Convolution) -> jax.Array:
    following = iter(p)

    def normalized(h: jax.Array, stride: int = 1) -> jax.Array:
        return batch_norm(convolve(h, next(following), stride), next(following), next(following))

    h = jax.nn.relu(normalized(h.transpose(0, 2, 3, 1)))
    for stage, blocks in enumerate(network["blocks"]):
        for block in range(blocks):
            stride = 2 if stage and not block else 1
            residual = normalized(jax.nn.relu(normalized(h, stride)))
            shortcut = h[:, ::stride, ::stride]
            more = residual.shape[-1] - h.shape[-1]
            h = jax.nn.relu(jnp.pad(shortcut, ((0, 0), (0, 0), (0, 0), (0, more))) + residual)
    return h.mean((1, 2)) @ next(following).T + next(following)


NETWORKS = {"mlp": mlp, "cnn": cnn, "resnet": resnet}


def losses(network: Mapping[str, Any], shapes: Sequence[tuple[int, ...]]) -> dict[str, Loss]:
    """Mean cross-entropy of ``(w, x, y)``, one per way to convolve."""
    forward = NETWORKS[network["kind"]]
    ends = [0]
    for shape in shapes:
        ends.append(ends[-1] + math.prod(shape))

    def loss_with(convolve: Convolution) -> Loss:
        def loss(w: jax.Array, x: jax.Array, y: jax.Array) -> jax.Array:
            p = [w[a:b].reshape(shape) for a, b, shape in zip(ends, ends[1:], shapes, strict=False)]
            logits = forward(p, x, network, convolve)
            return -jnp.take_along_axis(jax.nn.log_softmax(logits), y[:, None], 1).mean()

        return loss

    return {"": loss_with(conv)} if forward is mlp else {"conv": loss_with(conv), "im2col": loss_with(im2col)}
