"""The Kubernetes example: by the published schemas, and by what this proxy needs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from proxy.settings.loading import load

EXAMPLE = Path(__file__).parent.parent / "config/examples/kubernetes.yaml"
# The oldest that a managed cluster still offers, and the newest that the validator knows.
VERSIONS = ("1.30.0", kubernetes_validate.latest_version())


@pytest.fixture(scope="module")
def objects() -> dict[str, Any]:
    """The example's objects by their kind."""
    with EXAMPLE.open() as text:
        documents = list(yaml.safe_load_all(text))
    assert len({document["kind"] for document in documents}) == len(documents)
    return {document["kind"]: document for document in documents}


@pytest.mark.parametrize("version", VERSIONS)
def test_kubernetes_example_schema(objects: dict[str, Any], version: str) -> None:
    """Every object is valid by the schema of its kind, with no field that nobody knows."""
    assert set(objects) == {"Secret", "ConfigMap", "Deployment", "Service", "PodDisruptionBudget", "NetworkPolicy"}
    for document in objects.values():
        kubernetes_validate.validate(document, version, strict=True)


def test_kubernetes_example_schema_refuses(objects: dict[str, Any]) -> None:
    """A field that nobody knows is found, or the test above would be worth nothing."""
    wrong = {**objects["PodDisruptionBudget"], "spec": {"minAvailible": 1}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, VERSIONS[0], strict=True)


def test_kubernetes_example_configuration(objects: dict[str, Any], tmp_path: Path) -> None:
    """The file in the ConfigMap is sound with what the Secret gives, and the pod's times and ports are its own."""
    path = tmp_path / "proxy.yaml"
    path.write_text(objects["ConfigMap"]["data"]["proxy.yaml"])
    settings = load(path, objects["Secret"]["stringData"], {})
    pod = objects["Deployment"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]

    held_back_s = int(container["lifecycle"]["preStop"]["exec"]["command"][1])
    assert settings.drain_timeout_s is not None
    assert pod["terminationGracePeriodSeconds"] >= held_back_s + settings.drain_timeout_s + 10
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert settings.admin_listen is not None
    assert ports == {"http": settings.listen[0].port, "admin": settings.admin_listen.port}
    probes = {container[name]["httpGet"]["port"] for name in ("startupProbe", "readinessProbe", "livenessProbe")}
    assert probes == {"admin"}
    # The node asks by the pod's address.
    assert {settings.listen[0].host, settings.admin_listen.host} == {"0.0.0.0"}
    (mount,) = container["volumeMounts"]
    assert container["args"] == ["serve", "--config", f"{mount['mountPath']}/proxy.yaml"]


def test_kubernetes_example_fits_together(objects: dict[str, Any]) -> None:
    """Whatever selects pods selects these, and leaves one when another is taken."""
    deployment = objects["Deployment"]["spec"]
    labels = deployment["template"]["metadata"]["labels"]
    assert deployment["selector"]["matchLabels"] == labels
    assert objects["Service"]["spec"]["selector"] == labels
    assert objects["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"] == labels
    assert objects["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"] == labels
    assert objects["PodDisruptionBudget"]["spec"]["minAvailable"] < deployment["replicas"]
    container = deployment["template"]["spec"]["containers"][0]
    assert container["envFrom"] == [{"secretRef": {"name": objects["Secret"]["metadata"]["name"]}}]
