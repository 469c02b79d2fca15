#!/bin/sh
# A chat.
set -eu
: "${BALEEN_URL:=http://127.0.0.1:8000}" "${BALEEN_API_KEY:=none}"

curl --fail-with-body --silent --show-error "$BALEEN_URL/v1/chat/completions" \
  -H "authorization: Bearer $BALEEN_API_KEY" -H "content-type: application/json" \
  -d '{
    "model": "deepseek-v3.2",
    "messages": [
      {"role": "system", "content": "You are a helpful assistant."},
      {"role": "user", "content": "What is baleen?"}
    ],
    "max_tokens": 100
  }'
