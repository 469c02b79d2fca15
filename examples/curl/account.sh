#!/bin/sh
# Which models there are, and what is left of the balance.
set -eu
: "${BALEEN_URL:=http://127.0.0.1:8000}" "${BALEEN_API_KEY:=none}"

curl --fail-with-body --silent --show-error "$BALEEN_URL/v1/models" -H "authorization: Bearer $BALEEN_API_KEY"
echo
curl --fail-with-body --silent --show-error "$BALEEN_URL/user/balance" -H "authorization: Bearer $BALEEN_API_KEY"
echo
