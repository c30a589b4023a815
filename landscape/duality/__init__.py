"""Duality measured: Theorem 1 (multi_branch), Theorem 2 (deep_linear), the Shapley–Folkman lemma (shapley_folkman)."""
