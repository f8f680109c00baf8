# The stand-in of kubectl: nodes, and the ConfigMap that kubeadm keeps.
VALUES = ('kubeconfig', 'request-timeout', 'namespace', 'output', 'raw', 'timeout', 'filename')
KNOWN = ('ignore-not-found', 'overwrite', 'ignore-daemonsets', 'delete-emptydir-data', 'force')


def field(item, path):
    """One path of a JSONPath template, with a filter by one value at the most."""
    for name, key, value in re.findall(r'\.([A-Za-z]+)(?:\[\?\(@\.([A-Za-z]+)=="([^"]*)"\)\])?', path):
        item = (item or {}).get(name)
        if key:
            item = next((one for one in item or [] if one.get(key) == value), None)
    return '' if item is None else str(item).lower() if isinstance(item, bool) else str(item)


def template(text, items):
    match = re.fullmatch(r'\{range \.items\[\*\]\}(.*)\{end\}', text)
    if not match:
        raise Failure('this stand-in knows {range .items[*]}…{end} only')
    tokens = re.findall(r'\{("(?:[^"\\]|\\.)*"|\.(?:[^{}"]|"[^"]*")+)\}', match.group(1))
    if ''.join('{' + token + '}' for token in tokens) != match.group(1):
        raise Failure(f'error parsing jsonpath {text}')
    return ''.join(json.loads(token) if token.startswith('"') else field(item, token) for item in items for token in tokens)


def get(config, flags, rest):
    if 'raw' in flags:
        return print(call(config, 'GET', flags['raw']))
    output = flags.get('output', '')
    if rest == ['configmap', 'kubeadm-config'] and flags.get('namespace') == 'kube-system' and output == 'json':
        text = call(config, 'GET', '/cluster-configuration')
        metadata = {'name': 'kubeadm-config', 'namespace': 'kube-system'}
        return print(json.dumps({'apiVersion': 'v1', 'kind': 'ConfigMap', 'metadata': metadata, 'data': {'ClusterConfiguration': text}}))
    if rest == ['nodes']:
        items = call(config, 'GET', '/nodes')
        if output.startswith('jsonpath='):
            return print(template(output.partition('=')[2], items), end='')
        return print(json.dumps({'apiVersion': 'v1', 'kind': 'List', 'items': items}) if output == 'json' else table(items))
    if len(rest) == 2 and rest[0] == 'node':
        try:
            node = call(config, 'GET', '/nodes/' + rest[1])
        except Failure as failure:
            if 'NotFound' in str(failure) and 'ignore-not-found' in flags:
                return None
            raise
        return print(json.dumps(node) if output == 'json' else table([node]))
    raise Failure(f'the server doesn\'t have a resource type "{" ".join(rest)}"')


def table(items):
    lines = []
    for one in items:
        status = 'Ready' if one['status']['conditions'][0]['status'] == 'True' else 'NotReady'
        cordoned = ',SchedulingDisabled' if one['spec'].get('unschedulable') else ''
        lines.append(f'{one["metadata"]["name"]} {status}{cordoned} {one["status"]["nodeInfo"]["kubeletVersion"]}')
    return '\n'.join(lines)


def node_of(rest):
    if len(rest) != 1:
        raise Failure('exactly one NAME is required')
    return '/nodes/' + rest[0]


def run(argv):
    flags, [command, *rest] = arguments(argv, KNOWN, VALUES)
    config = kubeconfig(flags.get('kubeconfig', ETC + '/admin.conf'))
    if command == 'get':
        return get(config, flags, rest)
    if command in ('drain', 'cordon', 'uncordon'):
        path = node_of(rest)
        call(config, 'GET', path)
        if command == 'drain' and 'ignore-daemonsets' not in flags:
            raise Failure('cannot delete DaemonSet-managed Pods (use --ignore-daemonsets to ignore): kube-system/kube-proxy')
        call(config, 'PATCH', path, {'unschedulable': command != 'uncordon'})
        return print(f'node/{rest[0]} {command}ed')
    if command == 'annotate' and rest[:1] == ['node'] and len(rest) == 3:
        key, equals, value = rest[2].partition('=')
        if not equals and not key.endswith('-'):
            raise Failure('at least one annotation update is required')
        return call(config, 'PATCH', '/nodes/' + rest[1], {'annotations': {key if equals else key[:-1]: value if equals else None}})
    if command == 'delete' and rest[:1] == ['node']:
        try:
            return call(config, 'DELETE', node_of(rest[1:]))
        except Failure as failure:
            if 'NotFound' not in str(failure) or 'ignore-not-found' not in flags:
                raise
            return None
    if command == 'replace' and flags.get('filename') == '-':
        document = json.load(sys.stdin)
        if document.get('kind') != 'ConfigMap' or document['metadata']['name'] != 'kubeadm-config':
            raise Failure('this stand-in replaces the ConfigMap kubeadm-config only')
        return call(config, 'PUT', '/configmap', {'text': document['data']['ClusterConfiguration']})
    raise Failure(f'unknown command "{command}" for "kubectl"')


main(run)
