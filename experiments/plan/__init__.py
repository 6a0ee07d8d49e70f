"""What an adaptation of a model will need, from its configuration alone."""
