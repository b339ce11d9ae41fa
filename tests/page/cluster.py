"""`kvferry demo` as it serves on after its table: one process with a router and two nodes, and its API."""

import json
import os
import pathlib
import signal
import socket
import subprocess
import threading
import urllib.error
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parents[2]
START_SECONDS = 240
END_SECONDS = 15


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


class Cluster:
    """Started by the first test that needs it, ended by the last module."""

    def __init__(self):
        self.url = f"http://127.0.0.1:{free_port()}"
        command = [os.environ["KVFERRY_BIN"], "demo", "--listen", self.url.removeprefix("http://")]
        self.process = subprocess.Popen(command, cwd=ROOT, text=True, stdin=subprocess.DEVNULL,
                                        stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        self.said, self.is_up = [], threading.Event()
        self.listener = threading.Thread(target=self._listen, daemon=True)
        self.listener.start()
        if not self.is_up.wait(START_SECONDS) or self.process.poll() is not None:
            self.process.kill()
            raise RuntimeError(f"no cluster within {START_SECONDS} s:\n{''.join(self.said)}")

    def _listen(self):
        for line in self.process.stdout:
            self.said.append(line)
            if "The cluster stays up" in line:
                self.is_up.set()
        self.is_up.set()

    def board(self):
        with urllib.request.urlopen(f"{self.url}/board", timeout=10) as response:
            return json.load(response)

    def status(self, path, body):
        """Status of a POST."""
        request = urllib.request.Request(self.url + path, json.dumps(body).encode(), {"content-type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=30) as response:
                return response.status
        except urllib.error.HTTPError as error:
            return error.code

    def end(self):
        """Ends it as Ctrl-C does, and says whether it went by itself."""
        self.process.send_signal(signal.SIGINT)
        try:
            went = self.process.wait(END_SECONDS) == 0
        except subprocess.TimeoutExpired:
            self.process.kill()
            went = False
        self.listener.join(END_SECONDS)
        self.process.stdout.close()
        return went
