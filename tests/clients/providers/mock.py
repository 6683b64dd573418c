"""Plays the providers of `providers.yaml`: one TLS server on loopback, which judges what it sees and answers from the table.

What has to arrive stands there as `wants`; the app's dummy key may stand nowhere, in no form. Each answer bears the credential
once more, in `X-Echo` and where it is an object in `echo`, as debugging endpoints do: outgate has to take it out.
"""

import base64
import dataclasses
import fnmatch
import gzip
import http.client
import json
import ssl
import threading
from pathlib import Path

import trustme

from origin import PROOF_TIMEOUT, RestRequest, RestServer, context_of
from tokens import TokenEndpoint

# Answers with one of these have no body.
BODILESS = (204, 304)


def forms(secret: str) -> list[str]:
    """As it could stand somewhere: as it is, in base64 at each of the three places it can begin, in hex, with percent signs."""
    raw = secret.encode()
    aligned = []
    for before in range(3):
        text = base64.b64encode(b"x" * before + raw).decode()
        # What stands beside it decides about the characters at the edges, so they are left out.
        aligned.append(text[-(-before * 4 // 3) : (before + len(raw)) * 4 // 3])
    return [secret, raw.hex(), "".join(f"%{byte:02X}" for byte in raw), *aligned]


@dataclasses.dataclass
class Provider:
    """One row of the table, filled with secrets."""

    name: str
    hosts: list[str]
    wants: list[dict]
    answers: list[dict]
    secrets: dict[str, str]
    # Where the app's dummy may stand, because it is no secret there.
    tells: str = ""

    def fill(self, text: str) -> str:
        for name, secret in self.secrets.items():
            text = text.replace(f"<{name}>", secret)
        return text

    def secret_texts(self) -> list[str]:
        """What nobody may see; the key of an account is judged by itself, and the name of a key is none."""
        return [secret for name, secret in self.secrets.items() if name not in ("account", "aws_id")]

    def problem(self, headers: list[tuple[str, str]], body: bytes) -> str | None:
        """What is missing of the credential."""
        return next((problem for want in self.wants if (problem := self._missing(want, headers, body))), None)

    def _missing(self, want: dict, headers: list[tuple[str, str]], body: bytes) -> str | None:
        if "field" in want:
            found = json.loads(body).get(want["field"]) if body else None
            return None if found == self.fill(want["is"]) else f"the body's {want['field']} is not exactly the credential"
        values = [value for name, value in headers if name.lower() == want["header"]]
        if "begins" in want:
            right = len(values) == 1 and values[0].startswith(self.fill(want["begins"]))
        else:
            right = values == [self.credential(want)]
        return None if right else f"{want['header']} is not exactly the credential ({len(values)} fields)"

    def credential(self, want: dict) -> str:
        if "basic" in want:
            return "Basic " + base64.b64encode(self.fill(want["basic"]).encode()).decode()
        return self.fill(want.get("is") or want.get("begins"))

    def answer(self, request: str, body: bytes) -> dict | None:
        """The first that is meant for it."""
        text = body.decode(errors="replace")
        fits = fnmatch.fnmatchcase
        return next((one for one in self.answers if fits(request, one["to"]) and fits(text, one.get("body", "*"))), None)


def unpacked(headers: list[tuple[str, str]], body: bytes) -> bytes:
    """The body as it was before a client packed it."""
    packed = next((value for name, value in headers if name.lower() == "content-encoding"), "identity")
    if packed not in ("identity", "aws-chunked", "gzip"):
        raise ValueError(f"a body packed as {packed} cannot be searched")
    return gzip.decompress(body) if packed == "gzip" else body


@dataclasses.dataclass
class Seen:
    """One request as a provider saw it."""

    request: str
    host: str
    problem: str | None


class Mock(RestServer):
    """All providers, running."""

    def __init__(self, folder: Path, providers: dict[str, Provider], dummies: list[str], tokens: TokenEndpoint,
                 aws: tuple[int, ssl.SSLContext] | None):
        """`aws` is the port of what plays AWS behind this, and how to trust it."""
        authority = trustme.CA()
        self.ca_file = folder / "providers-ca.pem"
        authority.cert_pem.write_to_path(str(self.ca_file))
        hosts = [host for provider in providers.values() for host in provider.hosts]
        super().__init__(("127.0.0.1", 0), Request, context_of(authority.issue_cert(*hosts, "127.0.0.1")), None)
        self.port = self.server_address[1]
        self.tokens, self.aws = tokens, aws
        self._providers = providers
        self._dummies = [form for dummy in dummies for form in forms(dummy)]
        self._seen: dict[str, list[Seen]] = {name: [] for name in providers}
        self.another = {name: threading.Event() for name in providers}
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def provider_of(self, host: str) -> Provider | None:
        named = host.split(":")[0]
        return next((one for one in self._providers.values() if any(fnmatch.fnmatchcase(named, each) for each in one.hosts)), None)

    def judge(self, provider: Provider, request: str, headers: list[tuple[str, str]], body: bytes) -> str | None:
        """Notes a request; returns what is wrong with it, or None."""
        places = {"the URL": request, "the body": unpacked(headers, body).decode("latin-1"), **dict(headers)}
        came = [place for place, text in places.items() if place != provider.tells and any(form in text for form in self._dummies)]
        problem = f"the app's dummy key came through in {came}" if came else provider.problem(headers, body)
        self._seen[provider.name].append(Seen(request, dict(headers).get("Host", ""), problem))
        self.another[provider.name].set()
        return problem

    def take(self, name: str) -> list[Seen]:
        """What one provider saw since this was last asked."""
        seen, self._seen[name] = self._seen[name], []
        return seen


class Request(RestRequest):
    """One request to any of them."""

    def do_PUT(self):
        self._serve()

    do_DELETE = do_PATCH = do_HEAD = do_PUT

    def _serve(self):
        body, mock = self._body(), self.server
        if self.path == "/token":
            return self._json(*mock.tokens.issue(body))
        provider = mock.provider_of(self.headers.get("Host", ""))
        if provider is None:
            return self._json(421, {"message": "no such provider here"})
        request = f"{self.command} {self.path}"
        problem = mock.judge(provider, request, self.headers.items(), body)
        if problem:
            return self._json(401, {"message": problem})
        if provider.answers == "aws":
            return self._pass_on(body)
        answer = provider.answer(request, body)
        if answer is None:
            return self._json(404, {"message": f"nothing at {request}"})
        echo = {"X-Echo": provider.credential(provider.wants[0])}
        if "events" in answer:
            return self._events(answer, mock.another[provider.name], echo)
        self._whole(answer, echo)

    def _whole(self, answer: dict, echo: dict[str, str]):
        value = answer.get("json")
        if isinstance(value, dict) and answer.get("echo", True):
            value = value | {"echo": echo["X-Echo"]}
        body = answer["text"].encode() if "text" in answer else json.dumps(value).encode()
        self.send_response(answer.get("status", 200))
        headers = {"Content-Type": "application/json"} | answer.get("headers", {}) | echo
        if answer.get("status") not in BODILESS:
            headers["Content-Length"] = str(len(body))
        for name, text in headers.items():
            self.send_header(name, text)
        self._headers_buffer.append(b"\r\n" + (body if answer.get("status") not in BODILESS and self.command != "HEAD" else b""))
        self.flush_headers()

    def _events(self, answer: dict, another: threading.Event, echo: dict[str, str]):
        """Server-sent events. After the first one the app must make another call: who gathers the stream never gets to it."""
        another.clear()
        self.send_response(200)
        for name, text in ({"Content-Type": "text/event-stream", "Transfer-Encoding": "chunked"} | echo).items():
            self.send_header(name, text)
        self.end_headers()
        for number, event in enumerate(answer["events"]):
            if number == 1 and not another.wait(PROOF_TIMEOUT):
                self.close_connection = True
                return
            data = event if isinstance(event, str) else json.dumps(event)
            name = f"event: {event['type']}\n" if isinstance(event, dict) and "type" in event else ""
            self._event(data, name)
        self.wfile.write(b"0\r\n\r\n")

    def _event(self, data: str, name: str = ""):
        event = f"{name}data: {data}\n\n".encode()
        self.wfile.write(f"{len(event):x}\r\n".encode() + event + b"\r\n")
        self.wfile.flush()

    def _pass_on(self, body: bytes):
        """To what plays AWS and checks the signature, which covers the host as well."""
        port, context = self.server.aws
        connection = http.client.HTTPSConnection("127.0.0.1", port, context=context, timeout=30)
        try:
            connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() not in ("transfer-encoding", "content-length", "connection", "expect"):
                    connection.putheader(name, value)
            connection.putheader("Content-Length", str(len(body)))
            connection.endheaders(body)
            answer = connection.getresponse()
            content = answer.read()
        finally:
            connection.close()
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in ("content-length", "transfer-encoding", "connection", "date", "server"):
                self.send_header(name, value)
        self.send_header("Content-Length", answer.getheader("Content-Length", "0") if self.command == "HEAD" else str(len(content)))
        self._headers_buffer.append(b"\r\n" + content)
        self.flush_headers()
