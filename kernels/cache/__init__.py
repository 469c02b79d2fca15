"""Byte layouts of cached records."""
