"""A router, a prefill and a decode node as processes, or the two nodes behind a proxy of somebody else's, taken down when the
tests end."""

import os
import pathlib
import socket
import subprocess
import tempfile
import time
import unittest
import urllib.error
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parents[2]
PROGRAMS = pathlib.Path(os.environ["KVFERRY_PROGRAMS"])
WORK = pathlib.Path(os.environ["WORK"])
MODEL = "tiny-llama"
START_SECONDS = 120
STOP_SECONDS = 10
# The pass of a long prompt in a debug build on a busy machine.
ANSWER_SECONDS = 120


def free_port(kind=socket.SOCK_STREAM):
    with socket.socket(socket.AF_INET, kind) as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class Processes:
    """Programs with certificates of one cluster."""

    def __init__(self):
        self.folder = tempfile.TemporaryDirectory(prefix="kvferry-clients-")
        self.certs = pathlib.Path(self.folder.name) / "certs"
        subprocess.run([PROGRAMS / "kvferry", "certs", self.certs], check=True, capture_output=True)
        self.processes = []

    def start(self, name, *flags):
        model = ROOT / "models" / MODEL
        self.run(name, PROGRAMS / name, "--certs", self.certs, "--model", model, *flags)

    def run(self, name, *command):
        with open(WORK / f"{name}.log", "ab") as log:
            self.processes.append(subprocess.Popen(command, stderr=log, stdout=log))

    def until_ready(self, url, context=None):
        """Waits until requests can be served."""
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                with urllib.request.urlopen(url, timeout=5, context=context):
                    return self
            except (urllib.error.URLError, OSError) as error:
                dead = [process.args[0] for process in self.processes if process.poll() is not None]
                if dead or time.monotonic() > deadline:
                    self.stop()
                    raise AssertionError(f"{url} is not ready: {error}; ended: {dead}; logs in {WORK}") from error
                time.sleep(0.1)

    def stop(self):
        for process in self.processes:
            process.terminate()
        for process in self.processes:
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self.folder.cleanup()


class Cluster(Processes):
    """Started when made. Flags of the router can be given; `scheme` is https where they ask for TLS."""

    def __init__(self, *router_flags, scheme="http", nodes=True):
        super().__init__()
        http, quic = free_port(), free_port(socket.SOCK_DGRAM)
        self.url = f"{scheme}://127.0.0.1:{http}"
        self.start("router", "--http", f"127.0.0.1:{http}", "--quic", f"127.0.0.1:{quic}", *router_flags)
        if nodes:
            for name in ("prefill-node", "decode-node"):
                self.start(name, "--router", f"127.0.0.1:{quic}", "--listen", "127.0.0.1:0", "--admin-listen", f"127.0.0.1:{free_port()}")

    def ready(self, context=None):
        return self.until_ready(f"{self.url}/ready", context)


class ClusterTest(unittest.TestCase):
    """Tests that share one cluster, started with the flags of the class."""

    flags = ()

    @classmethod
    def setUpClass(cls):
        cls.cluster = Cluster(*cls.flags).ready()
        cls.addClassCleanup(cls.cluster.stop)
