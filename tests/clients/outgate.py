"""The outgate under test: its policy, its process, and what it logs."""

import json
import os
import random
import socket
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

from faulty import FaultyOrigin
from origin import EXAMPLE, GITHUB, GRPC, OPENAI, REALTIME, STRIPE, Origins

# How long outgate may take to be ready, to write a line, and to end; in seconds.
READY_TIMEOUT = 20
LINE_TIMEOUT = 5
END_TIMEOUT = 20

PROVIDERS = {"stripe": STRIPE, "openai": OPENAI, "github": GITHUB, "example": EXAMPLE, "grpc": GRPC, "realtime": REALTIME}


def secret_variable(provider: str) -> str:
    """The environment variable that only outgate gets."""
    return f"OUTGATE_TEST_{provider.upper()}_KEY"


def credential(provider: str, secret: str) -> tuple[str, str]:
    """The field that has to arrive: a bearer token, but one provider wants a header of its own."""
    return ("X-Api-Key", secret) if provider == "example" else ("Authorization", f"Bearer {secret}")


class Program:
    """One running outgate, with a policy that is given as text."""

    def __init__(self, binary: str, folder: Path, admin: int, policy: str, environment: dict[str, str], level: str = "trace"):
        """`environment` is what it alone gets; `level` is how much it tells on standard error. The access log is `access.log`."""
        self.binary = binary
        self.folder = folder
        self.admin = admin
        self.policy = folder / "proxy.yaml"
        self.policy.write_text(policy)
        self.log = AccessLog(folder / "access.log")
        self._messages = folder / "outgate.log"
        # At `trace`, everything that it and its libraries can say is searched for secrets.
        own = environment | {"OUTGATE_LOG": level}
        with self._messages.open("wb") as messages:
            self._process = subprocess.Popen([binary, "run", "--config", str(self.policy)], env=own, stderr=messages)
        self.pid = self._process.pid
        self._wait_until_ready()

    def _wait_until_ready(self):
        deadline = time.monotonic() + READY_TIMEOUT
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                break
            try:
                if self.admin_page("/readyz"):
                    return
            except (urllib.error.URLError, ConnectionError):
                time.sleep(0.02)
        self.stop()
        raise SystemExit(f"outgate did not become ready:\n{self.messages()}")

    def admin_page(self, path: str) -> str:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(f"http://127.0.0.1:{self.admin}{path}", timeout=5) as response:
            return response.read().decode()

    def messages(self) -> str:
        """What it said on standard error."""
        return self._messages.read_text(errors="replace")

    def exec(self, *command: str) -> list[str]:
        """The command under `outgate exec`."""
        return [self.binary, "exec", "--config", str(self.policy), "--", *command]

    def env(self, *command: str) -> list[str]:
        """The command in a shell that took over `outgate env`."""
        return ["sh", "-c", 'eval "$("$0" env --config "$1")"; shift; exec "$@"', self.binary, str(self.policy), *command]

    def stop(self) -> int:
        """Ends it as an orchestrator would; the exit code. What does not end in time is killed and counts as failed."""
        self._process.terminate()
        try:
            return self._process.wait(END_TIMEOUT)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()


class Outgate(Program):
    """The one that most checks use: a provider a host, each with a credential."""

    def __init__(self, binary: str, folder: Path, origins: Origins | FaultyOrigin, secrets: dict[str, str],
                 environment: dict[str, str], more: dict[str, str] | None = None, level: str = "trace"):
        """`more` is what else the policy says of a provider."""
        self.proxy, self.stripe_port, admin = free_ports(3)
        self.socket = folder / "proxy.sock"
        own = environment | {secret_variable(provider): secret for provider, secret in secrets.items()}
        super().__init__(binary, folder, admin, self._policy(folder, admin, origins, more or {}), own, level)

    def _policy(self, folder: Path, admin: int, origins: Origins | FaultyOrigin, more: dict[str, str]) -> str:
        text = head_of_policy(folder, [f"127.0.0.1:{self.proxy}", f"unix:{self.socket}"], admin) + "providers:\n"
        for provider, host in PROVIDERS.items():
            reference = f"env:{secret_variable(provider)}"
            kind = f"bearer: {reference}" if provider != "example" else f"header: {{ name: X-Api-Key, value: {reference} }}"
            text += f"""\
  {provider}:
    hosts: [{host}]
    upstream: {{ connect_to: "127.0.0.1:{origins.ports[host]}", tls: {{ ca: {origins.ca_file} }} }}
    credential: {{ {kind} }}
"""
            if provider == "stripe":
                text += f"    local: {{ address: \"127.0.0.1:{self.stripe_port}\" }}\n"
            text += more.get(provider, "")
        return text


def head_of_policy(folder: Path, listeners: list[str], admin: int) -> str:
    """What every policy here begins with: files in the folder."""
    addresses = "".join(f"  - address: {address}\n" for address in listeners)
    return f"""\
version: 1
listeners:
{addresses}admin: {{ address: "127.0.0.1:{admin}" }}
interception:
  ca: {{ directory: {folder}/ca }}
  bundle: {folder}/ca-bundle.pem
telemetry:
  access_log: {{ output: {{ file: {folder}/access.log }} }}
"""


class AccessLog:
    """Reads the lines as they come."""

    def __init__(self, path: Path):
        self._path = path
        self._position = 0

    def next(self, wanted: int, is_wanted) -> list[dict]:
        """All new lines, as soon as `wanted` of them are what `is_wanted` accepts, or after the time that a line may take."""
        lines: list[dict] = []
        deadline = time.monotonic() + LINE_TIMEOUT
        while True:
            lines += self._read()
            if sum(map(is_wanted, lines)) >= wanted or time.monotonic() > deadline:
                return lines
            time.sleep(0.01)

    def _read(self) -> list[dict]:
        with self._path.open("rb") as file:
            file.seek(self._position)
            text = file.read()
        # A line that is being written is left for the next time.
        whole = text[: text.rfind(b"\n") + 1]
        self._position += len(whole)
        return [json.loads(line) for line in whole.splitlines()]

    def everything(self) -> str:
        return self._path.read_text()


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on, all different, and below those that connections get for their own end on Linux (32768 and more)."""
    ports: list[int] = []
    while len(ports) < count:
        port = random.randrange(15000, 32768)
        try:
            socket.create_server(("127.0.0.1", port)).close()
        except OSError:
            continue
        if port not in ports:
            ports.append(port)
    return ports


def clean_environment() -> dict[str, str]:
    """This process's environment without anything that points a client at a proxy, a CA or a configuration of its own."""
    prefixes = ("HTTP", "HTTPS", "ALL", "NO", "GRPC", "NO_GRPC", "WS", "WSS")
    dropped = {f"{prefix}_PROXY" for prefix in prefixes} | {"NODE_USE_ENV_PROXY", "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH"}
    dropped |= {"SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "NODE_EXTRA_CA_CERTS"}
    dropped |= {"PYTHONPATH", "NODE_PATH", "NODE_OPTIONS", "CURL_HOME", "OUTGATE_CONFIG"}
    return {name: value for name, value in os.environ.items() if name.upper() not in dropped}
