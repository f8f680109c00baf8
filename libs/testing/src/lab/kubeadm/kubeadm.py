# The stand-in of kubeadm. Its words are those of the real one where somebody may read them.
import glob
import hashlib
import shutil
import socket as sockets

# https://github.com/kubernetes/kubernetes/tree/master/cmd/kubeadm/app/apis/kubeadm
NODE_REGISTRATION = {'name': 0, 'criSocket': 0, 'taints': 0, 'kubeletExtraArgs': None, 'ignorePreflightErrors': 0}
ENDPOINT = {'advertiseAddress': 0, 'bindPort': 0}
KNOWN = {
    'InitConfiguration': {
        'bootstrapTokens': {'token': 0, 'description': 0, 'ttl': 0, 'expires': 0, 'usages': 0, 'groups': 0},
        'nodeRegistration': NODE_REGISTRATION,
        'localAPIEndpoint': ENDPOINT,
        'certificateKey': 0,
    },
    'ClusterConfiguration': {
        'etcd': None, 'apiServer': None, 'controllerManager': None, 'scheduler': None, 'featureGates': None,
        'networking': {'serviceSubnet': 0, 'podSubnet': 0, 'dnsDomain': 0},
        'dns': {'type': 0, 'imageRepository': 0, 'imageTag': 0},
        'kubernetesVersion': 0, 'controlPlaneEndpoint': 0, 'certificatesDir': 0, 'imageRepository': 0, 'clusterName': 0,
    },
    'JoinConfiguration': {
        'nodeRegistration': NODE_REGISTRATION,
        'caCertPath': 0,
        'discovery': {
            'bootstrapToken': {'token': 0, 'apiServerEndpoint': 0, 'caCertHashes': 0, 'unsafeSkipCAVerification': 0},
            'file': None, 'tlsBootstrapToken': 0, 'timeout': 0,
        },
        'controlPlane': {'localAPIEndpoint': ENDPOINT, 'certificateKey': 0},
    },
    'KubeletConfiguration': {'cgroupDriver': 0, 'clusterDNS': 0, 'clusterDomain': 0, 'staticPodPath': 0},
}
TOKEN = re.compile(r'[a-z0-9]{6}\.[a-z0-9]{16}')
ADMIN = ETC + '/admin.conf'


def api_version(kind):
    if kind == 'KubeletConfiguration':
        return 'kubelet.config.k8s.io/v1beta1'
    minor = parts(VERSION)[1]
    return 'kubeadm.k8s.io/' + ('v1beta4' if minor >= 31 else 'v1beta3' if minor >= 22 else 'v1beta2')


def check_keys(value, known, path):
    for item in value if isinstance(value, list) else [value]:
        if not isinstance(item, dict):
            raise Failure(f'error unmarshaling configuration: {path} is not an object')
        for key, inner in item.items():
            if key not in known:
                raise Failure(f'error unmarshaling JSON: while decoding JSON: json: unknown field "{key}" in {path}')
            if isinstance(known[key], dict):
                check_keys(inner, known[key], f'{path}.{key}')


def load(flags, needed):
    """Documents by kind. Unknown kinds, versions and keys are errors."""
    if 'config' not in flags:
        raise Failure('this stand-in wants --config: without it kubeadm asks the internet for the newest version')
    for flag in flags:
        if flag not in ('config', 'ignore-preflight-errors', 'kubeconfig', 'upload-certs', 'print-join-command', 'yes') and not flag.startswith('skip-'):
            raise Failure(f"can not mix '--config' with arguments [{flag}]")
    found = {}
    for text in re.split(r'^---\n', read(flags['config']), flags=re.M):
        document = parse_yaml(text)
        if document is None:
            continue
        kind = document.pop('kind', None)
        version = document.pop('apiVersion', None)
        if kind not in KNOWN or kind in found:
            raise Failure(f'invalid configuration: kind {kind!r} is not known, or there twice')
        if version != api_version(kind):
            raise Failure(f'your configuration file uses API spec {version!r}, which kubeadm {VERSION} does not support for {kind}; it wants {api_version(kind)}')
        check_keys(document, KNOWN[kind], kind)
        found[kind] = document
    for kind in needed:
        if kind not in found:
            raise Failure(f'no {kind} found in the configuration')
    init = found.get('InitConfiguration')
    for token in (init or {}).get('bootstrapTokens') or []:
        if not re.fullmatch(r'\d+[hms](\d+[ms])*', token.get('ttl') or '24h0m0s'):
            raise Failure(f'time: invalid duration {token["ttl"]!r}')
    return found


def check_node(registration):
    name = registration.get('name') or ''
    if not re.fullmatch(r'[a-z0-9]([a-z0-9.-]*[a-z0-9])?', name):
        raise Failure(f'nodeRegistration.name: Invalid value: {name!r}: a DNS-1123 subdomain must consist of lower case alphanumeric characters')
    cri = registration.get('criSocket') or ''
    path = cri.replace('unix://', '', 1)
    if 'dockershim' in cri:
        if parts(VERSION) >= (1, 24, 0):
            raise Failure('[ERROR CRI]: there is no dockershim')
        if shutil.which('docker') is None or subprocess.run(['docker', 'info'], capture_output=True).returncode != 0:
            raise Failure('[ERROR CRI]: container runtime is not running')
    elif not os.path.exists(path):
        raise Failure(f'[ERROR CRI]: container runtime is not running: {path} is not there')
    elif parts(VERSION) >= (1, 24, 0) and not cri.startswith('unix://'):
        raise Failure(f'nodeRegistration.criSocket: {cri!r} has no scheme')


def preflight(errors):
    for path, label in (('/usr/bin/kubelet', 'kubelet'), ('/usr/bin/kubectl', 'kubectl')):
        if not os.path.exists(path):
            errors.append(f'[ERROR FileExisting-{label}]: {label} not found in system path')
    if not errors:
        kubelet = subprocess.run(['kubelet', '--version'], capture_output=True, text=True).stdout.split()[-1]
        if parts(kubelet)[:2] > parts(VERSION)[:2]:
            errors.append(f'[ERROR KubeletVersion]: the kubelet version is higher than the control plane version. Kubelet version: "{kubelet}"')
    if errors:
        raise Failure('error execution phase preflight: [preflight] Some fatal errors occurred:\n\t' + '\n\t'.join(errors))


def files_available(*names):
    return [f'[ERROR FileAvailable-{(ETC + "/" + name).replace("/", "-")}]: {ETC}/{name} already exists' for name in names if os.path.exists(f'{ETC}/{name}')]


def new_token():
    letters = 'abcdefghijklmnopqrstuvwxyz0123456789'
    pick = lambda length: ''.join(secrets.choice(letters) for _ in range(length))
    return f'{pick(6)}.{pick(16)}'


def seconds(ttl):
    return sum(int(number) * {'h': 3600, 'm': 60, 's': 1}[unit] for number, unit in re.findall(r'(\d+)([hms])', ttl))


def start_kubelet(registration):
    cri, extra = registration['criSocket'], dict(registration.get('kubeletExtraArgs') or {})
    flags = {'network-plugin': 'cni', **({} if 'dockershim' in cri else {'container-runtime': 'remote', 'container-runtime-endpoint': cri}), **extra}
    write(KUBELET + '/kubeadm-flags.env', 'KUBELET_KUBEADM_ARGS="' + ' '.join(f'--{key}={value}' for key, value in flags.items()) + '"\n', 0o644)
    write(KUBELET + '/config.yaml', json.dumps({'version': VERSION, 'criSocket': cri}), 0o644)
    service('restart', 'kubelet')


def wait_for(what, condition, limit=40):
    deadline = time.time() + limit
    while True:
        try:
            result = condition()
            if result:
                return result
            failure = 'not yet'
        except Failure as error:
            failure = error
        if time.time() > deadline:
            raise Failure(f'timed out waiting for {what}: {failure}')
        time.sleep(0.2)


def manifest(cluster, component, image):
    write(f'{MANIFESTS}/{component}.yaml', f'apiVersion: v1\nkind: Pod\nmetadata:\n  name: {component}\nspec:\n  containers:\n  - name: {component}\n    image: {image}\n')


def manifests(cluster):
    for image in control_plane_images(cluster):
        component = image.rsplit('/', 1)[1].split(':')[0]
        if component in ('kube-controller-manager', 'kube-scheduler', 'etcd', 'kube-apiserver'):
            manifest(cluster, component, image)


def init(argv):
    flags, rest = arguments(argv, ('skip-token-print', 'skip-certificate-key-print', 'upload-certs'), ('config', 'ignore-preflight-errors', 'kubeconfig'))
    if rest[:1] == ['phase']:
        return phase(rest[1:], flags)
    if rest:
        raise Failure(f'unknown command "{rest[0]}" for "kubeadm init"')
    found = load(flags, ('InitConfiguration', 'ClusterConfiguration'))
    node, cluster = found['InitConfiguration']['nodeRegistration'], found['ClusterConfiguration']
    check_node(node)
    wanted = parts(cluster['kubernetesVersion'])
    if wanted[:2] > parts(VERSION)[:2] or wanted[1] < parts(VERSION)[1] - 1:
        raise Failure(f'this version of kubeadm ({VERSION}) only supports deploying clusters with the control plane version of its own minor or the one before')
    if wanted != parts(VERSION):
        raise Failure(f'this stand-in has images of {VERSION} only')
    for key in ('podSubnet', 'serviceSubnet'):
        if not re.fullmatch(r'[0-9a-f.:]+/\d+', cluster['networking'][key]):
            raise Failure(f'networking.{key}: Invalid value: couldn\'t parse subnet')
    address = (found['InitConfiguration'].get('localAPIEndpoint') or {}).get('advertiseAddress') or sockets.gethostbyname(sockets.gethostname())
    errors = files_available('kubelet.conf', 'admin.conf')
    if glob.glob(MANIFESTS + '/*'):
        errors += files_available(*(os.path.relpath(path, ETC) for path in glob.glob(MANIFESTS + '/*')))
    if os.path.isdir('/var/lib/etcd') and os.listdir('/var/lib/etcd'):
        errors.append('[ERROR DirAvailable--var-lib-etcd]: /var/lib/etcd is not empty')
    with sockets.socket() as probe:
        if probe.connect_ex((address, 6443)) == 0:
            errors.append('[ERROR Port-6443]: Port 6443 is in use')
    preflight(errors)
    print('[preflight] Pulling images required for setting up a Kubernetes cluster')
    for image in control_plane_images(cluster):
        pull(node['criSocket'], image)
    authority = secrets.token_hex(64)
    write(ETC + '/pki/ca.crt', authority, 0o644)
    write(ETC + '/pki/ca.key', secrets.token_hex(64))
    endpoint = cluster.get('controlPlaneEndpoint') or f'{address}:6443'
    admin, own = secrets.token_hex(24), secrets.token_hex(24)
    state = {
        'address': address, 'authority': authority, 'admin': admin, 'endpoint': endpoint, 'tokens': {}, 'certificates': {},
        'nodes': {}, 'nodeTokens': {own: node['name']}, 'clusterConfiguration': None, 'addons': [],
    }
    write(DATA, json.dumps(state))
    write(ADMIN, json.dumps({'server': f'{address}:6443', 'token': admin}))
    write(ETC + '/kubelet.conf', json.dumps({'server': f'{address}:6443', 'token': own, 'name': node['name']}))
    manifests(cluster)
    start_kubelet(node)
    wait_for('the API server', lambda: call(kubeconfig(ADMIN), 'GET', '/readyz'))
    wait_for('the node', lambda: node['name'] in [one['metadata']['name'] for one in call(kubeconfig(ADMIN), 'GET', '/nodes')])
    finish(found, flags, ('upload-config', 'mark-control-plane', 'bootstrap-token', 'addon'))
    print('Your Kubernetes control-plane has initialized successfully!')


def finish(found, flags, phases):
    admin, name = kubeconfig(ADMIN), found['InitConfiguration']['nodeRegistration']['name']
    if 'upload-config' in phases:
        call(admin, 'PUT', '/configmap', {'text': render_yaml({'apiVersion': api_version('ClusterConfiguration'), 'kind': 'ClusterConfiguration', **found['ClusterConfiguration']})})
        call(admin, 'PATCH', '/nodes/' + name, {'annotations': {'kubeadm.alpha.kubernetes.io/cri-socket': found['InitConfiguration']['nodeRegistration']['criSocket']}})
    if 'mark-control-plane' in phases:
        call(admin, 'PATCH', '/nodes/' + name, {'labels': {label: '' for label in MASTER_LABELS}})
    if 'bootstrap-token' in phases:
        token = create_token(found['InitConfiguration'])
        if 'skip-token-print' not in flags:
            print(join_command(token))
    if 'addon' in phases:
        call(admin, 'PUT', '/addons', ['coredns', 'kube-proxy'])


def phase(words, flags):
    known = {
        'upload-config all', 'mark-control-plane', 'bootstrap-token', 'kubelet-finalize all', 'addon all', 'upload-certs',
    }
    name = ' '.join(words)
    if name not in known:
        raise Failure(f'unknown command {name!r} for "kubeadm init phase"')
    if 'skip-token-print' in flags and name != 'bootstrap-token':
        raise Failure('unknown flag: --skip-token-print')
    if ('upload-certs' in flags) != (name == 'upload-certs'):
        raise Failure('unknown flag: --upload-certs' if 'upload-certs' in flags else '[upload-certs] Skipping phase. Please see --upload-certs')
    found = load(flags, ('InitConfiguration', 'ClusterConfiguration'))
    if name == 'upload-certs':
        key = secrets.token_hex(32)
        call(kubeconfig(ADMIN), 'POST', '/certificates', {'key': key})
        print(f'[upload-certs] Storing the certificates in Secret "kubeadm-certs" in the "kube-system" Namespace\n[upload-certs] Using certificate key:\n{key}')
        return
    finish(found, flags, (words[0],))


def create_token(configuration):
    [wanted, *_] = configuration.get('bootstrapTokens') or [{}]
    token = wanted.get('token') or new_token()
    call(kubeconfig(ADMIN), 'POST', '/tokens', {'token': token, 'seconds': seconds(wanted.get('ttl') or '24h0m0s')})
    return token


def join_command(token):
    authority = hashlib.sha256(read(ETC + '/pki/ca.crt').encode()).hexdigest()
    endpoint = call(kubeconfig(ADMIN), 'GET', '/endpoint')
    return f'kubeadm join {endpoint} --token {token}     --discovery-token-ca-cert-hash sha256:{authority} '


def token(argv):
    flags, rest = arguments(argv, ('print-join-command',), ('config', 'ttl', 'kubeconfig'))
    if rest != ['create']:
        raise Failure(f'unknown command {" ".join(rest)!r} for "kubeadm token"')
    found = load(flags, ('InitConfiguration',)) if 'config' in flags else {'InitConfiguration': {'bootstrapTokens': [{'ttl': flags.get('ttl', '24h0m0s')}]}}
    made = create_token(found['InitConfiguration'])
    print(join_command(made) if 'print-join-command' in flags else made)


def join(argv):
    flags, rest = arguments(argv, (), ('config', 'ignore-preflight-errors'))
    if rest:
        raise Failure('this stand-in takes the endpoint from --config')
    configuration = load(flags, ('JoinConfiguration',))['JoinConfiguration']
    node, discovery = configuration['nodeRegistration'], configuration['discovery']['bootstrapToken']
    check_node(node)
    if not TOKEN.fullmatch(discovery['token']):
        raise Failure('discovery.bootstrapToken.token: Invalid value: the bootstrap token is invalid')
    preflight(files_available('kubelet.conf', 'bootstrap-kubelet.conf', 'pki/ca.crt', *(os.path.relpath(path, ETC) for path in glob.glob(MANIFESTS + '/*'))))
    bootstrap = {'server': discovery['apiServerEndpoint'], 'token': discovery['token']}
    try:
        info = call(bootstrap, 'GET', '/cluster-info')
    except Failure as failure:
        raise Failure(f"error execution phase preflight: couldn't validate the identity of the API Server: {failure}")
    if 'sha256:' + hashlib.sha256(info['authority'].encode()).hexdigest() not in discovery['caCertHashes']:
        raise Failure("error execution phase preflight: couldn't validate the identity of the API Server: cluster CA found does not match any of the pinned ones")
    cluster = parse_yaml(info['clusterConfiguration'])
    if not parts(cluster['kubernetesVersion'])[1] in (parts(VERSION)[1], parts(VERSION)[1] - 1):
        raise Failure(f'this version of kubeadm ({VERSION}) cannot join a cluster of {cluster["kubernetesVersion"]}')
    control_plane = configuration.get('controlPlane')
    if control_plane is not None:
        call(bootstrap, 'POST', '/certificates/check', {'key': control_plane.get('certificateKey') or ''})
        if not cluster.get('controlPlaneEndpoint'):
            raise Failure("unable to add a new control plane instance to a cluster that doesn't have a stable controlPlaneEndpoint address")
        for image in control_plane_images(cluster):
            pull(node['criSocket'], image)
    write(ETC + '/bootstrap-kubelet.conf', json.dumps(bootstrap))
    write(ETC + '/pki/ca.crt', info['authority'], 0o644)
    # The kubelet does that for real, when the node has its first pods.
    pull(node['criSocket'], f'{cluster["imageRepository"]}/kube-proxy:{cluster["kubernetesVersion"]}')
    made = call(bootstrap, 'POST', '/nodes/' + node['name'], {})
    write(ETC + '/kubelet.conf', json.dumps({'server': discovery['apiServerEndpoint'], 'token': made['token'], 'name': node['name']}))
    os.remove(ETC + '/bootstrap-kubelet.conf')
    if control_plane is not None:
        write(ETC + '/admin.conf', json.dumps({'server': discovery['apiServerEndpoint'], 'token': made['admin']}))
        manifests(cluster)
    start_kubelet(node)
    own = kubeconfig(ETC + '/kubelet.conf')
    wait_for('the node', lambda: call(own, 'GET', '/nodes/' + node['name']))
    call(own, 'PATCH', '/nodes/' + node['name'], {'annotations': {'kubeadm.alpha.kubernetes.io/cri-socket': node['criSocket']}})
    if control_plane is not None:
        call(kubeconfig(ADMIN), 'PATCH', '/nodes/' + node['name'], {'labels': {label: '' for label in MASTER_LABELS}})
    print('This node has joined the cluster')


def upgrade(argv):
    flags, rest = arguments(argv, ('yes',), ())
    is_control_plane = os.path.exists(MANIFESTS + '/kube-apiserver.yaml')
    config = kubeconfig(ADMIN if is_control_plane else ETC + '/kubelet.conf')
    cluster = parse_yaml(call(config, 'GET', '/cluster-configuration'))
    cri = json.loads(read(KUBELET + '/config.yaml'))['criSocket']
    if rest[:1] == ['node'] and len(rest) == 1:
        if parts(cluster['kubernetesVersion']) > parts(VERSION):
            raise Failure(f'the cluster is at {cluster["kubernetesVersion"]}, and kubeadm at {VERSION}')
        if is_control_plane:
            for image in control_plane_images(cluster):
                pull(cri, image)
            manifests(cluster)
        else:
            pull(cri, f'{cluster["imageRepository"]}/kube-proxy:{cluster["kubernetesVersion"]}')
        write(KUBELET + '/config.yaml', json.dumps({'version': VERSION, 'criSocket': cri}), 0o644)
        return
    if rest[:1] != ['apply'] or len(rest) != 2:
        raise Failure(f'unknown command {" ".join(rest)!r} for "kubeadm upgrade"')
    if 'yes' not in flags:
        raise Failure("[upgrade/confirm] aborting: there is nobody to ask")
    target, current = parts(rest[1]), parts(cluster['kubernetesVersion'])
    fatal = '[upgrade/version] FATAL: the --version argument is invalid due to these fatal errors:\n\n\t- '
    if target != parts(VERSION):
        raise Failure(fatal + f'Specified version to upgrade to {rest[1]!r} is not the kubeadm version v{VERSION}')
    if target < current:
        raise Failure(fatal + f'Specified version to upgrade to {rest[1]!r} is lower than the cluster version {cluster["kubernetesVersion"]}; downgrades are not supported')
    if target[1] > current[1] + 1:
        raise Failure(fatal + f'Specified version to upgrade to {rest[1]!r} is too high; kubeadm can upgrade only 1 minor version at a time')
    nodes = call(config, 'GET', '/nodes')
    waiting = [one['metadata']['name'] for one in nodes if MASTER_LABELS[0] in one['metadata']['labels'] and one['status']['conditions'][0]['status'] != 'True']
    if waiting:
        raise Failure(f'[ERROR ControlPlaneNodesReady]: there are NotReady control-planes in the cluster: {waiting}')
    cluster['kubernetesVersion'] = 'v' + VERSION
    for image in control_plane_images(cluster):
        pull(cri, image)
    manifests(cluster)
    wait_for('the API server', lambda: call(config, 'GET', '/readyz'))
    call(config, 'PUT', '/configmap', {'text': render_yaml(cluster)})
    write(KUBELET + '/config.yaml', json.dumps({'version': VERSION, 'criSocket': cri}), 0o644)
    print(f'[upgrade/successful] SUCCESS! Your cluster was upgraded to "v{VERSION}". Enjoy!')


def reset(argv):
    flags, rest = arguments(['--force' if word == '-f' else word for word in argv], ('force',), ('cri-socket',))
    if rest or 'force' not in flags:
        raise Failure('Aborted reset operation')
    service('stop', 'kubelet')
    for folder in (MANIFESTS, ETC + '/pki', '/var/lib/etcd', KUBELET):
        for path in glob.glob(folder + '/*'):
            shutil.rmtree(path) if os.path.isdir(path) else os.remove(path)
    for name in ('admin.conf', 'kubelet.conf', 'bootstrap-kubelet.conf'):
        if os.path.exists(f'{ETC}/{name}'):
            os.remove(f'{ETC}/{name}')


def run(argv):
    commands = {'init': init, 'join': join, 'token': token, 'upgrade': upgrade, 'reset': reset}
    if argv[:1] == ['version']:
        return print(f'v{VERSION}')
    if not argv or argv[0] not in commands:
        raise Failure(f'unknown command "{" ".join(argv[:1])}" for "kubeadm"')
    if os.geteuid() != 0:
        raise Failure('[ERROR IsPrivilegedUser]: user is not running as root')
    commands[argv[0]](argv[1:])


main(run, '')
