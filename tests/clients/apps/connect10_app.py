"""`CONNECT host:443 HTTP/1.0` byte for byte as `http.client` before Python 3.12 sends it: no `Host`, no other field."""

import os
import socket
import ssl
import urllib.parse

proxy = urllib.parse.urlsplit(os.environ["https_proxy"])
connection = socket.create_connection((proxy.hostname, proxy.port), timeout=10)
connection.sendall(b"CONNECT api.example.com:443 HTTP/1.0\r\n\r\n")
answer = b""
while b"\r\n\r\n" not in answer:
    # Byte by byte, as a client reads that must leave the TLS records alone.
    answer += connection.recv(1)
assert b" 200 " in answer.split(b"\r\n")[0], answer
tls = ssl.create_default_context().wrap_socket(connection, server_hostname="api.example.com")
key = os.environ["APP_KEY"]
tls.sendall(f"GET /v1/things HTTP/1.1\r\nHost: api.example.com\r\nX-Api-Key: {key}\r\nConnection: close\r\n\r\n".encode())
answer = b""
while data := tls.recv(4096):
    answer += data
assert answer.startswith(b"HTTP/1.1 200"), answer
print("tunnelled", answer.decode())
