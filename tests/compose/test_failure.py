"""Nodes that die, hang behind a cut network, or come back, while clients ask."""

import unittest

import suite
from client import prompt
from cluster import docker, eventually, say


def serving(containers):
    """The decode container that holds a running session."""
    def busy():
        return next((c for c in containers if c.metrics().value("kvferry_decode_sessions", state="decoding")), None)

    return eventually("a decode node decodes", busy, seconds=10, pause=0.05)


class Failure(unittest.TestCase):
    def setUp(self):
        self.cluster, self.client = suite.cluster, suite.client
        self.cluster.restored()

    def tearDown(self):
        for service in ("prefill-node", "decode-node"):
            for container in self.cluster.containers(service):
                docker("network", "connect", "--alias", service, self.cluster.network, container.id, check=False)
                docker("start", container.id, check=False)

    def test_a_decode_node_killed_in_a_stream_gives_an_honest_error_and_the_next_request_the_other_node(self):
        events = self.client.stream(prompt(40), max_tokens=4000, ignore_eos=True)
        for _ in range(3):
            next(events)
        victim = serving(self.cluster.containers("decode-node"))
        docker("kill", victim.id)
        *_, last = events
        self.assertIn("error", last, "a cut stream must not look finished")
        say(f"the client was told: {last['error']['message']}")
        after = self.client.complete(prompt(40, seed=5))
        self.assertEqual(after.status, 200, after)
        say(f"the next request was answered by {after.transfer['decode_node']}")
        self.assertIn(after.transfer["decode_node"], self.cluster_logs("decode-node", but=victim))

    def cluster_logs(self, service, but):
        return "".join(c.logs() for c in self.cluster.containers(service) if c != but)

    def test_a_killed_prefill_node_is_replaced_by_the_other(self):
        docker("kill", self.cluster.container("prefill-node").id)
        for seed in range(3):
            answer = self.client.complete(prompt(60, seed))
            self.assertEqual((answer.status, answer.transfer["source"]), (200, "remote"), answer)

    def test_a_crashed_node_is_restarted_and_joins_again(self):
        node = self.cluster.container("decode-node")
        docker("exec", node.id, "sh", "-c", "kill -KILL -1", check=False)
        eventually("a restart", lambda: node.inspect()["RestartCount"] == 1)
        self.cluster.ready()

    def test_a_cut_network_is_noticed_said_and_healed(self):
        node, other = self.cluster.containers("decode-node")
        docker("network", "disconnect", self.cluster.network, node.id)
        for seed in range(3):
            self.assertEqual(self.client.complete(prompt(40, seed)).status, 200)
        eventually("the router has one decode node", lambda: self.cluster.nodes("decode") == 1)
        eventually("the node's health", lambda: node.health()[0] == "unhealthy", seconds=40)
        say(f"its health says: {node.health()[1]}")
        self.assertIn("not in the cluster", node.health()[1])
        docker("network", "connect", "--alias", "decode-node", self.cluster.network, node.id)
        self.cluster.ready()
        docker("stop", other.id)
        healed = self.client.complete(prompt(60, seed=7))
        self.assertEqual((healed.status, healed.transfer["source"]), (200, "remote"), healed)

    def test_a_network_cut_in_a_stream_ends_it_with_an_error(self):
        events = self.client.stream(prompt(40), max_tokens=4000, ignore_eos=True)
        next(events)
        docker("network", "disconnect", self.cluster.network, serving(self.cluster.containers("decode-node")).id)
        *_, last = events
        self.assertIn("error", last)
        say(f"the client was told: {last['error']['message']}")

    def test_a_stopped_node_drains(self):
        events = self.client.stream(prompt(40), max_tokens=150, ignore_eos=True)
        next(events)
        node = serving(self.cluster.containers("decode-node"))
        docker("stop", "--time", "40", node.id, seconds=60)
        *_, last = events
        self.assertEqual(last, "[DONE]", node.logs())
        self.assertEqual(node.state()["ExitCode"], 0)
