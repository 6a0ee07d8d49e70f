"""One comparison at every point of a grid, on one machine or many, and how much its results move."""
