"""OpenAI's and DeepSeek's text completions: prompts without a chat, batches of them, and gaps to fill."""
