"""The group of ranks and expert parallelism."""
