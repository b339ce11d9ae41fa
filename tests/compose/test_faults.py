"""What can be wrong on the way up. Each case ends in one clear log line that says what to do, and where a container is
there to have a health, its health says so too."""

import pathlib
import shutil
import socket
import tempfile
import unittest

import certificates
import suite
from client import prompt
from cluster import MODEL, docker, eventually, say

SERVER_NAME = "kvferry"


class Faults(unittest.TestCase):
    def setUp(self):
        self.cluster, self.client = suite.cluster, suite.client
        scratch = tempfile.TemporaryDirectory(prefix="kvferry-faults-")
        self.addCleanup(scratch.cleanup)
        self.scratch = pathlib.Path(scratch.name)
        self.scratch.chmod(0o755)

    def said(self, container, *words):
        """Waits for a log line with all the words, shows it, and wants the container's health to say the same."""
        def line():
            lines = container.logs().splitlines()
            return next((each for each in lines if all(word in each for word in words)), None)

        found = eventually(f"a log line with {words}", line, seconds=60)
        say(f"log: {found}")
        self.assertNotIn("panicked", container.logs())
        self.assertNotIn("Caused by", container.logs(), "one line was promised")

        def told():
            status, output = container.health()
            return status == "unhealthy" and all(word in output for word in words) and output

        say(f"health: {eventually(f'a health that says {words}', told, seconds=60)}")

    def recovered(self):
        self.cluster.restored()
        self.assertEqual(self.client.complete(prompt(40)).status, 200)


class Host(Faults):
    def test_a_taken_port_is_named(self):
        self.cluster.down()
        with socket.create_server(("127.0.0.1", self.cluster.port)):
            failed = self.cluster.up(check=False)
        self.assertNotEqual(failed.returncode, 0)
        self.assertIn(str(self.cluster.port), failed.stdout)
        self.assertRegex(failed.stdout, "address already in use|port is already allocated")
        say(next(line for line in failed.stdout.splitlines() if str(self.cluster.port) in line))
        self.recovered()

    def test_a_node_that_is_there_before_the_router_waits_and_says_so(self):
        self.cluster.down()
        self.cluster.compose("run", "--rm", "certs")
        self.cluster.up("--no-deps", "decode-node")
        node = self.cluster.container("decode-node")
        self.said(node, "router:8081", "resolved")
        self.recovered()


class Certificates(Faults):
    def setUp(self):
        super().setUp()
        self.addCleanup(self.cluster.down)

    def test_a_volume_that_cannot_be_written_is_named(self):
        self.cluster.down()
        docker("volume", "create", "--label", f"com.docker.compose.project={self.cluster.project}",
               "--label", "com.docker.compose.volume=certs", self.cluster.certs_volume)
        docker("run", "--rm", "--user", "0", "--volume", f"{self.cluster.certs_volume}:/certs", self.cluster.image,
               "sh", "-c", "chown root:root /certs && chmod 0755 /certs && touch /certs/.root")
        failed = self.cluster.up(check=False)
        self.assertNotEqual(failed.returncode, 0)
        logs = self.cluster.container("certs").logs()
        say(f"log: {logs}")
        self.assertIn("/certs", logs)
        self.assertIn("Permission denied", logs)
        self.assertEqual(len(logs.splitlines()), 1, logs)

    def test_expired_certificates_are_named_and_replaced_by_the_next_up(self):
        self.cluster.restored()
        certificates.expired(self.scratch, SERVER_NAME)
        certificates.install(self.scratch, self.cluster.image, self.cluster.certs_volume)
        node = self.cluster.container("decode-node")
        docker("restart", "--time", "2", node.id)
        self.said(node, "decode.pem", "expired", "kvferry certs")
        self.cluster.compose("stop", "-t", "2")
        self.recovered()

    def test_certificates_of_another_cluster_are_named(self):
        self.cluster.restored()
        docker("run", "--rm", "--user", "0", "--volume", f"{self.scratch}:/out", self.cluster.image,
               "kvferry", "certs", "/out/other")
        other = self.scratch / "other"
        certificates.install(other, self.cluster.image, self.cluster.certs_volume)
        node = self.cluster.container("decode-node")
        docker("restart", "--time", "2", node.id)
        self.said(node, "certificate")
        self.cluster.compose("stop", "-t", "2")
        self.recovered()


class Models(Faults):
    def tearDown(self):
        self.recovered()

    def serve(self, model_dir, **options):
        small = {"MODEL_DIR": str(model_dir), "PREFILL_NODES": "1", "DECODE_NODES": "1"}
        return self.cluster.up("-t", "2", env=small, **options)

    def test_a_missing_directory_is_named_and_not_made(self):
        missing = self.scratch / "missing"
        failed = self.serve(missing, check=False)
        self.assertNotEqual(failed.returncode, 0)
        self.assertIn(str(missing), failed.stdout)
        self.assertFalse(missing.exists())
        say(next(line for line in failed.stdout.splitlines() if str(missing) in line))

    def test_a_directory_without_a_model_is_named(self):
        (self.scratch / "photos").mkdir()
        self.serve(self.scratch / "photos")
        self.said(self.cluster.container("router"), "photos/config.json", "Hugging Face model directory")
        self.said(self.cluster.container("decode-node"), "cannot load the model", "photos", "config.json")

    def test_a_model_of_another_architecture_is_named(self):
        model = shutil.copytree(MODEL, self.scratch / "other-architecture")
        config = model / "config.json"
        config.write_text(config.read_text().replace('"llama"', '"gpt2"'))
        self.serve(model)
        self.said(self.cluster.container("prefill-node"), "config.json", "gpt2")

    def test_damaged_weights_are_named(self):
        model = shutil.copytree(MODEL, self.scratch / "damaged")
        weights = model / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:1 << 20])
        self.serve(model)
        self.said(self.cluster.container("decode-node"), "model.safetensors")

    def test_another_directory_is_served_under_its_own_name(self):
        model = shutil.copytree(MODEL, self.scratch / "my-llama")
        self.serve(model)
        self.cluster.ready(prefill=1, decode=1)
        self.assertEqual(self.client.model(), "my-llama")
        self.assertEqual(self.client.complete(prompt(60)).transfer["source"], "remote")
