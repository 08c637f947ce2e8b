"""Dividing layers among ranks: which values can be cut along which dim, and what a rank then runs.

``propagate`` follows cut weights through the operators of a captured program, ``regions`` turns
what it finds into the model's :class:`~profiler.graph.SliceRegion` records, ``slicing`` writes the
program of one rank.
"""
