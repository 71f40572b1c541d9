"""JAX: everything under ``jit``, forward over reverse mode, with the ways that are fastest on one CPU core.

``linearized``  ``jit`` of ``jax.linearize(jax.grad(f))``: a new batch needs no new compilation
``constants``   ``jax.linearize`` outside and ``jit`` of the result: the batch's values are constants of the compiled
                code, so every new batch is compiled anew (seconds, not part of the time)
``jvp``         ``jit`` of the whole product, forward pass included
``power``       one ``jit`` for primal pass and power iteration (``lax.while_loop``): no Python between products; not
                with XLA's convolutions, which are some twenty times slower inside a loop
``lanczos``     Lanczos with full reorthogonalization in numpy around the ``linearized`` product

The gradient of ``v'Hv`` is taken by reverse mode, of the second directional derivative by forward mode twice.
Compilation is never part of a time; the seconds of first calls are recorded.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any, ClassVar, TypeAlias, final

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.tree_util import Partial
from peers.base import (
    CAP,
    MEMORY_CAP,
    MU,
    STEP_EPS,
    Array,
    Call,
    Data,
    Peer,
    Penalized,
    Solution,
    Variants,
    parameters,
)
from peers.jax_networks import Loss, losses

Linear: TypeAlias = Callable[[jax.Array], jax.Array]
CONSTANTS_UP_TO = 128
"""Rows up to which ``constants`` is offered: with more, compilation takes minutes."""


def linearize(loss: Loss, w: jax.Array, x: jax.Array, y: jax.Array) -> tuple[jax.Array, Linear]:
    return jax.linearize(lambda w: jax.grad(loss)(w, x, y), w)


def quadratic(loss: Loss, w: jax.Array, v: jax.Array, x: jax.Array, y: jax.Array) -> jax.Array:
    def directional(w: jax.Array) -> jax.Array:
        return jax.jvp(lambda w: loss(w, x, y), (w,), (v,))[1]

    return jax.jvp(directional, (w,), (v,))[1]


def power(product: Linear, start: jax.Array, eps: jax.Array | float) -> tuple[jax.Array, ...]:
    def look(v: jax.Array, products: jax.Array | int) -> tuple[jax.Array, ...]:
        u = product(v)
        value = u @ v
        return v, u, value, jnp.linalg.norm(u - value * v), jnp.asarray(products + 1)

    def go_on(state: tuple[jax.Array, ...]) -> jax.Array:
        _, _, value, residual, products = state
        return (residual > eps * jnp.abs(value)) & (products < CAP)

    def again(state: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        return look(state[1] / jnp.linalg.norm(state[1]), state[4])

    v, _, value, _, products = lax.while_loop(go_on, again, look(start / jnp.linalg.norm(start), 0))
    return value, v, products


def lanczos(product: Callable[[Array], Array], start: Array, eps: float, size: int = 64) -> tuple[float, Array, int]:
    """The eigenpair of largest modulus, in numpy; the basis is larger than the cases need."""
    basis = np.empty((size + 1, len(start)), start.dtype)
    basis[0] = start / np.linalg.norm(start)
    small = np.zeros((size + 1, size + 1))
    for k in range(1, size + 1):
        rows = basis[:k]
        w = product(rows[-1])
        coefficients = rows @ w
        w = w - coefficients @ rows
        again = rows @ w
        w -= again @ rows
        beta = float(np.linalg.norm(w))
        small[k - 1, k - 1] = coefficients[-1] + again[-1]
        values, vectors = np.linalg.eigh(small[:k, :k])  # reads the lower triangle
        top = 0 if -values[0] > values[-1] else k - 1
        if abs(beta * vectors[-1, top]) <= eps * abs(values[top]):
            return float(values[top]), vectors[:, top].astype(start.dtype) @ rows, k
        small[k, k - 1] = beta
        basis[k] = w / beta
    raise ArithmeticError(f"{size} Lanczos steps did not reach the residual.")


@final
class Jax(Peer):
    """JAX on the CPU, one thread."""

    packages: ClassVar[tuple[str, ...]] = ("jax", "jaxlib", "numpy")

    def load(self, network: Mapping[str, Any], data: Data) -> None:
        pieces = parameters(data)
        self.losses = losses(network, [p.shape for p in pieces])
        self.w = jnp.asarray(np.concatenate([p.reshape(-1) for p in pieces]))
        self.x, self.y = jnp.asarray(data["x"]), jnp.asarray(data["y"].astype(np.int32))
        self.linearized = {name: jax.jit(partial(linearize, loss)) for name, loss in self.losses.items()}
        self.gradients = {name: jax.jit(jax.grad(loss)) for name, loss in self.losses.items()}
        self.apply = jax.jit(lambda linear, v: linear(v))
        self.at = (self.w, self.x, self.y)

    def named(self, way: str, make: Callable[[str, Loss], Callable[..., Any] | None]) -> Variants:
        """A variant per way to convolve; every call waits for its result."""
        variants: Variants = {}
        for name, loss in self.losses.items():
            if (call := make(name, loss)) is not None:
                variants[", ".join(part for part in (name, way) if part)] = partial(finished, call)
        return variants

    def gradient(self) -> Variants:
        return self.named("", lambda name, loss: lambda: self.gradients[name](*self.at))

    def primal(self) -> Variants:
        return self.named("linearized", lambda name, loss: lambda: self.linearized[name](*self.at)[1])

    def product(self, v: Array) -> Variants:
        vector = jnp.asarray(v)

        def linearized(name: str, loss: Loss) -> Call:
            return partial(self.apply, self.linearized[name](*self.at)[1], vector)

        def constants(name: str, loss: Loss) -> Call | None:
            if len(self.x) > CONSTANTS_UP_TO:
                return None
            return partial(jax.jit(linearize(loss, *self.at)[1]), vector)

        def whole(name: str, loss: Loss) -> Call:
            gradient = jax.grad(loss)
            product = jax.jit(lambda w, v, x, y: jax.jvp(lambda w: gradient(w, x, y), (w,), (v,))[1])
            return partial(product, self.w, vector, self.x, self.y)

        return self.named("linearized", linearized) | self.named("constants", constants) | self.named("jvp", whole)

    def multiply(self, v: Array) -> jax.Array:
        return self.apply(next(iter(self.linearized.values()))(*self.at)[1], jnp.asarray(v))

    def quadratic(self, v: Array) -> Variants:
        vector = jnp.asarray(v)
        return self.named(
            "", lambda name, loss: partial(jax.jit(jax.grad(partial(quadratic, loss))), self.w, vector, self.x, self.y)
        )

    def solve(self, start: Array, eps: float) -> Variants:
        first = jnp.asarray(start)

        def in_one(name: str, loss: Loss) -> Call | None:
            if name == "conv":
                return None
            solve = self.power(loss)
            return lambda: as_solution(solve(*self.at, first, eps))

        def around(name: str, loss: Loss) -> Call:
            return lambda: Solution(*self.lanczos(name, start, eps))

        return self.named("power", in_one) | self.named("lanczos", around)

    def power(self, loss: Loss) -> Callable[..., tuple[jax.Array, ...]]:
        def solve(w: jax.Array, x: jax.Array, y: jax.Array, start: jax.Array, eps: jax.Array) -> tuple[jax.Array, ...]:
            return power(linearize(loss, w, x, y)[1], start, eps)

        return jax.jit(solve)

    def lanczos(self, name: str, start: Array, eps: float) -> tuple[float, Array, int]:
        linear = self.linearized[name](*self.at)[1]
        return lanczos(lambda v: np.asarray(self.apply(linear, v)), start, eps)

    def step(self, start: Array) -> Variants:
        first = jnp.asarray(start)

        def in_one(name: str, loss: Loss) -> Call | None:
            if name == "conv":
                return None

            def gradient(w: jax.Array, x: jax.Array, y: jax.Array, start: jax.Array) -> tuple[jax.Array, jax.Array]:
                plain, linear = linearize(loss, w, x, y)
                value, v, products = power(linear, start, STEP_EPS)
                slope = jax.grad(partial(quadratic, loss))(w, v, x, y)
                return plain + MU * jnp.sign(value) * slope, products

            whole = jax.jit(gradient)

            def step() -> Penalized:
                found, products = whole(*self.at, first)
                return Penalized(found.block_until_ready(), int(products))

            return step

        def around(name: str, loss: Loss) -> Call:
            slope = jax.jit(jax.grad(partial(quadratic, loss)))
            add = jax.jit(lambda plain, mu, slope: plain + mu * slope)

            def step() -> Penalized:
                plain, linear = self.linearized[name](*self.at)
                value, v, products = lanczos(lambda v: np.asarray(self.apply(linear, v)), start, STEP_EPS)
                found = add(plain, math.copysign(MU, value), slope(self.w, v, self.x, self.y))
                return Penalized(found.block_until_ready(), products)

            return step

        return self.named("power", in_one) | self.named("lanczos", around)

    def short_solve(self, start: Array) -> Call:
        linearized = next(iter(self.linearized.values())).lower(*self.at).compile()
        linear_shape = jax.eval_shape(next(iter(self.linearized.values())), *self.at)[1]
        apply = self.apply.lower(linear_shape, self.w).compile()

        def solve() -> None:
            linear = linearized(*self.at)[1]
            with suppress(ArithmeticError):
                lanczos(lambda v: np.asarray(apply(linear, jnp.asarray(v))), start, 0.0, MEMORY_CAP)

        return solve

    def plain_gradient(self) -> Call:
        compiled = next(iter(self.gradients.values())).lower(*self.at).compile()
        return lambda: jax.block_until_ready(compiled(*self.at))

    def array(self, vector: Any) -> np.ndarray:
        return np.asarray(vector, np.float64)


def finished(call: Callable[[], Any]) -> Any:
    """The call's result, waited for: JAX returns before it is there."""
    result = call()
    if isinstance(result, Partial | jax.Array):
        jax.block_until_ready(result)
    return result


def as_solution(found: tuple[jax.Array, ...]) -> Solution:
    value, v, products = found
    return Solution(float(value), v.block_until_ready(), int(products))
