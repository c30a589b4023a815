"""Ceilings of the devices: rates of multiply-adds on cached values, matrix products and passes over memory.

They are measured in the same process as the cases, with all local devices at work.
"""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

MULTIPLY_ADD, PRODUCT, STREAM = "multiply-add", "product", "stream"


class Ceiling(NamedTuple):
    """A computation that keeps the devices busy.

    Attributes:
        amount: Floating-point operations (or bytes, for the stream) of one call.
        call: Runs it to the end.
    """

    amount: float
    call: Callable[[], Any]


class _Sizes(NamedTuple):
    side: int
    streamed: int
    chains: tuple[tuple[int, int], ...]
    links: int


_SIZES = {
    "cpu": _Sizes(2048, 2**25, ((1024, 8), (2048, 8), (1024, 16), (4096, 32)), 64_000),
    "gpu": _Sizes(8192, 2**28, ((2**22, 128), (2**22, 512)), 16_384),
}
"""Side of the square matrices; values of an array too large for any cache; (values, links unrolled) of chains whose
values stay in a core's first cache or fill a GPU, of which the fastest counts; links of each chain in all."""
_SMALL = _Sizes(64, 2**10, ((64, 2),), 4)
_PASSES = 4


def ceilings(precision: str = "highest", *, small: bool = False) -> dict[str, Ceiling]:
    """The three ceilings of all local devices together, compiled and warm.

    Args:
        precision: Of the matrix products: "highest", "high", "default".
        small: Little arrays, to see that it works; the rates mean nothing then.
    """
    sizes = _SMALL if small else _SIZES["cpu" if jax.default_backend() == "cpu" else "gpu"]
    found = {PRODUCT: _product(sizes.side, precision), STREAM: _stream(sizes.streamed)}
    for ceiling in found.values():
        ceiling.call()
    return {MULTIPLY_ADD: _multiply_add(sizes), **found}


def arithmetic_peak() -> float:
    """Floating-point operations a second of all devices together: the better of multiply-adds and matrix products."""
    found = ceilings()
    return max(_rate(found[name]) for name in (MULTIPLY_ADD, PRODUCT))


def _rate(ceiling: Ceiling) -> float:
    """The best rate of a few calls, a second."""
    return ceiling.amount / min(_seconds(ceiling.call) for _ in range(5))


def _seconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _ones(*shape: int) -> jax.Array:
    """Ones [devices, ...], a part on each device."""
    devices = jax.local_devices()
    mesh = jax.make_mesh((len(devices),), ("devices",), axis_types=(AxisType.Auto,), devices=devices)
    where = NamedSharding(mesh, P("devices"))
    return jax.jit(lambda: jnp.ones((len(devices), *shape), jnp.float32), out_shardings=where)()


def _multiply_add(sizes: _Sizes) -> Ceiling:
    """The fastest of several chains; which one is fastest depends on the registers and the compiler."""
    chains = [_chain(values, unrolled, sizes.links) for values, unrolled in sizes.chains]
    for chain in chains:
        chain.call()
    return max(chains, key=_rate)


def _chain(values: int, unrolled: int, links: int) -> Ceiling:
    def some(_: int, y: jax.Array) -> jax.Array:
        for _ in range(unrolled):
            y = y * 0.999 + 0.001
        return y

    x, steps = _ones(values), links // unrolled
    run = jax.jit(lambda x: lax.fori_loop(0, steps, some, x))
    return Ceiling(2.0 * unrolled * steps * x.size, lambda: run(x).block_until_ready())


def _product(side: int, precision: str) -> Ceiling:
    x = _ones(side, side)
    run = jax.jit(lambda x: jnp.einsum("dij,djk->dik", x, x, precision=precision))
    return Ceiling(2.0 * side * x.size, lambda: run(x).block_until_ready())


def _stream(values: int) -> Ceiling:
    x = _ones(values)
    run = jax.jit(lambda x: lax.fori_loop(0, _PASSES, lambda _, y: y * 0.999 + 0.001, x))
    return Ceiling(2.0 * _PASSES * x.nbytes, lambda: run(x).block_until_ready())
