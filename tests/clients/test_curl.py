"""`curl -N`, the way most people try a server first."""

import json
import subprocess
import time

from cluster import ANSWER_SECONDS, MODEL, ClusterTest


class Curl(ClusterTest):
    def curl(self, path, body, *flags):
        command = ["curl", "--silent", "--show-error", "--max-time", str(ANSWER_SECONDS), *flags, f"{self.cluster.url}{path}",
                   "--header", "Content-Type: application/json", "--data", json.dumps(body)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    def test_tokens_come_as_they_are_made(self):
        body = {"model": MODEL, "prompt": "Once upon a time", "max_tokens": 64, "stream": True, "ignore_eos": True}
        arrivals, lines = [], []
        with self.curl("/v1/completions", body, "-N") as process:
            for line in process.stdout:
                if line.strip():
                    arrivals.append(time.monotonic())
                    lines.append(line.strip())
        self.assertEqual(process.returncode, 0)
        self.assertEqual(len(lines), 65, "one line per token, and the end")
        self.assertEqual(lines[-1], "data: [DONE]")
        self.assertTrue(all(line.startswith("data: {") for line in lines[:-1]))
        # Sent in one piece, all lines would come at once.
        half = arrivals[len(arrivals) // 2] - arrivals[0]
        self.assertGreater(half, 0.2 * (arrivals[-1] - arrivals[0]))

    def test_an_error_says_what_to_do(self):
        with self.curl("/v1/completions", {"model": MODEL}, "--write-out", "\n%{http_code}") as process:
            text, status = process.stdout.read().rsplit("\n", 1)
        self.assertEqual((status, json.loads(text)["error"]["param"]), ("400", "prompt"))
