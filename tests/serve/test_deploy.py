"""What lies in examples/deploy fits the server: routes, metrics, flags and the time that draining takes."""

import itertools
import json
import re
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from llmctl.cli.serve import SERVE
from llmctl.config.serve import ServeConfig
from llmctl.serve.keys import POLICIES
from tests.serve.conftest import Running
from tests.serve.test_running import metrics

DEPLOY = Path(__file__).parents[2] / "examples" / "deploy"


def arguments(given: list[str]) -> dict[str, str]:
    """Fields of the configuration that flags and overrides set."""
    flags = {SERVE.flags[name]: value for name, value in itertools.pairwise(given) if name in SERVE.flags}
    assert all(name in SERVE.flags for name in given if name.startswith("--"))
    return flags | dict(word.split("=", 1) for word in given if re.fullmatch(r"[a-z_]+=.*", word))


def test_the_deployment_asks_what_the_server_answers() -> None:
    deployment, service = YAML(typ="safe").load_all((DEPLOY / "kubernetes.yaml").read_text())
    pod = deployment["spec"]["template"]
    (container,) = pod["spec"]["containers"]
    probes = {name: container[f"{name}Probe"]["httpGet"]["path"] for name in ("startup", "readiness", "liveness")}
    assert probes == {"startup": "/ready", "readiness": "/ready", "liveness": "/health"}
    assert all(POLICIES[path] == "open" for path in probes.values())
    config = ServeConfig.model_validate(arguments(container["args"]), strict=False)
    assert config.shutdown_s + 2 < pod["spec"]["terminationGracePeriodSeconds"]
    assert container["ports"][0]["containerPort"] == config.port
    assert service["spec"]["selector"].items() <= pod["metadata"]["labels"].items()


def test_the_image_starts_the_server_with_flags_that_there_are() -> None:
    text = (DEPLOY / "Dockerfile").read_text()
    (entry,) = re.findall(r"^ENTRYPOINT (\[.*\])$", text, re.MULTILINE)
    assert ServeConfig.model_validate(arguments(json.loads(entry)), strict=False).api_key_env == "LLMCTL_KEY"
    for source in re.findall(r"^COPY (?!--from)(.*) \S+$", text, re.MULTILINE):
        assert all((DEPLOY.parents[1] / name).exists() for name in source.split())


def test_compose_names_files_that_there_are() -> None:
    composed: dict[str, Any] = YAML(typ="safe").load((DEPLOY / "compose.yaml").read_text())
    build = composed["services"]["llmctl"]["build"]
    assert (DEPLOY / build["context"] / build["dockerfile"]).is_file()
    mounted = composed["services"]["grafana"]["volumes"][0].split(":")[0]
    assert (DEPLOY / mounted).is_file()
    assert all(port.startswith("127.0.0.1:") for one in composed["services"].values() for port in one.get("ports", ()))


def test_the_dashboard_shows_metrics_that_there_are(server: Running) -> None:
    server.post("/v1/completions", json={"model": "tiny-random", "prompt": "a", "max_tokens": 2})
    known = {name.split("{")[0] for name in metrics(server)}
    panels = json.loads((DEPLOY / "grafana.json").read_text())["panels"]
    shown = {name for panel in panels for target in panel["targets"] for name in re.findall(r"\w+:\w+", target["expr"])}
    assert shown
    assert shown <= known
