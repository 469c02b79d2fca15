"""The chat dialect, DeepSeek's and OpenAI's; the other dialects become it."""
