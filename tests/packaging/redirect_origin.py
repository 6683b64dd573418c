"""A provider for the tests of redirection: TLS with HTTP/1.1 and HTTP/2 at 443, HTTP at 80, an echo at UDP 443 and 5300 and at TCP 53.

It answers with what it saw: the version, whether the credential was there, and whether it came through outgate.
"""

import json
import socket
import ssl
import sys
import threading

import h2.config
import h2.connection
import h2.events

FOLDER, SECRET = sys.argv[1:]


def answer(version, headers):
    seen = {"version": version, "authorized": headers.get("authorization") == f"Bearer {SECRET}", "through_outgate": "via" in headers}
    return json.dumps(seen).encode()


def http1(stream):
    """One request after the other, none with a body."""
    rest = b""
    while True:
        while b"\r\n\r\n" not in rest:
            more = stream.recv(65536)
            if not more:
                return
            rest += more
        head, rest = rest.split(b"\r\n\r\n", 1)
        fields = [line.split(":", 1) for line in head.decode("latin-1").split("\r\n")[1:]]
        body = answer("1.1", {name.lower(): value.strip() for name, value in fields})
        stream.sendall(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body))


def http2(stream):
    connection = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False, header_encoding="utf-8"))
    connection.initiate_connection()
    stream.sendall(connection.data_to_send())
    while data := stream.recv(65536):
        for event in connection.receive_data(data):
            if isinstance(event, h2.events.RequestReceived):
                body = answer("2", dict(event.headers))
                connection.send_headers(event.stream_id, [(":status", "200"), ("content-length", str(len(body)))])
                connection.send_data(event.stream_id, body, end_stream=True)
        stream.sendall(connection.data_to_send())


def serve(stream, context):
    try:
        with stream:
            if context:
                stream = context.wrap_socket(stream, server_side=True)
            http2(stream) if context and stream.selected_alpn_protocol() == "h2" else http1(stream)
    except OSError:
        pass


def accept(port, handle):
    listener = socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True)

    def run():
        while True:
            stream, _ = listener.accept()
            threading.Thread(target=handle, args=(stream,), daemon=True).start()

    threading.Thread(target=run, daemon=True).start()


def echo_tcp(stream):
    with stream:
        stream.sendall(stream.recv(100))


def echo_udp(port):
    one = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    one.bind(("::", port))

    def run():
        while True:
            data, peer = one.recvfrom(2000)
            one.sendto(data, peer)

    threading.Thread(target=run, daemon=True).start()


tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
tls.load_cert_chain(f"{FOLDER}/leaf.pem", f"{FOLDER}/leaf.key")
tls.set_alpn_protocols(["h2", "http/1.1"])
accept(443, lambda stream: serve(stream, tls))
accept(80, lambda stream: serve(stream, None))
accept(53, echo_tcp)
echo_udp(443)
echo_udp(5300)
print("ready", flush=True)
threading.Event().wait()
