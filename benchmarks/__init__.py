"""Measurements: each module prints JSON, `benchmarks.run` runs all and writes a dated report."""
