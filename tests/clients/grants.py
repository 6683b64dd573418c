"""Every OAuth grant once, at a real identity provider (oidc-provider), through the real program."""

import http.client
import json
import subprocess
import time
from pathlib import Path

from outgate import READY_TIMEOUT, free_ports

CLIENT = "client_id: plain:{0}, client_secret: file:{folder}/{0}.secret"
# Provider: its credential, and the client that the identity provider has to find.
GRANTS = {
    "basic": ("oauth2_client_credentials: {{ token_url: {url}, " + CLIENT.replace("{0}", "basic") + " }}", "basic"),
    "post": ("oauth2_client_credentials: {{ token_url: {url}, auth_style: post, " + CLIENT.replace("{0}", "post") + " }}", "post"),
    "key": ("oauth2_client_credentials: {{ token_url: {url}, client_id: plain:key, auth_style: private_key_jwt, "
            "client_key: {{ key: file:{folder}/client.pem, algorithm: ES256, key_id: one }} }}", "key"),
    "rotating": ("oauth2_refresh_token: {{ token_url: {url}, refresh_token: file:{folder}/seed, rotates: true, "
                 "store: {{ file: {folder}/grant }}, " + CLIENT.replace("{0}", "rotating") + " }}", "rotating"),
    "bearer": ("jwt_bearer: {{ token_url: {url}, key: file:{folder}/signer.pem, issuer: plain:app, subject: plain:user, "
               + CLIENT.replace("{0}", "grants") + " }}", "grants"),
    "exchange": ("token_exchange: {{ token_url: {url}, subject_token: file:{folder}/subject, "
                 + CLIENT.replace("{0}", "grants") + " }}", "grants"),
}


def check_grants(report, binary: str, folder: Path, apps: Path, node: str | None, environment: dict[str, str], only: str):
    """Runs them, if there is Node."""
    if node is None or only not in "oidc-provider":
        return
    folder.mkdir()
    with (folder / "identity.log").open("wb") as messages:
        identity = subprocess.Popen([node, str(apps / "identity.mjs"), str(folder)], stdout=subprocess.PIPE, stderr=messages,
                                    env=environment)
    try:
        line = identity.stdout.readline()
        problems = judge(binary, folder, json.loads(line), environment) if line else ["the identity provider did not start"]
    finally:
        identity.kill()
        identity.wait()
    if problems:
        problems.append((folder / "identity.log").read_text(errors="replace")[-2000:])
    report.line("oidc-provider", "local", "every grant, and a refresh token that rotates over a restart", problems)


def judge(binary: str, folder: Path, ports: dict, environment: dict[str, str]) -> list[str]:
    """What went wrong."""
    problems, told = [], ""
    # Twice: the second process goes on with the refresh token that the first one kept.
    for turn in ("first", "second"):
        proxy, admin = free_ports(2)
        policy = folder / f"{turn}.yaml"
        policy.write_text(policy_of(folder, ports, proxy, admin))
        log = folder / f"{turn}.log"
        with log.open("wb") as messages:
            process = subprocess.Popen([binary, "run", "--config", str(policy)], stdout=messages, stderr=messages,
                                       env=environment | {"OUTGATE_LOG": "trace"})
        try:
            wait_until_ready(admin)
            # This `end` is answered with 401 once for a client: the token is healed by another one.
            for path in ("x", f"end-{turn}", "x"):
                for name, (_, client) in GRANTS.items():
                    status, body = get(proxy, f"/{name}/{path}")
                    if (status, body) != (200, {"client": client}):
                        problems.append(f"{turn} {name}/{path}: {status} {body}")
            _, status = get(admin, "/status")
            told += json.dumps(status)
        finally:
            process.terminate()
            process.wait(READY_TIMEOUT)
        told += log.read_text(errors="replace")
    for file in [*folder.glob("*.secret"), folder / "seed", folder / "subject"]:
        if file.read_text() in told:
            problems.append(f"{file.name} stands in the log or the status")
    if (folder / "seed").read_text() in (folder / "grant").read_text():
        problems.append("the kept grant is not sealed")
    return problems


def policy_of(folder: Path, ports: dict, proxy: int, admin: int) -> str:
    text = f"""\
version: 1
listeners: [{{ address: "127.0.0.1:{proxy}" }}]
admin: {{ address: "127.0.0.1:{admin}" }}
interception: {{ ca: {{ directory: {folder}/ca }}, bundle: {folder}/bundle.pem }}
providers:
"""
    for name, (credential, _) in GRANTS.items():
        filled = credential.format(folder=folder, url=json.dumps(ports["issuer"] + "/token"))
        text += f"""\
  {name}:
    hosts: [{name}.x.test]
    upstream: {{ scheme: http, connect_to: "127.0.0.1:{ports["api"]}", plaintext_credential: allow }}
    credential: {{ {filled} }}
"""
    return text


def get(port: int, path: str) -> tuple[int, object]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=READY_TIMEOUT)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    finally:
        connection.close()


def wait_until_ready(admin: int):
    deadline = time.monotonic() + READY_TIMEOUT
    while True:
        try:
            if get(admin, "/status")[1]["ready"]:
                return
        except OSError:
            pass
        if time.monotonic() > deadline:
            raise TimeoutError("outgate is not ready")
        time.sleep(0.05)
