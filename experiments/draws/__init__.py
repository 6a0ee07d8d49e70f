"""How many draws a posterior predictive takes: independent ones, and draws by design."""
