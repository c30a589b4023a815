"""The record of what one branch costs."""

from typing import NamedTuple


class Cost(NamedTuple):
    """Costs of one branch on one example. Work that all examples share is not counted.

    Attributes:
        once: Operations before the grid, those of the first layer included; a triple counts three times.
        point: Operations at each grid point.
        forward: Operations of one forward pass.
        held: Values kept for the whole grid; a plane keeps three of each.
        late: Size of the largest intermediate array at a grid point.
        weights: Parameters kept laid out for the later layers.
        parameters: All parameters.
        reduction: Hidden values that the last product sums over.
        live: Most values held at once in a forward pass.
        convolves: Whether a convolution is left for the grid points.
    """

    once: int
    point: int
    forward: int
    held: int
    late: int
    weights: int
    parameters: int
    reduction: int
    live: int
    convolves: bool

    @property
    def late_share(self) -> float:
        """Share of a forward pass that is left for the grid points."""
        return (self.point - 2 * self.held) / max(self.forward, 1)
