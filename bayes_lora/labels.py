"""What stands where a token has no label."""

# As PyTorch and transformers mark what a loss is to pass over.
UNLABELLED = -100
# A token that is to have a label, which nobody knows.
TO_PREDICT = -1
