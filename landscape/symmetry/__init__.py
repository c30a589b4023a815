"""Symmetries of any network, read from its trace: which units may change places, and how they may be rescaled.

`axes` are terms that are unified like types; `rules` say how every primitive ties them together; `trace` walks the
program; `symmetries` verifies on numbers what was found; `rescaling` finds exponents; `matching` permutes one solution
to match another.
"""
