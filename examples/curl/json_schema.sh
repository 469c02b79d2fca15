#!/bin/sh
# An answer that keeps to a JSON schema.
set -eu
: "${BALEEN_URL:=http://127.0.0.1:8000}" "${BALEEN_API_KEY:=none}"

curl --fail-with-body --silent --show-error "$BALEEN_URL/v1/chat/completions" \
  -H "authorization: Bearer $BALEEN_API_KEY" -H "content-type: application/json" \
  -d '{
    "model": "deepseek-v3.2",
    "messages": [{"role": "user", "content": "Extract the data: The city is \"Oslo\". The age is \"42\"."}],
    "response_format": {
      "type": "json_schema",
      "json_schema": {
        "name": "person",
        "strict": true,
        "schema": {
          "type": "object",
          "properties": {"city": {"type": "string"}, "age": {"type": "integer"}},
          "required": ["city", "age"],
          "additionalProperties": false
        }
      }
    },
    "temperature": 0,
    "max_tokens": 200
  }'
