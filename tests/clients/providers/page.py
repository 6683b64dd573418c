"""The part of `docs/providers.md` that says how each official client works: written from the table, once all of it has run."""

import json
import os
import re
from pathlib import Path

from table import Client, clients

HERE = Path(__file__).resolve().parent
PAGE = HERE.parents[2] / "docs" / "providers.md"
BEGIN, END = "<!-- clients: begin -->", "<!-- clients: end -->"

INTRODUCTION = """\
## Official clients, measured

These run unchanged through outgate in `tests/clients/run.sh`, each with the preset of its provider and a dummy key, against servers that
answer as the providers do and refuse everything but the real credential. `UPDATE=1 tests/clients/run.sh` writes this part.

"environment" means that what `outgate env` prints is enough. In the lines `KEY` is any text, `LOCAL` is `http://127.0.0.1:3128/<provider>`,
`PORT` is that of the provider's `local: { address: ... }`. What is written in capitals with `=` is a variable of the environment. The
versions are those of the tests.

"""
FETCH = """\

¹ Through Node's `fetch`, which reads the proxy variables from Node 22.21 and 24.5 on. Before that, with `undici` from npm:

```js
{lines}
```
"""


def current() -> str:
    """The part as it should be."""
    text = INTRODUCTION + "| client | version | preset | by interception | at the local endpoint |\n| --- | --- | --- | --- | --- |\n"
    versions = {"python": pinned_for_python(), "node": json.loads((HERE.parent / "package.json").read_text())["dependencies"]}
    notes: list[str] = []
    for client in clients():
        version = versions[client.language][client.package.lower() if client.language == "python" else client.package]
        cells = [client.name, version, f"`{client.provider}`", cell(client, "interception"), cell(client, "local")]
        if client.note:
            notes += [client.note] if client.note not in notes else []
            cells[0] += f" {'²³⁴⁵'[notes.index(client.note)]}"
        text += "| " + " | ".join(cells) + " |\n"
    script = (HERE / "dispatcher.mjs").read_text()
    text += FETCH.format(lines="\n".join(line for line in script.splitlines() if not line.startswith("//")))
    return text + "".join(f"\n{'²³⁴⁵'[number]} {note}\n" for number, note in enumerate(notes))


def cell(client: Client, name: str) -> str:
    """How a client goes this way."""
    if name in client.cannot:
        return f"**no**: {client.cannot[name]}"
    way = client.ways[name]
    parts = [f"`{variable}={value}`" for variable, value in way.variables.items()]
    parts += [f"`{line}`" for line in client.further_lines(name)]
    if name == "interception" and not parts:
        parts = ["environment ¹" if client.fetch else "environment"]
    return "<br>".join(parts).replace("|", "\\|")


def pinned_for_python() -> dict[str, str]:
    lines = re.findall(r"(?m)^([A-Za-z0-9_.-]+)(?:\[[^]]*\])?==(\S+)$", (HERE.parent / "requirements.txt").read_text())
    return {name.lower(): version for name, version in lines}


def check_page(report):
    """That the page says what has just run; with UPDATE=1 it is made to, if all has gone well."""
    page = PAGE.read_text()
    before, _, rest = page.partition(BEGIN)
    written, _, after = rest.partition(END)
    wanted = f"\n{current()}"
    if os.environ.get("UPDATE") and not report.failed:
        PAGE.write_text(f"{before.rstrip()}\n\n{BEGIN}{wanted}{END}\n")
        written = wanted
    problems = [] if written == wanted else ["docs/providers.md is old: UPDATE=1 tests/clients/run.sh"]
    report.line("docs", "all", "providers.md says what the clients need", problems)
