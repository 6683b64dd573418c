"""The websockets package. Argument: the URL."""

import os
import sys

from websockets.sync.client import connect

headers = {"Authorization": "Bearer " + os.environ["APP_KEY"]}
with connect(sys.argv[1], additional_headers=headers, open_timeout=10) as connection:
    connection.send("one")
    first = connection.recv(timeout=10)
    connection.send(b"x" * 100_000)
    print("echoed", first, len(connection.recv(timeout=10)))
