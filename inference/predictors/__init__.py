"""Predictors: what gives logits for rows, the posterior predictive and the methods beside it."""
