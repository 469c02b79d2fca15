"""Blocks on their way between ranks."""
