import { AppError } from '@airdock/core/errors';

/** A host as the inventory has it; what it does not say is missing. */
export interface InventoryHost {
  /** Where it stands, from 1. */
  line: number;
  /** Empty when what stands there is no name of a host. */
  name: string;
  address?: string | undefined;
  /** NaN when it is no number. */
  port?: number | undefined;
  user?: string | undefined;
  /** The name of an SSH credential. */
  credential?: string | undefined;
  hostKey?: string | undefined;
  labels: Record<string, string>;
  /** Groups that did not become labels, since a host has no room for so many. */
  groupsWithoutLabel?: number | undefined;
  /** Why it cannot be used. */
  problem?: string | undefined;
}

/** How an inventory is read. */
export interface InventoryOptions {
  /** Names of Ansible's groups that become labels, with `*` for any text; default: all. */
  groupLabels?: readonly string[] | undefined;
  /** A line that cannot be read is a host that cannot be used, and the others are read. */
  partial?: boolean | undefined;
  /** Called with what was read otherwise than somebody may have meant it. */
  warn?: ((text: string) => void) | undefined;
}

/** The largest number of hosts that one inventory may name. */
export const maxHosts = 5000;
/** What the labels of Ansible's groups begin with. */
export const groupLabel = 'ansible-group/';

/** `inventory_invalid`, with the line where that is known. */
export const invalid = (line: number | undefined, detail: string): AppError =>
  new AppError('inventory_invalid', {
    detail: line === undefined ? detail : `line ${line}: ${detail}`,
    ...(line === undefined ? {} : { line }),
  });

const secretKey =
  /^(?:ansible_)?(?:ssh_|become_|sudo_?|su_|enable_|login_|private_?key_?)*(?:pass|password|passwd|passphrase|secret|private_?key)$/i;

/** Whether a variable of an inventory holds a secret, by its name: such a host is refused. */
export const isSecret = (key: string): boolean => secretKey.test(key);

/** The problem of a host that brings a secret: the key is named, its value never. */
export const secretProblem = (key: string, line: number): string | undefined =>
  isSecret(key)
    ? `${key} in line ${line} is a secret: store it with POST /v1/ssh-credentials, name that credential instead, and take the secret out of the file`
    : undefined;

/** Labels as a list: `role=worker,site=b`, also with `;` or blanks between. */
export function parseLabelList(text: string): Record<string, string> {
  const entries = text
    .split(/[;,\s]+/)
    .filter(Boolean)
    .map((label): [string, string] => {
      const at = label.indexOf('=');
      return at < 0 ? [label, ''] : [label.slice(0, at), label.slice(at + 1)];
    });
  return Object.fromEntries(entries);
}

/** Empty when the text is no name of a host. */
export const hostName = (text: string): string => (/^[A-Za-z0-9][A-Za-z0-9._-]{0,252}$/.test(text) ? text : '');
/** NaN when the text is no port. */
export const portNumber = (text: string): number => (/^\d{1,5}$/.test(text) ? Number(text) : Number.NaN);

/** Whether a parsed value is a mapping. */
export const isRecord = (value: unknown): value is Record<string, unknown> =>
  typeof value === 'object' && value !== null && !Array.isArray(value);

/** The text of a scalar; `[]` for what is none, which no field takes. */
export const scalarText = (value: unknown): string =>
  value === null || value === undefined
    ? ''
    : typeof value === 'object'
      ? '[]'
      : String(value as string | number | boolean);
