"""The whole thing on an embedded task, as one page."""
