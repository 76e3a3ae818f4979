"""How fast and how right, measured in one way: python -m benchmarks ops|models."""
