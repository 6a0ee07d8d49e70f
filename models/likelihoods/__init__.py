"""Likelihoods: what the network's outputs say about the labels."""
