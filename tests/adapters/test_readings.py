"""What is looked up of replicas and versions, as a scrape shows it."""

from types import SimpleNamespace
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from gateway.adapters.metrics import MOST_SERIES, OTHER, Metrics
from gateway.adapters.readings import ProcessState, Vitals, versions
from gateway.adapters.replicas import Replicas
from gateway.core.telemetry import Reading, ReplicaState

ONE, TWO = "http://one:8080", "http://two:8080"


def shown(metrics: Metrics, name: str, readings: list[Reading]) -> dict[tuple[str, ...], float]:
    """The values of a metric, by its labels."""
    text = metrics.render(readings).decode()
    samples = (s for family in text_string_to_metric_families(text) for s in family.samples if s.name == name)
    return {tuple(sample.labels.values()): sample.value for sample in samples}


def test_a_replica_that_is_taken_out_is_shown_until_it_is_in_again() -> None:
    """Whoever says so; it comes back when nobody holds anything against it any more."""
    replicas, metrics = Replicas([ONE, TWO], 1), Metrics()

    def state() -> ProcessState:
        return ProcessState(0, 0, True, False, [ReplicaState("m", *each) for each in replicas.states(0.0)])

    def barred() -> dict[tuple[str, ...], float]:
        Vitals(metrics, state).look(0.0)
        return shown(metrics, "taskgate_replica_barred", [])

    assert barred() == {("m", "one:8080"): 0, ("m", "two:8080"): 0}
    replicas.bar(ONE, "fine, not rude", "canaries of manners")
    replicas.bar(ONE, "serves revision r2, not r1", "its own name")
    assert barred() == {("m", "one:8080"): 1, ("m", "two:8080"): 0}
    replicas.bar(ONE, "", "canaries of manners")
    assert barred()["m", "one:8080"] == 1
    replicas.bar(ONE, "", "its own name")
    assert barred() == {("m", "one:8080"): 0, ("m", "two:8080"): 0}


def test_the_number_of_series_is_bounded() -> None:
    """Whatever comes to be a label, more than so many of a metric are counted as `other`, and none is lost."""
    metrics = Metrics()
    for number in range(MOST_SERIES + 5):
        metrics.problem(f"code_{number}")
    counted = shown(metrics, "taskgate_problems_total", [])
    assert len(counted) == MOST_SERIES + 1
    assert counted[(OTHER,)] == 5


def test_tasks_that_others_serve_in_another_version_are_shown() -> None:
    """1 for those, 0 for every other one, so that an alert also ends."""
    tasks: list[Any] = [SimpleNamespace(name=name, fingerprint="f") for name in ("manners", "router")]
    readings = list(versions(tasks, ("router",), 0))
    assert shown(Metrics(), "taskgate_task_differs", readings) == {("manners",): 0, ("router",): 1}
