#!/bin/sh
# A streamed chat that thinks; the last chunk before [DONE] has the usage.
set -eu
: "${BALEEN_URL:=http://127.0.0.1:8000}" "${BALEEN_API_KEY:=none}"

curl --fail-with-body --silent --show-error --no-buffer "$BALEEN_URL/v1/chat/completions" \
  -H "authorization: Bearer $BALEEN_API_KEY" -H "content-type: application/json" \
  -d '{
    "model": "deepseek-v3.2",
    "messages": [{"role": "user", "content": "What is 7 + 5?"}],
    "stream": true,
    "stream_options": {"include_usage": true},
    "thinking": {"type": "enabled"},
    "max_tokens": 100
  }'
