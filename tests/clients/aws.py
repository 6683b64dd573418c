"""boto3 with dummy keys through outgate, to a server that checks signatures: moto, as a process, over TLS.

moto checks signatures (and what the user may do) once its first free actions are used up, and those make the user whose keys
only outgate gets. The uploads are 200 MB, and outgate's memory is read from /proc while they go through.
"""

import json
import secrets as randomness
import socket
import subprocess
import threading
import time
from pathlib import Path

import trustme

from outgate import Program, free_ports, head_of_policy

REGION = "us-east-1"
SERVICES = ("s3", "email", "sns", "sqs", "sts", "secretsmanager", "iam")
HOSTS = [f"{service}.{REGION}.amazonaws.com" for service in SERVICES] + [f"*.s3.{REGION}.amazonaws.com", "sts.amazonaws.com",
                                                                         "s3.amazonaws.com", "*.s3.amazonaws.com", "iam.amazonaws.com"]
UPLOAD = 200 * 1000 * 1000
MEMORY = 16 * 1024 * 1024  # how much larger outgate may become
READY = 60  # seconds
FREE_ACTIONS = 3  # that moto lets pass unsigned: the user, its policy, its keys


class Moto:
    """A server that plays AWS, and the keys of its one user."""

    def __init__(self, folder: Path, python: str, environment: dict[str, str]):
        authority = trustme.CA()
        self.ca = folder / "aws-ca.pem"
        authority.cert_pem.write_to_path(str(self.ca))
        certificate = authority.issue_cert(*HOSTS, "127.0.0.1")
        chain, key = folder / "aws.pem", folder / "aws.key"
        chain.write_bytes(b"".join(pem.bytes() for pem in certificate.cert_chain_pems))
        certificate.private_key_pem.write_to_path(str(key))
        (self.port,) = free_ports(1)
        self._log = (folder / "moto.log").open("wb")
        own = environment | {"INITIAL_NO_AUTH_ACTION_COUNT": str(FREE_ACTIONS), "MOTO_ALLOW_NONEXISTENT_REGION": "true"}
        self._process = subprocess.Popen(
            [python, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.port), "-s", "-c", str(chain), "-k", str(key)],
            env=own, stdout=self._log, stderr=subprocess.STDOUT)
        self._wait()

    def _wait(self):
        deadline = time.monotonic() + READY
        while time.monotonic() < deadline and self._process.poll() is None:
            try:
                with socket.create_connection(("127.0.0.1", self.port), timeout=1):
                    return
            except OSError:
                time.sleep(0.05)
        self.stop()
        raise SystemExit("moto did not start: " + Path(self._log.name).read_text(errors="replace")[-2000:])

    def make_user(self) -> tuple[str, str]:
        """The keys of a user that may do everything."""
        import boto3

        iam = boto3.client("iam", region_name=REGION, endpoint_url=f"https://127.0.0.1:{self.port}", verify=str(self.ca),
                           aws_access_key_id="setup", aws_secret_access_key="setup")
        iam.create_user(UserName="outgate")
        document = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "*", "Resource": "*"}]}
        iam.put_user_policy(UserName="outgate", PolicyName="all", PolicyDocument=json.dumps(document))
        keys = iam.create_access_key(UserName="outgate")["AccessKey"]
        return keys["AccessKeyId"], keys["SecretAccessKey"]

    def stop(self):
        self._process.terminate()
        self._process.wait(20)
        self._log.close()


class Proxy(Program):
    """An outgate whose one provider is AWS."""

    def __init__(self, binary: str, folder: Path, moto: Moto, keys: tuple[str, str], environment: dict[str, str]):
        self.port, admin = free_ports(2)
        self.bundle = folder / "ca-bundle.pem"
        hosts = ", ".join(f'"{host}"' for host in HOSTS)
        policy = head_of_policy(folder, [f"127.0.0.1:{self.port}"], admin) + f"""\
providers:
  aws:
    hosts: [{hosts}]
    upstream: {{ connect_to: "127.0.0.1:{moto.port}", tls: {{ ca: {moto.ca} }} }}
    credential: {{ aws_sigv4: {{ access_key_id: env:OUTGATE_TEST_AWS_ID, secret_access_key: env:OUTGATE_TEST_AWS_SECRET }} }}
"""
        own = environment | {"OUTGATE_TEST_AWS_ID": keys[0], "OUTGATE_TEST_AWS_SECRET": keys[1]}
        super().__init__(binary, folder, admin, policy, own)

    def memory(self) -> int:
        lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS"))


class Watch:
    """The most that a process's memory has grown since this began."""

    def __init__(self, proxy: Proxy):
        self._proxy, self._first, self.grown = proxy, proxy.memory(), 0
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._look)
        self._thread.start()

    def _look(self):
        while not self._end.wait(0.05):
            self.grown = max(self.grown, self._proxy.memory() - self._first)

    def stop(self) -> int:
        self._end.set()
        self._thread.join()
        return self.grown


def check_aws(report, binary: str, folder: Path, apps: Path, python: str, environment: dict[str, str], only: str):
    """boto3 by both ways, and without outgate."""
    if only not in "boto3":
        return
    folder.mkdir()
    moto = Moto(folder, python, environment)
    proxy = None
    try:
        keys = moto.make_user()
        proxy = Proxy(binary, folder, moto, keys, environment)
        dummy = environment | {"AWS_ACCESS_KEY_ID": "AKIADUMMYDUMMYDUMMY0", "AWS_SECRET_ACCESS_KEY": randomness.token_urlsafe(30),
                               "AWS_SESSION_TOKEN": "dummy-session", "AWS_DEFAULT_REGION": REGION, "AWS_EC2_METADATA_DISABLED": "true",
                               "HOME": str(folder)}
        app = str(apps / "boto3_app.py")

        def run(title: str, way: str, command: list[str], more: dict[str, str], says: str, most: int | None = None):
            watch = Watch(proxy)
            done = subprocess.run(command, env=dummy | more, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                  stderr=subprocess.STDOUT, timeout=240)
            grown, output = watch.stop(), done.stdout.decode(errors="replace")
            problems = [] if says in output else [f"the client did not say {says!r}"]
            if most is not None and grown > most:
                problems.append(f"outgate grew by {grown >> 10} KiB")
            if keys[1] in output:
                problems.append("the app got the secret key")
            report.line("boto3", way, f"{title} (+{grown >> 10} KiB)" if most is not None else title, problems, output)

        direct = {"AWS_CA_BUNDLE": str(moto.ca)}
        bundle = {"AWS_CA_BUNDLE": str(proxy.bundle)}
        local = f"http://127.0.0.1:{proxy.port}/aws"
        run("the server refuses the app's keys", "none", [python, app, "refused", f"https://127.0.0.1:{moto.port}"], direct, "refused")
        run("S3, SES, SNS, SQS, STS, Secrets Manager", "interception", proxy.exec(python, app, "services", "-"), bundle, "all done")
        run("S3, SES, SNS, SQS, STS, Secrets Manager", "local", [python, app, "services", local], {}, "all done")
        run("200 MB", "interception", proxy.exec(python, app, "large", "-", str(UPLOAD)), bundle, "same hash", MEMORY)
        run("200 MB", "local", [python, app, "large", local, str(UPLOAD)], {}, "same hash", MEMORY)
        code = proxy.stop()
        written = proxy.messages() + proxy.log.everything()
        problems = [f"it ended with {code}"] if code else []
        if any(keys[1][at : at + 8] in written for at in range(len(keys[1]) - 7)):
            problems.append("what it writes holds a piece of the secret key")
        report.line("boto3", "all", "outgate ends cleanly, and has written nothing of the key", problems)
    finally:
        if proxy:
            proxy.stop()
        moto.stop()
