"""Networks from PyTorch modules: traced once, run in JAX; parameters by their own names, buffers fixed."""

import copy
import sys
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from landscape.networks import torch_graph, torch_state
from landscape.networks.multi_branch import Network
from landscape.networks.torch_graph import Graph

Params = Any

AGREES = 1e-4
"""Largest difference between PyTorch and JAX, relative to the largest output: rounding stays far below."""


class Disagreement(ValueError):
    """JAX and PyTorch give different outputs."""


@dataclass(frozen=True, eq=False, repr=False)
class TorchForward:
    """The forward pass of a traced module: params, x [N, ...] -> outputs [N, ...].

    Attributes:
        name: The module's class.
        graph: Its operations.
        values: The buffers that it reads, by name: they stay as they are.
        aliases: Every name of a parameter, with the one under which the parameters hold it; they differ where tied.
        unread: Parameters that the forward pass does not read; they are not among the parameters.
        example: Shape and type of one example; a tuple or dictionary of them for several inputs.
        outputs: Shape of the outputs for one example.
        types: Types that parameters are cast to when the module runs, where it computes in half precision.
        copies: How often an example is repeated in the batch that is traced: 1, or 2 for modules that treat a batch of
            one differently.
        agreement: Largest difference from PyTorch on three examples, relative to the largest output.
        notes: What a person should know: types that were narrowed, parameters left out.
    """

    name: str
    graph: Graph
    values: Mapping[str, Any]
    aliases: Mapping[str, str]
    unread: tuple[str, ...]
    example: Any
    outputs: tuple[int, ...]
    types: Mapping[str, Any]
    copies: int
    agreement: float = float("nan")
    notes: tuple[str, ...] = ()

    def __call__(self, params: Params, x: Any) -> jax.Array:
        """Outputs for a batch.

        Args:
            params: Nested dictionaries, names split at ".".
            x: Examples [N, ...]; a tuple or dictionary of them where the module has several inputs.

        Raises:
            ValueError: Examples of another shape: the module was traced for one.
        """
        shapes = jax.tree.map(lambda leaf: tuple(leaf.shape[1:]), x)
        wanted = jax.tree.map(lambda leaf: tuple(leaf.shape), self.example)
        if shapes != wanted:
            raise ValueError(
                f"{self.name} was traced for examples {wanted}, so it takes a batch of them; got {shapes} after the "
                "first axis.\n  Call from_torch with an example of the new shape."
            )
        x = jax.tree.map(lambda leaf, like: jnp.asarray(leaf, like.dtype), x, self.example)
        if len(jax.tree.leaves(x)[0]) == self.copies == 1:
            return self._traced(params, x)
        return jax.vmap(lambda one: self._traced(params, jax.tree.map(self._repeated, one))[0])(x)

    def _repeated(self, leaf: jax.Array) -> jax.Array:
        return jnp.broadcast_to(leaf[None], (self.copies, *leaf.shape))

    def _traced(self, params: Params, x: Any) -> jax.Array:
        values = {k: jnp.asarray(v) for k, v in self.values.items()}
        for name in self.graph.parameters.values():
            if name in self.aliases:
                leaf = torch_state.at(params, self.aliases[name])
                values[name] = leaf.astype(self.types[name]) if name in self.types else leaf
        return self.graph.run(values, jax.tree.leaves(x)).reshape(self.copies, *self.outputs)

    @property
    def read(self) -> tuple[str, ...]:
        """Names of the parameters that the forward pass reads, each once."""
        names = self.graph.parameters.values()
        return tuple(dict.fromkeys(self.aliases[name] for name in names if name in self.aliases))

    @property
    def statistics(self) -> Params:
        """Running statistics that the module reads, as nested dictionaries; empty where it has none."""
        return torch_state.nested({k: v for k, v in self.values.items() if k.split(".")[-1] in torch_state.STATISTICS})

    def with_statistics(self, values: Params) -> "TorchForward":
        """The same with other running statistics, named as in `statistics`."""
        new = {k: jnp.asarray(v, self.values[k].dtype) for k, v in torch_state.flat(values).items()}
        return replace(self, values={**self.values, **new})

    def params_of(self, state: Mapping[str, Any]) -> Params:
        """The parameters in a state dict (or nested dictionaries), without buffers and the further names of tied ones.

        Raises:
            ValueError: Some are missing.
        """
        held = torch_state.flat(state)
        missing = [name for name in self.read if name not in held]
        if missing:
            raise ValueError(f"The state of {self.name} lacks {', '.join(missing[:3])}{' …' if missing[3:] else ''}.")
        return torch_state.nested({name: jnp.asarray(held[name], jnp.float32) for name in self.read})

    def __repr__(self) -> str:
        words = (f"{len(self.graph.steps)} operations", f"agrees with PyTorch to {self.agreement:.0e}", *self.notes)
        return f"TorchForward({self.name}: {', '.join(words)})"


def from_torch(module: "Any | Callable[[], Any]", example: Any, buffers: Mapping[str, Any] | None = None) -> Network:
    """A network from a PyTorch module in evaluation mode; the module itself is not changed.

    The parameters are nested dictionaries, the names of `module.state_dict()` split at "."; a parameter that is tied to
    another is held once. Buffers, such as BatchNorm's statistics, stay fixed. `apply` is a `TorchForward`, which tells
    names, types and the agreement with PyTorch.

    `init(key)` draws the parameters as PyTorch does, seeded by the key: from a class or function by making the module
    again; from a module by calling `reset_parameters` of all its parts, so parameters that no part resets (such as
    position embeddings held as `nn.Parameter`) keep the module's values. Under `jit` it calls back to the host.

    Args:
        module: An `nn.Module`; or a class or function without arguments that makes one.
        example: One example, without a batch axis: an array with the shape and type of the data's (x[0]). A tuple or
            dictionary of arrays for modules with several inputs, passed by position or by name.
        buffers: Values for the buffers by name, such as a state dict, whose other entries are ignored; the module's
            own when None.

    Raises:
        ValueError: PyTorch is missing or too old; the module cannot be traced, has an operation without a rule, draws
            random numbers, lets examples influence each other, or gives other outputs in JAX than in PyTorch.
    """
    torch = torch_graph.pytorch()
    made = module if isinstance(module, torch.nn.Module) else module()
    if not isinstance(made, torch.nn.Module):
        raise ValueError(f"from_torch wants an nn.Module or what makes one; got {type(made).__name__}.")
    kept = torch_state.evaluating(made if made is not module else torch_state.copied(made))
    if buffers is not None:
        torch_state.set_buffers(kept, buffers)
    batch = jax.tree.map(lambda leaf: _three(np.asarray(leaf)), example)
    forward = _forward(torch, kept, batch, _outputs(torch, kept, batch))
    return _network(torch, None if made is module else module, kept, forward)


def is_module(target: Any) -> bool:
    """Whether an object is an `nn.Module`, told without loading PyTorch: whoever made it has done so."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(target, torch.nn.Module)


def _three(example: np.ndarray) -> np.ndarray:
    """Three different examples: the one given, one with its entries in another order, and one with noise."""
    rng = np.random.default_rng(0)
    moved = rng.permutation(example.reshape(-1)).reshape(example.shape)
    if not np.issubdtype(example.dtype, np.floating):
        return np.stack([example, moved, np.flip(example)])
    noise = rng.standard_normal(example.shape) * (example.std() or 1.0)
    return np.stack([example, moved, example + noise]).astype(example.dtype)


def _called(torch: Any, module: Any, batch: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A batch as the arguments of a module: integers as int64, other numbers in the type of its parameters."""
    floating = next((p.dtype for p in module.parameters() if p.is_floating_point()), torch.float32)

    def tensor(leaf: np.ndarray) -> Any:
        if np.issubdtype(leaf.dtype, np.floating):
            return torch.from_numpy(np.array(leaf, np.float32)).to(floating)
        return torch.from_numpy(np.array(leaf, bool if leaf.dtype == bool else np.int64))

    tensors = jax.tree.map(tensor, batch)
    if isinstance(tensors, Mapping):
        return (), {k: tensors[k] for k in sorted(tensors)}  # in the order of JAX's trees
    return (tuple(tensors) if isinstance(tensors, tuple | list) else (tensors,)), {}


def _rows(batch: Any, rows: slice) -> Any:
    return jax.tree.map(lambda leaf: leaf[rows], batch)


def _outputs(torch: Any, module: Any, batch: Any) -> np.ndarray:
    """PyTorch's own outputs for a batch.

    Raises:
        ValueError: The module does not take it, or returns something else than one tensor with the batch axis.
    """
    name, leaves = type(module).__name__, jax.tree.leaves(batch)
    arguments, keywords = _called(torch, module, batch)
    try:
        with torch_graph.quiet(torch), torch.no_grad():
            found = module(*arguments, **keywords)
    except Exception as error:  # the module's own code
        shapes = ", ".join(str(list(leaf.shape)) for leaf in leaves)
        raise ValueError(
            f"{name} does not take a batch of {len(leaves[0])} examples, {shapes}: {torch_graph.first_line(error)}\n"
            "  `example` is one example, x[0]; images are [channels, height, width]."
        ) from error
    if not isinstance(found, torch.Tensor):
        raise ValueError(f"{name} returns a {type(found).__name__}; wrap it to return the outputs, one tensor.")
    if found.shape[:1] != (len(leaves[0]),):
        raise ValueError(
            f"{name} maps a batch of {len(leaves[0])} examples to shape {list(found.shape)}; wanted one row an example."
        )
    return torch_graph.to_numpy(found).astype(np.float32)


def _forward(torch: Any, module: Any, batch: Any, wanted: np.ndarray) -> TorchForward:
    """The module traced with one example, or, where it treats a batch of one differently, with the same one twice.

    Raises:
        ValueError: Neither can be traced, or agrees with `wanted`, PyTorch's outputs for the batch.
    """
    refused: list[ValueError] = []
    for copies in (1, 2):
        try:
            graph = torch_graph.export(module, *_called(torch, module, _rows(batch, slice(copies))))
            forward = _described(module, graph, batch, wanted.shape[1:], copies)
            return _agreeing(forward, torch_state.parameters(module, forward.read), batch, wanted)
        except ValueError as error:
            refused.append(error)
    if isinstance(refused[0], Disagreement):
        _refuse_mixing(torch, module, batch, wanted)
    raise refused[0]


def _described(module: Any, graph: Graph, batch: Any, outputs: tuple[int, ...], copies: int) -> TorchForward:
    """The forward pass with its names, types and fixed values."""
    first: dict[int, str] = {}
    named = dict(module.named_parameters(remove_duplicate=False))
    aliases = {k: first.setdefault(id(p), k) for k, p in named.items() if p.is_floating_point()}
    read = {aliases[k] for k in graph.parameters.values() if k in aliases}
    unread = tuple(k for k in first.values() if k not in read)
    values = {k: torch_graph.to_numpy(named[k]) for k in graph.parameters.values() if k not in aliases}
    held = dict(module.named_buffers(remove_duplicate=False))
    values |= {k: torch_graph.to_numpy(held[k]) for k in graph.buffers.values()}
    types = {k: torch_graph.dtype_of(named[k].dtype) for k in graph.parameters.values() if k in aliases}
    example = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], _narrow(leaf.dtype)), batch)
    notes = [f"{leaf.dtype} as {_narrow(leaf.dtype)}" for leaf in jax.tree.leaves(batch) if leaf.dtype.itemsize > 4]
    notes += [f"computed in {kind}" for kind in sorted({str(t) for t in types.values() if t != np.float32})]
    notes += [f"not read: {', '.join(unread[:3])}{' …' if unread[3:] else ''}"] if unread else []
    return TorchForward(
        name=type(module).__name__,
        graph=graph,
        values=values,
        aliases=aliases,
        unread=unread,
        example=example,
        outputs=outputs,
        types={k: t for k, t in types.items() if t != np.float32},
        copies=copies,
        notes=tuple(dict.fromkeys(notes)),
    )


def _narrow(dtype: Any) -> np.dtype:
    return jax.dtypes.canonicalize_dtype(dtype)


def _agreeing(forward: TorchForward, params: Params, batch: Any, wanted: np.ndarray) -> TorchForward:
    """The same with the agreement noted.

    Raises:
        ValueError: The outputs differ from PyTorch's by more than rounding.
    """
    with jax.default_matmul_precision("highest"):
        found = np.asarray(jax.jit(forward)(params, jax.tree.map(jnp.asarray, batch)), np.float32)
    finite = np.isfinite(wanted)
    away = np.abs(np.where(finite, found - wanted, 0)).max(initial=0)
    agreement = float(away / max(float(np.abs(wanted[finite]).max(initial=0)), 1e-30)) if away else 0.0
    coarsest = max([float(jnp.finfo(kind).eps) for kind in forward.types.values()], default=0.0)
    if not (agreement <= max(AGREES, 16 * coarsest) and np.array_equal(finite, np.isfinite(found))):
        raise Disagreement(
            f"{forward.name} gives other outputs in JAX than in PyTorch (relative difference {agreement:.2g}).\n"
            "  Report it with the module, or write the network in JAX."
        )
    return replace(forward, agreement=agreement)


def _refuse_mixing(torch: Any, module: Any, batch: Any, wanted: np.ndarray) -> None:
    """Name the fault where PyTorch's own outputs for an example depend on the examples beside it.

    Raises:
        ValueError: They do.
    """
    for k in range(len(wanted)):
        twice = _outputs(torch, module, jax.tree.map(lambda leaf, k=k: np.stack([leaf[k]] * 2), batch))
        if not np.allclose(twice[0], wanted[k], rtol=AGREES, atol=AGREES * np.abs(wanted).max(), equal_nan=True):
            raise ValueError(
                f"The examples of a batch influence each other in {type(module).__name__}; a loss surface is a mean "
                "over examples.\n  Remove sums and normalisations over the first axis, or use running statistics."
            )


def _network(torch: Any, make: Any, kept: Any, forward: TorchForward) -> Network:
    """The forward pass with an `init` that draws parameters as PyTorch does."""
    names = forward.read
    shapes = jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape, p.dtype), torch_state.parameters(kept, names))

    def draw(data: Any) -> Params:
        seed = int(np.random.SeedSequence(np.asarray(data).ravel().tolist()).generate_state(1)[0])
        with warnings.catch_warnings(action="ignore"), torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return torch_state.parameters(make() if make else torch_state.reset(copy.deepcopy(kept)), names)

    def init(key: jax.Array) -> Params:
        data = jax.random.key_data(key)
        if isinstance(data, Tracer):
            return jax.pure_callback(draw, shapes, data, vmap_method="sequential")
        return jax.tree.map(jnp.asarray, draw(data))

    return Network(init, forward)
