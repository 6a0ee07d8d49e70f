"""Base models by name, and adapters that were trained elsewhere."""
