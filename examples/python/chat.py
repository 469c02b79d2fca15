"""A chat: the official client of OpenAI, with base URL and key changed.

pip install openai
python examples/python/chat.py
"""

import os

from openai import OpenAI

client = OpenAI(
    base_url=os.environ.get("BALEEN_URL", "http://127.0.0.1:8000") + "/v1",
    api_key=os.environ.get("BALEEN_API_KEY", "none"),
)

completion = client.chat.completions.create(
    model="deepseek-v3.2",
    messages=[
        {"role": "system", "content": "You are a helpful assistant."},
        {"role": "user", "content": "What is baleen?"},
    ],
    max_tokens=100,
)

print(completion.choices[0].message.content)
usage = completion.usage
print(f"{usage.prompt_tokens} prompt tokens, {usage.prompt_cache_hit_tokens} cached, {usage.completion_tokens} new")
