"""Training: objectives, the Trainer, and `fit`."""
