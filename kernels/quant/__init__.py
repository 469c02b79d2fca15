"""Block-scaled float8: weights, activations, Hadamard rotation."""
