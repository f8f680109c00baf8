// Prints the failed tests of a vitest JSON report, each with the beginning of its message: test-failures.mjs REPORT
import { readFileSync } from 'node:fs';

const report = JSON.parse(readFileSync(process.argv[2], 'utf8'));
for (const file of report.testResults) {
  if (file.status === 'failed' && file.assertionResults.every((test) => test.status !== 'failed')) {
    console.log(`FAILED: ${file.name}\n${file.message}`);
  }
  for (const test of file.assertionResults.filter((result) => result.status === 'failed')) {
    const message = test.failureMessages.join('\n').split('\n').slice(0, 20).join('\n  ');
    console.log(`FAILED: ${file.name}: ${test.fullName}\n  ${message}`);
  }
}
