# What the stand-ins of kubeadm, kubelet and kubectl share. VERSION and IMAGES (names and tags of this version) are set before it.
import json
import os
import re
import secrets
import subprocess
import sys
import time
import urllib.error
import urllib.request

ETC = '/etc/kubernetes'
MANIFESTS = ETC + '/manifests'
# Of the API server stand-in: nodes, tokens, what kubeadm has stored. On the first control plane only.
DATA = '/var/lib/etcd/state.json'
KUBELET = '/var/lib/kubelet'
MASTER_LABELS = ['node-role.kubernetes.io/master', 'node-role.kubernetes.io/control-plane']


class Failure(Exception):
    pass


def parts(version):
    match = re.fullmatch(r'v?(\d+)\.(\d+)\.(\d+)', version)
    if not match:
        raise Failure(f'version {version!r} is not a semantic version')
    return tuple(int(part) for part in match.groups())


def read(path):
    with open(path) as file:
        return file.read()


def write(path, text, mode=0o600):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    # In one step: whoever is killed leaves the old file or the new one.
    with open(path + '.new', 'w', opener=lambda name, flags: os.open(name, flags, mode)) as file:
        file.write(text)
    os.rename(path + '.new', path)


def kubeconfig(path):
    try:
        return json.loads(read(path))
    except FileNotFoundError:
        raise Failure(f'stat {path}: no such file or directory')


def call(config, method, path, body=None, timeout=5):
    """One request to the API server stand-in. The token goes in a header, never in an argument."""
    data = None if body is None else json.dumps(body).encode()
    headers = {'Authorization': 'Bearer ' + config['token'], 'Content-Type': 'application/json'}
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(urllib.request.Request('http://' + config['server'] + path, data, headers, method=method), timeout=timeout) as answer:
            return json.loads(answer.read() or b'null')
    except urllib.error.HTTPError as error:
        raise Failure('Error from server: ' + error.read().decode())
    except OSError as error:
        raise Failure(f'The connection to the server {config["server"]} was refused - did you specify the right host or port? ({error})')


def arguments(argv, known, with_value):
    """Flags and the rest. What is not known is an error, as with pflag."""
    flags, rest = {}, []
    words = iter(argv)
    for word in words:
        if not word.startswith('-') or word == '-':
            rest.append(word)
            continue
        name, equals, value = word.lstrip('-').partition('=')
        name = {'f': 'filename', 'o': 'output', 'n': 'namespace', 'y': 'yes'}.get(name, name) if not word.startswith('--') else name
        if name in with_value:
            if not equals:
                value = next(words, None)
                if value is None:
                    raise Failure(f'flag needs an argument: --{name}')
            flags[name] = value
        elif name in known:
            flags[name] = True
        else:
            raise Failure(f'unknown flag: --{name}')
    return flags, rest


def scalar(text):
    if text.startswith('"'):
        return json.loads(text)
    if text in ('{}', '[]'):
        return json.loads(text)
    return text


def parse_yaml(text):
    """The block style that Airdock writes and kubeadm stores: maps, lists, scalars that are plain or quoted as in JSON. Anything else is an error."""
    lines = []
    for number, line in enumerate(text.split('\n'), 1):
        if not line.strip() or line.lstrip().startswith('#'):
            continue
        lines.append((number, len(line) - len(line.lstrip()), line.strip()))

    def block(at, indent):
        if lines[at][2].startswith('- '):
            items = []
            while at < len(lines) and lines[at][1] == indent and lines[at][2].startswith('- '):
                number, _, line = lines[at]
                inner = line[2:]
                if re.match(r'[A-Za-z0-9_-]+:( |$)', inner):
                    lines[at] = (number, indent + 2, inner)
                    value, at = block(at, indent + 2)
                else:
                    value, at = scalar(inner), at + 1
                items.append(value)
            return items, at
        fields = {}
        while at < len(lines) and lines[at][1] == indent and not lines[at][2].startswith('- '):
            number, _, line = lines[at]
            match = re.fullmatch(r'([A-Za-z0-9_./-]+):(?: (.+))?', line)
            if not match:
                raise Failure(f'error converting YAML to JSON: yaml: line {number}: could not find expected \':\'')
            key, value = match.groups()
            if key in fields:
                raise Failure(f'error converting YAML to JSON: yaml: line {number}: key "{key}" already set in map')
            at += 1
            if value is not None:
                fields[key] = scalar(value)
            elif at < len(lines) and (lines[at][1] > indent or (lines[at][1] == indent and lines[at][2].startswith('- '))):
                fields[key], at = block(at, lines[at][1])
            else:
                fields[key] = None
        return fields, at

    if not lines:
        return None
    value, at = block(0, lines[0][1])
    if at < len(lines):
        raise Failure(f'error converting YAML to JSON: yaml: line {lines[at][0]}: did not find expected key')
    return value


def render_yaml(value, indent=''):
    text = ''
    for key, item in value.items():
        text += f'{indent}{key}:\n{render_yaml(item, indent + "  ")}' if isinstance(item, dict) and item else f'{indent}{key}: {json.dumps(item) if item == {} else item}\n'
    return text


def dns_image(cluster, version):
    """https://github.com/kubernetes/kubernetes/pull/102502"""
    own = (cluster.get('dns') or {}).get('imageRepository')
    repository, tag = own or cluster['imageRepository'], IMAGES['coredns']
    if parts(version) < (1, 21, 0):
        return f'{repository}/coredns:{tag}'
    if parts(version) < (1, 21, 2):
        return f'{repository}/coredns/coredns:{tag}'
    return f'{repository}/coredns{"/coredns" if repository == "k8s.gcr.io" else ""}:{tag}'


def control_plane_images(cluster):
    repository, version = cluster['imageRepository'], 'v' + VERSION
    names = [f'{repository}/{name}:{version}' for name in ('kube-apiserver', 'kube-controller-manager', 'kube-scheduler', 'kube-proxy')]
    return [*names, f'{repository}/pause:{IMAGES["pause"]}', f'{repository}/etcd:{IMAGES["etcd"]}', dns_image(cluster, VERSION)]


def hosts_dir():
    match = re.search(r'^\s*config_path = "([^"]+)"', read('/etc/containerd/config.toml'), re.M)
    return ['--hosts-dir', match.group(1)] if match else []


def pull(socket, image):
    """A real pull by the host's runtime; the reference is taken as it is."""
    if 'dockershim' in socket:
        command = ['docker', 'pull', '--quiet', image]
    else:
        command = ['ctr', '--namespace', 'k8s.io', 'images', 'pull', *hosts_dir(), image]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode != 0:
        raise Failure(f'failed to pull image "{image}": output: {done.stderr.strip() or done.stdout.strip()}')


def pause_image(socket):
    """What the runtime, or the kubelet for Docker, holds pods together with."""
    if 'dockershim' in socket:
        match = re.search(r'--pod-infra-container-image=([^\s"]+)', read(KUBELET + '/kubeadm-flags.env'))
        return match.group(1) if match else 'k8s.gcr.io/pause:3.2'
    match = re.search(r'^\s*sandbox_image = "([^"]+)"', read('/etc/containerd/config.toml'), re.M)
    return match.group(1) if match else 'registry.k8s.io/pause:3.6'


def service(action, name):
    manager = ['systemctl', action, name] if os.path.isdir('/run/systemd/system') else ['service', name, action]
    done = subprocess.run(manager, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode != 0:
        raise Failure(f'{" ".join(manager)}: {done.stdout}{done.stderr}')


def main(run, prefix='error: '):
    try:
        run(sys.argv[1:])
    except Failure as failure:
        print(f'{prefix}{failure}', file=sys.stderr)
        sys.exit(1)
