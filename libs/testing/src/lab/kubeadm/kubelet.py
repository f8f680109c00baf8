# The stand-in of the kubelet: tells the API server each second that the node lives. On the first control plane it is the API server as well, as the static
# pod that kubeadm has written says.
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

NOT_READY_SECONDS = 5
lock = threading.RLock()


class Api(BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'

    def log_message(self, *_):
        pass

    def handle_one(self):
        length = int(self.headers.get('Content-Length') or 0)
        body = json.loads(self.rfile.read(length) or b'null')
        with lock:
            state = json.loads(read(DATA))
            try:
                code, answer = 200, answer_of(state, self.command, self.path, (self.headers.get('Authorization') or '')[7:], body)
            except Refusal as refusal:
                code, answer = refusal.code, str(refusal)
            else:
                if self.command != 'GET':
                    write(DATA, json.dumps(state))
        data = (json.dumps(answer) if code == 200 else answer).encode()
        self.send_response(code)
        self.send_header('Content-Length', str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_PUT = do_POST = do_PATCH = do_DELETE = handle_one


class Refusal(Exception):
    def __init__(self, code, message):
        super().__init__(message)
        self.code = code


def api_server_version():
    match = re.search(r'image: .*/kube-apiserver:v([0-9.]+)', read(MANIFESTS + '/kube-apiserver.yaml'))
    return match.group(1)


def resource(name, node):
    is_ready = time.time() - node['seenAt'] < NOT_READY_SECONDS and not node['complaint']
    spec = {'unschedulable': True} if node['unschedulable'] else {}
    return {
        'apiVersion': 'v1', 'kind': 'Node',
        'metadata': {'name': name, 'labels': node['labels'], 'annotations': node['annotations']},
        'spec': spec,
        'status': {
            'conditions': [{'type': 'Ready', 'status': 'True' if is_ready else 'False' if node['complaint'] else 'Unknown', 'message': node['complaint']}],
            'nodeInfo': {'kubeletVersion': 'v' + node['version']},
        },
    }


def answer_of(state, method, path, token, body):
    nodes = state['nodes']
    is_admin = token == state['admin']
    name_of_token = state['nodeTokens'].get(token)
    is_bootstrap = state['tokens'].get(token, 0) > time.time()
    if not (is_admin or name_of_token or is_bootstrap):
        raise Refusal(401, 'Unauthorized')
    route = f'{method} {path}'
    if route == 'GET /readyz':
        return 'ok'
    if route == 'GET /cluster-info':
        return {'authority': state['authority'], 'clusterConfiguration': state['clusterConfiguration']}
    if route == 'POST /certificates/check':
        if state['certificates'].get(body['key'], 0) < time.time():
            raise Refusal(403, 'error downloading the secret "kubeadm-certs": the certificate key is not valid')
        state['mayAdminister'] = token
        return {}
    if route == 'GET /cluster-configuration':
        return state['clusterConfiguration']
    match = re.fullmatch(r'/nodes/([a-z0-9.-]+)', path)
    if match and method == 'POST' and is_bootstrap:
        name = match.group(1)
        if name in nodes and resource(name, nodes[name])['status']['conditions'][0]['status'] == 'True':
            raise Refusal(409, f'a Node with name "{name}" and status "Ready" already exists in the cluster')
        own = secrets.token_hex(24)
        state['nodeTokens'][own] = name
        return {'token': own, 'admin': state['admin'] if state.get('mayAdminister') == token else None}
    if match and (is_admin or name_of_token == match.group(1)):
        name = match.group(1)
        if method == 'PUT':
            if parts(body['version'])[:2] > parts(api_server_version())[:2]:
                raise Refusal(403, f'the kubelet {body["version"]} is newer than the API server {api_server_version()}')
            fresh = {'labels': {'kubernetes.io/hostname': name}, 'annotations': {}, 'unschedulable': False}
            nodes[name] = {**nodes.get(name, fresh), 'version': body['version'], 'complaint': body['complaint'], 'seenAt': time.time()}
            return {}
        if name not in nodes:
            raise Refusal(404, f'(NotFound): nodes "{name}" not found')
        if method == 'GET':
            return resource(name, nodes[name])
        if method == 'DELETE' and is_admin:
            del nodes[name]
            state['nodeTokens'] = {key: value for key, value in state['nodeTokens'].items() if value != name}
            return {}
        if method == 'PATCH':
            for field in ('labels', 'annotations'):
                for key, value in (body.get(field) or {}).items():
                    nodes[name][field].pop(key, None)
                    if value is not None:
                        nodes[name][field][key] = value
            if is_admin and 'unschedulable' in body:
                nodes[name]['unschedulable'] = body['unschedulable']
            return {}
    if not is_admin:
        raise Refusal(403, f'Forbidden: {route}')
    if route == 'GET /nodes':
        return [resource(name, node) for name, node in sorted(nodes.items())]
    if route == 'GET /endpoint':
        return state['endpoint']
    if route == 'POST /tokens':
        state['tokens'][body['token']] = time.time() + body['seconds']
        return {}
    if route == 'POST /certificates':
        state['certificates'][body['key']] = time.time() + 7200
        return {}
    if route == 'PUT /configmap':
        parse_yaml(body['text'])
        state['clusterConfiguration'] = body['text']
        return {}
    if route == 'PUT /addons':
        state['addons'] = body
        return {}
    raise Refusal(404, f'the server could not find the requested resource: {route}')


def serve():
    """The API server, from when kubeadm has written its pod."""
    server = None
    while True:
        is_wanted = os.path.exists(DATA) and os.path.exists(MANIFESTS + '/kube-apiserver.yaml')
        if is_wanted and server is None:
            try:
                server = ThreadingHTTPServer((json.loads(read(DATA))['address'], 6443), Api)
                threading.Thread(target=server.serve_forever, daemon=True).start()
            except OSError as error:
                print(f'API server: {error}', flush=True)
        time.sleep(0.2)


def beat():
    checked = None
    while True:
        try:
            config = kubeconfig(ETC + '/kubelet.conf')
            # What pods are held together with has to be there before any can run.
            socket = json.loads(read(KUBELET + '/config.yaml'))['criSocket']
            complaint, image = '', pause_image(socket)
            if checked != image:
                try:
                    pull(socket, image)
                    checked = image
                except Failure as failure:
                    complaint = str(failure)
            call(config, 'PUT', '/nodes/' + config['name'], {'version': VERSION, 'complaint': complaint})
        except (Failure, OSError, ValueError) as failure:
            print(f'kubelet: {failure}', flush=True)
        time.sleep(1)


def run(argv):
    if argv == ['--version']:
        return print(f'Kubernetes v{VERSION}')
    if argv:
        raise Failure(f'unknown flag: {argv[0]}')
    threading.Thread(target=serve, daemon=True).start()
    beat()


main(run)
