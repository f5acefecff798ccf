"""Kubernetes, as far as it can be seen without a cluster: schemas, and what spark-submit asks the API server for.

The API server is one of HTTP that writes down what it is asked, and refuses.
"""

import json
import re
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import kubernetes_validate
import pytest
import yaml
from conftest import REPO
from kills import kill

HERE = REPO / "conf/kubernetes"
VERSIONS = ("1.30", "1.36")  # of the schemas: what Spark 4.0 is for, and a late one
IMAGE = "registry.example/melanoma_spark:1"


@pytest.fixture
def server() -> Iterator[tuple[str, list[tuple[str, dict[str, Any]]]]]:
    """An address, and what was posted there: (path, body)."""
    posted: list[tuple[str, dict[str, Any]]] = []

    class Refusing(BaseHTTPRequestHandler):
        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if self.command == "POST":
                posted.append((self.path, json.loads(body)))
            output = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 403, "message": "no pods here"}
            content = json.dumps(output).encode()
            self.send_response(403)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_PATCH = do_DELETE = do_PUT = answer

        def log_message(self, *arguments: object) -> None:
            return None

    with ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as running:
        thread = threading.Thread(target=running.serve_forever, daemon=True)
        thread.start()
        yield f"k8s://http://127.0.0.1:{running.server_port}", posted
        running.shutdown()


def documents() -> list[tuple[str, dict[str, Any]]]:
    return [
        (f"{path.name} {result['kind']}", result)
        for path in sorted(HERE.glob("*.yaml"))
        for result in yaml.safe_load_all(path.read_text())
    ]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(("name", "document"), documents(), ids=lambda value: value if isinstance(value, str) else "")
def test_manifests_of_kubernetes_fit_the_schemas(name, document, version):
    kubernetes_validate.validate(document, version, strict=True)


def posted_pod(posted: list[tuple[str, dict[str, Any]]], process: Any, patience: float = 120) -> dict[str, Any]:
    until = time.monotonic() + patience
    while not (pods := [body for path, body in posted if path.endswith("/namespaces/melanoma/pods")]):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until, posted
        time.sleep(0.2)
    return pods[0]


def looked_at(pod: dict[str, Any]) -> dict[str, Any]:
    """The container of a pod that is as the template wants it, and as the schemas do."""
    for version in VERSIONS:
        kubernetes_validate.validate(pod, version, strict=False)  # Spark's client adds fields of its own to metadata
    assert pod["spec"]["securityContext"]["runAsNonRoot"] is True
    assert pod["metadata"]["labels"]["app.kubernetes.io/name"] == "melanoma-spark"
    (container,) = pod["spec"]["containers"]
    assert container["image"] == IMAGE
    assert {"secretRef": {"name": "melanoma-spark", "optional": True}} in container["envFrom"]
    assert container["securityContext"]["allowPrivilegeEscalation"] is False
    return container


def memory(container: dict[str, Any]) -> int:
    """MiB that it may take."""
    limit = container["resources"]["limits"]["memory"]
    return int(re.fullmatch(r"(\d+)Mi", limit)[1])


def test_spark_requests_a_driver_that_runs_the_job_of_the_image(server, submitted):
    address, posted = server
    words = (
        "archive=s3a://bucket/lesions",
        "warehouse=s3a://bucket/warehouse",
        "mlflow.tracking_uri=http://mlflow:5000",
    )
    image = ("--conf", f"spark.kubernetes.container.image={IMAGE}")
    process = submitted("score", "--master", address, "--deploy-mode", "cluster", *image, *words)
    pod = posted_pod(posted, process)
    out, err = process.communicate(timeout=120)
    assert process.returncode != 0
    assert "no pods here" in out + err, "what the API server said"
    container = looked_at(pod)
    assert memory(container) == 8 * 1024
    assert pod["spec"]["serviceAccountName"] == "melanoma-spark"
    output = container["args"]
    assert "local:///opt/melanoma_spark/jobs/score.py" in output
    assert output[-len(words) :] == list(words)
    assert not [body for _, body in posted if str(REPO) in json.dumps(body.get("spec", {}))], "no path of this machine"


def test_requested_executors_have_memory_for_python(server, submitted):
    address, posted = server
    image = ("--conf", f"spark.kubernetes.container.image={IMAGE}", "--conf", "spark.driver.memory=1g")
    words = ("archive=s3a://bucket/lesions", "warehouse=/tmp/none", "mlflow.tracking_uri=http://mlflow:5000")
    process = submitted("doctor", "--master", address, *image, "--conf", "spark.driver.host=127.0.0.1", *words)
    try:
        pod = posted_pod(posted, process)
    finally:
        kill(process)
    container = looked_at(pod)
    assert memory(container) == 6 * 1024
    assert pod["metadata"]["labels"]["spark-role"] == "executor"


def test_the_image_takes_what_is_there():
    recipe = (HERE / "Dockerfile").read_text()
    kept = {line[1:] for line in (HERE / "Dockerfile.dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = [word for line in re.findall(r"^COPY (?!--from)(.+)$", recipe, re.MULTILINE) for word in line.split()[:-1]]
    assert "melanoma_spark/" in copied
    for name in copied:
        assert (REPO / name).exists(), name
        assert any(name.rstrip("/") == place or name.startswith(f"{place}/") for place in kept), f"{name} is ignored"
