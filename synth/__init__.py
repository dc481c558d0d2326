"""The renderer of made towns and cities, which the demo and the benchmarks share."""
