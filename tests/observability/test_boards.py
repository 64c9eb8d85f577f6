"""The board, the rules and what the trial runs them with are well-formed, and agree with the pages."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from tests.observability.prometheus import BOARD, ROOT, RULES, panels, promtool
from tests.test_docs import anchor, headings, rows

if TYPE_CHECKING:
    from collections.abc import Iterator

TESTED = ROOT / "tests/observability/rules_test.yaml"
COMPOSE = ROOT / "compose.yaml"
PANELS = {panel["title"]: panel for panel in panels()}


def alerts() -> list[dict[str, Any]]:
    groups = yaml.safe_load(RULES.read_text())["groups"]
    return [rule for group in groups for rule in group["rules"] if "alert" in rule]


def board() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(BOARD.read_text())
    return loaded


def test_rules_are_good() -> None:
    """Prometheus refuses the rules, or the configuration of the trial."""
    promtool("check", "rules", RULES)
    promtool("check", "config", ROOT / "config/prometheus/prometheus.yaml")


def test_rules_fire_and_do_not() -> None:
    """An alert does not fire where it should, or fires where it should not."""
    promtool("test", "rules", TESTED)


def test_every_alert_is_tested_both_ways() -> None:
    """An alert has no case in which it fires, or none in which it nearly does."""
    cases = [case for test in yaml.safe_load(TESTED.read_text())["tests"] for case in test.get("alert_rule_test", ())]
    names = {alert["alert"] for alert in alerts()}
    assert {case["alertname"] for case in cases if case["exp_alerts"]} == names
    assert {case["alertname"] for case in cases if not case["exp_alerts"]} == names


def test_alerts_are_those_of_the_page() -> None:
    """The page lacks an alert, or says something else than Prometheus does; its link is not the alert's runbook."""
    table = rows(ROOT / "docs/operating.md", "Alerts")
    listed = [tuple(row[:4]) for row in table]
    assert listed == [
        (f"`{one['alert']}`", one["labels"]["severity"], one.get("for", "0s"), one["annotations"]["summary"])
        for one in alerts()
    ]
    for one, row in zip(alerts(), table, strict=True):
        page, _, fragment = one["annotations"]["runbook"].partition("#")
        link = f"#{fragment}" if page == "docs/operating.md" else f"{page.removeprefix('docs/')}#{fragment}"
        assert f"]({link})" in row[4], one["alert"]
        assert fragment in {anchor(text) for _, text in headings(ROOT / page)}, one["alert"]


def test_board_can_be_imported() -> None:
    """A member is missing without which Grafana does not show the board, or something of it belongs to one Grafana."""
    loaded = board()
    assert loaded["id"] is None
    assert loaded["schemaVersion"] >= 38
    assert re.fullmatch(r"[\w-]{1,40}", loaded["uid"])
    names = [variable["name"] for variable in loaded["templating"]["list"]]
    assert names == ["datasource", "job", "instance", "upstream"]
    # Whoever has another data source picks it in the board.
    assert "uid" not in re.sub(r'"uid": "(\$\{datasource\}|forward-sse|-- Grafana --)"', "", BOARD.read_text())
    assert set(re.findall(r"\$(\w+)", BOARD.read_text())) == {*names[1:], "__rate_interval", "__range", "__all"}


def test_board_places_panels_without_overlap() -> None:
    """Two panels have one id or one place, or a panel is wider than the board."""
    all_panels = board()["panels"]
    ids = [panel["id"] for panel in all_panels]
    assert sorted(ids) == sorted(set(ids))
    taken: set[tuple[int, int]] = set()
    for panel in all_panels:
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken, panel["title"]
        taken |= cells


def test_board_has_its_rows() -> None:
    """A row of the board is missing, or is empty."""
    order = [panel["title"] if panel["type"] == "row" else None for panel in board()["panels"]]
    titles = [title for title in order if title is not None]
    assert titles == [
        "Traffic",
        "Endings",
        "Time to first byte",
        "Event gaps",
        "Refusals by code",
        "Limits",
        "Upstream health",
        "Keys",
        "Tokens and money by model and plan",
        "Workers",
        "Limits store",
        "Ledger",
        "Traces",
    ]
    assert all(order[order.index(title) + 1] is None for title in titles)


@pytest.mark.parametrize("title", PANELS)
def test_panel_explains_itself(title: str) -> None:
    """A panel has no unit, legend or data source, or does not say what to do."""
    panel = PANELS[title]
    assert len(panel["description"].split()) >= 12
    assert panel["fieldConfig"]["defaults"]["unit"]
    assert panel["options"]
    assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
    refs = [target["refId"] for target in panel["targets"]]
    assert refs == sorted(set(refs)) != []
    for target in panel["targets"]:
        assert target["datasource"] == panel["datasource"]
        assert target["legendFormat"]
        # A table shows the labels themselves, and a heatmap its buckets.
        by = re.search(r"by \(([\w, ]+)\)", target["expr"])
        if by is not None and panel["type"] != "table":
            labels = {label for label in by[1].split(", ") if label != "le"}
            assert labels <= set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])), target["expr"]
        assert 'job=~"$job",instance=~"$instance"' in target["expr"]


def mounts() -> Iterator[tuple[str, str, str]]:
    """Service, path here, path there, of each file or directory of this repository that the trial mounts."""
    for name, service in yaml.safe_load(COMPOSE.read_text())["services"].items():
        for volume in service.get("volumes", ()):
            here, there, *_ = volume.split(":")
            if here.startswith("."):
                yield name, here, there


@pytest.mark.parametrize("title", [title for title, panel in PANELS.items() if panel["type"] == "timeseries"])
def test_curve_has_its_unit_and_the_worst_first(title: str) -> None:
    """A curve has numbers of no unit, a rate is not told to be one, or its legend hides the largest below others."""
    defaults, legend = PANELS[title]["fieldConfig"]["defaults"], PANELS[title]["options"]["legend"]
    assert defaults["min"] == 0
    assert defaults["unit"]
    # `short` is a number of something: the title says of what, but not that it is one a second, or of a step.
    is_rate = any(re.search(r"\b(rate|increase)\(", target["expr"]) for target in PANELS[title]["targets"])
    if defaults["unit"] == "short" and is_rate:
        assert defaults["custom"]["axisLabel"]
    assert (legend["displayMode"], legend["sortBy"], legend["sortDesc"]) == ("table", "Last *", True)
    assert "lastNotNull" in legend["calcs"]


def test_trial_mounts_what_is_there() -> None:
    """A file that compose.yaml mounts is not in the repository, or can be written from inside."""
    found = list(mounts())
    assert {name for name, _, _ in found} == {"prometheus", "grafana", "collector"}
    for _, here, _ in found:
        assert (ROOT / here).exists(), here
    volumes = [
        volume
        for service in yaml.safe_load(COMPOSE.read_text())["services"].values()
        for volume in service.get("volumes", ())
    ]
    assert all(volume.endswith(":ro") for volume in volumes if volume.startswith("."))


def test_trial_has_fixed_images() -> None:
    """An image of the profile `observe` has no version, so that the trial changes by itself."""
    services = yaml.safe_load(COMPOSE.read_text())["services"]
    observed = {name: service for name, service in services.items() if service.get("profiles") == ["observe"]}
    assert observed.keys() == {"prometheus", "grafana", "collector"}
    for service in observed.values():
        assert re.fullmatch(r"[\w./-]+:v?\d+\.\d+\.\d+", service["image"]), service["image"]


def test_trial_is_open_on_this_machine_only() -> None:
    """A page of the trial that asks for no password can be reached from the network."""
    services = yaml.safe_load(COMPOSE.read_text())["services"]
    for name in ("prometheus", "grafana", "collector"):
        assert all(port.startswith("127.0.0.1:") for port in services[name].get("ports", ())), name
    grafana = services["grafana"]["environment"]
    assert grafana["GF_AUTH_ANONYMOUS_ORG_ROLE"] == "Viewer"
    assert grafana["GF_SECURITY_DISABLE_INITIAL_ADMIN_CREATION"] == "true"


def test_trial_scrapes_the_proxy() -> None:
    """Prometheus asks another address than the admin listener's, or Grafana another one than Prometheus'."""
    config = yaml.safe_load((ROOT / "config/prometheus/prometheus.yaml").read_text())
    proxy = yaml.safe_load((ROOT / "config/examples/compose.yaml").read_text())
    (job,) = config["scrape_configs"]
    # The name that the alert ForwardSseDown asks for.
    assert job["job_name"] == "forward-sse"
    assert job["static_configs"] == [{"targets": ["proxy:" + proxy["admin_listen"].rpartition(":")[2]]}]
    assert proxy["admin_listen"].startswith("0.0.0.0:")
    places = {here: there for name, here, there in mounts() if name == "grafana"}
    sources = yaml.safe_load((ROOT / "config/grafana/provisioning/datasources/prometheus.yaml").read_text())
    assert sources["datasources"][0]["url"] == "http://prometheus:9090"
    boards = yaml.safe_load((ROOT / "config/grafana/provisioning/dashboards/forward-sse.yaml").read_text())
    assert boards["providers"][0]["options"]["path"] == places["./config/grafana/forward-sse.json"].rpartition("/")[0]


def test_collector_receives_and_forwards() -> None:
    """The collector has a pipeline with a part that is not defined, or does not listen where the proxy exports to."""
    config = yaml.safe_load((ROOT / "config/otel/collector.yaml").read_text())
    assert config["receivers"]["otlp"]["protocols"] == {"http": {"endpoint": "0.0.0.0:4318"}}
    pipelines = config["service"]["pipelines"]
    assert pipelines.keys() >= {"traces"}
    for pipeline in pipelines.values():
        for kind in ("receivers", "processors", "exporters"):
            assert set(pipeline.get(kind, ())) <= config.get(kind, {}).keys()
