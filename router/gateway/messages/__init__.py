"""Anthropic's Messages dialect: content blocks in, content blocks out."""
