"""`clients.yaml` as it is: which client, how it is made, what it does."""

import dataclasses
import functools
import subprocess
from pathlib import Path

import yaml

HERE = Path(__file__).resolve().parent


@dataclasses.dataclass(frozen=True)
class Request:
    """What the provider has to see (a pattern of method, path and query), and the preset's route that it goes by."""

    request: str
    route: str


@dataclasses.dataclass(frozen=True)
class Way:
    """How a client comes to outgate: what makes it, and variables beside those of `outgate env`."""

    lines: str
    variables: dict[str, str]
    # Of a way that fails: what the client says then.
    says: str = ""


@dataclasses.dataclass(frozen=True)
class Client:
    """One official client."""

    name: str
    package: str
    language: str
    provider: str
    app: str
    # Whether it uses Node's `fetch`, which goes by the environment only from a certain version on.
    fetch: bool
    # Of the app's own, as without outgate.
    variables: dict[str, str]
    plain: str
    ways: dict[str, Way]
    # Ways that do not work, and why.
    cannot: dict[str, str]
    sees: list[Request]
    says: str
    # What else one has to know.
    note: str

    @property
    def file(self) -> str:
        """Its name, where no slash may stand."""
        return self.name.replace("/", "-").replace(" ", "-")

    def further_lines(self, name: str) -> list[str]:
        """What the app says besides, or instead of, what it would say without outgate."""
        plain = self.plain.splitlines()
        return [line for line in self.ways[name].lines.splitlines() if line not in plain]

    def title(self, name: str) -> str:
        way = self.ways[name]
        if name == "alone":
            return "not by environment alone"
        needs = [*way.variables, *self.further_lines(name)]
        return f"{self.provider}: {', '.join(needs) or 'environment alone'}"


def clients() -> list[Client]:
    """All of them, in the table's order."""
    return [client_of(name, row) for name, row in yaml.safe_load((HERE / "clients.yaml").read_text()).items()]


def client_of(name: str, row: dict) -> Client:
    plain = row["plain"].strip()
    ways, cannot = {}, {}
    for way in ("alone", "interception", "local"):
        said = row.get(way)
        if said is None:
            continue
        if "cannot" in said:
            cannot[way] = said["cannot"]
        else:
            ways[way] = Way(said.get("lines", plain).strip(), said.get("variables", {}), said.get("says", ""))
    return Client(name, row["package"], row["language"], row["provider"], row["app"], row.get("fetch", False), row.get("variables", {}),
                  plain, ways, cannot, [request_of(one) for one in row["sees"]], row["says"],
                  row.get("note", ""))


def request_of(text: str) -> Request:
    request, _, route = text.partition(" -> ")
    return Request(request, f"preset:{route}" if route else "default")


@functools.cache
def needs_dispatcher(node: str) -> bool:
    """Whether Node does not read the proxy variables by itself: before 22.21, and 24 before 24.5."""
    printed = subprocess.run([node, "--version"], capture_output=True, text=True, check=True).stdout
    major, minor = map(int, printed.strip().lstrip("v").split(".")[:2])
    return not ((major, minor) >= (24, 5) or (major == 22 and minor >= 21))
