#!/usr/bin/env bash
# Writes the OpenAPI documents, the client that is generated from them, and docs/errors.md. With --check it fails instead when the committed ones differ.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
PATH="$PWD/node_modules/.bin:$PATH"
documents=openapi client=libs/clients/src/generated errors=docs/errors.md
if [ "${1:-}" != --check ]; then
  node apps/du/dist/openapi.js "$documents"
  openapi-ts -f openapi-ts.config.ts >/dev/null
  node bin/errors-doc.mjs >"$errors"
  exit 0
fi
fresh=$(mktemp -d)
trap 'rm -rf "$fresh"' EXIT
node apps/du/dist/openapi.js "$fresh/openapi"
node bin/errors-doc.mjs >"$fresh/errors.md"
OPENAPI_CHECK_DIR="$fresh" openapi-ts -f openapi-ts.config.ts >/dev/null
diff -rq "$documents" "$fresh/openapi" && diff -rq "$client" "$fresh/client" && diff -q "$errors" "$fresh/errors.md" && exit 0
echo "the API documents, the client or docs/errors.md are not those of the code: run bin/airdock openapi and commit" >&2
exit 1
