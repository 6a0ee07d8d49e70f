"""One page about a fitted run: what its posterior is, and what to make of it."""
