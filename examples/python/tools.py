"""A loop of tools with thinking: the model calls, the program answers, until the model has what it needs.

pip install openai
python examples/python/tools.py
"""

import json
import os

from openai import OpenAI

client = OpenAI(
    base_url=os.environ.get("BALEEN_URL", "http://127.0.0.1:8000") + "/v1",
    api_key=os.environ.get("BALEEN_API_KEY", "none"),
)


def get_weather(city: str) -> str:
    """Stands for something that knows."""
    return json.dumps({"weather": "sunny", "temperature": 21, "city": city})


tool = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the weather in a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}

messages = [{"role": "user", "content": 'What is the weather in "Lisbon"?'}]
for _ in range(4):
    completion = client.chat.completions.create(
        model="deepseek-v3.2",
        messages=messages,
        tools=[tool],
        max_tokens=200,
        temperature=0,
        extra_body={"thinking": {"type": "enabled"}},
    )
    message = completion.choices[0].message
    print(f"thought: {message.reasoning_content}")
    # the whole message goes back, with what was thought before the call
    messages.append(message)
    if not message.tool_calls:
        break
    for call in message.tool_calls:
        print(f"calls {call.function.name} with {call.function.arguments}")
        result = get_weather(**json.loads(call.function.arguments))
        messages.append({"role": "tool", "tool_call_id": call.id, "content": result})

print(f"answer: {messages[-1].content}")
