"""Runs: one fit with all that repeats it, in a folder; what studies share."""
