"""What a user does with a cluster that is up: ask it, measure it, scale it."""

import concurrent.futures
import json
import unittest

import suite
from client import prompt
from cluster import docker, eventually, say


class Serving(unittest.TestCase):
    def setUp(self):
        self.cluster, self.client = suite.cluster, suite.client
        self.cluster.restored()

    def test_a_raw_and_a_coded_request_give_text_and_the_bytes_saved(self):
        text = prompt(60)
        raw = self.client.complete(text, kv_codec="raw")
        coded = self.client.complete(text, kv_codec="kvtc")
        self.assertEqual((raw.status, coded.status), (200, 200), (raw, coded))
        self.assertEqual(raw.transfer["source"], "remote")
        self.assertLessEqual(raw.transfer["saved_bytes"], 0)
        self.assertEqual(coded.transfer["raw_bytes"] - coded.transfer["wire_bytes"], coded.transfer["saved_bytes"])
        self.assertGreater(coded.transfer["ratio"], 4)
        self.assertTrue(coded.text)
        say(f"{coded.body['usage']['prompt_tokens']} tokens: {coded.transfer['raw_bytes']} bytes raw, "
            f"{coded.transfer['wire_bytes']} coded, {coded.transfer['saved_bytes']} saved")

    def test_a_stream_ends_with_its_report(self):
        *events, last = self.client.stream(prompt(40, seed=1), max_tokens=6, ignore_eos=True)
        self.assertEqual(last, "[DONE]")
        self.assertEqual(events[-1]["kv_transfer"]["source"], "remote")

    def test_both_nodes_of_each_kind_are_used(self):
        def ask(seed):
            return self.client.complete(prompt(60, seed), max_tokens=32, ignore_eos=True)

        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(ask, range(8)))
        self.assertEqual({a.status for a in answers}, {200}, answers)
        for role in ("prefill_node", "decode_node"):
            self.assertEqual(len({a.transfer[role] for a in answers}), 2, role)

    def test_decode_nodes_scale_up_and_down_without_a_restart(self):
        started = self.cluster.container("router").state()["StartedAt"]
        self.cluster.up("--no-recreate", "--scale", "decode-node=3")
        eventually("three decode nodes", lambda: self.cluster.nodes("decode") == 3)
        with concurrent.futures.ThreadPoolExecutor(9) as pool:
            asked = [pool.submit(self.client.complete, prompt(40, n), max_tokens=64, ignore_eos=True) for n in range(9)]
            used = {future.result().transfer["decode_node"] for future in asked}
        self.assertEqual(len(used), 3)
        self.cluster.up("--no-recreate", "--scale", "decode-node=2")
        eventually("two decode nodes", lambda: self.cluster.nodes("decode") == 2)
        self.assertEqual(self.client.complete(prompt(40)).status, 200)
        self.assertEqual(self.cluster.container("router").state()["StartedAt"], started)

    def test_bench_prints_raw_against_coded_and_puts_the_links_back(self):
        shown = self.cluster.compose("--profile", "bench", "run", "--rm", "bench", seconds=300).stdout
        print(shown, flush=True)
        for link in ("unshaped", "0.05 Gb/s", "0.2 Gb/s", "1 Gb/s"):
            self.assertIn(link, shown)
        for node in self.cluster.containers("prefill-node"):
            self.assertEqual(json.loads(node.get("http://127.0.0.1:9090/link"))["gbps"], 0)

    def test_a_link_can_be_shaped_from_the_start(self):
        self.cluster.up("--no-deps", "prefill-node", env={"KVFERRY_LINK_GBPS": "0.05"})
        self.cluster.ready()
        raw = self.client.complete(prompt(100, seed=3), kv_codec="raw").transfer
        fastest = raw["wire_bytes"] * 8 / 0.05e9 * 1e3
        self.assertGreater(raw["wire_ms"], 0.7 * fastest)
        say(f"{raw['wire_bytes']} bytes took {raw['wire_ms']:.0f} ms at 0.05 Gb/s")

    def test_containers_are_confined(self):
        for service in ("router", "prefill-node", "decode-node"):
            container = self.cluster.container(service)
            host = container.inspect()["HostConfig"]
            self.assertTrue(host["ReadonlyRootfs"])
            self.assertEqual(host["CapDrop"], ["ALL"])
            self.assertGreater(host["Memory"], 0)
            self.assertEqual(docker("exec", container.id, "id", "-u"), "10001")
            volumes = [mount["Name"] for mount in container.inspect()["Mounts"] if mount["Type"] == "volume"]
            self.assertEqual(volumes, [self.cluster.certs_volume], "an anonymous volume would stay behind")
            self.assertIn("Read-only", docker("exec", container.id, "sh", "-c", "touch /x", check=False))
