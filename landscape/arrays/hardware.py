"""Devices of all processes as one mesh: placing values, agreeing on values, memory and cache sizes.

Every process runs the same program on the same values; its own devices hold its part of sharded arrays. Values that
depend on a clock, on local files or on local memory are taken from the leading process.
"""

import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from landscape.arrays import trees

Tree = Any

GIB = 2**30


def mesh(devices: Sequence[Any], **sizes: int) -> Mesh:
    """A mesh with named axes, in the order given."""
    return jax.make_mesh(tuple(sizes.values()), tuple(sizes), axis_types=(AxisType.Auto,) * len(sizes), devices=devices)


def leading() -> bool:
    """Whether this process reads and writes the files."""
    return jax.process_index() == 0


def from_leader(values: Any) -> np.ndarray:
    """Broadcast an array from the leading process to all processes, bit by bit.

    Args:
        values: An array of the same shape and type on every process; only the leading one's content counts.
    """
    array = np.asarray(values)
    if jax.process_count() == 1:
        return array
    sent = multihost_utils.broadcast_one_to_all(np.ascontiguousarray(array).reshape(-1).view(np.uint8))
    return np.ascontiguousarray(sent).view(array.dtype).reshape(array.shape)


def placed(tree: Tree, sharding: NamedSharding) -> Tree:
    """Place values that every process holds whole on the devices of all processes."""
    if sharding.is_fully_addressable:
        return jax.device_put(tree, sharding)
    return jax.tree.map(partial(_spread, sharding=sharding), tree)


def _spread(x: Any, sharding: NamedSharding) -> jax.Array:
    if isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(_spread(jax.random.key_data(x), sharding), impl=jax.random.key_impl(x))
    whole = np.asarray(x)
    return jax.make_array_from_callback(whole.shape, sharding, lambda index: whole[index])


def gathered(tree: Tree) -> Tree:
    """Copy sharded arrays whole to the host of every process."""
    return jax.tree.map(_whole, tree)


def _whole(x: Any) -> np.ndarray:
    spread = isinstance(x, jax.Array) and not (x.is_fully_addressable or x.is_fully_replicated)
    return multihost_utils.process_allgather(x, tiled=True) if spread else np.asarray(x)


def shares(counts: Sequence[int], devices: int) -> list[int]:
    """Numbers of devices over which the branches of a network can be split evenly, increasing.

    >>> shares([12, 6], 4)
    [1, 2]
    """
    return [d for d in range(1, devices + 1) if devices % d == 0 and math.gcd(*counts) % d == 0]


def at_home(tree: Tree, shards: int) -> Tree:
    """One solution [I, ...] with its branches split over gcd(`shards`, devices) of this process's devices."""
    devices = jax.local_devices()
    shards = math.gcd(shards, len(devices))
    return jax.device_put(tree, NamedSharding(mesh(devices[:shards], branches=shards), P("branches")))


def home_of(tree: Tree) -> Mesh | None:
    """The mesh ("branches",) that a tree [I, ...] is split over; None where every device holds all of it."""
    leaf = jax.tree.leaves(tree)[0]
    if not isinstance(leaf, jax.Array) or leaf.sharding.is_fully_replicated:
        return None
    devices = sorted(leaf.sharding.device_set, key=lambda d: d.id)
    return mesh(devices, branches=len(devices)) if leaf.shape[0] % len(devices) == 0 else None


def summed(values: jax.Array, axis: str | None) -> jax.Array:
    """Σ over the devices along a mesh axis, each of which holds part of the sum; `values` itself if axis is None.

    The gradient of each device's part is that of the sum, since all devices continue with the same sum.
    """
    return values if axis is None else _sum(values, axis)


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def _sum(values: jax.Array, axis: str) -> jax.Array:
    return lax.psum(values, axis)


_sum.defvjp(lambda values, axis: (lax.psum(values, axis), None), lambda _axis, _kept, slope: (slope,))


def cores(devices: Sequence[Any]) -> int:
    """Threads worth starting: the cores of this machine where JAX has made them one device, else 1."""
    alone = len(devices) == 1 and devices[0].platform == "cpu"
    if not alone or jax.process_count() > 1 or jax.local_device_count() > 1:
        return 1
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def in_threads(f: Callable[[Any], Any], jobs: Sequence[Any]) -> list[Any]:
    """[f(job), ...], each in a thread of its own with the caller's precision; in order, so that sums do not vary.

    What is compiled in there must be so already, or every thread compiles it.
    """
    if len(jobs) == 1:
        return [f(jobs[0])]
    config: Any = jax.config
    wide, precision = config.jax_enable_x64, config.jax_default_matmul_precision

    def run(job: Any) -> Any:  # JAX keeps its settings thread by thread
        with trees.float64(wide), jax.default_matmul_precision(precision):
            return f(job)

    with ThreadPoolExecutor(len(jobs)) as pool:
        return list(pool.map(run, jobs))


def cache_bytes() -> int:
    """Bytes of a core's second-level cache; 1 MiB if the system does not report it."""
    try:
        found = os.sysconf("SC_LEVEL2_CACHE_SIZE")
    except (ValueError, OSError):
        found = 0
    return found if found > 2**17 else 2**20


def allowed(memory: int | None, devices: Sequence[Any]) -> int:
    """Bytes allowed on each device, the same on all processes: `memory`, or `default_memory` when None."""
    here = next(d for d in devices if d.process_index == jax.process_index())
    return int(from_leader(memory or default_memory(here)))


def default_memory(device: Any) -> int:
    """Bytes that a computation may take on a device: 3/4 of an accelerator's memory, on a CPU half of the machine's."""
    stats = device.memory_stats() if device.platform != "cpu" else None
    if stats and "bytes_limit" in stats:
        return stats["bytes_limit"] * 3 // 4
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    except (ValueError, OSError):
        return 2 * GIB
