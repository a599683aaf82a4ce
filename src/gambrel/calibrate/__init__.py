"""Fit a cost model to runs and say how wrong it is."""
