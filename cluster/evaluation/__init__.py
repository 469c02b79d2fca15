"""Evaluation of a served chat model on held-out instances."""
