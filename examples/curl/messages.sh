#!/bin/sh
# A message in Anthropic's dialect.
set -eu
: "${BALEEN_URL:=http://127.0.0.1:8000}" "${BALEEN_API_KEY:=none}"

curl --fail-with-body --silent --show-error "$BALEEN_URL/anthropic/v1/messages" \
  -H "x-api-key: $BALEEN_API_KEY" -H "anthropic-version: 2023-06-01" -H "content-type: application/json" \
  -d '{
    "model": "deepseek-v3.2",
    "messages": [{"role": "user", "content": "What is sparse attention?"}],
    "max_tokens": 100
  }'
