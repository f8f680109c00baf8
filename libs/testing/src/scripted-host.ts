/**
 * A host in memory, behind what looks like its SSH connection: files, Debian packages, Docker, and the units that hold
 * ports. It knows the scripts of libs/host by words in them, and runs none. For tests of what is done on a host in
 * which order; what the scripts do is tested on real hosts.
 */
import { text } from 'node:stream/consumers';

/** How a command ended. */
export interface ScriptedResult {
  exitCode: number;
  stdout: string;
  stderr: string;
}

/** What a test answers in place of the host: an output, a result, an error to throw; undefined lets the host answer. */
export type ScriptedAnswer = string | Partial<ScriptedResult> | Error | undefined;

interface Command {
  argv: string[];
  /** Of `sh -c SCRIPT sh …`; empty for other programs. */
  script: string;
  /** What follows the script, or the program. */
  args: string[];
  input: string;
}

const facts = [
  'os=debian\nosVersion=12\nosLike=\ncodename=bookworm\nmachine=x86_64\npackageManager=apt-get\ncpus=4',
  'memoryKiB=16000000\nswapKiB=0\nrootKiB=90000000\nrootFreeKiB=80000000\nsystemd=yes\ncgroup=2',
].join('\n');
const holder =
  'systemdVersion=252\nproxyd=/usr/lib/systemd/systemd-socket-proxyd\nuserId=1000\nipv6=no\nallowstreamlocalforwarding=yes';

/** The host. What it is may be changed at any time; `changes` says what was done to it. */
export class ScriptedHost {
  /** By path, with what Airdock keeps beside them: `.airdock-before`, `.airdock-created`, `.airdock-pending`. */
  readonly files = new Map<string, string>();
  /** Installed packages. */
  readonly packages = new Set(['docker.io']);
  /** What comes along with a package. */
  readonly dependencies = new Map<string, string[]>();
  /** Docker's images: IDs by full reference. */
  readonly images = new Map<string, string>();
  /** What the registry would let the host pull: digest and ID by reference. */
  readonly registry = new Map<string, { digest: string; id: string }>();
  /** The ports that units of ours hold, by name. */
  readonly held = new Map<string, number>();
  /** Ports that other programs listen on. */
  readonly listening = new Set<number>();
  /** References that containers use. */
  readonly used = new Set<string>();
  /** Each command that has changed something, in short, in their order. */
  readonly changes: string[] = [];
  /** The status that the registry answers the host with. */
  registryStatus = '200';
  canHoldPorts = true;
  /** Below /var/lib. */
  diskFreeKiB = 90_000_000;
  /** Docker takes a new configuration over at a reload. */
  takesReload = true;
  /** Asked before the host; gets the short form of a command, and its whole. */
  answer: (change: string, command: Command) => ScriptedAnswer = () => undefined;
  private mirrors: string[] = [];

  /** `onChange` is called with each of the `changes` as it is made. */
  constructor(private readonly onChange: (change: string) => void = () => undefined) {}

  get hasDocker(): boolean {
    return this.packages.has('docker.io');
  }

  /** The connection, as far as libs/host uses one; the user is no root, so Docker is asked by its program. */
  get connection() {
    const exec = (argv: string[], options: { stdin?: unknown; signal?: AbortSignal; onOutput?: () => void } = {}) =>
      this.exec(argv, options);
    return {
      where: 'scripted:22',
      username: 'admin',
      noise: undefined,
      sessions: { limit: Number.POSITIVE_INFINITY },
      elevation: async () => 'sudo without password',
      exec,
      run: async (argv: string[], options?: Parameters<typeof exec>[1]) => {
        const { exitCode, stdout, stderr } = await exec(argv, options);
        if (exitCode !== 0) throw new Error(`${argv[0]} ended with ${exitCode}: ${stderr}`);
        return stdout;
      },
      forwardFrom: async () => undefined,
      forwardToSocket: async () => undefined,
      [Symbol.asyncDispose]: async () => undefined,
    };
  }

  /** Docker reads its configuration, as at its start. */
  readDaemonJson(): void {
    const content = JSON.parse(this.files.get('/etc/docker/daemon.json') ?? '{}') as { 'registry-mirrors'?: string[] };
    this.mirrors = content['registry-mirrors'] ?? [];
  }

  private async exec(
    argv: string[],
    { stdin, signal, onOutput }: { stdin?: unknown; signal?: AbortSignal; onOutput?: () => void },
  ): Promise<ScriptedResult> {
    signal?.throwIfAborted();
    const input = typeof stdin === 'string' ? stdin : stdin ? await text(stdin as NodeJS.ReadableStream) : '';
    const isScript = argv[0] === 'sh' && argv[1] === '-c';
    const script = isScript ? (argv[2] ?? '') : '';
    const command: Command = { argv, script, args: argv.slice(isScript ? 4 : 1), input };
    const short = shortOf(command);
    const answer = this.answer(short, command);
    signal?.throwIfAborted();
    if (answer instanceof Error) throw answer;
    onOutput?.();
    const result = answer ?? this.run(command);
    const ended = {
      exitCode: 0,
      stdout: '',
      stderr: '',
      ...(typeof result === 'string' ? { stdout: result } : result),
    };
    if (changing.test(short) && ended.exitCode === 0) {
      this.changes.push(short);
      this.onChange(short);
    }
    return ended;
  }

  private run(command: Command): string | Partial<ScriptedResult> {
    const { argv, script, args, input } = command;
    if (argv[1] === '-s') return this.facts(input.includes('registryStatus'), argv.at(-2) ?? '');
    if (script.includes('for path; do')) return this.read(args.slice(1));
    if (script.includes('keep=$2')) return this.write(args, input);
    if (script.includes('expected=$2 state=$3')) return this.revert(args, input);
    if (script.includes('[ "$2" = pending ]')) return this.restore(args, input);
    if (script.includes('.airdock-pending')) this.files.delete(`${args[0]}.airdock-pending`);
    if (script.includes('unset http_proxy')) return this.registryStatus;
    if (script.includes('docker pull')) return this.pull(args[0] ?? '');
    if (script.includes('docker version')) return this.hasDocker ? 'docker=20.10.24\n' : '';
    if (script.includes('kill -HUP') && this.takesReload) this.readDaemonJson();
    if (script.includes('action=$1') && args[1] === 'docker') this.readDaemonJson();
    if (script.includes('case "$users"')) return 'address=127.0.0.1\n';
    if (script.includes('limit=$1')) return this.manage(args.slice(1));
    if (script.includes('|| echo "$name"')) return args.filter((name) => !this.packages.has(name)).join('\n');
    if (script.includes('${Version}')) return this.listed(args, ' 1.0');
    if (argv[0] === 'dpkg-query') return this.listed([...this.packages]);
    if (argv.includes('--simulate'))
      return this.withDependencies(argv)
        .map((name) => `Inst ${name} (1.0)`)
        .join('\n');
    return argv[0] === 'docker' ? this.docker(args, input) : '';
  }

  private facts(isInspection: boolean, port: string): string {
    return [
      ...(isInspection ? [`time=${Date.now() / 1000}`] : []),
      facts,
      `diskFreeKiB=${this.diskFreeKiB}`,
      ...(this.hasDocker ? ['dockerd=yes', 'docker=20.10.24'] : []),
      ...(this.canHoldPorts ? [holder] : []),
      ...[...this.held].map(([name, held]) => `holds=${name} ${held}\nlistensOn=${held}`),
      ...[...this.listening].map((taken) => `listensOn=${taken}`),
      ...(port ? [`registryStatus=${this.registryStatus}`] : []),
    ].join('\n');
  }

  private read(paths: string[]): string {
    const line = (path: string) => {
      const content = this.files.get(path);
      const marks = [
        this.files.has(`${path}.airdock-pending`) ? 'pending' : 'settled',
        this.files.has(`${path}.airdock-before`) ? 'kept' : 'not',
      ];
      return [
        ...marks,
        ...(content === undefined ? ['absent'] : ['present', Buffer.from(content).toString('base64')]),
      ].join(' ');
    };
    return paths.map(line).join('\n');
  }

  private write([path = '', keep, created, pending]: string[], content: string): string {
    const before = this.files.get(path);
    if (keep === 'yes' && before !== undefined && !this.files.has(`${path}.airdock-before`))
      this.files.set(`${path}.airdock-before`, before);
    if (created === 'yes') this.files.set(`${path}.airdock-created`, '');
    if (pending === 'yes') this.files.set(`${path}.airdock-pending`, '');
    this.files.set(path, content);
    return '';
  }

  private revert([path = '', , state]: string[], content: string): string {
    if (state === 'absent') this.files.delete(path);
    else this.files.set(path, content);
    for (const mark of ['before', 'created', 'pending']) this.files.delete(`${path}.airdock-${mark}`);
    return '';
  }

  private restore([path = '', state, dropsKept]: string[], content: string): string {
    if (state === 'absent') this.files.delete(path);
    else this.files.set(path, content);
    if (dropsKept === 'yes') this.files.delete(`${path}.airdock-before`);
    this.files.delete(`${path}.airdock-pending`);
    return '';
  }

  private listed(names: string[], version = ''): string {
    return names.map((name) => (this.packages.has(name) ? `installed ${name}${version}\n` : '')).join('');
  }

  private withDependencies(argv: string[]): string[] {
    const names = argv.slice(argv.indexOf('--') + 1);
    return names.flatMap((name) => [name, ...(this.dependencies.get(name) ?? [])]);
  }

  private manage(argv: string[]): string {
    if (argv.includes('install')) for (const name of this.withDependencies(argv)) this.packages.add(name);
    if (argv.includes('--purge')) for (const name of this.withDependencies(argv)) this.packages.delete(name);
    return '';
  }

  private pull(reference: string): string | Partial<ScriptedResult> {
    const found = this.registry.get(reference);
    if (!found) return { exitCode: 1, stderr: `manifest for ${reference} not found` };
    this.images.set(reference, found.id);
    return JSON.stringify([`${reference.replace(/@.*$|:[^:/]*$/, '')}@${found.digest}`]);
  }

  private docker([command, ...args]: string[], input: string): string | Partial<ScriptedResult> {
    if (command === 'info') return this.hasDocker ? JSON.stringify(this.mirrors) : { exitCode: 1 };
    // An archive of a test is the IDs by name, as JSON.
    if (command === 'load')
      for (const [name, id] of Object.entries(JSON.parse(input) as Record<string, string>)) this.images.set(name, id);
    if (command !== 'image') return '';
    const [action, ...names] = args;
    if (action === 'ls') return [...this.images].map(([name, id]) => `${name} ${id}`).join('\n');
    const [from = '', to = ''] = names;
    if (action === 'tag') this.images.set(to, this.images.get(from) ?? '');
    if (action === 'rm' && this.used.has(from)) return { exitCode: 1, stderr: 'conflict: image is in use' };
    if (action === 'rm') this.images.delete(from);
    return '';
  }
}

const changing =
  /^(write|revert|restore|settle|service|units|apt-get (install|update)|apt-mark|dpkg |docker (load|pull|reload|image (tag|rm)))/;

/** A command as a test wants to read it: `write PATH`, `service restart docker`, `apt-get install NAME`. */
function shortOf({ argv, script, args }: Command): string {
  const [first = '', second = ''] = args;
  if (script.includes('for path; do')) return `read ${args.slice(1).join(' ')}`;
  if (script.includes('keep=$2')) return `write ${first}`;
  if (script.includes('expected=$2 state=$3')) return `revert ${first}`;
  if (script.includes('[ "$2" = pending ]')) return `restore ${first}`;
  if (script.includes('.airdock-pending')) return `settle ${first}`;
  if (script.includes('action=$1')) return `service ${first} ${second}`;
  if (script.includes('kill -HUP')) return 'docker reload';
  if (script.includes('docker pull')) return `docker pull ${first}`;
  if (script.includes('systemd-tmpfiles')) return `units enable ${args.slice(1).join(' ')}`;
  if (script.includes('disable --now')) return `units disable ${args.slice(1).join(' ')}`;
  if (script.includes('systemctl start "$1.socket"')) return `units start ${first}`;
  if (script.includes('limit=$1')) return programOf(args.slice(1));
  return argv.join(' ');
}

/** A package manager with its command and its packages, without its options. */
function programOf(argv: string[]): string {
  const end = argv.includes('--') ? argv.indexOf('--') : argv.length;
  const words = argv.slice(0, end).filter((word) => word !== 'env' && !/^-|=/.test(word));
  return [...words, ...argv.slice(end + 1)].join(' ');
}
