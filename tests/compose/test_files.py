"""The files that need no engine: what compose, Prometheus and Grafana will read."""

import json
import pathlib
import re
import shutil
import tempfile
import unittest

from cluster import ROOT, command, compose_tool

METRIC_FILES = [*sorted(ROOT.glob("*/src/metrics.rs")), ROOT / "router/src/measured.rs"]
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


class Gpu(unittest.TestCase):
    files = ("-f", "docker-compose.yml", "-f", "docker-compose.gpu.yml")

    def configuration(self, **env):
        """What the compose tool makes of both files, as text."""
        tool = compose_tool()
        if tool is None:
            self.skipTest("no compose tool is here")
        return command(*tool, *self.files, "config", env=env).stdout

    def service(self, text, name):
        """A service's part of the configuration, quotes taken off."""
        return re.search(rf"^  {name}:\n((?:    .*\n)+)", text, re.MULTILINE)[1].replace('"', "").replace("'", "")

    def test_nodes_get_the_gpu_asked_for_and_others_none(self):
        text = self.configuration(PREFILL_GPU="2", DECODE_GPU="5")
        for name, gpu in (("prefill-node", "2"), ("decode-node", "5")):
            part = self.service(text, name)
            self.assertRegex(part, rf"device_ids:\n\s+- {gpu}\n")
            self.assertRegex(part, r"capabilities:\n\s+- gpu\n")
            self.assertIn("KVFERRY_DEVICE: cuda\n", part)
            self.assertIn("KVFERRY_ROUTER: router:8081\n", part, "the other file's environment is lost")
        for name in ("router", "certs"):
            self.assertNotIn("device_ids", self.service(text, name))

    def test_all_run_the_image_that_is_built_with_cuda(self):
        text = self.configuration(KVFERRY_TAG="x", CUDA_COMPUTE_CAP="80")
        for name in ("certs", "router", "prefill-node", "decode-node"):
            self.assertIn("image: kvferry:x-gpu\n", self.service(text, name))
        self.assertIn("CUDA_COMPUTE_CAP: 80\n", self.service(text, "certs"))

    def test_the_image_without_cuda_is_the_default(self):
        text = (ROOT / "Dockerfile").read_text()
        self.assertIn("\nARG CUDA_COMPUTE_CAP=\n", text)

    def test_every_variable_is_explained(self):
        variables = set(re.findall(r"\$\{(\w+)", (ROOT / "docker-compose.gpu.yml").read_text()))
        pages = "".join((ROOT / "docs" / page).read_text() for page in ("gpu.md", "deployment.md"))
        self.assertEqual({name for name in variables if f"`{name}`" not in pages}, set())

    def test_the_toolkit_leaves_a_folder_of_others_alone(self):
        with tempfile.TemporaryDirectory() as folder:
            mine = pathlib.Path(folder) / "mine"
            mine.write_text("precious")
            done = command("deploy/cuda/toolkit.sh", folder, check=False)
            self.assertNotEqual(done.returncode, 0)
            self.assertIn("holds something else", done.stdout)
            self.assertEqual(mine.read_text(), "precious")


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
