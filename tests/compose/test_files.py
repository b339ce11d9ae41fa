"""The files that need no engine: what compose, Prometheus and Grafana will read."""

import json
import pathlib
import re
import shutil
import unittest

from cluster import ROOT, command

METRIC_FILES = sorted(ROOT.glob("*/src/metrics.rs"))
SUFFIXES = ("_total", "_bucket", "_sum", "_count")


def declared():
    """Names under which the crates declare their metrics."""
    names = set()
    for path in METRIC_FILES:
        names |= set(re.findall(r'"((?:router|prefill|decode)_[a-z_]+)"', path.read_text()))
    return {f"kvferry_{name}" for name in names}


def used(text):
    """Names that a query, a rule or a dashboard asks for, as they were declared."""
    names = set()
    for name in re.findall(r"\bkvferry_[a-z_]+", text):
        suffix = next((s for s in SUFFIXES if name.endswith(s)), "")
        names.add(name.removesuffix(suffix))
    return names


class Monitoring(unittest.TestCase):
    dashboard = ROOT / "deploy/grafana/dashboards/kvferry.json"
    rules = ROOT / "deploy/prometheus/rules.yml"

    def test_dashboard_and_rules_ask_for_metrics_that_exist(self):
        queries = [target["expr"] for panel in json.loads(self.dashboard.read_text())["panels"]
                   for target in panel.get("targets", [])]
        self.assertGreater(len(queries), 20)
        asked = used("\n".join(queries)) | used(re.sub("Kvferry", "", self.rules.read_text()))
        self.assertEqual(asked - declared(), set())

    def test_dashboard_asks_the_provisioned_source(self):
        source = (ROOT / "deploy/grafana/provisioning/datasources/prometheus.yml").read_text()
        uid = re.search(r"uid: (\S+)", source)[1]
        for panel in json.loads(self.dashboard.read_text())["panels"]:
            if panel["type"] != "row":
                self.assertEqual(panel["datasource"]["uid"], uid, panel["title"])

    def test_promtool_takes_the_configuration(self):
        promtool = shutil.which("promtool")
        if promtool is None:
            print("    promtool is not on this machine: left out", flush=True)
            return
        command(promtool, "check", "config", "deploy/prometheus/prometheus.yml")


class Image(unittest.TestCase):
    def test_dockerfile_asks_a_builder_for_nothing_special(self):
        text = (ROOT / "Dockerfile").read_text()
        self.assertNotIn("# syntax", text)
        self.assertNotIn("--mount", text)
        for line in re.findall(r"cargo build --.*", text):
            self.assertIn("--locked", line)


class Documentation(unittest.TestCase):
    def test_every_variable_of_the_compose_file_is_explained(self):
        variables = set(re.findall(r"\$\{(\w+)", (ROOT / "docker-compose.yml").read_text()))
        page = (pathlib.Path(ROOT) / "docs/deployment.md").read_text()
        self.assertEqual({name for name in variables if f"`{name}`" not in page}, set())
