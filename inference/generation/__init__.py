"""Generation: texts decoded from the posterior predictive, independent answers, and how sure a network is of them."""
