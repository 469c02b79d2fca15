"""A streamed chat that thinks: first what the model thought, then its answer, as they come.

pip install openai
python examples/python/streaming.py
"""

import os

from openai import OpenAI

client = OpenAI(
    base_url=os.environ.get("BALEEN_URL", "http://127.0.0.1:8000") + "/v1",
    api_key=os.environ.get("BALEEN_API_KEY", "none"),
)

stream = client.chat.completions.create(
    model="deepseek-v3.2",
    messages=[{"role": "user", "content": "What is 7 + 5?"}],
    stream=True,
    stream_options={"include_usage": True},
    max_tokens=100,
    extra_body={"thinking": {"type": "enabled"}},
)

for chunk in stream:
    for choice in chunk.choices:
        thought = getattr(choice.delta, "reasoning_content", None)
        print(thought or choice.delta.content or "", end="", flush=True)
        if choice.finish_reason:
            print(f"\nended by {choice.finish_reason}")
    if chunk.usage:
        details = chunk.usage.completion_tokens_details
        print(f"{chunk.usage.completion_tokens} tokens, {details.reasoning_tokens} of them thought")
