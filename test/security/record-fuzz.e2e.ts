import { expect, it } from 'vitest';
import { fuzzRecords } from './record-fuzz.js';

it('H4: records that were changed by chance are read or refused, each with a code and soon', async () => {
  const { findings, ends, cases } = await fuzzRecords({ seed: 15, seconds: 120, cases: 400 });
  // How long a case takes is for the long run to say: here others have the machine too.
  expect(findings.filter((finding) => !finding.includes(' took '))).toEqual([]);
  expect(cases).toBe(400);
  expect(Object.keys(ends).sort()).toEqual(
    expect.arrayContaining([
      'backup_corrupt',
      'backup_signature_wrong',
      'backup_signer_unknown',
      'backup_unsigned',
      'read',
    ]),
  );
});
