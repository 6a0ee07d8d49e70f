"""Many methods on one task: the same rows, seeds and stored predictions for all, and what follows from them."""
