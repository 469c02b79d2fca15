"""DeepSeek-V3.2: architecture, checkpoint and runner."""
