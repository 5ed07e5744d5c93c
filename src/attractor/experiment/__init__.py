"""The public Python API: load, train, evaluate and estimate the cost of a recipe."""
