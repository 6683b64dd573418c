"""The values tables of helm/README.md, made from the comments of the values files.

    python tests/packaging/readme_table.py          prints what README.md should be
    python tests/packaging/readme_table.py --write  writes it
"""

import json
import sys
from pathlib import Path

import yaml

CHART = Path(__file__).resolve().parents[2] / "helm"
README = CHART / "README.md"


def rows(path, prefix=""):
    """(key, default, meaning) of each documented key; a leaf without a comment is an error."""
    text = path.read_text()
    values = yaml.safe_load(text)
    found, comment, keys, inside = [], [], [], None
    for line in text.splitlines():
        stripped, indent = line.strip(), len(line) - len(line.lstrip())
        if inside is not None and (not stripped or indent > inside):
            continue
        inside = None
        if stripped.startswith("#"):
            comment.append(stripped.lstrip("# "))
            continue
        if not stripped:
            comment = []
            continue
        key = stripped.split(":", 1)[0]
        keys = [(i, k) for i, k in keys if i < indent] + [(indent, key)]
        path_of = ".".join(k for _, k in keys)
        default = values
        for _, one in keys:
            default = default[one]
        if comment:
            found.append((prefix + path_of, default, " ".join(comment)))
            if isinstance(default, (dict, list)) or stripped.endswith("|"):
                inside = indent
        elif not isinstance(default, dict) or not default:
            raise SystemExit(f"{path.name}: {path_of} has no comment")
        comment = []
    return found


def table(found):
    lines = ["| key | default | meaning |", "| --- | --- | --- |"]
    for key, default, meaning in found:
        shown = json.dumps(default, ensure_ascii=False).replace("\\n", " ").replace("|", "\\|")
        meaning = meaning.replace("|", "\\|")
        lines.append(f"| `{key}` | `{shown}` | {meaning} |")
    return "\n".join(lines)


def made(text):
    for mark, found in (
        ("chart", rows(CHART / "values.yaml")),
        ("library", rows(CHART / "charts" / "outgate-lib" / "values.yaml", "outgate.")),
    ):
        begin, end = f"<!-- {mark}: made by tests/packaging/readme_table.py -->", f"<!-- {mark}: end -->"
        head, rest = text.split(begin)
        _, tail = rest.split(end)
        text = f"{head}{begin}\n\n{table(found)}\n\n{end}{tail}"
    return text


if __name__ == "__main__":
    result = made(README.read_text())
    if "--write" in sys.argv:
        README.write_text(result)
    else:
        print(result, end="")
