"""report.md and its plots: what `measure` found, for people. Every rate stands with its 95 % interval."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gateway.core.prices import from_nano
from gateway.lab.measure import Evaluation, Part, System
from gateway.lab.metrics import Interval

matplotlib.use("Agg")

TITLES: Mapping[str, str] = {
    "previous": "previous system", "prompted": "prompted base LLM", "tuned": "fine-tuned LLM", "cascade": "cascade",
}  # fmt: skip
CurvePoint = tuple[int, Interval]


def write_report(found: Evaluation, folder: Path, learning_curve: Sequence[CurvePoint] = ()) -> None:
    """report.md, roc.png, precision_recall.png, reliability.png, routing.png and, where given, learning_curve.png."""
    _plot_roc(found, folder / "roc.png")
    _plot_precision_recall(found, folder / "precision_recall.png")
    _plot_reliability(found, folder / "reliability.png")
    _plot_routing(found, folder / "routing.png")
    if learning_curve:
        plot_learning_curve(learning_curve, folder / "learning_curve.png")
    plots = sorted(path.name for path in folder.glob("*.png"))
    (folder / "report.md").write_text("\n".join([*markdown(found), *(f"![{name}]({name})" for name in plots)]) + "\n")


def markdown(found: Evaluation) -> Iterator[str]:
    """The report's lines, without plots."""
    yield f"# Evaluation of {found.about.get('task', 'the task')} on {found.about.get('data', 'the data')}\n"
    yield from (f"- {key}: {value}" for key, value in sorted(found.about.items()))
    yield "\nThe headline is the macro mean of the AUCs within each source. Intervals are of 95 %.\n"
    yield from _systems(found)
    yield from _operating(found)
    yield from _lift(found)
    yield from _cascade(found)
    yield from _marketplace(found)
    for name, system in found.systems.items():
        yield from _parts(TITLES[name], system.parts)


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> Iterator[str]:
    """A Markdown table and an empty line behind it."""
    yield "| " + " | ".join(head) + " |"
    yield "|" + "---|" * len(head)
    yield from ("| " + " | ".join(_cell(value) for value in row) + " |" for row in rows)
    yield ""


def _cell(value: object) -> str:
    if value is None:
        return "–"
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def _systems(found: Evaluation) -> Iterator[str]:
    yield "## How well each system ranks\n"
    head = ["system", "AUC within sources", "pooled AUC", "pooled, bootstrap", "partial AUC to 10 %",
            "average precision", "at production"]  # fmt: skip
    yield from table(head, [
        [TITLES[n], s.auc, s.pooled_auc, s.pooled_auc_bootstrap, s.partial_auc_10, s.average_precision,
         s.average_precision_at_production]
        for n, s in found.systems.items()
    ])  # fmt: skip
    yield "## What scores are worth as probabilities\n"
    head = ["system", "calibration error", "scores carried to this set's share of violations", "at production"]
    yield from table(head, [
        [TITLES[n], s.calibration_error, s.calibration_error_corrected, s.calibration_error_at_production]
        for n, s in found.systems.items() if s.calibration_error is not None
    ])  # fmt: skip


def _operating(found: Evaluation) -> Iterator[str]:
    yield "## At the operating point\n"
    head = ["system", "precision", "recall", "false positives", "F1", "flagged", "precision at production",
            "flags per 1,000 at production"]  # fmt: skip

    def row(name: str, system: System) -> list[object]:
        o = system.operating
        return [TITLES[name], o.precision, o.recall, o.false_positive_rate, o.f1, o.flag_rate,
                o.precision_at_production, o.flags_per_1000_at_production]  # fmt: skip

    yield from table(head, [row(n, s) for n, s in found.systems.items()])


def _lift(found: Evaluation) -> Iterator[str]:
    yield "## Lift: how many times\n"
    rows = [[name, lift.precision, lift.recall, lift.f1, lift.flag_rate] for name, lift in found.lift.items()]
    yield from table(["", "precision", "recall", "F1", "flag rate"], rows)
    yield "Where only the threshold of the first moves:\n"
    head = ["", "precision at the other's recall", "precision at 1.5 times that recall", "recall at its precision"]
    yield from table(head, [
        [name, m.precision_at_its_recall, m.precision_at_half_more_recall, m.recall_at_its_precision]
        for name, m in found.matched_lift.items()
    ])  # fmt: skip


def _cascade(found: Evaluation) -> Iterator[str]:
    c = found.cascade
    yield "## The cascade\n"
    yield from table(["what", "value"], [
        ["decided by", ", ".join(f"{k}: {v}" for k, v in sorted(c.decided_by.items()))],
        ["routed to the LLM", c.routed],
        ["routed at production prevalence", c.routed_at_production],
        ["violations that the prefilter lets pass on", c.prefilter_recall],
        ["… lower bound (one-sided, 95 %)", c.prefilter_recall_lower_bound],
        ["recall lost to the prefilter", c.recall_lost_to_prefilter],
        ["left to a person because nobody could decide", c.deferred],
        ["policy named rightly, of violations found", c.policy_named_rightly],
        ["cost per 1,000 messages", from_nano(c.cost_nano_per_1000)],
        ["… at production prevalence", from_nano(c.cost_nano_per_1000_at_production)],
        *([f"routed, of {name}", share] for name, share in c.routed_of.items()),
    ])  # fmt: skip


def _marketplace(found: Evaluation) -> Iterator[str]:
    names = {key: None for s in found.systems.values() for key in s.marketplace}
    if not names:
        return
    yield "## The marketplace's own messages (synthetic)\n"
    shown = list(found.systems.items())
    rows = [[name, *(s.marketplace.get(name) for _, s in shown)] for name in names]
    yield from table(["", *(TITLES[n] for n, _ in shown)], rows)


def _parts(title: str, parts: Mapping[str, Part]) -> Iterator[str]:
    yield f"## Part by part: {title}\n"
    rows = [[n, p.rows, p.violations, p.auc, p.recall, p.false_positive_rate] for n, p in parts.items()]
    yield from table(["part", "rows", "violations", "AUC", "recall", "false positives"], rows)


def _axes(x: str, y: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(5, 4), layout="constrained")
    axes = figure.subplots()
    axes.set(xlabel=x, ylabel=y)
    axes.grid(alpha=0.3)
    return figure, axes


def _save(figure: Figure, path: Path) -> None:
    # Without a date, equal measurements make equal bytes.
    figure.savefig(path, dpi=110, metadata={"Software": None})


def _plot_roc(found: Evaluation, path: Path) -> None:
    figure, axes = _axes("false positive rate", "recall")
    for name, points in found.curves.roc.items():
        axes.plot(*zip(*points, strict=True), label=f"{TITLES[name]} ({found.systems[name].pooled_auc.value:.3f})")
    axes.plot([0, 1], [0, 1], color="grey", linewidth=0.8)
    axes.legend(loc="lower right", fontsize=8, title="pooled AUC")
    _save(figure, path)


def _plot_precision_recall(found: Evaluation, path: Path) -> None:
    figure, axes = _axes("recall", "precision")
    for name, points in found.curves.precision_recall.items():
        axes.plot(*zip(*points, strict=True), label=TITLES[name])
    axes.legend(loc="lower left", fontsize=8)
    _save(figure, path)


def _plot_reliability(found: Evaluation, path: Path) -> None:
    figure, axes = _axes("mean score", "share of violations")
    for name, bins in found.curves.reliability.items():
        axes.plot([b[0] for b in bins], [b[1] for b in bins], marker="o", label=TITLES[name])
    axes.plot([0, 1], [0, 1], color="grey", linewidth=0.8)
    axes.legend(fontsize=8)
    _save(figure, path)


def _plot_routing(found: Evaluation, path: Path) -> None:
    figure, axes = _axes("recall of the prefilter", "share routed to the LLM at production prevalence")
    axes.plot([p[1] for p in found.curves.routing], [p[2] for p in found.curves.routing], marker=".")
    _save(figure, path)


def plot_learning_curve(points: Sequence[CurvePoint], path: Path) -> None:
    """AUC against training rows, on a logarithmic axis, with intervals."""
    figure, axes = _axes("training rows", "AUC within sources")
    rows, values = [n for n, _ in points], [i.value for _, i in points]
    reach = [[i.value - i.low for _, i in points], [i.high - i.value for _, i in points]]
    axes.errorbar(rows, values, yerr=reach, marker="o", capsize=3)
    axes.set_xscale("log")
    _save(figure, path)
