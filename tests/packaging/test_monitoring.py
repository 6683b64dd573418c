"""Alerts and dashboard: they parse, they fire when they should, and they ask for metrics that there are."""

import json
import re
import shutil
import subprocess
import tempfile
import unittest
from pathlib import Path

import yaml

from engine import CHART, ROOT, missing

RULES = CHART / "rules" / "outgate.yaml"
DASHBOARD = json.loads((CHART / "dashboards" / "outgate.json").read_text())
LABELS = {"namespace", "pod"}  # what Prometheus adds


def promtool(*arguments):
    if not shutil.which("promtool"):
        missing("promtool is not here: the rules are not tested")
    return subprocess.run(["promtool", *arguments], capture_output=True, text=True)


def documented():
    """Metrics and the labels they have, as docs/observability.md says."""
    found = {}
    text = (ROOT / "docs" / "observability.md").read_text().split("## Metrics")[1].split("## The admin listener")[0]
    head = ""
    for line in text.splitlines():
        if line.startswith("| metric "):
            head = line
        cells = [cell.strip() for cell in line.split("|")]
        names = re.findall(r"`((?:outgate|process)_\w+)`", cells[1]) if len(cells) > 4 else []
        for name in names:
            labels = set(re.findall(r"`(\w+)`", cells[3]))
            if "besides `provider`" in head and "(no `provider`)" not in cells[3]:
                labels.add("provider")
            found[name] = labels - ({"provider"} if "(no `provider`)" in cells[3] else set())
            if cells[2] == "histogram":
                found |= {f"{name}_bucket": labels | {"le"}, f"{name}_sum": labels, f"{name}_count": labels}
            if cells[2] == "info":
                found[name] = labels
    return found


class Queries(unittest.TestCase):
    def expressions(self):
        for group in yaml.safe_load(RULES.read_text())["groups"]:
            for rule in group["rules"]:
                yield rule["alert"], rule["expr"]
        for panel in DASHBOARD["panels"]:
            for target in panel.get("targets", []):
                yield panel["title"], target["expr"]

    def test_metrics_and_labels_exist(self):
        metrics = documented()
        self.assertGreater(len(metrics), 40)
        seen = 0
        for where, expression in self.expressions():
            for name, selector in re.findall(r"\b((?:outgate|process)_\w+)(?:\{([^}]*)\})?", expression):
                self.assertIn(name, metrics, where)
                for label in re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", selector):
                    self.assertIn(label, metrics[name] | LABELS, f"{where}: {name}")
                seen += 1
        self.assertGreater(seen, 30)

    def test_what_alerts_name_is_there(self):
        """A label in a text that the expression does not keep would come out empty."""
        metrics = documented()
        for group in yaml.safe_load(RULES.read_text())["groups"]:
            for rule in group["rules"]:
                by = re.search(r"by \(([^)]*)\)", rule["expr"])
                kept = set(re.split(r",\s*", by[1])) if by else LABELS | set().union(
                    *(metrics[name] for name in re.findall(r"\boutgate_\w+", rule["expr"])))
                for text in rule["annotations"].values():
                    for label in re.findall(r"\$labels\.(\w+)", text):
                        self.assertIn(label, kept, rule["alert"])

    def test_every_alert_is_in_the_docs(self):
        text = (ROOT / "docs" / "packaging.md").read_text()
        for group in yaml.safe_load(RULES.read_text())["groups"]:
            for rule in group["rules"]:
                self.assertIn(f"`{rule['alert']}`", text)


class Promtool(unittest.TestCase):
    def test_rules(self):
        done = promtool("check", "rules", str(RULES))
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)

    def test_every_alert_fires_when_it_should(self):
        tests = CHART / "rules" / "outgate_test.yaml"
        done = promtool("test", "rules", str(tests))
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        fired = {check["alertname"] for test in yaml.safe_load(tests.read_text())["tests"]
                 for check in test["alert_rule_test"] if check.get("exp_alerts")}
        rules = {rule["alert"] for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]}
        self.assertEqual(fired, rules)

    def test_queries_of_the_dashboard_parse(self):
        rules, titles = [], set()
        for panel in DASHBOARD["panels"]:
            self.assertNotIn(panel["title"], titles)
            titles.add(panel["title"])
            for index, target in enumerate(panel.get("targets", [])):
                expression = target["expr"].replace("$__rate_interval", "5m")
                rules.append({"record": f"panel:{panel['id']}:{index}", "expr": expression})
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "panels.yaml"
            path.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
            done = promtool("check", "rules", str(path))
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)


if __name__ == "__main__":
    unittest.main()
