"""Fill in the middle: what belongs between a prompt and a suffix.

pip install openai
python examples/python/fill_in_the_middle.py
"""

import os

from openai import OpenAI

client = OpenAI(
    base_url=os.environ.get("BALEEN_URL", "http://127.0.0.1:8000") + "/beta",
    api_key=os.environ.get("BALEEN_API_KEY", "none"),
)

prompt, suffix = "def total(values):\n    ", "\n    return result\n"
completion = client.completions.create(model="deepseek-v3.2", prompt=prompt, suffix=suffix, max_tokens=40)

print(prompt + completion.choices[0].text + suffix)
