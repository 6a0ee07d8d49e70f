"""Families of tasks: how labels are read, the head, the likelihood, and how predictions read."""
