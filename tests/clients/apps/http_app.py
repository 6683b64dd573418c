"""A GET and a POST with one of Python's HTTP clients. Arguments: which client, and the base URL."""

import asyncio
import json
import os
import sys
import urllib.request

name, base = sys.argv[1:3]
HEADERS = {"X-Api-Key": os.environ["APP_KEY"]}
URL = base + "/v1/things"
QUERY = {"limit": "2"}
THING = {"name": "x"}


def with_urllib():
    def call(request):
        with urllib.request.urlopen(request, timeout=10) as response:
            return json.load(response)

    body = json.dumps(THING).encode()
    return call(urllib.request.Request(URL + "?limit=2", headers=HEADERS)), call(
        urllib.request.Request(URL, data=body, headers={**HEADERS, "Content-Type": "application/json"})
    )


def with_requests():
    import requests

    listed = requests.get(URL, params=QUERY, headers=HEADERS, timeout=10)
    return listed.json(), requests.post(URL, json=THING, headers=HEADERS, timeout=10).json()


def with_httpx(http2=False):
    import httpx

    with httpx.Client(http2=http2) as client:
        listed = client.get(URL, params=QUERY, headers=HEADERS)
        if http2:
            assert listed.http_version == "HTTP/2", listed.http_version
        return listed.json(), client.post(URL, json=THING, headers=HEADERS).json()


async def with_aiohttp(trust_env):
    import aiohttp

    async with aiohttp.ClientSession(trust_env=trust_env, headers=HEADERS) as session:
        async with session.get(URL, params=QUERY) as listed, session.post(URL, json=THING) as created:
            return await listed.json(), await created.json()


CLIENTS = {
    "urllib": with_urllib,
    "requests": with_requests,
    "httpx": with_httpx,
    "httpx-http2": lambda: with_httpx(http2=True),
    "aiohttp": lambda: asyncio.run(with_aiohttp(trust_env=True)),
    "aiohttp-plain": lambda: asyncio.run(with_aiohttp(trust_env=False)),
}

listed, created = CLIENTS[name]()
print("listed", listed["things"], "created", created["created"])
