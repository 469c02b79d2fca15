#!/bin/sh
# Fill in the middle.
set -eu
: "${BALEEN_URL:=http://127.0.0.1:8000}" "${BALEEN_API_KEY:=none}"

curl --fail-with-body --silent --show-error "$BALEEN_URL/beta/completions" \
  -H "authorization: Bearer $BALEEN_API_KEY" -H "content-type: application/json" \
  -d '{
    "model": "deepseek-v3.2",
    "prompt": "def total(values):\n    ",
    "suffix": "\n    return result\n",
    "max_tokens": 40
  }'
