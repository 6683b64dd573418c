"""S3 as others speak it: Cloudflare R2, DigitalOcean Spaces, Google Cloud Storage with HMAC keys; by their presets.

The judge is botocore: of each request that arrives, its own signer makes the signature anew, with the keys that only outgate has, for
the region and service that the provider wants, from nothing but what arrived. Bodies are hashed, and the signature of each chunk
is worked out as AWS documents it (docs.aws.amazon.com/AmazonS3/latest/API/sigv4-streaming.html, sigv4-streaming-trailers.html).
"""

import datetime
import hashlib
import http.client
import io
import random
import ssl
import threading
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import trustme
from botocore.auth import SIGV4_TIMESTAMP, S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from outgate import Program, free_ports, head_of_policy

ACCOUNT = "0123456789abcdef0123456789abcdef"
PIECE = 64 * 1024
EMPTY = hashlib.sha256(b"").hexdigest()
# Provider: its preset, the endpoint, the region that it wants, how its credential is written, and the keys that are outgate's.
PROVIDERS = {
    "r2": ("preset: cloudflare-r2, with: {{ account: {account} }}", f"{ACCOUNT}.r2.cloudflarestorage.com", "auto",
           "{{ access_key_id: env:{id}, secret_access_key: env:{secret} }}", ("fedcba9876543210fedcba9876543210", "r2-secret-Kd81Mz" * 3)),
    "spaces": ("preset: digitalocean-spaces, with: {{ region: fra1 }}", "fra1.digitaloceanspaces.com", "fra1",
               "{{ access_key_id: env:{id}, secret_access_key: env:{secret} }}", ("DO00EXAMPLEEXAMPLE00", "do-secret-Wq52Nb" * 2)),
    "gcs": ("preset: google-cloud-storage", "storage.googleapis.com", "auto",
            "{{ hmac_key: {{ access_id: env:{id}, hmac_secret: env:{secret} }} }}", ("GOOG1E" + "EXAMPLE" * 7 + "ABCDEF", "gcs-secret-Yt3Hv" * 2)),
}
# No preset: the name of the host alone tells outgate what to sign for.
BARE = "bare-spaces"
REFUSED = 403


class Store(ThreadingHTTPServer):
    """All of them, over TLS: objects by host and path, and only for who signs as they want it."""

    def __init__(self, folder: Path):
        super().__init__(("127.0.0.1", 0), Answer)
        authority = trustme.CA()
        self.ca = folder / "s3-ca.pem"
        authority.cert_pem.write_to_path(str(self.ca))
        hosts = [name for _, host, *_ in PROVIDERS.values() for name in (host, f"*.{host}")]
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert(*hosts).configure_cert(context)
        self.socket = context.wrap_socket(self.socket, server_side=True)
        self.objects, self.problems, self.modes = {}, [], []
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def handle_error(self, *_):
        """A connection that outgate closes is no event here."""


class Answer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_PUT(self):
        if (body := self.judged()) is not None:
            self.server.objects[self.key()] = body
            self.reply(200, b"")

    def do_GET(self):
        if self.judged() is None:
            return
        if "list-type" in self.path:
            self.reply(200, b'<?xml version="1.0"?><ListBucketResult><Name>b</Name><KeyCount>0</KeyCount></ListBucketResult>')
        else:
            body = self.server.objects.get(self.key())
            self.reply(404 if body is None else 200, body or b"")

    def key(self) -> str:
        return urllib.parse.unquote(self.headers["Host"] + self.path.partition("?")[0])

    def judged(self) -> bytes | None:
        """The body, if everything is signed as it must be; else it has been answered."""
        raw = self.body()
        try:
            return judge(self.command, self.headers, self.path, raw, self.server.modes)
        except Wrong as wrong:
            self.server.problems.append(f"{self.command} {self.headers['Host']}{self.path}: {wrong}")
            self.reply(REFUSED, b"<Error><Code>SignatureDoesNotMatch</Code></Error>")
            return None

    def body(self) -> bytes:
        """What stands within the framing of HTTP."""
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def reply(self, status: int, body: bytes):
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", f'"{hashlib.md5(body).hexdigest()}"')
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


class Wrong(Exception):
    """What is not as it must be."""


def judge(method: str, headers, path: str, raw: bytes, modes: list[str]) -> bytes:
    """The body as it was meant. The judge has no part of outgate."""
    host = headers["Host"]
    _, _, region, _, keys = next(row for row in PROVIDERS.values() if host == row[1] or host.endswith("." + row[1]))
    kind, _, rest = headers.get("Authorization", "").partition(" ")
    fields = dict(part.strip().partition("=")[::2] for part in rest.split(","))
    if kind != "AWS4-HMAC-SHA256" or set(fields) != {"Credential", "SignedHeaders", "Signature"}:
        raise Wrong(f"signed as {kind!r}")
    at = headers.get("X-Amz-Date", "")
    moment = datetime.datetime.strptime(at, SIGV4_TIMESTAMP).replace(tzinfo=datetime.UTC)
    if abs((datetime.datetime.now(datetime.UTC) - moment).total_seconds()) > 300:
        raise Wrong(f"signed at {at}")
    scope = f"{keys[0]}/{at[:8]}/{region}/s3/aws4_request"
    if fields["Credential"] != scope:
        raise Wrong("signed for another region, service, day or key")
    signed = fields["SignedHeaders"].split(";")
    must = {"host"} | {name.lower() for name in headers if name.lower().startswith(("x-amz-", "x-goog-"))}
    if not must <= set(signed):
        raise Wrong(f"not signed: {sorted(must - set(signed))}")
    request = AWSRequest(method, f"https://{host}{path}", {name: headers[name] for name in signed if name in headers})
    request.context.update({"timestamp": at, "signing": {}})
    signer = Signer(Credentials(*keys), "s3", region)
    if signer.of(request) != fields["Signature"]:
        raise Wrong("the signature is another one")
    declared = headers.get("X-Amz-Content-Sha256", "")
    modes.append(declared if not set(declared) <= set("0123456789abcdef") else "hash")
    if declared == "UNSIGNED-PAYLOAD":
        return raw
    if declared.startswith("STREAMING-"):
        body = chunks(raw, declared, signer, request, at, scope.partition("/")[2], fields["Signature"])
        if len(body) != int(headers["X-Amz-Decoded-Content-Length"]):
            raise Wrong("the decoded length is another one")
        return body
    if hashlib.sha256(raw).hexdigest() != declared:
        raise Wrong("the hash of the body is another one")
    return raw


class Signer(S3SigV4Auth):
    """botocore's own, asked for a signature alone."""

    def of(self, request: AWSRequest) -> str:
        return self.signature(self.string_to_sign(request, self.canonical_request(request)), request)

    def headers_to_sign(self, request):
        # What the signature names, and nothing that botocore would leave out or add.
        headers = http.client.HTTPMessage()
        for name, value in request.headers.items():
            headers[name.lower()] = value
        return headers


def chunks(raw: bytes, declared: str, signer: Signer, request: AWSRequest, at: str, scope: str, seed: str) -> bytes:
    """The data of an aws-chunked body; each chunk and the trailer signed behind the one before."""
    body, stream, before = b"", io.BytesIO(raw), seed
    while True:
        size, _, signature = stream.readline().rstrip(b"\r\n").partition(b";chunk-signature=")
        data = stream.read(int(size, 16))
        if "HMAC" in declared:
            text = "\n".join(["AWS4-HMAC-SHA256-PAYLOAD", at, scope, before, EMPTY, hashlib.sha256(data).hexdigest()])
            before = signer.signature(text, request)
            if signature.decode() != before:
                raise Wrong(f"the chunk of {len(data)} bytes has another signature")
        body += data
        if not data:
            break
        if stream.readline() != b"\r\n":
            raise Wrong("a chunk does not end")
    lines = stream.read().decode().split("\r\n")
    if declared.endswith("-TRAILER"):
        fields = dict(line.partition(":")[::2] for line in lines if line)
        given = fields.pop("x-amz-trailer-signature", None)
        if not fields:
            raise Wrong("there is no trailer")
        if "HMAC" in declared:
            text = "".join(f"{name}:{value}\n" for name, value in sorted(fields.items()))
            text = "\n".join(["AWS4-HMAC-SHA256-TRAILER", at, scope, before, hashlib.sha256(text.encode()).hexdigest()])
            if given != signer.signature(text, request):
                raise Wrong("the trailer has another signature")
    elif any(lines):
        raise Wrong("something follows the last chunk")
    return body


class Proxy(Program):
    """An outgate with all of them."""

    def __init__(self, binary: str, folder: Path, store: Store, environment: dict[str, str]):
        self.port, admin = free_ports(2)
        self.bundle = folder / "ca-bundle.pem"
        port, own = store.server_address[1], {}
        text = head_of_policy(folder, [f"127.0.0.1:{self.port}"], admin) + "providers:\n"
        upstream = f'upstream: {{ connect_to: "127.0.0.1:{port}", tls: {{ ca: {store.ca} }} }}'
        for name, (preset, _, _, credential, keys) in PROVIDERS.items():
            names = {"id": f"OUTGATE_TEST_{name.upper()}_ID", "secret": f"OUTGATE_TEST_{name.upper()}_SECRET"}
            own |= {names["id"]: keys[0], names["secret"]: keys[1]}
            text += f"  {name}: {{ {preset.format(account=ACCOUNT)}, {upstream}, credential: {credential.format(**names)} }}\n"
        text += (f"  {BARE}: {{ hosts: [{PROVIDERS['spaces'][1]}], doors: [local], {upstream}, credential: {{ aws_sigv4: "
                 "{ access_key_id: env:OUTGATE_TEST_SPACES_ID, secret_access_key: env:OUTGATE_TEST_SPACES_SECRET } } }\n")
        super().__init__(binary, folder, admin, text, environment | own)


def check_signed(report, binary: str, folder: Path, environment: dict[str, str], only: str):
    """boto3 with dummy keys by interception, and uploads in chunks that its own keys sign, at the local endpoint."""
    if only not in "s3-others":
        return
    folder.mkdir()
    store, proxy = Store(folder), None
    try:
        report.line("s3-others", "none", "the judge takes what botocore signs, and nothing that is changed", judge_can_fail())
        proxy = Proxy(binary, folder, store, environment)
        for name in PROVIDERS:
            for title, way, run in (("PUT, GET, a list, an upload whose length comes last", "interception", by_boto3),
                                    ("signed chunks, with and without a trailer; presigned is 403", "local", by_chunks)):
                store.modes.clear()
                problems = run(proxy, store, name)
                report.line("s3-others", way, f"{name}: {title}", problems + store.problems)
                store.problems.clear()
        report.line("s3-others", "local", "the region is read from the host's name", by_chunks(proxy, store, BARE) + store.problems)
        code = proxy.stop()
        written = proxy.messages() + proxy.log.everything()
        problems = [f"it ended with {code}"] if code else []
        problems += [f"a secret of {name} was found" for name, row in PROVIDERS.items() if row[4][1] in written]
        report.line("s3-others", "all", "outgate ends cleanly, and has written nothing of the keys", problems)
    finally:
        if proxy:
            proxy.stop()
        store.shutdown()
        store.server_close()


def judge_can_fail() -> list[str]:
    """What botocore itself signs is good, and each part of it counts."""
    _, host, region, _, keys = PROVIDERS["r2"]
    request = AWSRequest("PUT", f"https://{host}/b/a%20key?x=1&b", {"Host": host, "X-Amz-Meta-Who": "me"}, b"body")
    S3SigV4Auth(Credentials(*keys), "s3", region).add_auth(request)

    def says(path="/b/a%20key?x=1&b", body=b"body", method="PUT", **more) -> str:
        try:
            headers = http.client.HTTPMessage()
            changed = {name.replace("_", "-"): value for name, value in more.items()}
            for field, value in (dict(request.headers.items()) | changed).items():
                headers[field] = value
            judge(method, headers, path, body, [])
            return ""
        except Wrong as wrong:
            return str(wrong)

    problems = [f"what botocore signed is refused: {wrong}"] if (wrong := says()) else []
    changed = {"path": says(path="/b/a%20kez?x=1&b"), "query": says(path="/b/a%20key?x=2&b"), "method": says(method="GET"),
               "field": says(X_Amz_Meta_Who="you"), "more": says(X_Amz_Meta_More="1"), "body": says(body=b"bodz"),
               "key": says(Authorization=request.headers["Authorization"].replace(keys[0], "AKIDOTHER")),
               "region": says(Authorization=request.headers["Authorization"].replace("/auto/", "/us-east-1/"))}
    return problems + [f"another {what} is taken" for what, wrong in changed.items() if not wrong]


def by_boto3(proxy: Proxy, store: Store, name: str) -> list[str]:
    """A client of the provider, as it is documented: an endpoint of its own and any keys."""
    import boto3
    from botocore.config import Config
    from botocore.exceptions import ClientError

    problems, host = [], PROVIDERS[name][1]
    through = {"https": f"http://127.0.0.1:{proxy.port}"}
    for style in ("path", "virtual"):
        s3 = boto3.client("s3", endpoint_url=f"https://{host}", region_name="us-east-1", verify=str(proxy.bundle),
                          aws_access_key_id="AKIADUMMYDUMMYDUMMY0", aws_secret_access_key="dummy", aws_session_token="dummy-session",
                          config=Config(s3={"addressing_style": style}, proxies=through, retries={"total_max_attempts": 1}))
        try:
            for key in ("plain", "with space/and+plus&ü=(1)~*'.txt", "a//b/../c"):
                body = b"hello " + key.encode()
                s3.put_object(Bucket="bucket", Key=key, Body=body, Metadata={"who": "me"})
                if s3.get_object(Bucket="bucket", Key=key)["Body"].read() != body:
                    problems.append(f"{style}: {key} came back as something else")
            # Its length is not known before, and its checksum comes last.
            s3.upload_fileobj(io.BytesIO(b"x" * 100_000), "bucket", "stream", ExtraArgs={"ChecksumAlgorithm": "CRC32"})
            if s3.get_object(Bucket="bucket", Key="stream")["Body"].read() != b"x" * 100_000:
                problems.append(f"{style}: the upload came back as something else")
            s3.list_objects_v2(Bucket="bucket", Prefix="with space/", Delimiter="/")
        except (ClientError, OSError) as error:
            problems.append(f"{style}: {error}")
    if "STREAMING-UNSIGNED-PAYLOAD-TRAILER" not in store.modes:
        problems.append(f"nothing was streamed: {sorted(set(store.modes))}")
    return problems


def by_chunks(proxy: Proxy, store: Store, name: str) -> list[str]:
    """Uploads as SDKs make them that sign each chunk, here with signatures of nobody."""
    problems, nobody = [], "0" * 64
    data = random.Random(3).randbytes(3 * PIECE + 1000)
    for mode in ("STREAMING-AWS4-HMAC-SHA256-PAYLOAD", "STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER"):
        pieces = [data[at : at + PIECE] for at in range(0, len(data), PIECE)] + [b""]
        body = b"".join(f"{len(piece):x};chunk-signature={nobody}\r\n".encode() + piece + (b"\r\n" if piece else b"") for piece in pieces)
        trailer = mode.endswith("-TRAILER")
        body += f"x-amz-checksum-crc32:AAAAAA==\r\nx-amz-trailer-signature:{nobody}\r\n\r\n".encode() if trailer else b"\r\n"
        headers = {"X-Amz-Content-Sha256": mode, "X-Amz-Decoded-Content-Length": str(len(data)), "Content-Encoding": "aws-chunked",
                   "X-Amz-Date": "20200101T000000Z", "Content-Length": str(len(body)),
                   "Authorization": f"AWS4-HMAC-SHA256 Credential=DUMMY/20200101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature={nobody}"}
        if trailer:
            headers["X-Amz-Trailer"] = "x-amz-checksum-crc32"
        path = f"/{name}/bucket/in-chunks-{len(mode)}"
        if (status := ask(proxy, "PUT", path, headers, body)[0]) != 200:
            problems.append(f"{mode}: {status}")
        elif ask(proxy, "GET", path, {}, None) != (200, data):
            problems.append(f"{mode}: it came back as something else")
        if mode not in store.modes:
            problems.append(f"{mode} did not arrive")
    status, _ = ask(proxy, "GET", f"/{name}/bucket/k?X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Signature={nobody}", {}, None)
    return problems + ([f"a presigned URL: {status}"] if status != 403 else [])


def ask(proxy: Proxy, method: str, path: str, headers: dict[str, str], body: bytes | None) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=20)
    try:
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()
