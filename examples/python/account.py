"""Which models there are, what is left of the balance, and what the key has used.

pip install openai
python examples/python/account.py
"""

import os

from openai import OpenAI

client = OpenAI(
    base_url=os.environ.get("BALEEN_URL", "http://127.0.0.1:8000") + "/v1",
    api_key=os.environ.get("BALEEN_API_KEY", "none"),
)

for model in client.models.list():
    print(f"{model.id}: {model.max_model_len} tokens of context, {model.max_output_tokens} of them new at most")

balance = client.get("/user/balance", cast_to=object)
print(f"can pay: {balance['is_available']}")
for info in balance["balance_infos"]:
    print(f"{info['total_balance']} {info['currency']}")
