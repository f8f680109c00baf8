#!/usr/bin/env bash
# Writes the OpenAPI documents and the client that is generated from them. With --check it fails instead when the committed ones differ.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
PATH="$PWD/node_modules/.bin:$PATH"
documents=openapi client=libs/adapters/src/api-clients/generated
if [ "${1:-}" != --check ]; then
  node apps/du/dist/openapi.js "$documents"
  openapi-ts -f openapi-ts.config.ts >/dev/null
  exit 0
fi
fresh=$(mktemp -d)
trap 'rm -rf "$fresh"' EXIT
node apps/du/dist/openapi.js "$fresh/openapi"
OPENAPI_CHECK_DIR="$fresh" openapi-ts -f openapi-ts.config.ts >/dev/null
diff -rq "$documents" "$fresh/openapi" && diff -rq "$client" "$fresh/client" && exit 0
echo "the API documents or the client are not those of the code: run bin/airdock openapi and commit" >&2
exit 1
