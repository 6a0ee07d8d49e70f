"""Posteriors, checkpoints and predictions on disk and on the hub."""
