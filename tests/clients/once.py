"""Never twice: the official SDKs with their own retries on, and outgate with its own, before a provider that breaks at random.

An SDK repeats whatever ends without an answer, and most of what is 408, 409 or 5xx. outgate repeats what is safe. Together they must
not act twice: outgate answers where it could cut, and its answer says that the SDK must not try again.
"""

import collections
import os
import random
import subprocess
import threading
from pathlib import Path

from checks import Tools
from faulty import FAULTS, FaultyOrigin, Ledger
from origin import OPENAI, STRIPE
from outgate import Outgate, credential

POSTS = 200
THREADS = 24
TIMEOUT = 90  # seconds, for all SDKs and ways together
# POSTs without outgate, to see the SDK act twice: this test has to be able to fail.
CONTROL = 60

COMMON = """\
    timeouts: { response: 1s, idle: 1s, deadline: 20s }
    quota: off
    retry: { hint: { header: %s }, backoff: { base: 20ms, max: 200ms }, budget: { ratio: 50%% } }
"""
# As a preset writes it: Stripe honours keys, OpenAI does not.
POLICY = {
    "stripe": COMMON % "Stripe-Should-Retry" + "    idempotency: { header: Idempotency-Key, methods: [POST], add: true }\n",
    "openai": COMMON % "x-should-retry",
}


def check_once(report, binary: str, folder: Path, apps: Path, python: str, secrets: dict[str, str], environment: dict[str, str],
               only: str):
    """Runs all SDKs and ways at the same time, and judges each."""
    runs = [run for run in ("stripe-local", "stripe-intercepted", "openai-local", "openai-intercepted") if only in client_of(run)]
    if not runs:
        return
    seed = int(os.environ.get("OUTGATE_SEED") or random.randrange(2**32))
    folder.mkdir()
    expected = {host: credential(name, secrets[name]) for name, host in (("stripe", STRIPE), ("openai", OPENAI))}
    origin = FaultyOrigin(folder, seed, expected)
    outgate = Outgate(binary, folder, origin, secrets, environment, more=POLICY, level="info")
    try:
        tools = Tools(outgate, origin, apps, python, None, "")
        commands = {run: command_of(tools, run) for run in runs}
        if "openai-local" in runs:
            commands["openai-alone"] = control_of(tools, origin)
        outputs = run_all(commands, environment, {"openai-alone": {"SSL_CERT_FILE": str(origin.ca_file)}})
    finally:
        outgate.stop()
        origin.close()
    for run in runs:
        problems, figures = judge(run, outputs[run], origin.ledger)
        if origin.strangers and run == runs[0]:
            problems.append(f"{origin.strangers} requests came without the exact credential")
        problems = problems and [*problems, f"seed: OUTGATE_SEED={seed}"]
        report.line(client_of(run), way_of(run), f"acts once ({figures})", problems, outputs[run][1])
    if "openai-alone" in outputs:
        doubles = sum(effects(asked) > 1 for name, asked in origin.ledger.asked.items() if name.startswith("openai-alone-"))
        problems = [] if doubles else [f"nothing acted twice without outgate: the provider proves nothing; OUTGATE_SEED={seed}"]
        report.line("openai-python", "none", f"acts twice without outgate ({doubles} of {CONTROL})", problems, outputs["openai-alone"][1])


def client_of(run: str) -> str:
    return f"{run.split('-')[0]}-python"


def way_of(run: str) -> str:
    return "local" if run.endswith("local") else "interception"


def command_of(tools: Tools, run: str) -> list[str]:
    sdk = run.split("-")[0]
    base = f"{tools.base}/{sdk}" + ("/v1" if sdk == "openai" else "")
    arguments = [run, str(POSTS), str(THREADS)]
    if way_of(run) == "local":
        return tools.python(f"once_{sdk}_app.py", base, *arguments)
    return tools.outgate.exec(*tools.python(f"once_{sdk}_app.py", "-", *arguments))


def control_of(tools: Tools, origin: FaultyOrigin) -> list[str]:
    base = f"https://localhost:{origin.ports[OPENAI]}/v1"
    return tools.python("once_openai_app.py", base, "openai-alone", str(CONTROL), str(THREADS))


def run_all(commands: dict[str, list[str]], environment: dict[str, str], more: dict[str, dict[str, str]]) -> dict[str, tuple[int | None, str]]:
    """Exit code and output of each; no code where it did not end in time."""
    outputs = {}

    def run(name: str, command: list[str]):
        try:
            done = subprocess.run(command, env=environment | more.get(name, {}), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                  stderr=subprocess.STDOUT, timeout=TIMEOUT)
            outputs[name] = done.returncode, done.stdout.decode(errors="replace")
        except subprocess.TimeoutExpired as error:
            outputs[name] = None, (error.stdout or b"").decode(errors="replace")

    threads = [threading.Thread(target=run, args=one) for one in commands.items()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return outputs


def effects(asked) -> int:
    return sum(one.acted for one in asked)


def judge(run: str, output: tuple[int | None, str], ledger: Ledger) -> tuple[list[str], str]:
    """What is wrong, and the figures."""
    code, text = output
    told = dict(line.split(" ", 1) for line in text.splitlines() if line.startswith(f"{run}-"))
    asked = {name: requests for name, requests in list(ledger.asked.items()) if name.startswith(f"{run}-")}
    problems = [] if code == 0 else [f"the app ended with {code}"]
    if len(told) != POSTS:
        problems.append(f"the app told of {len(told)} POSTs, not {POSTS}")
    for name, requests in sorted(asked.items()):
        # Counted after the provider has set aside what came under a key that it knew.
        if effects(requests) > 1:
            problems.append(f"{name} acted {effects(requests)} times: " + "; ".join(map(str, requests)) + f"; told: {told.get(name)}")
    done = [name for name, what in told.items() if what == "done"]
    problems += [f"{name} is done and did nothing" for name in done if effects(asked.get(name, [])) == 0]
    problems += [f"{name} got {what}" for name, what in told.items() if what.startswith("another's")]
    # The faults were there, and so were repetitions: else nothing was shown.
    met = collections.Counter(one.fault for requests in asked.values() for one in requests)
    missed = [fault for fault in FAULTS if not met[fault]]
    if len(missed) > 3:
        problems.append(f"faults that did not come: {missed}")
    repeated = sum(len(requests) > 1 for requests in asked.values())
    if not repeated:
        problems.append("nothing was sent again")
    lost = sum(effects(requests) == 0 for requests in asked.values())
    requests = sum(map(len, asked.values()))
    return problems, f"{POSTS} POSTs, {requests} requests, {repeated} repeated, {len(done)} done, {lost} without effect"
