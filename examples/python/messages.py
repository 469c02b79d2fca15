"""The official client of Anthropic: a message, a stream that thinks, and what a prompt would cost in tokens.

pip install anthropic
python examples/python/messages.py
"""

import os

from anthropic import Anthropic

client = Anthropic(
    base_url=os.environ.get("BALEEN_URL", "http://127.0.0.1:8000") + "/anthropic",
    api_key=os.environ.get("BALEEN_API_KEY", "none"),
)
messages = [{"role": "user", "content": "What is sparse attention?"}]

message = client.messages.create(
    model="deepseek-v3.2", system="You are a helpful assistant.", messages=messages, max_tokens=100
)
print(message.content[-1].text)

with client.messages.stream(
    model="deepseek-v3.2",
    messages=messages,
    max_tokens=100,
    thinking={"type": "enabled", "budget_tokens": 1024},
) as stream:
    for event in stream:
        if event.type in ("thinking", "text"):
            print(getattr(event, event.type), end="", flush=True)
    final = stream.get_final_message()
print(f"\nended by {final.stop_reason}, {final.usage.output_tokens} tokens")

counted = client.messages.count_tokens(model="deepseek-v3.2", messages=messages)
print(f"the prompt has {counted.input_tokens} tokens")
