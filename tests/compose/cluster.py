"""The cluster of docker-compose.yml under a project name of its own, seen from outside: compose and docker commands,
each with a deadline, and waiting for what must become true."""

import json
import os
import pathlib
import re
import shutil
import subprocess
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
MODEL = ROOT / "models" / "tiny-llama"
NODES = {"prefill": "prefill-node", "decode": "decode-node"}


class Failed(Exception):
    """A command that did not end as it should, or a state that did not come about in time."""


def say(text):
    print(f"    {text}", flush=True)


def command(*args, seconds=60, check=True, env=None):
    """Runs a command; what it wrote, both streams together, is in `stdout`."""
    merged = {**os.environ, **(env or {})}
    try:
        done = subprocess.run(
            args, cwd=ROOT, env=merged, timeout=seconds, text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )
    except subprocess.TimeoutExpired as late:
        raise Failed(f"{' '.join(args)} took longer than {seconds} s: {late.output}") from None
    if check and done.returncode != 0:
        raise Failed(f"{' '.join(args)} ended with {done.returncode}:\n{done.stdout}")
    return done


def docker(*args, **options):
    return command("docker", *args, **options).stdout.strip()


def eventually(what, probe, seconds=30, pause=0.25):
    """The first true value of `probe`; what it saw last is part of the complaint."""
    deadline = time.monotonic() + seconds
    while True:
        seen = probe()
        if seen:
            return seen
        if time.monotonic() > deadline:
            raise Failed(f"not within {seconds} s: {what} (last seen: {seen!r})")
        time.sleep(pause)


def compose_tool():
    """The compose command of this machine: Compose v2 where the plugin is there, else docker-compose 1.29."""
    if "COMPOSE" in os.environ:
        return os.environ["COMPOSE"].split()
    if command("docker", "compose", "version", check=False).returncode == 0:
        return ["docker", "compose"]
    return ["docker-compose"] if shutil.which("docker-compose") else None


class Container:
    """One container, by its id."""

    def __init__(self, identifier):
        self.id = identifier

    def __eq__(self, other):
        return self.id == other.id

    def inspect(self):
        return json.loads(docker("inspect", self.id))[0]

    def state(self):
        return self.inspect()["State"]

    def health(self):
        """Status and what the last probe printed."""
        health = self.state().get("Health") or {}
        log = health.get("Log") or [{"Output": ""}]
        return health.get("Status", "none"), log[-1]["Output"].strip()

    def is_healthy(self):
        return self.health()[0] == "healthy"

    def logs(self):
        return docker("logs", self.id)

    def get(self, url):
        """GET from inside the container, which publishes nothing."""
        return docker("exec", self.id, "kvferry", "health", url)

    def metrics(self):
        return Metrics(self.get("http://127.0.0.1:9090/metrics"))


class Metrics:
    """OpenMetrics text."""

    def __init__(self, text):
        self.text = text

    def value(self, name, **labels):
        """Sum over all series of this name that carry these labels."""
        total, found = 0.0, False
        for series, value in re.findall(rf"^{name}(\{{.*\}})? (\S+)$", self.text, re.MULTILINE):
            if all(f'{key}="{wanted}"' in series for key, wanted in labels.items()):
                total, found = total + float(value), True
        return total if found else None


class Cluster:
    """A compose project."""

    def __init__(self, tool, project, port):
        self.tool, self.project, self.port = tool, project, port
        self.env = {"COMPOSE_PROJECT_NAME": project, "KVFERRY_PORT": str(port), "KVFERRY_TAG": project}

    @property
    def image(self):
        return f"kvferry:{self.project}"

    @property
    def network(self):
        return f"{self.project}_default"

    @property
    def certs_volume(self):
        return f"{self.project}_certs"

    def compose(self, *args, env=None, seconds=180, check=True):
        return command(*self.tool, *args, seconds=seconds, check=check, env=self.env | (env or {}))

    def build(self, seconds):
        self.compose("build", seconds=seconds)

    def up(self, *args, **options):
        return self.compose("up", "-d", *args, **options)

    def down(self, *args):
        """Takes everything down, whatever state it is in."""
        profiles = ("--profile", "bench", "--profile", "monitoring")
        self.compose(*profiles, "down", "-v", "--remove-orphans", "-t", "5", *args)

    def containers(self, service):
        """Of a service, the stopped ones too, oldest first."""
        labels = (f"project={self.project}", f"service={service}", "oneoff=False")
        filters = [part for label in labels for part in ("--filter", f"label=com.docker.compose.{label}")]
        ids = docker("ps", "--all", "--quiet", "--no-trunc", *filters)
        return [Container(i) for i in reversed(ids.split())]

    def container(self, service):
        return self.containers(service)[0]

    def nodes(self, role):
        """How many nodes of a role the router counts."""
        router = self.container("router")
        metrics = Metrics(router.get("http://127.0.0.1:8080/metrics"))
        return int(metrics.value("kvferry_router_nodes", role=role) or 0)

    def ready(self, prefill=2, decode=2, seconds=60):
        """Waits until the router counts these nodes and every container is healthy."""
        wanted = {"prefill": prefill, "decode": decode}

        def complete():
            return all(self.nodes(role) == count for role, count in wanted.items())

        def healthy():
            services = ("router", *NODES.values())
            return all(c.is_healthy() for service in services for c in self.containers(service))

        eventually(f"the router counts {wanted}", complete, seconds)
        eventually("every container is healthy", healthy, seconds)

    def restored(self):
        """The cluster as it is by default, whatever was done to it."""
        self.up("--scale", "prefill-node=2", "--scale", "decode-node=2")
        self.ready()

    def leftovers(self):
        """Everything that still carries the project's name, images aside."""
        found = []
        mine = ("--filter", f"label=com.docker.compose.project={self.project}")
        for kind in ("container", "network", "volume"):
            every = ("--all",) if kind == "container" else ()
            found += docker(kind, "ls", "--quiet", *every, *mine).split()
        return found
