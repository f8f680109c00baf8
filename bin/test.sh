#!/usr/bin/env bash
# Runs all checks and tests, or with arguments only vitest with them. Ends with the line "N passed, N failed".
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
PATH="$PWD/node_modules/.bin:$PATH"
export REDOCLY_TELEMETRY=off REDOCLY_SUPPRESS_UPDATE_NOTICE=true
[ $# -gt 0 ] && exec vitest run "$@"

passed=0 failed=0 skipped=0
failures=''
reports=$(mktemp -d)
trap 'rm -rf "$reports"' EXIT

# Failures are said again at the end: of a long log often only the end is kept.
fail() {
  failed=$((failed + 1))
  failures+="FAILED: $1"$'\n'
}

check() {
  local name=$1
  shift
  printf '\n== %s\n' "$name"
  if "$@"; then passed=$((passed + 1)); else fail "$name"; fi
}

# suite PROJECT: adds what vitest counted; a run that ends without a report, or with an error outside of tests, counts as a failure.
suite() {
  local project=$1 report="$reports/$1.json" counts code
  printf '\n== %s tests\n' "$project"
  vitest run --project "$project" --reporter=default --reporter=json --outputFile.json="$report"
  code=$?
  counts=$(node -e 'const r = require(process.argv[1]); console.log(r.numPassedTests, r.numFailedTests, r.numPendingTests + r.numTodoTests)' "$report" 2>/dev/null) || counts="0 1 0"
  # shellcheck disable=SC2086
  set -- $counts
  passed=$((passed + $1)) failed=$((failed + $2)) skipped=$((skipped + $3))
  [ "$2" = 0 ] || failures+=$(node "$PWD/bin/test-failures.mjs" "$report" || echo "FAILED: $project")$'\n'
  [ "$code" != 0 ] && [ "$2" = 0 ] && fail "$project: the run itself"
  return 0
}

check 'format, lint, types, import rules' pnpm --silent run lint
check 'API documents and client are those of the code' bin/openapi.sh --check
check 'API documents are valid' redocly lint openapi/*.json
suite unit
suite component
suite e2e

printf '\n%s%s passed, %s failed%s\n' "$failures" "$passed" "$failed" "$([ "$skipped" = 0 ] || printf ', %s skipped' "$skipped")"
[ "$failed" = 0 ]
