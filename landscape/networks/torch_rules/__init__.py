"""PyTorch's operations in JAX: for every ATen operation that a traced module may hold, a function of arrays.

A rule is named as ATen names the operation, without the leading "aten.", and takes its arguments in ATen's order:
arrays, numbers, lists, and types as JAX has them. Nothing here imports PyTorch. The result's type is set by whoever
runs the rule, from what PyTorch recorded, so that rules need not know its rules of promotion.

Operations that are absent are left to PyTorch's own decompositions, which end in those that are here.
"""

from collections.abc import Callable
from typing import Any

from landscape.networks.torch_rules import elementwise, indexing, layers, pooling, recurrent, reductions, shapes

Rule = Callable[..., Any]

RULES: dict[str, Rule] = {
    **elementwise.RULES,
    **shapes.RULES,
    **indexing.RULES,
    **reductions.RULES,
    **layers.RULES,
    **pooling.RULES,
    **recurrent.RULES,
}
"""Every rule by the name of its operation."""

RANDOM = ("bernoulli", "dropout", "multinomial", "normal", "poisson", "rand", "rrelu", "uniform", "exponential")
"""Words in the names of operations that draw random numbers."""
