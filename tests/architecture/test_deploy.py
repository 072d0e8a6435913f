"""Every file in deploy/ is what its reader takes: Ray, Serve, KubeRay and the fabric itself."""

import logging
from pathlib import Path
from typing import Any

import pytest
import yaml

from fabric.config import parse_config

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
CLUSTERS = ("ray-cluster-onprem.yaml", "ray-cluster-aws.yaml")


def load(name: str) -> Any:
    return yaml.safe_load((DEPLOY / name).read_text())


def serve_configs() -> list[Any]:
    rayservice = load("kuberay-rayservice.yaml")
    return [load("serve-config.yaml"), yaml.safe_load(rayservice["spec"]["serveConfigV2"])]


def strictly(schema: Any) -> Any:
    """The same schema, refusing keys that it doesn't name."""
    if isinstance(schema, list):
        return [strictly(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    strict = {key: strictly(value) for key, value in schema.items()}
    is_open = schema.get("x-kubernetes-preserve-unknown-fields", False)
    if isinstance(schema.get("properties"), dict) and not is_open:
        strict.setdefault("additionalProperties", False)
    return strict


def validate_cluster(config: dict[str, Any]) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    logging.getLogger("ray").setLevel(logging.WARNING)
    validate_config(prepare_config(config))


@pytest.mark.parametrize("name", CLUSTERS)
def test_ray_takes_the_clusters(name: str) -> None:
    validate_cluster(load(name))


@pytest.mark.parametrize("name", CLUSTERS)
def test_ray_refuses_a_key_that_it_does_not_know(name: str) -> None:
    with pytest.raises(Exception, match="idle_minutes"):
        validate_cluster({**load(name), "idle_minutes": 5})


def test_serve_takes_the_applications_and_knows_every_key() -> None:
    import jsonschema
    from ray.serve.schema import ServeDeploySchema

    schema = strictly(ServeDeploySchema.model_json_schema())
    for config in serve_configs():
        ServeDeploySchema.model_validate(config)
        jsonschema.validate(config, schema)
        with pytest.raises(jsonschema.ValidationError, match="proxies"):
            jsonschema.validate({**config, "proxies": 1}, schema)


def test_the_fabric_takes_the_arguments_of_each_application() -> None:
    from fabric.serve import deployments

    for config in serve_configs():
        (application,) = config["applications"]
        assert application["import_path"] == f"{deployments.__name__}:{deployments.build.__name__}"
        parse_config(application["args"], "args")


def test_prometheus_is_sent_to_the_port_that_its_file_names() -> None:
    (job,) = load("prometheus.yaml")["scrape_configs"]
    assert set(job) == {"job_name", "scrape_interval", "static_configs"}
    (target,) = job["static_configs"][0]["targets"]
    example = parse_config(
        {**load("fabric.yaml"), "router": {"metrics_port": 9464}}, "deploy/fabric.yaml"
    )
    assert target == f"{example.router.metrics_host}:{example.router.metrics_port}"


def test_kuberay_takes_the_service(data_path: Path) -> None:
    import jsonschema

    path = data_path / "kuberay/ray.io_rayservices.yaml"
    if not path.is_file():
        pytest.skip(f"KubeRay's definition of RayService is not at {path}")
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    definition = yaml.load(path.read_text(), loader)
    service = load("kuberay-rayservice.yaml")
    version = service["apiVersion"].partition("/")[2]
    (schema,) = (
        strictly(known["schema"]["openAPIV3Schema"])
        for known in definition["spec"]["versions"]
        if known["name"] == version
    )
    schema["properties"]["metadata"]["additionalProperties"] = True
    jsonschema.validate(service, schema)
    service["spec"]["serveConfig"] = "{}"
    with pytest.raises(jsonschema.ValidationError, match="serveConfig"):
        jsonschema.validate(service, schema)
