"""The earlier name of `landscape.networks.modules`, kept for one release."""

from landscape.networks.modules import from_pytree, frozen, read, recomputed_risk, statistics, with_statistics

__all__ = ["from_pytree", "frozen", "read", "recomputed_risk", "statistics", "with_statistics"]
