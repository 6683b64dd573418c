"""The official clients, each through the preset of its provider: what `clients.yaml` says is run, and what all sides saw is judged.

The policy says of a provider what a platform team would: a preset, its parameters, and where the secret is. Clients of one
provider run one after another, so that what was seen belongs to the one that ran; providers run beside each other.
"""

import base64
import fnmatch
import re
import secrets as randomness
import shutil
import ssl
import string
import subprocess
import threading
from concurrent import futures
from pathlib import Path

import yaml

from aws import Moto
from mock import Mock, Provider, forms
from outgate import Program, free_ports, head_of_policy
from page import check_page
from table import Client, Way, clients, needs_dispatcher
from tokens import TokenEndpoint

HERE = Path(__file__).resolve().parent
CLIENT_TIMEOUT = 60  # seconds
LANES = 3  # providers at the same time: the clients spend most of their time with loading themselves
PIECE = 8  # bytes of a secret that already count as a leak
DUMMY = "sk_test_TheKeyThatTheAppHas"
WAYS = {"interception": "intercept", "local": "local"}


class Room:
    """Everything that runs: the providers, AWS, outgate in front of them."""

    def __init__(self, binary: str, folder: Path, python: str, node: str | None, environment: dict[str, str], chosen: list[Client],
                 moto: Moto | None):
        self.folder = folder
        self._python, self._node, self._environment = python, node, environment
        token = random_text()
        tokens = TokenEndpoint(token)
        names = {client.provider for client in chosen}
        rows = yaml.safe_load((HERE / "providers.yaml").read_text())
        fixed, aws = {"account": tokens.account(), "google_token": token}, None
        if moto:
            aws = moto.port, ssl.create_default_context(cafile=moto.ca)
            fixed["aws_id"], fixed["aws_secret"] = moto.make_user()
        self.providers = {name: provider_of(name, row, fixed) for name, row in rows.items() if name in names}
        self.mock = Mock(folder, self.providers, [DUMMY], tokens, aws)
        self._pieces = pieces_of(tokens.account(), [one for provider in self.providers.values() for one in provider.secret_texts()])
        self.proxy, self._own_port, admin = free_ports(3)
        policy = head_of_policy(folder, [f"127.0.0.1:{self.proxy}"], admin) + self._policy(rows)
        own = {variable(name, part): secret for name, one in self.providers.items() for part, secret in one.secrets.items()}
        self.outgate = Program(binary, folder, admin, policy, environment | own)
        self._lines: dict[str | None, list[dict]] = {}
        self._lock = threading.Lock()

    def _policy(self, rows: dict[str, dict]) -> str:
        text = f"""\
defaults:
  upstream: {{ connect_to: "127.0.0.1:{self.mock.port}", tls: {{ ca: {self.mock.ca_file} }} }}
providers:
"""
        for name in self.providers:
            row = rows[name]
            endpoint = f"https://127.0.0.1:{self.mock.port}/token"
            own = row["credential"].replace("<<endpoint>>", endpoint).replace("<<ca>>", str(self.mock.ca_file))
            credential = re.sub(r"<(\w+)>", lambda part: f"env:{variable(name, part[1])}", own)
            text += f"  {name}:\n    preset: {name}\n    credential: {credential}\n"
            if "with" in row:
                text += f"    with: {row['with']}\n"
            if row.get("own_port"):
                text += f"    local: {{ address: \"127.0.0.1:{self._own_port}\" }}\n"
        return text

    def close(self):
        self.outgate.stop()
        self.mock.shutdown()

    def blind_spots(self) -> list[str]:
        """The search itself must be able to fail: what it does not find of what stands in other words."""
        planted = [DUMMY, *(secret for provider in self.providers.values() for secret in provider.secret_texts())]
        missed = []
        for secret in planted:
            packed = [base64.b64encode(f"{before}{secret}:x".encode()).decode() for before in ("", "u", "us")]
            for text in (secret, secret.encode().hex(), *packed):
                found = any(form in text for form in forms(DUMMY)) if secret == DUMMY else self.leaks(text)
                missed += [] if found else [f"nothing is found in {text}"]
        return missed

    def leaks(self, text: str) -> bool:
        return any(text[at : at + PIECE] in self._pieces for at in range(len(text) - PIECE + 1))

    # One client, one way

    def run(self, client: Client, name: str) -> tuple[list[str], str]:
        """What is wrong, and what it printed."""
        way: Way = client.ways[name]
        local = f"http://127.0.0.1:{self.proxy}/{client.provider}"
        tap = self.folder / f"{client.file}-{name}.tap"
        tap.touch()
        more = {variable: text.replace("LOCAL", local).replace("KEY", DUMMY)
                for variable, text in (client.variables | way.variables).items()}
        environment = self._environment | more | {"APP_KEY": DUMMY, "LINES": way.lines, "LOCAL": local, "TAP": str(tap),
                                                  "PORT": str(self._own_port), "HOME": str(self.folder)}
        command = self._command(client, name)
        try:
            done = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                  stderr=subprocess.STDOUT, timeout=CLIENT_TIMEOUT, cwd=self.folder)
            code, output = done.returncode, done.stdout.decode(errors="replace")
        except subprocess.TimeoutExpired as error:
            code, output = None, (error.stdout or b"").decode(errors="replace")
        of_provider, lines = self._of_provider(client, name)
        return [*self._of_app(client, name, code, output, tap.read_bytes().decode("latin-1")), *of_provider,
                *self._of_log(client, name, lines)], output

    def _command(self, client: Client, name: str) -> list[str]:
        if client.language == "python":
            command = [self._python, "-B", str(HERE / "tap.py"), str(HERE / "apps" / client.app)]
        else:
            # Node looks for packages beside the script, so it runs from where they are.
            imports = ["tap.mjs"] + (["dispatcher.mjs"] if name == "interception" and client.fetch and needs_dispatcher(self._node) else [])
            room = self.folder / "room"
            command = [self._node, *(word for one in imports for word in ("--import", str(room / one))), str(room / "apps" / client.app)]
        return command if name == "local" else self.outgate.exec(*command)

    def _of_app(self, client: Client, name: str, code: int | None, output: str, heard: str) -> list[str]:
        problems = []
        if name == "alone":
            if code == 0 or client.ways[name].says not in output:
                problems.append(f"the client ended with {code} and did not say {client.ways[name].says!r}")
            return problems
        if code != 0:
            problems.append("the client did not end in time" if code is None else f"the client ended with {code}")
        if client.says not in output:
            problems.append(f"the client did not say {client.says!r}")
        if self.leaks(output):
            problems.append("the app printed a piece of a secret")
        if self.leaks(heard):
            problems.append("the app received a piece of a secret")
        if "HTTP/1.1 200" not in heard and "x-echo" not in heard.lower():
            problems.append("what the app received was not heard")
        return problems

    def _of_provider(self, client: Client, name: str) -> tuple[list[str], list[str]]:
        """What is wrong, and the lines that the access log has to have."""
        seen = self.mock.take(client.provider)
        wanted = [] if name == "alone" else client.sees
        problems, lines = [], []
        left = list(seen)
        for one in wanted:
            found = next((request for request in left if fnmatch.fnmatchcase(request.request, one.request)), None)
            if found is None:
                problems.append(f"the provider missed {one.request}")
            else:
                left.remove(found)
                lines.append(f"{found.request.split('?')[0]} {one.route}")
        problems += [f"the provider saw {one.request}" for one in left]
        return problems + [f"{one.host} {one.request}: {one.problem}" for one in seen if one.problem], lines

    def _of_log(self, client: Client, name: str, wanted: list[str]) -> list[str]:
        lines = [line for line in self._lines_of(client.provider, len(wanted)) if line["outgate.door"] != "connect"]
        found = sorted(f"{line.get('http.request.method')} {path_of(line)} {line.get('outgate.route')}" for line in lines)
        problems = [] if found == sorted(wanted) else [f"the access log has {found}, not {sorted(wanted)}"]
        if any(line["outgate.door"] != WAYS.get(name) for line in lines):
            problems.append("the access log names another door")
        if any(line.get("outgate.attempts") != 1 or line.get("http.response.status_code", 500) >= 400 for line in lines):
            problems.append("the access log tells of attempts or errors")
        if any(self.leaks(str(line)) for line in lines):
            problems.append("the access log holds a piece of a secret")
        return problems

    def _lines_of(self, provider: str, wanted: int) -> list[dict]:
        """The lines of one provider, of which so many are to come."""
        for _ in range(500):
            with self._lock:
                for line in self.outgate.log.next(0, bool):
                    self._lines.setdefault(line.get("outgate.provider"), []).append(line)
                found = self._lines.get(provider, [])
                if sum(line["outgate.door"] != "connect" for line in found) >= wanted:
                    return self._lines.pop(provider, [])
            threading.Event().wait(0.01)
        return self._lines.pop(provider, [])

    def rest(self) -> list[str]:
        """What can only be said at the end."""
        pages = "".join(self.outgate.admin_page(page) for page in ("/metrics", "/status"))
        code = self.outgate.stop()
        self._lines_of("", 0)
        problems = [f"it ended with {code}"] if code else []
        problems += [f"a client went to {line.get('server.address')}, which no preset names" for line in self._lines.pop(None, [])]
        problems += [f"lines of {name} came after their client had ended" for name in self._lines]
        written = {"log": self.outgate.log.everything(), "messages": self.outgate.messages(), "pages": pages}
        return problems + [f"its {what} hold a piece of a secret" for what, text in written.items() if self.leaks(text)]


def path_of(line: dict) -> str:
    """As the provider sees it: the local endpoint has the provider before it."""
    path = line.get("url.path", "-")
    return re.sub(rf"^/{line['outgate.provider']}(@[^/]*)?(?=/)", "", path) if line["outgate.door"] == "local" else path


def variable(provider: str, part: str) -> str:
    """The environment variable that only outgate gets."""
    return f"OUTGATE_TEST_{provider}_{part}".upper().replace("-", "_")


def random_text() -> str:
    return "".join(randomness.choice(string.ascii_letters + string.digits) for _ in range(40))


def provider_of(name: str, row: dict, fixed: dict[str, str]) -> Provider:
    parts = set(re.findall(r"(?<!<)<(\w+)>", row["credential"] + str(row["wants"])))
    return Provider(name, row["hosts"], row["wants"], row["answers"], {part: fixed.get(part) or random_text() for part in parts},
                    row.get("tells", ""))


def pieces_of(account: str, secrets: list[str]) -> set[str]:
    """All pieces of all secrets, in every form; of the account's key what is key."""
    key = "".join(line for line in account.split("\\n") if len(line) == 64)
    texts = [key, *(form for secret in secrets for form in forms(secret))]
    return {text[at : at + PIECE] for text in texts for at in range(len(text) - PIECE + 1)}


def check_providers(report, binary: str, folder: Path, python: str, node: str | None, environment: dict[str, str], only: str,
                    isolated: bool):
    """Every client by every way that it knows."""
    chosen = [one for one in clients() if only in one.name and (node or one.language == "python")]
    if not chosen:
        return
    folder.mkdir()
    shutil.copytree(HERE, folder / "room", ignore=shutil.ignore_patterns("__pycache__"))
    moto = Moto(folder, python, environment) if any(client.provider.startswith("aws-") for client in chosen) else None
    try:
        room = Room(binary, folder, python, node, environment, chosen, moto)
        try:
            run_all(room, report, chosen, isolated)
        finally:
            room.close()
    finally:
        if moto:
            moto.stop()
    if not only:
        check_page(report)


def run_all(room: Room, report, chosen: list[Client], isolated: bool):
    """Providers beside each other, the clients of one by turns."""
    printing = threading.Lock()

    def lane(provider: str):
        for client in (one for one in chosen if one.provider == provider):
            for name in client.ways:
                if name == "alone" and not isolated:
                    continue
                problems, output = room.run(client, name)
                with printing:
                    way = "interception" if name == "alone" else name
                    report.line(client.name, way, client.title(name), problems, output)

    report.line("presets", "none", "a planted secret is found in every form", room.blind_spots())
    with futures.ThreadPoolExecutor(LANES) as pool:
        for done in [pool.submit(lane, provider) for provider in room.providers]:
            done.result()
    report.line("presets", "all", "outgate ends cleanly; no secret in log, messages, metrics, status", room.rest())
