"""A client of the router's HTTP API with deadlines, whole answers and streams."""

import contextlib
import http.client
import json


class Answer:
    """Status and body of a whole answer."""

    def __init__(self, status, body):
        self.status, self.body = status, body

    @property
    def transfer(self):
        return self.body["kv_transfer"]

    @property
    def text(self):
        return self.body["choices"][0]["text"]

    def __repr__(self):
        return f"{self.status} {json.dumps(self.body)[:300]}"


# What every request asks for: a report, and a split, which "auto" may well choose not to make between containers of one machine.
ASKED = {"temperature": 0, "kv_transfer": True, "kv_codec": "kvtc"}


class Client:
    """Talks to one router."""

    def __init__(self, port, seconds=60):
        self.port, self.seconds = port, seconds

    def _connection(self):
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=self.seconds)

    def _post(self, fields):
        connection = self._connection()
        connection.request("POST", "/v1/completions", json.dumps(fields), {"content-type": "application/json"})
        return connection, connection.getresponse()

    def get(self, path):
        with contextlib.closing(self._connection()) as connection:
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read().decode()

    def model(self):
        return json.loads(self.get("/v1/models")[1])["data"][0]["id"]

    def complete(self, prompt, **fields):
        asked = ASKED | {"model": self.model(), "prompt": prompt, "max_tokens": 8}
        connection, response = self._post(asked | fields)
        with contextlib.closing(connection):
            return Answer(response.status, json.loads(response.read()))

    def stream(self, prompt, **fields):
        """The events of a stream, one by one: objects, and the text "[DONE]" where the stream went well."""
        asked = ASKED | {"model": self.model(), "prompt": prompt, "stream": True}
        connection, response = self._post(asked | fields)
        try:
            for line in response:
                if line.startswith(b"data: "):
                    data = line[len(b"data: "):].strip().decode()
                    yield data if data == "[DONE]" else json.loads(data)
        finally:
            connection.close()


def prompt(sentences, seed=0):
    """Filler of about ten tokens a sentence, different for every seed so that no cache of any kind helps."""
    places = ("harbor", "orchard", "tower", "cellar", "market")
    made = (f"Crate {seed}{n} was carried to the {places[(seed + n) % len(places)]}." for n in range(sentences))
    return " ".join(made) + " In the end"
