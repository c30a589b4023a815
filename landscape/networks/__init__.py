"""Networks as pairs of pure functions, and the multi-branch network of §2, f(w; x) = 1/I Σ_i f_i(w_(i); x)."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from landscape.arrays.chunked import chunked_sum

if TYPE_CHECKING:  # flax takes long to load
    from flax import linen, nnx

Params = Any


class Network(NamedTuple):
    """A network: `init(key) -> params` and `apply(params, x [N, ...]) -> outputs [N, C]`.

    `apply` may instead be written for one example, x [...] -> outputs [C]; `one_example` tells the two apart.
    """

    init: Callable[[jax.Array], Params]
    apply: Callable[[Params, jax.Array], jax.Array]


def one_example(network: Network, params: Params, example: jax.Array) -> Callable[[Params, jax.Array], jax.Array]:
    """The network on one example: params, x [...] -> outputs [C], whether it was written for one or for a batch.

    Args:
        network: The network.
        params: Parameters, or their shapes.
        example: One example, or its shape and type.

    Raises:
        ValueError: Its outputs are neither [N, C] for a batch nor [C] for one example.
    """
    batches = [jax.ShapeDtypeStruct((n, *example.shape), example.dtype) for n in (1, 2)]
    one, two = (_shape(network, params, x) for x in batches)
    alone = _shape(network, params, example)
    for_batches = one and two and one[:1] == (1,) and two[:1] == (2,) and len(one) in (1, 2)
    # What takes a plain vector x and returns one with as many outputs was written for it, whatever it does to a batch.
    for_one = one and len(example.shape) == 1 and alone == (math.prod(one),)
    if for_batches and not for_one:
        return lambda w, x: network.apply(w, x[None]).reshape(-1)
    alone = jax.eval_shape(network.apply, params, example).shape  # raises its own error where it takes neither
    if math.prod(alone) != max((*alone, 1)):
        raise ValueError(
            f"A network must map examples {example.shape} to one vector of outputs each; this one maps a batch of two "
            f"to shape {two} and one example to {alone}.\n  Let it end with a flat layer."
        )
    return lambda w, x: network.apply(w, x).reshape(-1)


def _shape(network: Network, params: Params, x: Any) -> tuple[int, ...] | None:
    """Shape of the outputs; None where the network does not take such an input."""
    try:
        return jax.eval_shape(network.apply, params, x).shape
    except (TypeError, ValueError):
        return None


def from_flax(make: "Callable[[nnx.Rngs], nnx.Module]", *, state: Literal["frozen"] | None = None) -> Network:
    """A network from a flax nnx module, given as a function of its random streams.

    Args:
        make: For example `lambda rngs: nnx.Linear(784, 10, rngs=rngs)`.
        state: "frozen" admits state besides the parameters and keeps it everywhere as `make` returns it, in evaluation
            mode: restore BatchNorm's statistics inside `make`. For statistics computed anew at every point of a
            surface see `modules.recomputed_risk`.

    Raises:
        ValueError: `state` is None and the module has some (BatchNorm statistics, dropout's random stream).
    """
    from flax import nnx

    _check_state(state)
    if state == "frozen":
        graph, shapes, rest = nnx.split(evaluating(make(nnx.Rngs(0))), nnx.Param, ...)
    else:
        graph, shapes, rest = nnx.split(nnx.eval_shape(lambda: make(nnx.Rngs(0))), nnx.Param, ...)
        _refuse_state({type(variable).__name__ for _, variable in nnx.to_flat_state(rest)})

    def apply(params: Params, x: jax.Array) -> jax.Array:
        # Fresh copies: a module may advance its own counters, as recurrent cells do, and must not touch ours.
        values, kept = (jax.tree.map(lambda leaf: leaf, part) for part in (shapes, rest))
        nnx.replace_by_pure_dict(values, params)
        return nnx.merge(graph, values, kept)(x)

    return Network(lambda key: nnx.to_pure_dict(nnx.state(make(nnx.Rngs(key)), nnx.Param)), apply)


def evaluating(module: "nnx.Module") -> "nnx.Module":
    """The module itself, switched to evaluation: no dropout, BatchNorm with its running statistics."""
    module.eval()
    return module


def from_linen(
    module: "linen.Module",
    example_input: jax.Array,
    *,
    state: Literal["frozen"] | None = None,
    values: Mapping[str, Any] | None = None,
) -> Network:
    """A network from a flax linen module and an example of its input (one example or a batch).

    Args:
        module: Built for evaluation (`use_running_average=True`, `deterministic=True`).
        example_input: One example or a batch.
        state: "frozen" admits collections besides "params" and keeps them as `values`.
        values: Those collections, for example {"batch_stats": …}; as initialised when None.

    Raises:
        ValueError: The module has collections besides "params" (BatchNorm statistics) and `state` is None.
    """
    _check_state(state)
    collections = jax.eval_shape(module.init, jax.random.key(0), example_input)
    if state is None:
        _refuse_state(set(collections) - {"params"})
    elif values is None:
        values = {k: v for k, v in module.init(jax.random.key(0), example_input).items() if k != "params"}

    def apply(params: Params, x: jax.Array) -> Any:
        return module.apply({"params": params, **(values or {})}, x)

    return Network(lambda key: module.init(key, example_input)["params"], apply)


def _check_state(state: str | None) -> None:
    if state not in (None, "frozen"):
        raise ValueError(
            f'state must be None or "frozen"; got {state!r}.\n'
            "  For statistics computed anew at every point, evaluate landscape.modules.recomputed_risk."
        )


def _refuse_state(kinds: set[str]) -> None:
    if kinds:
        raise ValueError(
            f"A branch may hold parameters only; this one also has {', '.join(sorted(kinds))}.\n"
            '  Choose: state="frozen" (--state frozen) keeps it fixed, modules.recomputed_risk (--state recompute) '
            "makes it anew at every point.\n"
            "  LayerNorm and GroupNorm have none; build dropout with deterministic=True and no random stream."
        )


@dataclass(frozen=True)
class MultiBranch:
    """The multi-branch network of §2: f(w; x) = 1/I Σ_i f_i(w_(i); x), all branches run as one fused computation.

    Its parameters are the branch's own tree with a leading branch axis [I, ...]; with several groups of different
    branches, a tuple of such trees.

    Attributes:
        branch: The sub-network, or a sequence of different ones.
        num_branches: I, or how many of each.
        average: True for the mean 1/I Σ of §2, False for the plain sum of §5.1.
        branch_chunk: Branches computed at a time by `apply`; all at once when None. The last chunk may be smaller.

    Raises:
        ValueError: No branches, or different numbers of branches and counts.

    >>> unit = relu_branch(2)
    >>> network = MultiBranch(unit, 3)
    >>> w = network.init(jax.random.key(0))
    >>> network.apply(w, jnp.ones([5, 2])).shape
    (5, 1)
    """

    branch: Network | Sequence[Network]
    num_branches: int | Sequence[int]
    average: bool = True
    branch_chunk: int | None = None

    def __post_init__(self) -> None:
        for name in ("branch", "num_branches"):  # hashable: networks are static in compiled programs
            value = getattr(self, name)
            object.__setattr__(self, name, tuple(value) if isinstance(value, list) else value)
        if len(self.branches) != len(self.counts):
            raise ValueError(f"{len(self.branches)} kinds of branches were given, but {len(self.counts)} counts.")
        if not self.counts or any(n != int(n) or n < 1 for n in self.counts):
            raise ValueError(f"num_branches must be at least 1 (of each kind); got {self.num_branches}.")
        if self.branch_chunk is not None and self.branch_chunk < 1:
            raise ValueError(f"branch_chunk must be at least 1, or None for all at once; got {self.branch_chunk}.")

    @property
    def branches(self) -> tuple[Network, ...]:
        """The kinds of branches."""
        return (self.branch,) if isinstance(self.branch, Network) else tuple(self.branch)

    @property
    def counts(self) -> tuple[int, ...]:
        """How many of each kind."""
        return (self.num_branches,) if isinstance(self.num_branches, int) else tuple(self.num_branches)

    @property
    def total(self) -> int:
        """I, the number of branches of all kinds."""
        return sum(self.counts)

    @property
    def factor(self) -> float:
        """What the sum over branches is multiplied by: 1/I, or 1 for the plain sum."""
        return 1 / self.total if self.average else 1.0

    def groups(self, params: Params) -> tuple[tuple[Network, Params], ...]:
        """The kinds of branches, each with its parameters [I_k, ...]."""
        several = not isinstance(self.branch, Network)
        return tuple(zip(self.branches, params if several else (params,), strict=True))

    @partial(jax.jit, static_argnums=0)
    def init(self, key: jax.Array) -> Params:
        """Independent initial parameters for every branch, [I, ...]."""
        # One after the other: random numbers for all branches at once take twice as long to compile.
        keys = jax.random.split(key, len(self.counts))
        kinds = zip(self.branches, self.counts, keys, strict=True)
        params = tuple(lax.map(branch.init, jax.random.split(k, n)) for branch, n, k in kinds)
        return params[0] if isinstance(self.branch, Network) else params

    def apply(self, params: Params, x: jax.Array) -> jax.Array:
        """Outputs [N, C] for examples x [N, ...]."""
        total = jnp.zeros(())
        for branch, w in self.groups(params):
            one = one_example(branch, jax.tree.map(lambda leaf: leaf[0], w), x[0])
            outputs = jax.vmap(jax.vmap(one, (None, 0)), (0, None))
            length = jax.tree.leaves(w)[0].shape[0]
            total = total + chunked_sum(lambda p, f=outputs: f(p, x).sum(0), w, self.branch_chunk or length)
        return self.factor * total

    def __repr__(self) -> str:
        kind = "mean" if self.average else "sum"
        return f"MultiBranch({' + '.join(map(str, self.counts))} branches, {kind})"


def relu_branch(inputs: int, hidden: int = 1, outputs: int = 1, bias: bool = False, *, summed_over: int = 1) -> Network:
    """One hidden layer of ReLU units, W_2 [W_1 x]_+ (§5.1); one unit by default.

    Args:
        inputs: D.
        hidden: ReLU units of the branch.
        outputs: C.
        bias: Whether the layers have biases.
        summed_over: Branches that are summed without averaging: the last layer's fan-in counts the hidden units of all.
    """
    return mlp_branch((inputs, hidden, outputs), bias=bias, summed_over=summed_over)


def mlp_branch(
    widths: Sequence[int],
    activation: Callable[[jax.Array], jax.Array] = jax.nn.relu,
    bias: bool = False,
    *,
    summed_over: int = 1,
) -> Network:
    """A fully connected branch of any depth, for one example or a batch; uniform ±1/√fan-in initialisation.

    Args:
        widths: (D, hidden …, C).
        activation: Applied after every layer but the last.
        bias: Whether the layers have biases.
        summed_over: As in `relu_branch`.

    Raises:
        ValueError: Fewer than two widths, or one that is not positive.
    """
    if len(widths) < 2 or min(widths) < 1:
        raise ValueError(f"widths must be (inputs, hidden …, outputs), all at least 1; got {tuple(widths)}.")
    fan_in = [*widths[:-2], widths[-2] * summed_over]

    def init(key: jax.Array) -> Params:
        keys = jax.random.split(key, len(fan_in))
        shapes = zip(keys, widths[:-1], widths[1:], fan_in, strict=True)
        return tuple(_layer(k, (n, m), count, bias) for k, n, m, count in shapes)

    def apply(params: Params, x: jax.Array) -> jax.Array:
        for layer in params[:-1]:
            x = activation(_affine(layer, x))
        return _affine(params[-1], x)

    return Network(init, apply)


def conv_branch(
    shape: tuple[int, int, int], channels: Sequence[int], outputs: int = 1, window: int = 3, bias: bool = False
) -> Network:
    """Convolutions with ReLU, mean over positions, then a dense layer; images [H, W, channels], flat ones accepted.

    Args:
        shape: (height, width, channels) of an image.
        channels: Channels of each convolution.
        outputs: C.
        window: Height and width of the filters.
        bias: Whether the layers have biases.
    """
    depths = (shape[2], *channels)

    def init(key: jax.Array) -> Params:
        *keys, last = jax.random.split(key, len(channels) + 1)
        filters = [
            _layer(k, (window, window, n, m), window**2 * n, bias)
            for k, n, m in zip(keys, depths[:-1], depths[1:], strict=True)
        ]
        return *filters, _layer(last, (depths[-1], outputs), depths[-1], bias)

    def apply(params: Params, x: jax.Array) -> jax.Array:
        x = x.reshape(-1, *shape)
        for layer in params[:-1]:
            x = lax.conv_general_dilated(x, layer["kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
            x = jax.nn.relu(x + layer["bias"][None, None, None] if bias else x)
        return _affine(params[-1], x.mean((1, 2)))

    return Network(init, apply)


def recurrent_branch(inputs: int, hidden: int, outputs: int = 1, bias: bool = False) -> Network:
    """An Elman network read out after the last step, h_t = tanh(W x_t + U h_(t-1)); one example is [T, inputs]."""

    def init(key: jax.Array) -> Params:
        a, b, c = jax.random.split(key, 3)
        return {
            "input": _layer(a, (inputs, hidden), inputs, bias),
            "state": _layer(b, (hidden, hidden), hidden, False),
            "output": _layer(c, (hidden, outputs), hidden, bias),
        }

    def apply(params: Params, x: jax.Array) -> jax.Array:
        def step(h: jax.Array, driven: jax.Array) -> tuple[jax.Array, None]:
            return jnp.tanh(driven + _affine(params["state"], h)), None

        last, _ = lax.scan(step, jnp.zeros(hidden, x.dtype), _affine(params["input"], x))
        return _affine(params["output"], last)

    return Network(init, apply)


def _layer(key: jax.Array, shape: tuple[int, ...], fan_in: int, bias: bool) -> dict[str, jax.Array]:
    bound = 1 / math.sqrt(fan_in)
    a, b = jax.random.split(key)
    layer = {"kernel": jax.random.uniform(a, shape, minval=-bound, maxval=bound)}
    return layer | {"bias": jax.random.uniform(b, shape[-1:], minval=-bound, maxval=bound)} if bias else layer


def _affine(layer: dict[str, jax.Array], x: jax.Array) -> jax.Array:
    y = x @ layer["kernel"]
    return y + layer["bias"].reshape((1,) * (y.ndim - 1) + (-1,)) if "bias" in layer else y
