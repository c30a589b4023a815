"""Networks: the records `Network` and `MultiBranch` (§2), ready-made branches, and networks from other libraries."""

from landscape.networks.flax_modules import evaluating, from_flax, from_linen
from landscape.networks.keras_modules import from_keras
from landscape.networks.multi_branch import MultiBranch, Network, as_written, in_own_types, one_example
from landscape.networks.pytorch import from_torch
from landscape.networks.ready_made import conv_branch, mlp_branch, recurrent_branch, relu_branch

__all__ = [
    "MultiBranch",
    "Network",
    "as_written",
    "conv_branch",
    "evaluating",
    "from_flax",
    "from_keras",
    "from_linen",
    "from_torch",
    "in_own_types",
    "mlp_branch",
    "one_example",
    "recurrent_branch",
    "relu_branch",
]
