"""`http.client` with `set_tunnel`, as pip and many SDKs use it; before Python 3.12 it sends `CONNECT host:port HTTP/1.0`.

Runs under old interpreters too: no newer syntax here.
"""

import http.client
import json
import os
import ssl
import urllib.parse

proxy = urllib.parse.urlsplit(os.environ["https_proxy"])
connection = http.client.HTTPSConnection(proxy.hostname, proxy.port, context=ssl.create_default_context(), timeout=10)
connection.set_tunnel("api.example.com", 443)
for _ in range(2):
    connection.request("GET", "/v1/things?limit=2", headers={"X-Api-Key": os.environ["APP_KEY"]})
    print("listed", json.loads(connection.getresponse().read())["things"])
