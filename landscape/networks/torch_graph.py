"""A PyTorch module as a list of operations, traced by `torch.export`, and that list run in JAX."""

import importlib
import logging
import operator
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from landscape.networks.torch_rules import RANDOM, RULES

Rule = Callable[..., Any]

OLDEST = (2, 6)
"""Version of PyTorch whose `torch.export` serves here."""
DROPPED = ("device", "layout", "pin_memory", "memory_format", "non_blocking")
"""Keywords of ATen that say where and how an array lies."""


class Ref(NamedTuple):
    """A value that an earlier step made, by name."""

    name: str


class Like(NamedTuple):
    """Shape and type that PyTorch recorded for a value; None for what is no array."""

    shape: tuple[int, ...]
    dtype: np.dtype


class Step(NamedTuple):
    """One operation: its name in ATen, the rule for it, its arguments with references, and what PyTorch recorded."""

    name: str
    operation: str
    rule: Rule
    arguments: tuple[Any, ...]
    keywords: dict[str, Any]
    like: Any


@dataclass(frozen=True, eq=False)
class Graph:
    """A traced module.

    Attributes:
        steps: The operations in order.
        parameters: Placeholders that stand for parameters, with the parameters' own names.
        buffers: The same for buffers.
        inputs: Placeholders that stand for inputs, in order.
        constants: Tensors that the module makes while it runs, by placeholder.
        output: The value that is returned.
    """

    steps: tuple[Step, ...]
    parameters: Mapping[str, str]
    buffers: Mapping[str, str]
    inputs: tuple[str, ...]
    constants: Mapping[str, np.ndarray]
    output: Any

    def run(self, values: Mapping[str, Any], inputs: Sequence[jax.Array]) -> jax.Array:
        """The output for inputs with the batch axis that was traced.

        Args:
            values: Parameters and buffers by their own names.
            inputs: One array for each input.
        """
        env: dict[str, Any] = {k: values[name] for k, name in {**self.parameters, **self.buffers}.items()}
        env |= self.constants
        env |= dict(zip(self.inputs, inputs, strict=True))
        for step in self.steps:
            env[step.name] = _checked(step, _applied(step, env), step.like)
        return _filled(self.output, env)


def _filled(argument: Any, env: Mapping[str, Any]) -> Any:
    if isinstance(argument, Ref):
        return env[argument.name]
    return [_filled(part, env) for part in argument] if isinstance(argument, list) else argument


def _applied(step: Step, env: Mapping[str, Any]) -> Any:
    read = [_filled(argument, env) for argument in step.arguments]
    try:
        return step.rule(*read, **{k: _filled(v, env) for k, v in step.keywords.items()})
    except Exception as error:  # an option of the operation that the rule does not know
        raise ValueError(
            f"The rule for aten.{step.operation} fails: {first_line(error)}\n  Report it with the module."
        ) from error


def _checked(step: Step, found: Any, like: Any) -> Any:
    """The result in the type that PyTorch recorded.

    Raises:
        ValueError: It has another shape: a fault of the rule, which would otherwise be broadcast away.
    """
    if isinstance(like, list):
        return [None if part is None else _checked(step, part, one) for part, one in zip(found, like, strict=True)]
    if like is None:
        return found
    if found is None:
        raise ValueError(
            f"There is no rule for the further results of {step.arguments[0].name}, such as positions of maxima.\n"
            "  Write the network in JAX, or report it."
        )
    if jnp.shape(found) != like.shape:
        raise ValueError(
            f"The rule for aten.{step.operation} gives shape {jnp.shape(found)}; PyTorch has {like.shape}.\n"
            "  Report it with the module."
        )
    return jnp.asarray(found, like.dtype)


def pytorch() -> Any:
    """PyTorch, loaded only where a module is traced.

    Raises:
        ValueError: It is missing, or too old.
    """
    try:
        torch = importlib.import_module("torch")
    except ImportError as error:
        raise ValueError("A PyTorch module needs torch >= 2.6: pip install 'landscape-jax[torch]'.") from error
    if tuple(int(part) for part in torch.__version__.split(".")[:2]) < OLDEST:
        raise ValueError(
            f"A PyTorch module needs torch >= 2.6; this is {torch.__version__}: pip install 'landscape-jax[torch]'."
        )
    return torch


def export(module: Any, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Graph:
    """Trace a module in evaluation mode on tensors.

    Args:
        module: An `nn.Module` in evaluation mode.
        arguments: Its inputs, tensors with a batch axis.
        keywords: Further inputs by name.

    Raises:
        ValueError: It cannot be traced, draws random numbers, or has an operation without a rule.
    """
    torch, name = pytorch(), type(module).__name__
    program = _tracing(torch, name, lambda: torch.export.export(module, arguments, keywords, strict=False))
    _refuse_random(name, program.graph)
    return _graph(torch, name, _tracing(torch, name, lambda: program.run_decompositions(_decompositions(torch))))


def _tracing(torch: Any, name: str, trace: Callable[[], Any]) -> Any:
    """What a step of the tracing returns.

    Raises:
        ValueError: It fails: the step runs the module's own code, which may raise anything.
    """
    try:
        with quiet(torch):
            return trace()
    except Exception as error:
        raise ValueError(
            f"torch.export could not trace {name}: {first_line(error)}\n"
            "  Remove branches that depend on data, or write the network in JAX."
        ) from error


def first_line(error: Exception) -> str:
    """What an error says, in one line of at most 200 characters."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:200]


@contextmanager
def quiet(torch: Any) -> Iterator[None]:
    """Without PyTorch's warnings and logs, and without its fused attention, which has no rule."""
    level, fused = logging.root.manager.disable, torch.backends.mha.get_fastpath_enabled()
    logging.disable(logging.ERROR)
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with warnings.catch_warnings(action="ignore"), torch.enable_grad():
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
        logging.disable(level)


def _decompositions(torch: Any) -> Any:
    """PyTorch's own decompositions, less the operations that have a rule."""
    table = torch.export.default_decompositions()
    for name in RULES:
        packet, _, overload = name.partition(".")
        found = getattr(getattr(torch.ops.aten, packet, None), overload, None)  # not every version has every operation
        if found is not None:
            table.pop(found, None)
    return table


def operation(target: Any) -> str:
    """The name of a node's operation, without the leading "aten."."""
    return "getitem" if target is operator.getitem else str(target).removeprefix("aten.")


def _refuse_random(name: str, graph: Any) -> None:
    for node in graph.nodes:
        called = operation(node.target)
        random = node.op == "call_function" and any(called.lstrip("_").startswith(word) for word in RANDOM)
        if "dropout" in called and random:  # (x, rate, train)
            random = bool(node.args[1] and node.args[2])
        if called == "rrelu.default":  # (x, lower, upper, train)
            random = len(node.args) > 3 and bool(node.args[3])
        if called.startswith("scaled_dot_product_attention"):
            random = bool((node.args[4] if len(node.args) > 4 else 0) or node.kwargs.get("dropout_p"))
        if random:
            raise ValueError(
                f"{name} draws random numbers in evaluation mode (aten.{called}); a surface needs a deterministic "
                "function.\n  Give functional dropout training=self.training, and noise a module that eval() stops."
            )
        if called.startswith(("batch_norm", "instance_norm")) and node.args[5] and called[0] == "b":
            raise ValueError(
                f"{name} has BatchNorm without running statistics, so its examples influence each other.\n"
                "  Train it with track_running_stats=True, or use GroupNorm or LayerNorm."
            )


def _graph(torch: Any, name: str, program: Any) -> Graph:
    signature, nodes = program.graph_signature, list(program.graph.nodes)
    outputs = signature.user_outputs
    if len(outputs) != 1:
        raise ValueError(f"{name} returns {len(outputs)} values; wrap it to return the outputs.")
    live, calls = {outputs[0]}, []
    for node in reversed(nodes):  # without what nothing reads, such as PyTorch's own assertions
        if node.op == "call_function" and node.name in live:
            live |= {other.name for other in node.all_input_nodes}
            calls.append(node)
    _refuse_unknown(calls)

    def alive(names: Mapping[str, str]) -> dict[str, str]:
        return {k: v for k, v in names.items() if k in live}

    held = alive(signature.inputs_to_lifted_tensor_constants)
    return Graph(
        tuple(_step(torch, node) for node in reversed(calls)),
        alive(signature.inputs_to_parameters),
        alive(signature.inputs_to_buffers),
        tuple(signature.user_inputs),
        {k: to_numpy(program.constants[v]) for k, v in held.items()},
        Ref(outputs[0]),
    )


def _refuse_unknown(calls: Sequence[Any]) -> None:
    unknown = sorted({operation(node.target) for node in calls} - {*RULES, "getitem"})
    if unknown:
        raise ValueError(
            f"There is no rule for {', '.join(f'aten.{name}' for name in unknown[:4])}"
            f"{' …' if unknown[4:] else ''}.\n  Write the network in JAX, or report it."
        )


def _step(torch: Any, node: Any) -> Step:
    called = operation(node.target)
    keywords = {k: _argument(torch, v) for k, v in node.kwargs.items() if k not in DROPPED}
    rule = operator.getitem if called == "getitem" else RULES[called]
    return Step(node.name, called, rule, tuple(_argument(torch, a) for a in node.args), keywords,
                _like(torch, node.meta.get("val")))  # fmt: skip


def _argument(torch: Any, value: Any) -> Any:
    """An argument without PyTorch's objects."""
    if isinstance(value, torch.fx.Node):
        return Ref(value.name)
    if isinstance(value, list | tuple):
        return [_argument(torch, part) for part in value]
    return dtype_of(value) if isinstance(value, torch.dtype) else value


def _like(torch: Any, value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return Like(tuple(map(int, value.shape)), dtype_of(value.dtype))
    return [_like(torch, part) for part in value] if isinstance(value, list | tuple) else None


def dtype_of(dtype: Any) -> np.dtype:
    """JAX's type for one of PyTorch's: int64 and float64 in 32 bits unless JAX is told otherwise."""
    return jax.dtypes.canonicalize_dtype(str(dtype).removeprefix("torch."))


def to_numpy(tensor: Any) -> np.ndarray:
    """A tensor's values, bfloat16 included, in JAX's type for them."""
    tensor = tensor.detach().cpu()
    wanted = dtype_of(tensor.dtype)
    return np.asarray((tensor.float() if wanted == jnp.bfloat16 else tensor).numpy(), wanted)
