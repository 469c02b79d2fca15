#!/bin/sh
# A tool that the model may call.
set -eu
: "${BALEEN_URL:=http://127.0.0.1:8000}" "${BALEEN_API_KEY:=none}"

curl --fail-with-body --silent --show-error "$BALEEN_URL/v1/chat/completions" \
  -H "authorization: Bearer $BALEEN_API_KEY" -H "content-type: application/json" \
  -d '{
    "model": "deepseek-v3.2",
    "messages": [{"role": "user", "content": "What is the weather in \"Lisbon\"?"}],
    "tools": [{
      "type": "function",
      "function": {
        "name": "get_weather",
        "description": "Get the weather in a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
      }
    }],
    "temperature": 0,
    "max_tokens": 100
  }'
