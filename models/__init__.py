"""The models that the tests, the examples and the benchmarks train."""
