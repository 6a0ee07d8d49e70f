"""Tasks: rows, classes, and how they become tokens."""
