"""The providers of the client tests: TLS servers on loopback under a throw-away CA, which know what they saw.

Each refuses (401) what does not carry exactly the credential that outgate has to inject, and notes where the app's own
dummy key got through. They run inside the process of the driver, so that it reads what they saw without a protocol.
"""

import dataclasses
import http.server
import json
import socket
import ssl
import threading
import urllib.parse
from concurrent import futures
from pathlib import Path

import grpc
import trustme
from grpc_health.v1 import health_pb2, health_pb2_grpc
from websockets.sync.server import serve as serve_websocket

STRIPE = "api.stripe.com"
OPENAI = "api.openai.com"
GITHUB = "api.github.com"
EXAMPLE = "api.example.com"
GRPC = "grpc.example.com"
REALTIME = "realtime.example.com"
HOSTS = (STRIPE, OPENAI, GITHUB, EXAMPLE, GRPC, REALTIME)

# How long a stream waits for the app to prove that it has its first part; in seconds.
PROOF_TIMEOUT = 10


@dataclasses.dataclass(frozen=True)
class Seen:
    """One request as a provider saw it."""

    host: str
    method: str
    path: str
    problem: str | None


class Journal:
    """Judges requests and keeps what was seen, in order."""

    def __init__(self, credentials: dict[str, tuple[str, str]], dummy: str):
        self._credentials = credentials
        self._dummy = dummy
        self._seen: list[Seen] = []
        self._lock = threading.Lock()

    def judge(self, host: str, method: str, path: str, headers: list[tuple[str, str]], body: bytes = b"") -> str | None:
        """Notes a request; returns what is wrong with it, or None."""
        problem = self._problem(host, path, headers, body)
        with self._lock:
            self._seen.append(Seen(host, method, path, problem))
        return problem

    def _problem(self, host: str, path: str, headers: list[tuple[str, str]], body: bytes) -> str | None:
        if host not in self._credentials:
            return f"unknown host {host!r}"
        everything = "\n".join([path, *(f"{name}: {value}" for name, value in headers)]).encode() + body
        if self._dummy.encode() in everything:
            return "the app's dummy key came through"
        name, expected = self._credentials[host]
        values = [value for field, value in headers if field.lower() == name.lower()]
        return None if values == [expected] else f"{name} is not exactly the credential ({len(values)} fields)"

    def count(self) -> int:
        with self._lock:
            return len(self._seen)

    def since(self, mark: int) -> list[Seen]:
        with self._lock:
            return self._seen[mark:]


class Origins:
    """All providers, running; `ports` says where, by host."""

    def __init__(self, folder: Path, credentials: dict[str, tuple[str, str]], dummy: str):
        authority = trustme.CA()
        self.ca_file = folder / "origin-ca.pem"
        authority.cert_pem.write_to_path(str(self.ca_file))
        leaf = authority.issue_cert(*HOSTS)
        self.journal = Journal(credentials, dummy)
        self._stop = []
        rest = self._start_rest(leaf)
        self.ports = {host: rest for host in (STRIPE, OPENAI, GITHUB, EXAMPLE)}
        self.ports[GRPC] = self._start_grpc(leaf)
        self.ports[REALTIME] = self._start_websocket(leaf)

    def close(self):
        for stop in self._stop:
            stop()

    def _start_rest(self, leaf: trustme.LeafCert) -> int:
        server = RestServer(("127.0.0.1", 0), RestRequest, context_of(leaf), self.journal)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        self._stop.append(server.shutdown)
        return server.server_address[1]

    def _start_grpc(self, leaf: trustme.LeafCert) -> int:
        server = grpc.server(futures.ThreadPoolExecutor(8), interceptors=[GrpcJudge(self.journal)])
        health_pb2_grpc.add_HealthServicer_to_server(Health(), server)
        chain = b"".join(pem.bytes() for pem in leaf.cert_chain_pems)
        credentials = grpc.ssl_server_credentials([(leaf.private_key_pem.bytes(), chain)])
        port = server.add_secure_port("127.0.0.1:0", credentials)
        server.start()
        self._stop.append(lambda: server.stop(None))
        return port

    def _start_websocket(self, leaf: trustme.LeafCert) -> int:
        def judge(connection, request):
            problem = self.journal.judge(REALTIME, "GET", request.path, list(request.headers.raw_items()))
            return connection.respond(401, f"{problem}\n") if problem else None

        def echo(connection):
            for message in connection:
                connection.send(message)

        server = serve_websocket(echo, "127.0.0.1", 0, ssl=context_of(leaf), process_request=judge)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        self._stop.append(server.shutdown)
        return server.socket.getsockname()[1]


def context_of(leaf: trustme.LeafCert) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    leaf.configure_cert(context)
    context.set_alpn_protocols(["http/1.1"])
    return context


# --- Stripe, OpenAI, GitHub and a provider without a name: HTTP/1.1 -------------------------------------------------


class RestServer(http.server.ThreadingHTTPServer):
    """One port for all of them, told apart by `Host`. The TLS handshake is done in the connection's own thread."""

    def __init__(self, address, request, context: ssl.SSLContext, journal: Journal):
        super().__init__(address, request)
        self.context = context
        self.journal = journal
        self.stream_was_read = threading.Event()

    def finish_request(self, request, client_address):
        request.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with self.context.wrap_socket(request, server_side=True) as tls:
            super().finish_request(tls, client_address)

    def handle_error(self, request, client_address):
        """A connection that breaks is seen by the app under test; it needs no trace here."""


class RestRequest(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self._serve()

    def do_POST(self):
        self._serve()

    def log_message(self, *_):
        pass

    def _serve(self):
        body = self._body()
        host = self.headers.get("Host", "")
        problem = self.server.journal.judge(host, self.command, self.path, self.headers.items(), body)
        if problem:
            return self._json(401, {"error": {"message": problem, "type": "invalid_request_error"}, "message": problem})
        url = urllib.parse.urlsplit(self.path)
        answer = ROUTES.get((host, self.command, url.path))
        if answer is None:
            return self._json(404, {"message": f"nothing at {self.command} {host}{url.path}"})
        answer(self, dict(urllib.parse.parse_qsl(url.query)), body)

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = b""
        while length := int(self.rfile.readline().split(b";")[0], 16):
            body += self.rfile.read(length)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _json(self, status: int, value, headers: dict[str, str] | None = None):
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        for name, text in (headers or {}).items():
            self.send_header(name, text)
        # One write for head and body: two small ones would wait for each other's acknowledgement.
        self._headers_buffer.append(b"\r\n" + body)
        self.flush_headers()

    # Stripe

    def customers(self, _query, _body):
        self._json(200, {"object": "list", "url": "/v1/customers", "has_more": False, "data": [CUSTOMER]})

    def create_customer(self, _query, body: bytes):
        form = dict(urllib.parse.parse_qsl(body.decode()))
        self._json(200, CUSTOMER | {"email": form.get("email")})

    # OpenAI

    def models(self, _query, _body):
        self.server.stream_was_read.set()
        self._json(200, {"object": "list", "data": [{"id": "gpt-test", "object": "model", "created": 1, "owned_by": "x"}]})

    def embeddings(self, _query, _body):
        data = [{"object": "embedding", "index": 0, "embedding": [0.5, 0.25]}]
        usage = {"prompt_tokens": 1, "total_tokens": 1}
        self._json(200, {"object": "list", "model": "embed-test", "data": data, "usage": usage})

    def chat(self, _query, body: bytes):
        if json.loads(body).get("stream"):
            return self._stream()
        message = {"role": "assistant", "content": "hello", "refusal": None}
        choice = {"index": 0, "message": message, "finish_reason": "stop", "logprobs": None}
        usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
        self._json(200, {"id": "c1", "object": "chat.completion", "created": 1, "model": "gpt-test",
                         "choices": [choice], "usage": usage})

    def _stream(self):
        """Server-sent events. After the first one the app must call /v1/models: who gathers the stream never gets to it."""
        self.server.stream_was_read.clear()
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self._event(json.dumps(chunk("hel")))
        if not self.server.stream_was_read.wait(PROOF_TIMEOUT):
            self.close_connection = True
            return
        self._event(json.dumps(chunk("lo")))
        self._event("[DONE]")
        self.wfile.write(b"0\r\n\r\n")

    def _event(self, data: str):
        event = f"data: {data}\n\n".encode()
        self.wfile.write(f"{len(event):x}\r\n".encode() + event + b"\r\n")
        self.wfile.flush()

    # GitHub

    def repository(self, _query, _body):
        self._json(200, {"id": 1, "full_name": "o/r"})

    def issues(self, query: dict[str, str], _body):
        page = int(query.get("page", 1))
        links = {"Link": f'<https://{GITHUB}/repos/o/r/issues?page={page + 1}>; rel="next"'} if page < 3 else {}
        self._json(200, [{"number": page}], links)

    def graphql(self, _query, body: bytes):
        assert "viewer" in json.loads(body)["query"]
        self._json(200, {"data": {"viewer": {"login": "octocat"}}})

    # The provider without a name

    def things(self, query: dict[str, str], _body):
        """It echoes the credential, as debugging endpoints do: outgate has to take it out of the answer."""
        you = self.headers["X-Api-Key"]
        self._json(200, {"things": list(range(int(query.get("limit", 1)))), "you": you}, {"X-You": you})

    def create_thing(self, _query, body: bytes):
        self._json(201, {"created": json.loads(body)})


CUSTOMER = {"id": "cus_1", "object": "customer", "email": "a@example.com"}

ROUTES = {
    (STRIPE, "GET", "/v1/customers"): RestRequest.customers,
    (STRIPE, "POST", "/v1/customers"): RestRequest.create_customer,
    (OPENAI, "GET", "/v1/models"): RestRequest.models,
    (OPENAI, "POST", "/v1/embeddings"): RestRequest.embeddings,
    (OPENAI, "POST", "/v1/chat/completions"): RestRequest.chat,
    (GITHUB, "GET", "/repos/o/r"): RestRequest.repository,
    (GITHUB, "GET", "/repos/o/r/issues"): RestRequest.issues,
    (GITHUB, "POST", "/graphql"): RestRequest.graphql,
    (EXAMPLE, "GET", "/v1/things"): RestRequest.things,
    (EXAMPLE, "POST", "/v1/things"): RestRequest.create_thing,
}


def chunk(text: str) -> dict:
    choice = {"index": 0, "delta": {"role": "assistant", "content": text}, "finish_reason": None}
    return {"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": "gpt-test", "choices": [choice]}


# --- gRPC: the health service, because its stubs come as a package --------------------------------------------------


class GrpcJudge(grpc.ServerInterceptor):
    """Judges each call by its metadata, before the service."""

    def __init__(self, journal: Journal):
        self._journal = journal

    def intercept_service(self, continuation, details):
        metadata = [(name, value) for name, value in details.invocation_metadata if isinstance(value, str)]
        problem = self._journal.judge(GRPC, "POST", details.method, metadata)
        if problem is None:
            return continuation(details)

        def refuse(_request, context):
            context.abort(grpc.StatusCode.UNAUTHENTICATED, problem)

        if details.method.endswith("/Watch"):
            return grpc.unary_stream_rpc_method_handler(refuse)
        return grpc.unary_unary_rpc_method_handler(refuse)


class Health(health_pb2_grpc.HealthServicer):
    """Unary, server streaming, trailers, and an error status."""

    def __init__(self):
        self._watch_was_read = threading.Event()

    def Check(self, request, context):
        if request.service == "unknown":
            context.abort(grpc.StatusCode.NOT_FOUND, "no such service")
        if request.service == "watched":
            self._watch_was_read.set()
        context.set_trailing_metadata([("x-served-by", "origin")])
        return health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.SERVING)

    def Watch(self, request, context):
        """The second message comes once the app has the first and says so by a Check."""
        self._watch_was_read.clear()
        yield health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.NOT_SERVING)
        if not self._watch_was_read.wait(PROOF_TIMEOUT):
            context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, "the first message did not reach the app")
        yield health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.SERVING)
