"""An answer that keeps to a JSON schema, read as an object.

pip install openai
python examples/python/json_schema.py
"""

import json
import os

from openai import OpenAI

client = OpenAI(
    base_url=os.environ.get("BALEEN_URL", "http://127.0.0.1:8000") + "/v1",
    api_key=os.environ.get("BALEEN_API_KEY", "none"),
)

schema = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "age": {"type": "integer"}},
    "required": ["city", "age"],
    "additionalProperties": False,
}

completion = client.chat.completions.create(
    model="deepseek-v3.2",
    messages=[{"role": "user", "content": 'Extract the data: The city is "Oslo". The age is "42".'}],
    response_format={"type": "json_schema", "json_schema": {"name": "person", "strict": True, "schema": schema}},
    max_tokens=200,
    temperature=0,
)

choice = completion.choices[0]
try:
    print(json.loads(choice.message.content))
except ValueError:
    # max_tokens may end an answer before it is whole
    print(f"no whole object, ended by {choice.finish_reason}: {choice.message.content}")
