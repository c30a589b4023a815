"""Bounds that always hold: interval arithmetic, branch and bound, frontiers, the divergence Δ."""
