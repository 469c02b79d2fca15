"""Blocks, prefixes and the byte layout of the KV cache."""
