"""Root-mean-square norm with the residual sum."""
