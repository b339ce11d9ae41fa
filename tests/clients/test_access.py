"""Keys, TLS and a full house, as the `openai` SDK meets them."""

import pathlib
import ssl
import subprocess
import tempfile
import threading

import openai

from cluster import ANSWER_SECONDS, MODEL, Cluster, ClusterTest


class Keys(ClusterTest):
    @classmethod
    def setUpClass(cls):
        folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(folder.cleanup)
        file = pathlib.Path(folder.name) / "keys"
        file.write_text("# for tests\nsecret-1\nsecret-2\n")
        cls.flags = ("--api-key-file", str(file))
        super().setUpClass()

    def client(self, key):
        return openai.OpenAI(base_url=f"{self.cluster.url}/v1", api_key=key, max_retries=0, timeout=ANSWER_SECONDS)

    def test_a_key_opens_and_another_does_not(self):
        for key in ("secret-1", "secret-2"):
            answer = self.client(key).completions.create(model=MODEL, prompt="a", max_tokens=1)
            self.assertEqual(answer.usage.completion_tokens, 1)
        with self.assertRaises(openai.AuthenticationError) as raised:
            self.client("wrong").completions.create(model=MODEL, prompt="a", max_tokens=1)
        self.assertEqual(raised.exception.code, "invalid_api_key")


class Full(ClusterTest):
    flags = ("--max-num-seqs", "1")

    def test_the_sdk_waits_and_tries_again_when_told_to(self):
        fields = {"model": MODEL, "prompt": "Once upon a time", "extra_body": {"ignore_eos": True}}
        base_url = f"{self.cluster.url}/v1"
        patient = openai.OpenAI(base_url=base_url, api_key="unused", max_retries=60, timeout=ANSWER_SECONDS)
        hasty = openai.OpenAI(base_url=base_url, api_key="unused", max_retries=0, timeout=ANSWER_SECONDS)
        stream = hasty.completions.create(stream=True, max_tokens=4000, **fields)
        next(iter(stream))
        with self.assertRaises(openai.RateLimitError) as raised:
            hasty.completions.create(max_tokens=1, **fields)
        self.assertEqual(raised.exception.code, "rate_limit_exceeded")
        self.assertEqual(raised.exception.response.headers["retry-after"], "1")
        threading.Timer(1.5, stream.close).start()
        self.assertEqual(patient.completions.create(max_tokens=1, **fields).usage.completion_tokens, 1)


class Tls(ClusterTest):
    @classmethod
    def setUpClass(cls):
        folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(folder.cleanup)
        cert, key = (pathlib.Path(folder.name) / name for name in ("cert.pem", "key.pem"))
        subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
                        "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", cert],
                       check=True, capture_output=True)
        cls.context = ssl.create_default_context(cafile=cert)
        cls.cluster = Cluster("--tls-cert", str(cert), "--tls-key", str(key), scheme="https").ready(cls.context)
        cls.addClassCleanup(cls.cluster.stop)

    def test_the_api_is_served_over_tls(self):
        http = openai.DefaultHttpxClient(verify=self.context)
        client = openai.OpenAI(base_url=f"{self.cluster.url}/v1", api_key="unused", http_client=http, timeout=ANSWER_SECONDS)
        chunks = list(client.completions.create(model=MODEL, prompt="a", max_tokens=3, stream=True, extra_body={"ignore_eos": True}))
        self.assertEqual(len(chunks), 3)
        with self.assertRaises(openai.APIConnectionError):
            plain = f"{self.cluster.url.replace('https', 'http')}/v1"
            openai.OpenAI(base_url=plain, api_key="unused", max_retries=0).models.list()
