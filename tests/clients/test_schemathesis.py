"""schemathesis: requests made from the API's own description find no fault inside and no answer that it does not have."""

import os
import pathlib
import subprocess

from cluster import WORK, ClusterTest

RUN_SECONDS = 400
CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_headers_conformance,response_schema_conformance"


class Description(ClusterTest):
    # What is valid is generated too, and a context this short keeps that quick.
    flags = ("--max-model-len", "256", "--chat-max-tokens", "8")

    def test_the_api_keeps_to_it(self):
        program = pathlib.Path(os.environ["CLIENTS"]) / "schemathesis"
        command = [program, "run", f"{self.cluster.url}/openapi.json", "--checks", CHECKS, "--max-examples", "20", "--seed", "7",
                   "--phases", "examples,coverage,fuzzing", "--request-timeout", "60", "--continue-on-failure", "--no-color"]
        run = subprocess.run(command, capture_output=True, text=True, timeout=RUN_SECONDS, cwd=WORK)
        self.assertEqual(run.returncode, 0, run.stdout[-6000:] + run.stderr[-2000:])
