// Prints docs/errors.md, made from the error codes of libs/core. Run by bin/openapi.sh.
import { AppError, errorDefinitions } from '../libs/core/dist/errors.js';

const cell = (text) => text.replaceAll('|', '\\|');
const head = ['code', 'family', 'HTTP status', 'title', 'next step'];
const rows = Object.entries(errorDefinitions).map(([code, { family, title, nextStep }]) => [
  `\`${code}\``,
  family,
  String(new AppError(code).status),
  cell(title),
  cell(nextStep),
]);
const widths = head.map((name, column) => Math.max(name.length, ...rows.map((row) => row[column].length)));
const line = (cells, fill = ' ') => `| ${cells.map((text, column) => text.padEnd(widths[column], fill)).join(' | ')} |`;

process.stdout.write(`# Error codes

Made from libs/core/src/errors.ts by \`bin/airdock openapi\`; do not edit.

Every error is a problem document (RFC 9457, \`application/problem+json\`) with a stable \`code\`, the \`status\`, what was wrong in \`detail\`, and \`nextStep\`.
Failed jobs carry the same document in \`error\`. The family decides what a job does: after \`unavailable\` it tries again by itself, up to eight times in a
row without progress; any other family ends it at once.

${[
  line(head),
  line(
    head.map(() => ''),
    '-',
  ),
  ...rows.map((row) => line(row)),
].join('\n')}
`);
