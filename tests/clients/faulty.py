"""A provider that acts on each request and breaks at seeded points: before it reads, after it acted, anywhere in its answer.

HTTP/1.1 over TLS by hand, because a library would not break where it has to. Which fault a request meets depends on the seed, its
name and how often that name was seen; where a connection is closed unread, on the seed and the connection's number.
"""

import collections
import dataclasses
import json
import random
import re
import socket
import ssl
import struct
import threading
import time

import trustme

from origin import HOSTS, OPENAI, STRIPE, context_of

# Longer than outgate's `timeouts.response` and `timeouts.idle` in this test; in seconds.
SILENCE = 5
# One connection in so many is closed before a request is read: a new one, or one that had a request before.
UNREAD = 25

# Each with its weight. "act" is before what follows it.
FAULTS = {
    "none": 30,
    "cut": 3,
    "reset": 3,
    "429": 8,
    "act 500": 3,
    "act 502": 3,
    "act 503": 3,
    "act 503, asking for a retry": 2,
    "act 408": 1,
    "act 409": 1,
    "act silence": 2,
    "act cut": 4,
    "act reset": 4,
    "act cut in head": 4,
    "act cut in body": 4,
    "act reset in body": 4,
    "act silence in body": 2,
    "act cut in chunk": 4,
    "act cut between chunks": 4,
    "act cut before last chunk": 3,
    "act reset in chunk": 3,
    "act silence in chunk": 2,
    "act 500, cut in chunk": 3,
    "act 503, cut in body": 3,
}


@dataclasses.dataclass
class Asked:
    """One request as the provider saw it."""

    fault: str
    key: str | None
    acted: bool


class Ledger:
    """What was asked and done, by the name of the POST. A key that was seen is not acted on again."""

    def __init__(self):
        self._lock = threading.Lock()
        self._kept: set[str] = set()
        self.asked: dict[str, list[Asked]] = collections.defaultdict(list)

    def arrived(self, name: str, key: str | None) -> int:
        """How often it was seen before."""
        with self._lock:
            self.asked[name].append(Asked("-", key, False))
            return len(self.asked[name]) - 1

    def meets(self, name: str, nth: int, fault: str):
        self.asked[name][nth].fault = fault

    def act(self, name: str, nth: int):
        """The effect; at most one a key, where there is one."""
        with self._lock:
            asked = self.asked[name][nth]
            if asked.key is None or asked.key not in self._kept:
                asked.acted = True
            if asked.key is not None:
                self._kept.add(asked.key)


class FaultyOrigin:
    """Stripe and OpenAI on one port; `ports` says where, by host. By the name of `localhost` it is OpenAI, without outgate."""

    def __init__(self, folder, seed: int, credentials: dict[str, tuple[str, str]]):
        authority = trustme.CA()
        self.ca_file = folder / "origin-ca.pem"
        authority.cert_pem.write_to_path(str(self.ca_file))
        self._context = context_of(authority.issue_cert(*HOSTS, "localhost"))
        self._seed = seed
        self._credentials = credentials
        self.ledger = Ledger()
        # Requests without exactly the credential that outgate has to inject.
        self.strangers = 0
        self._server = socket.create_server(("127.0.0.1", 0), backlog=512)
        self.ports = dict.fromkeys(HOSTS, self._server.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self):
        self._server.close()

    def _accept(self):
        number = 0
        while True:
            try:
                connection, _ = self._server.accept()
            except OSError:
                return
            number += 1
            threading.Thread(target=self._serve, args=(connection, number), daemon=True).start()

    def _serve(self, connection: socket.socket, number: int):
        chance = random.Random(f"{self._seed}/connection {number}")
        try:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.settimeout(SILENCE)
            with self._context.wrap_socket(connection, server_side=True) as tls:
                while chance.randrange(UNREAD) and self._exchange(tls):
                    pass
        except (OSError, ValueError):
            connection.close()

    def _exchange(self, tls: ssl.SSLSocket) -> bool:
        """One request and its answer; whether the connection goes on."""
        data = b""
        while b"\r\n\r\n" not in data:
            data += received(tls)
        head, body = data.split(b"\r\n\r\n", 1)
        fields = dict(re.findall(r"^([^:\r\n]+): *([^\r\n]*)", head.decode().lower(), re.MULTILINE))
        while len(body) < int(fields["content-length"]):
            body += received(tls)
        host = fields["host"] if fields["host"] in HOSTS else OPENAI
        name = re.search(rb"[a-z]+-[a-z]+-\d+", body)[0].decode()
        header, credential = self._credentials[host]
        if fields["host"] in HOSTS and fields.get(header.lower()) != credential.lower():
            self.strangers += 1
        nth = self.ledger.arrived(name, fields.get("idempotency-key"))
        fault = random.Random(f"{self._seed}/{name}/{nth}").choices(list(FAULTS), list(FAULTS.values()))[0]
        self.ledger.meets(name, nth, fault)
        if fault == "none" or fault.startswith("act"):
            self.ledger.act(name, nth)
        stream = host == OPENAI and b'"stream":true' in body.replace(b" ", b"")
        return answer(tls, fault.removeprefix("act "), host, name, stream)


def received(tls: ssl.SSLSocket) -> bytes:
    data = tls.recv(65536)
    if not data:
        raise ConnectionError
    return data


def answer(tls: ssl.SSLSocket, fault: str, host: str, name: str, stream: bool) -> bool:
    """Answers as the fault wants it; whether the connection goes on."""
    status = re.match(r"\d+", fault)
    status = int(status[0]) if status else 200
    content = success(host, name, stream) if status == 200 else json.dumps({"error": {"message": fault}}).encode()
    streamed = stream and status == 200
    chunked = streamed or "chunk" in fault
    more = "Stripe-Should-Retry: true\r\nx-should-retry: true\r\n" if "asking" in fault else ""
    more += "Content-Type: text/event-stream\r\n" if streamed else "Content-Type: application/json\r\n"
    more += "Transfer-Encoding: chunked\r\n" if chunked else f"Content-Length: {len(content)}\r\n"
    head = f"HTTP/1.1 {status} As it is\r\n{more}\r\n".encode()
    half = len(content) // 2
    if chunked:
        body = [b"%x\r\n" % half + content[:half] + b"\r\n", b"%x\r\n" % (len(content) - half) + content[half:] + b"\r\n", b"0\r\n\r\n"]
    else:
        body = [content[:half], content[half:]]
    if fault in ("cut", "reset", "silence"):
        sent = b""
    elif "in head" in fault:
        sent = head[: len(head) // 2]
    elif "before last chunk" in fault:
        sent = head + body[0] + body[1]
    elif "between chunks" in fault:
        sent = head + body[0]
    elif " in " in fault:
        sent = head + body[0][: len(body[0]) - 5]
    else:
        tls.sendall(head + b"".join(body))
        return True
    # Two writes: what was sent before the break has gone on its way.
    if sent:
        tls.sendall(sent)
        time.sleep(0.02)
    end(tls, fault)
    return False


def end(tls: ssl.SSLSocket, fault: str):
    if "silence" in fault:
        # Until outgate has had enough.
        tls.recv(1)
    elif "reset" in fault:
        tls.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    tls.close()


def success(host: str, name: str, stream: bool) -> bytes:
    if host == STRIPE:
        return json.dumps({"id": "cus_1", "object": "customer", "description": name}).encode()
    plain = {"id": "c1", "created": 1, "model": "gpt-test"}
    if not stream:
        message = {"role": "assistant", "content": name}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        return json.dumps(plain | {"object": "chat.completion", "choices": [choice]}).encode()
    half = len(name) // 2
    events = b""
    for text in (name[:half], name[half:]):
        choice = {"index": 0, "delta": {"role": "assistant", "content": text}, "finish_reason": None}
        events += b"data: " + json.dumps(plain | {"object": "chat.completion.chunk", "choices": [choice]}).encode() + b"\n\n"
    return events + b"data: [DONE]\n\n"
