"""The ground-truth study: posteriors over LoRA-A against the posterior itself, where it can be had."""
