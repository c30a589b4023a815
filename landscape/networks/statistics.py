"""Running statistics as parameters, so that they move along when channels change places."""

from typing import Any

import jax

from landscape.networks import modules
from landscape.networks.multi_branch import Network

Params = Any


def as_parameters(make: Any, example: Any) -> Network:
    """A network whose parameters are {"params": …, "statistics": …}, those of a module and its running statistics.

    Frozen statistics that differ from channel to channel are constants of the network and keep the channels in order.
    With this network every solution has its own, alignment permutes them with the channels, and on a plane through
    solutions they vary as the parameters do.

    Args:
        make: An nnx module factory of `rngs`, a linen module, or a network from PyTorch.
        example: Examples, a batch of one.

    Raises:
        ValueError: The module has no running statistics.
    """
    start = modules.statistics(make, example)
    if not start:
        raise ValueError(f"{make} has no running statistics; take it as it is.")
    frozen = make if isinstance(make, Network) else modules.frozen(make, example)

    def init(key: jax.Array) -> Params:
        return {"params": frozen.init(key), "statistics": start}

    def apply(params: Params, x: Any) -> jax.Array:
        return modules.with_statistics(make, example, params["statistics"]).apply(params["params"], x)

    return Network(init, apply)
