"""Rotary embedding with YaRN, both pairings."""
