"""Figures for print: one module for each kind of picture, matplotlib only here."""

from landscape.plots.style import figure, save

__all__ = ["figure", "save"]
