"""aiperf, NVIDIA's benchmark client, as its users run it."""

import json
import os
import subprocess

from cluster import MODEL, ROOT, WORK, ClusterTest

REQUESTS = 12
RUN_SECONDS = 400


class Aiperf(ClusterTest):
    def profile(self, kind, *flags):
        """Runs it and gives its own summary."""
        out = WORK / f"aiperf-{kind}"
        command = [os.environ["AIPERF"], "profile", "--model", MODEL, "--url", self.cluster.url, "--endpoint-type", kind,
                   "--streaming", "--concurrency", "2", "--request-count", str(REQUESTS), "--warmup-request-count", "2",
                   "--synthetic-input-tokens-mean", "200", "--output-tokens-mean", "16", "--extra-inputs", "ignore_eos:true",
                   "--tokenizer", str(ROOT / "models" / MODEL), "--use-server-token-count", "--random-seed", "7", "--ui", "none",
                   "--artifact-dir", str(out), *flags]
        run = subprocess.run(command, capture_output=True, text=True, timeout=RUN_SECONDS, cwd=WORK)
        self.assertEqual(run.returncode, 0, run.stdout[-3000:] + run.stderr[-3000:])
        return json.loads(next(out.rglob("profile_export_aiperf.json")).read_text())

    def check(self, summary):
        self.assertEqual(summary["request_count"]["avg"], REQUESTS)
        self.assertEqual(summary.get("error_request_count", {}).get("avg", 0), 0)
        self.assertEqual(summary["output_sequence_length"]["avg"], 16)
        self.assertGreater(summary["time_to_first_token"]["p50"], 0)
        self.assertGreater(summary["inter_token_latency"]["avg"], 0)

    def test_completions(self):
        self.check(self.profile("completions"))

    def test_chat(self):
        self.check(self.profile("chat"))
