"""What the test files share: the one cluster, set by `run`, and its client."""

cluster = None
client = None
