"""Runs an app, which changes nothing for it, and writes down every byte that it receives from outside, decrypted.

So what the app could have read is searched, and not only what it prints. Arguments: the app and its own; the file is `TAP`.
"""

import os
import runpy
import socket
import ssl
import sys

heard = open(os.environ.pop("TAP"), "ab", buffering=0)


def tapped(receive, into: int):
    """`into` is the position of the buffer among the arguments, where one is given."""

    def listening(self, *arguments, **named):
        got = receive(self, *arguments, **named)
        if isinstance(got, bytes):
            heard.write(got)
        elif isinstance(got, int) and len(arguments) > into and arguments[into] is not None:
            heard.write(bytes(memoryview(arguments[into])[:got]))
        return got

    return listening


ssl.SSLSocket.read = tapped(ssl.SSLSocket.read, 1)
ssl.SSLObject.read = tapped(ssl.SSLObject.read, 1)
for name in ("recv", "recv_into"):
    setattr(socket.socket, name, tapped(getattr(socket.socket, name), 0))

del sys.argv[0]
sys.path[0] = os.path.dirname(os.path.abspath(sys.argv[0]))
runpy.run_path(sys.argv[0], run_name="__main__")
