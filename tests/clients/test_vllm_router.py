"""vLLM's own router (`vllm-router`) with a prefill and a decode node of ours as its instances: it carries `kv_transfer_params`
from one to the other, and the `openai` SDK asks it."""

import concurrent.futures
import os
import time
import unittest
import urllib.request

import openai

from cluster import ANSWER_SECONDS, MODEL, Processes, free_port

PROMPT = "The lantern stood near the old mill before noon. " * 30
AT_ONCE = 6
# Bit exact, so that texts are those of the decode node alone.
LOSSLESS = {"kv_codec": "lossless", "kv_transfer": True}


class Proxied(Processes):
    """The two nodes have no router of ours; vLLM's knows their HTTP faces."""

    def __init__(self):
        super().__init__()
        prefill, decode, self.admin, proxy = (free_port() for _ in range(4))
        self.faces = {"prefill-node": f"http://127.0.0.1:{prefill}", "decode-node": f"http://127.0.0.1:{decode}"}
        self.url = f"http://127.0.0.1:{proxy}"
        self.start("prefill-node", "--http", f"127.0.0.1:{prefill}", "--listen", "127.0.0.1:0", "--admin-listen", f"127.0.0.1:{self.admin}")
        self.start("decode-node", "--http", f"127.0.0.1:{decode}", "--listen", "127.0.0.1:0")
        for face in self.faces.values():
            self.until_ready(f"{face}/ready")
        self.run("vllm-router", os.environ["VLLM_ROUTER"], "--host", "127.0.0.1", "--port", str(proxy), "--policy", "round_robin",
                 "--vllm-pd-disaggregation", "--prefill", self.faces["prefill-node"], "--decode", self.faces["decode-node"])
        self.until_ready(f"{self.url}/readiness")

    def metric(self, name):
        with urllib.request.urlopen(f"http://127.0.0.1:{self.admin}/metrics", timeout=5) as metrics:
            lines = metrics.read().decode().splitlines()
        return next(float(line.split()[1]) for line in lines if line.startswith(name))


def client(url):
    return openai.OpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0, timeout=ANSWER_SECONDS)


class VllmRouter(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.cluster = Proxied()
        cls.addClassCleanup(cls.cluster.stop)
        cls.proxy, cls.decode = client(cls.cluster.url), client(cls.cluster.faces["decode-node"])

    def tearDown(self):
        # The prefill node hears a moment after the client that its cache has come.
        deadline = time.monotonic() + ANSWER_SECONDS
        while self.cluster.metric("kvferry_prefill_kv_leases_active") != 0:
            self.assertLess(time.monotonic(), deadline, "a cache is still kept")
            time.sleep(0.05)

    def ask(self, client, chat, **fields):
        fields = {"model": MODEL, "max_tokens": 10, "temperature": 0, "extra_body": LOSSLESS, **fields}
        if chat:
            return client.chat.completions.create(messages=[{"role": "user", "content": PROMPT}], **fields)
        return client.completions.create(prompt=PROMPT, **fields)

    def check(self, report):
        self.assertEqual((report["source"], report["codec"]), ("remote", "lossless"))
        self.assertLess(report["wire_bytes"], report["raw_bytes"])

    def test_texts_are_those_of_the_decode_node_alone_and_their_caches_have_come(self):
        for chat in (False, True):
            alone, handed = self.ask(self.decode, chat), self.ask(self.proxy, chat)
            text = (lambda choice: choice.message.content) if chat else (lambda choice: choice.text)
            self.assertEqual(alone.kv_transfer["source"], "local")
            self.check(handed.kv_transfer)
            self.assertEqual(text(handed.choices[0]), text(alone.choices[0]))
            self.assertEqual(handed.usage.total_tokens, alone.usage.total_tokens)

    def test_streams_give_the_same(self):
        for chat in (False, True):
            whole = self.ask(self.proxy, chat).choices[0]
            chunks = list(self.ask(self.proxy, chat, stream=True, stream_options={"include_usage": True}))
            pieces = [chunk.choices[0] for chunk in chunks[:-1]]
            if chat:
                self.assertEqual("".join(piece.delta.content for piece in pieces), whole.message.content)
            else:
                self.assertEqual("".join(piece.text for piece in pieces), whole.text)
            self.check(chunks[-1].kv_transfer)

    def test_several_at_once_do_not_mix(self):
        with concurrent.futures.ThreadPoolExecutor(AT_ONCE) as pool:
            answers = list(pool.map(lambda at: self.ask(self.proxy, at % 2 == 1), range(AT_ONCE)))
        for answer in answers:
            self.check(answer.kv_transfer)

    def test_what_a_handover_cannot_do_is_said(self):
        with self.assertRaises(openai.BadRequestError) as refused:
            self.ask(self.proxy, False, n=2)
        self.assertIn("n must be 1", str(refused.exception))
