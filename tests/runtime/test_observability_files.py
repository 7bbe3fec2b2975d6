"""Dashboard, alert rules and docs name metrics and labels that the services really have."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from baton.runtime.metrics import Declaration
from tools import metrics_doc

FOLDER = metrics_doc.ROOT / "deploy" / "observability"
DECLARED = {metric.name: metric for metric in metrics_doc.known()}
FROM_PROMETHEUS = {"job", "instance", "le"}
OPERATIONS = (metrics_doc.ROOT / "docs" / "operations.md").read_text()


def expressions(node: Any) -> Iterator[str]:
    """Every PromQL expression of a parsed file."""
    if isinstance(node, dict):
        yield from (value for key, value in node.items() if key == "expr")
        node = list(node.values())
    if isinstance(node, list):
        for item in node:
            yield from expressions(item)


DASHBOARD = json.loads((FOLDER / "baton-dashboard.json").read_text())
RULES = yaml.safe_load((FOLDER / "alerts.yaml").read_text())
EXPRESSIONS = [*expressions(DASHBOARD), *expressions(RULES)]


def metric_of(series: str) -> Declaration | None:
    found = DECLARED.get(series)
    if found is not None:
        return None if found.kind == "histogram" else found  # a histogram has no series of its own name
    base = DECLARED.get(re.sub(r"_(bucket|sum|count)$", "", series))
    return base if base is not None and base.kind == "histogram" else None


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_metrics_and_labels_exist(expression: str) -> None:
    series = set(re.findall(r"\b(?:baton|process|up)\w*(?=[\[{) ]|$)", expression))
    metrics = [metric_of(name) for name in series if name.startswith("baton_")]
    assert series, "no metric at all"
    assert None not in metrics, sorted(series)
    labels = set(re.findall(r"[{,]\s*(\w+)\s*(?:=~|!~|!=|=)", expression))
    for listed in re.findall(r"\b(?:by|on|without)\s*\(([^)]*)\)", expression):
        labels |= {label.strip() for label in listed.split(",") if label.strip()}
    known = FROM_PROMETHEUS.union(*(metric.labels for metric in metrics if metric))
    assert labels <= known, f"unknown labels {labels - known}"


def test_legends_name_labels_that_survive() -> None:
    """A legend of a label that the expression sums away would be empty."""
    for panel in DASHBOARD["panels"]:
        for target in panel.get("targets", ()):
            summed = re.findall(r"\bby\s*\(([^)]*)\)", target["expr"])
            for label in re.findall(r"{{\s*(\w+)\s*}}", target["legendFormat"]):
                assert not summed or any(label in listed for listed in summed), (panel["title"], label)


def test_panels_do_not_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not taken & cells and at["x"] + at["w"] <= 24, panel["title"]
        taken |= cells
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])


def test_every_alert_says_what_to_do() -> None:
    titles = re.findall("^#+ (.*)", OPERATIONS, re.MULTILINE)
    anchors = {re.sub(r"[^a-z0-9 -]", "", title.lower()).replace(" ", "-") for title in titles}
    rules = [rule for group in RULES["groups"] for rule in group["rules"]]
    assert len({rule["alert"] for rule in rules}) == len(rules) >= 10
    for rule in rules:
        page, _, anchor = rule["annotations"]["runbook"].partition("#")
        assert page == "docs/operations.md" and anchor in anchors, rule["alert"]
        assert rule["labels"]["severity"] in ("warning", "critical")


def test_docs_list_every_metric() -> None:
    assert metrics_doc.TARGET.read_text() == metrics_doc.document()
    assert len(DECLARED) > 60


def test_metrics_are_declared_where_the_docs_look() -> None:
    pattern = re.compile(r"(?:metrics\.|= )(?:counter|gauge|histogram)\(")
    for source in metrics_doc.SOURCES:
        for path in source.rglob("*.py"):
            if path.name != "metrics.py" and pattern.search(path.read_text()):
                pytest.fail(f"{path}: declare metrics in the package's metrics.py")


def test_the_rules_fire_as_they_should() -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("no promtool (Debian: it is in the package prometheus)")
    for command in (["check", "config", "prometheus.yaml"], ["test", "rules", "alerts_test.yaml"]):
        done = subprocess.run([promtool, *command], cwd=FOLDER, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
