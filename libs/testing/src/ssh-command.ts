/** What the DU sends to a login shell, for servers that are none. */

/** The program with its arguments, as one reads it; the mark of its output, where it has one. */
export function readCommand(line: string): { command: string; mark: string | undefined } {
  const [, encoded] = /^sh -c 'eval "\$\(printf %b "\$1"\)"' sh '(.*)'$/.exec(line) ?? [];
  if (encoded === undefined) return { command: line, mark: undefined };
  const text = Buffer.from(
    encoded.replaceAll(/\\0([0-7]{3})/g, (_, octal: string) => String.fromCharCode(Number.parseInt(octal, 8))),
    'latin1',
  ).toString();
  const [, mark, command = text] = /^sh -c '[^]*?' sh (airdock-[0-9a-f]{24}) ([^]*)$/.exec(text) ?? [];
  return { command, mark };
}

/** What a login prints when a program says this. */
export const printed = (mark: string | undefined, said: string, exitCode = 0): string =>
  mark === undefined ? said : `${begun(mark)}${said}${mark}e${exitCode}\n`;

/** The line before. */
export const begun = (mark: string | undefined): string => (mark === undefined ? '' : `${mark}b\n`);
