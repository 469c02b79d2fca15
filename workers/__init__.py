"""The rank: engine, cache, model and expert parallelism."""
