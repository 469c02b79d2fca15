"""Load generation and simulation."""
