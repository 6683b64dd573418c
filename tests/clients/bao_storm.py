"""A refresh token that rotates, kept by OpenBao's check-and-set for four processes of the real program, in a storm.

The identity provider takes two seconds, takes each refresh token once, and ends the earlier access tokens with the moment that it is asked. 500
requests come at once over the four processes when their token has ended: one refresh in all, no stale token, all are answered.
"""

import http.client
import json
import threading
import time
import urllib.parse
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from bao import ROOT, Bao, direct, wait_for
from outgate import Program, free_ports, head_of_policy

SEED = "refresh-seed-Gh61Vk"
LATENCY = 2  # seconds
LIFE = 14  # seconds, of the first token; it is used for nine tenths of that
PROCESSES = 4
REQUESTS = 500
ROUNDS = 2  # storms: the second begins where the first has left the grant


class Identity(ThreadingHTTPServer):
    """The token endpoint, and the provider that takes its tokens."""

    request_queue_size = REQUESTS

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Answer)
        self.lock = threading.Lock()
        self.asked, self.reused, self.stale, self.good, self.refresh, self.life = 0, 0, 0, None, SEED, LIFE
        # Open: it answers after its latency. Shut: not before it is opened, so that the token ends meanwhile.
        self.gate = threading.Event()
        self.gate.set()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def handle_error(self, *_):
        """A connection that outgate closes is no event here."""

    def token(self, form: dict[str, list[str]]) -> dict:
        with self.lock:
            self.asked += 1
            number, self.good = self.asked, None
            if form.get("refresh_token") != [self.refresh]:
                self.reused += 1
                return {"error": "invalid_grant"}
            self.refresh = f"refresh-{number}-Jk52"
            answer = {"access_token": f"access-{number}-Lm43", "refresh_token": self.refresh, "expires_in": self.life}
        time.sleep(LATENCY)
        self.gate.wait(60)
        with self.lock:
            self.good = number
        return answer

    def takes(self, sent: str) -> bool:
        with self.lock:
            if self.good is not None and sent == f"Bearer access-{self.good}-Lm43":
                return True
            self.stale += 1
            return False


class Answer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.reply(200 if self.server.takes(self.headers.get("Authorization", "")) else 401, {})

    def do_POST(self):
        form = urllib.parse.parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
        self.reply(200, self.server.token(form))

    def reply(self, status: int, body: dict):
        data = json.dumps(body).encode()
        # In one piece: two would wait for each other.
        self.wfile.write(f"HTTP/1.1 {status} X\r\nContent-Length: {len(data)}\r\n\r\n".encode() + data)

    def log_message(self, *_):
        pass


class Proxy(Program):
    """One of the processes."""

    def __init__(self, binary: str, folder: Path, bao: Bao, identity: Identity, environment: dict[str, str]):
        folder.mkdir()
        self.port, admin = free_ports(2)
        at = identity.server_address[1]
        policy = head_of_policy(folder, [f"127.0.0.1:{self.port}"], admin) + f"""\
secrets:
  bao: {{ vault: {{ address: "{bao.address}", auth: {{ token: "file:{folder.parent}/token" }} }} }}
providers:
  api:
    hosts: [api.x.test]
    upstream: {{ scheme: http, connect_to: "127.0.0.1:{at}", plaintext_credential: allow }}
    credential:
      oauth2_refresh_token:
        token_url: http://127.0.0.1:{at}/token
        client_id: plain:app
        refresh_token: file:{folder.parent}/seed
        rotates: true
        store: {{ vault: "bao:secret/storm/grant" }}
"""
        super().__init__(binary, folder, admin, policy, environment)

    def get(self) -> int:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request("GET", "/api/x")
            answer = connection.getresponse()
            answer.read()
            return answer.status
        except OSError as error:
            return error.errno or 0
        finally:
            connection.close()

    def has_ended(self) -> bool:
        return '"expired"' in self.admin_page("/status")


def check_bao_storm(report, binary: str, folder: Path, environment: dict[str, str], only: str):
    """Runs it."""
    if only not in "openbao-storm":
        return
    folder.mkdir()
    identity, bao, proxies = Identity(), None, []
    try:
        bao = Bao(folder, environment)
        # What docs/credentials.md says that it needs, and no more.
        policy = """
path "secret/data/storm/grant" { capabilities = ["create", "read", "update"] }
path "secret/metadata/storm/grant" { capabilities = ["read"] }
"""
        bao.ask("POST", "sys/policies/acl/storm", {"policy": policy})
        token = bao.ask("POST", "auth/token/create", {"policies": ["storm"], "ttl": "1h"})["auth"]["client_token"]
        (folder / "token").write_text(token)
        (folder / "seed").write_text(SEED)
        # They start at once: one of them exchanges the refresh token of the policy, for all.
        with ThreadPoolExecutor(PROCESSES) as pool:
            proxies = list(pool.map(lambda name: Proxy(binary, folder / str(name), bao, identity, environment), range(PROCESSES)))
        first = [proxy.get() for proxy in proxies]
        problems = [] if first == [200] * PROCESSES and (identity.asked, identity.reused) == (1, 0) else [
            f"{first}, {identity.asked} exchanges, {identity.reused} used up ones"]
        report.line("openbao-storm", "local", "four processes that start at once make one exchange", problems)
        for number in range(1, ROUNDS + 1):
            identity.life = 3600 if number == ROUNDS else LIFE
            report.line("openbao-storm", "local", f"storm {number}: {REQUESTS} requests, four processes, one refresh", storm(identity, proxies))
        told = "".join(proxy.admin_page("/status") + proxy.admin_page("/metrics") for proxy in proxies)
        codes = [proxy.stop() for proxy in proxies]
        told += "".join(proxy.messages() + proxy.log.everything() for proxy in proxies)
        problems = [f"they ended with {codes}"] if any(codes) else []
        problems += [f"{secret[:7]}... was found" for secret in (SEED, token, "-Jk52", "-Lm43", ROOT) if secret in told]
        kept = json.dumps(bao.ask("GET", "secret/data/storm/grant"))
        problems += [f"{secret} stands in OpenBao unsealed" for secret in ("-Jk52", "-Lm43") if secret in kept]
        report.line("openbao-storm", "all", "they end cleanly; no token stands in what they write, nor in OpenBao unsealed", problems)
    finally:
        for proxy in proxies:
            proxy.stop()
        if bao:
            bao.stop()
        identity.shutdown()
        identity.server_close()


def storm(identity: Identity, proxies: list[Proxy]) -> list[str]:
    asked, stale = identity.asked, identity.stale
    identity.gate.clear()
    try:
        # It ends in each of them, while one of them asks for the next.
        wait_for("the token has ended everywhere", lambda: all(proxy.has_ended() for proxy in proxies), LIFE + 10)
        with ThreadPoolExecutor(REQUESTS) as pool:
            answers = [pool.submit(proxies[number % PROCESSES].get) for number in range(REQUESTS)]
            # The next token comes while requests come.
            identity.gate.set()
            statuses = [answer.result() for answer in answers]
    finally:
        identity.gate.set()
    others = sorted(status for status in statuses if status != 200)
    problems = [f"{len(others)} of {REQUESTS} were not 200: {sorted(set(others))}"] if others else []
    if (identity.asked - asked, identity.reused) != (1, 0):
        problems.append(f"{identity.asked - asked} refreshes, and {identity.reused} used up tokens were sent")
    if identity.stale != stale:
        problems.append(f"{identity.stale - stale} requests carried a stale token")
    return problems
