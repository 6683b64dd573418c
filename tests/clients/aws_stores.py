"""Secrets Manager and the Parameter Store as stores, at a server that checks signatures: moto, as a process, over TLS.

Stages and versions, binary values, parameters that are encrypted, keys with a session token; a rotation that is seen at the next
read, and one that a 401 makes outgate read at once; and keys that are wrong, or may not.
"""

import base64
import json
import threading
import time
import urllib.error
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from aws import REGION, Moto
from bao import direct, wait_for
from outgate import Program, free_ports, head_of_policy

SECRETS = {"first": "sm-first-Kq71Lz", "second": "sm-second-Wp62Mx", "third": "sm-third-Ve53Nc", "binary": "sm-binary-Rb44Pv",
           "one": "ssm-one-Ty35Qs", "two": "ssm-two-Ui26Rd"}
# Provider: where its key stands, and what it carries at the start.
PROVIDERS = {
    "newest": ("quick:app/stripe#key", "second"),
    "slow": ("cloud:app/stripe#key", "second"),
    "session": ("session:app/stripe#key", "second"),
    "current": ("quick:app/stripe#key@AWSCURRENT", "second"),
    "former": ("quick:app/stripe#key@AWSPREVIOUS", "first"),
    "staged": ("quick:app/stripe#key@KEPT", "first"),
    "pinned": ("quick:app/stripe#key@{first}", "first"),
    "binary": ("quick:app/binary", "binary"),
    "overlap": ("[quick:app/stripe#key, quick:app/stripe#key@AWSPREVIOUS]", "second"),
    "newest-parameter": ("parameters:/app/stripe", "two"),
    "first-parameter": ("parameters:/app/stripe@1", "one"),
    "labelled-parameter": ("parameters:/app/stripe@kept", "one"),
}
# Provider: where its key would stand, and the code by which it is told that it cannot be had. To JSON moto refuses keys in XML, which AWS
# does not; so its 403 is all that outgate can read there.
BROKEN = {
    "other-secret": ("forged:app/stripe#key", "store_denied"),
    "other-id": ("unknown:app/stripe#key", "store_denied"),
    "may-not": ("poor:app/stripe#key", "store_denied"),
    "nothing-there": ("quick:app/nothing", "not_found"),
    "no-such-stage": ("quick:app/stripe#key@NOWHERE", "not_found"),
    "no-parameter": ("parameters:/app/nothing", "not_found"),
}


class Api(ThreadingHTTPServer):
    """The providers: any key is taken, but those that were ended."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Answer)
        self.seen, self.ended = {}, set()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def handle_error(self, *_):
        """A connection that outgate closes is no event here."""


class Answer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        sent = self.headers.get("Authorization", "")
        self.server.seen.setdefault(self.headers["Host"].split(".")[0], []).append(sent)
        self.send_response(401 if sent in self.server.ended else 200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


def clients(moto: Moto, keys: tuple[str, str]):
    """boto3's clients for the account's owner."""
    import boto3

    def client(service: str):
        return boto3.client(service, region_name=REGION, endpoint_url=f"https://127.0.0.1:{moto.port}", verify=str(moto.ca),
                            aws_access_key_id=keys[0], aws_secret_access_key=keys[1])

    return client


def set_up(client, account: str) -> dict[str, dict[str, str]]:
    """The secrets; the keys by store; and the id of the first version."""
    manager, ssm, iam = client("secretsmanager"), client("ssm"), client("iam")
    first = manager.create_secret(Name="app/stripe", SecretString=json.dumps({"key": SECRETS["first"]}))["VersionId"]
    manager.put_secret_value(SecretId="app/stripe", SecretString=json.dumps({"key": SECRETS["second"]}))
    manager.update_secret_version_stage(SecretId="app/stripe", VersionStage="KEPT", MoveToVersionId=first)
    manager.create_secret(Name="app/binary", SecretBinary=SECRETS["binary"].encode())
    ssm.put_parameter(Name="/app/stripe", Value=SECRETS["one"], Type="SecureString")
    ssm.label_parameter_version(Name="/app/stripe", ParameterVersion=1, Labels=["kept"])
    ssm.put_parameter(Name="/app/stripe", Value=SECRETS["two"], Type="SecureString", Overwrite=True)

    def allow(*actions: str) -> str:
        return json.dumps({"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": list(actions), "Resource": "*"}]})

    def user(name: str, *actions: str) -> dict[str, str]:
        iam.create_user(UserName=name)
        iam.put_user_policy(UserName=name, PolicyName="own", PolicyDocument=allow(*actions))
        keys = iam.create_access_key(UserName=name)["AccessKey"]
        return {"id": keys["AccessKeyId"], "secret": keys["SecretAccessKey"]}

    # What docs/stores.md says that outgate needs, and no more.
    reader = user("reader", "secretsmanager:GetSecretValue", "ssm:GetParameter")
    trust = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Principal": {"AWS": account}, "Action": "sts:AssumeRole"}]}
    role = iam.create_role(RoleName="reader", AssumeRolePolicyDocument=json.dumps(trust))["Role"]["Arn"]
    iam.put_role_policy(RoleName="reader", PolicyName="own", PolicyDocument=allow("secretsmanager:GetSecretValue"))
    assumed = client("sts").assume_role(RoleArn=role, RoleSessionName="outgate")["Credentials"]
    other = user("other", "sns:Publish")
    return {
        "first": first, "reader": reader, "poor": other,
        "session": {"id": assumed["AccessKeyId"], "secret": assumed["SecretAccessKey"], "token": assumed["SessionToken"]},
        "forged": {"id": reader["id"], "secret": other["secret"]},
        "unknown": {"id": "AKIA" + "Z" * 16, "secret": reader["secret"]},
    }


def quoted(reference: str) -> str:
    """A reference, or a list of them, in YAML."""
    return json.dumps(reference.strip("[]").split(", ") if reference.startswith("[") else reference)


class Proxy(Program):
    """An outgate whose secrets are AWS's."""

    def __init__(self, binary: str, folder: Path, moto: Moto, api: Api, own: dict, environment: dict[str, str]):
        self.port, admin = free_ports(2)
        self.api = api
        text = head_of_policy(folder, [f"127.0.0.1:{self.port}"], admin) + "secrets:\n"
        stores = {"quick": ("reader", "refresh: 1s"), "cloud": ("reader", "refresh: 1h"), "session": ("session", "refresh: 1s"),
                  "parameters": ("reader", "refresh: 1s, api: parameter_store"), "forged": ("forged", "refresh: 1s"),
                  "unknown": ("unknown", "refresh: 1s"), "poor": ("poor", "refresh: 1s")}
        for store, (name, more) in stores.items():
            for part, value in own[name].items():
                (folder / f"{name}.{part}").write_text(value + "\n")
            token = f', session_token: "file:{folder}/{name}.token"' if "token" in own[name] else ""
            keys = f'{{ access_key_id: "file:{folder}/{name}.id", secret_access_key: "file:{folder}/{name}.secret"{token} }}'
            text += (f'  {store}: {{ aws_secrets_manager: {{ region: {REGION}, address: "https://127.0.0.1:{moto.port}", ca: "{moto.ca}", '
                     f"{more}, credentials: {keys} }} }}\n")
        text += "providers:\n"
        for provider, (reference, _) in (PROVIDERS | BROKEN).items():
            text += f"""\
  {provider}:
    hosts: [{provider}.x.test]
    upstream: {{ scheme: http, connect_to: "127.0.0.1:{api.server_address[1]}", plaintext_credential: allow }}
    credential: {{ bearer: {quoted(reference.format(first=own["first"]))} }}
"""
        super().__init__(binary, folder, admin, text, environment)

    def get(self, provider: str) -> tuple[int, str]:
        """The status, and the key that the provider saw last."""
        try:
            with direct(f"http://127.0.0.1:{self.port}/{provider}/x") as answer:
                status = answer.status
        except urllib.error.HTTPError as error:
            status = error.code
        return status, self.api.seen.get(provider, [""])[-1].removeprefix("Bearer ")

    def secrets(self) -> dict[str, dict]:
        return {one["reference"]: one for one in json.loads(self.admin_page("/status"))["secrets"]}


def check_aws_stores(report, binary: str, folder: Path, python: str, environment: dict[str, str], only: str):
    """Runs all of it."""
    if only not in "aws-stores":
        return
    folder.mkdir()
    moto, api, proxy = Moto(folder, python, environment), Api(), None
    try:
        client = clients(moto, moto.make_user())
        own = set_up(client, client("sts").get_caller_identity()["Arn"])
        proxy = Proxy(binary, folder, moto, api, own, environment)
        for title, judge in (("stages, versions, binary values, parameters, a session", values),
                             ("keys that are wrong or may not: 503, and nothing is sent", broken),
                             ("an overlap of the current stage and the previous", overlaps),
                             ("a rotation is read; one that a 401 tells, at once", rotates)):
            report.line("aws-stores", "local", title, judge(client, api, proxy))
        told = proxy.admin_page("/status") + proxy.admin_page("/metrics")
        code = proxy.stop()
        told += proxy.messages() + proxy.log.everything()
        problems = [f"it ended with {code}"] if code else []
        keys = [own[name][part] for name in ("reader", "session", "poor", "unknown") for part in ("secret", "token") if part in own[name]]
        for secret in [*SECRETS.values(), *keys]:
            if any(form in told for form in (secret, base64.b64encode(secret.encode()).decode())):
                problems.append(f"a secret of {len(secret)} characters was found")
        report.line("aws-stores", "all", "outgate ends cleanly, and has written nothing of keys and values", problems)
    finally:
        if proxy:
            proxy.stop()
        api.shutdown()
        moto.stop()


def values(_, __, proxy: Proxy) -> list[str]:
    got = {provider: proxy.get(provider) for provider in PROVIDERS}
    return [f"{provider}: {got[provider][0]}, and it does not carry {secret}" for provider, (_, secret) in PROVIDERS.items()
            if got[provider] != (200, SECRETS[secret])]


def broken(_, api: Api, proxy: Proxy) -> list[str]:
    problems = []
    told = proxy.secrets()
    for provider, (reference, code) in BROKEN.items():
        if (got := proxy.get(provider)) != (503, ""):
            problems.append(f"{provider}: {got[0]}, and {'something' if got[1] else 'nothing'} was sent")
        if (said := told[reference].get("last_error_code")) != code:
            problems.append(f"{provider}: told as {said}, and not as {code}")
    return problems


def overlaps(_, api: Api, proxy: Proxy) -> list[str]:
    """The provider learns of a key later than AWS does."""
    api.ended.add(f"Bearer {SECRETS['second']}")
    got = proxy.get("overlap")
    api.ended.clear()
    return [] if got == (200, SECRETS["first"]) else [f"the previous stage was not sent where the current was refused: {got[0]}"]


def rotates(client, api: Api, proxy: Proxy) -> list[str]:
    problems = []
    manager, ssm = client("secretsmanager"), client("ssm")
    manager.put_secret_value(SecretId="app/stripe", SecretString=json.dumps({"key": SECRETS["third"]}))
    # Nobody has told the store that is read once an hour; the provider does.
    api.ended.add(f"Bearer {SECRETS['second']}")
    if (got := proxy.get("slow")) != (200, SECRETS["third"]):
        problems.append(f"what a 401 told was not read at once: {got[0]}")
    if api.seen["slow"][-2:] != [f"Bearer {SECRETS[name]}" for name in ("second", "third")]:
        problems.append("the old key was not sent once, and then the new one")
    ssm.put_parameter(Name="/app/stripe", Value=SECRETS["first"], Type="SecureString", Overwrite=True)
    after = {"newest": "third", "current": "third", "session": "third", "former": "second", "staged": "first", "pinned": "first", "binary": "binary",
             "newest-parameter": "first", "first-parameter": "one"}
    # The provider of the former one must not refuse it here: that would be healed.
    api.ended.clear()
    for provider, secret in after.items():
        try:
            wait_for(f"{provider} carries {secret}", lambda: proxy.get(provider) == (200, SECRETS[secret]), 10)
        except TimeoutError as error:
            problems.append(str(error))
    # And the other way: the stage goes back to the version before. Without a stage moto still gives the newest.
    versions = manager.describe_secret(SecretId="app/stripe")["VersionIdsToStages"]
    now, before = ([version for version, stages in versions.items() if stage in stages][0] for stage in ("AWSCURRENT", "AWSPREVIOUS"))
    manager.update_secret_version_stage(SecretId="app/stripe", VersionStage="AWSCURRENT", RemoveFromVersionId=now, MoveToVersionId=before)
    try:
        wait_for("the current one goes back", lambda: proxy.get("current") == (200, SECRETS["second"]), 10)
    except TimeoutError as error:
        problems.append(str(error))
    return problems
