"""What `mmft evaluate` shows: every statistic as a table that fits a terminal."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from mmft.cli.console import markdown_table, table
from mmft.cli.evaluate_report import Report, Versus
from mmft.cli.run_folder import masked_text
from mmft.evaluation.bootstrap import Estimate
from mmft.evaluation.compare import Comparison
from mmft.evaluation.correlation import Correlation
from mmft.evaluation.health import RewardHealth
from mmft.evaluation.state import StateCorrelation
from mmft.evaluation.subgroups import Subgroups
from mmft.report.record import METRIC, label
from mmft.report.statistics import distinct_measures

MAX_COLUMNS = 6
"""Measures side by side; evaluation.json has them all."""
DASH = "-"


def tables(report: Report, level: float) -> list[str]:
    """All of them, in the order in which questions come up."""
    names = distinct_measures(report.evaluation)
    parts = [means_table(report, names, level), health_line(report.health, level), signature_lines(report)]
    parts += [masked_line(report)]
    for column, measures in report.subgroups.items():
        parts += [group_table(column, {name: measures[name] for name in names}, level)]
    for column, found in report.correlations.items():
        parts += [correlation_table(column, {name: found[name] for name in names}, level)]
    parts += [state_table(action, found, level) for action, found in report.state.items()]
    if report.versus is not None:
        parts += [comparison_text(report.versus, names, level)]
    return [part for part in parts if part]


def means_table(report: Report, names: Sequence[str], level: float) -> str:
    """Means, or scores of the corpus, with their intervals."""
    rows = [
        (
            label(name),
            decimal(report.evaluation.means[name]),
            bounds(report.estimates[name]),
            str(report.estimates[name].count),
        )
        for name in names
    ]
    header = (f"{len(report.evaluation.samples)} rows", "mean", f"{level:.0%} interval", "judged")
    return table(header, rows)


def health_line(health: RewardHealth, level: float) -> str:
    """Reward health in two lines, the first only where there is a reward."""
    rho = health.reward_words
    kinds = [f"{share:.0%} {kind.replace('_', ' ')}" for kind, share in health.degenerate.items() if share]
    said = f"{rho.value:.2f} {bounds(rho)}" if math.isfinite(rho.value) else f"none ({rho.reason})"
    judged = f"reward health: correlation with the number of words {said}\n" if rho.count else ""
    return (
        f"{judged}completions: {health.mean_words:.1f} words, "
        f"{health.duplicate_share:.0%} equal another row's, {', '.join(kinds) or 'none degenerate'}; "
        f"distinct-1 {health.distinct['distinct_1']:.3f}, distinct-2 {health.distinct['distinct_2']:.3f}"
    )


def signature_lines(report: Report) -> str:
    """Settings of the corpus metrics."""
    corpus = report.evaluation.corpus
    return "" if corpus is None else "\n".join(corpus.signatures.values())


def masked_line(report: Report) -> str:
    """How many samples rewards failed on."""
    masked = report.evaluation.masked
    return "" if not masked else "left out: " + masked_text(masked)


def group_table(column: str, measures: Mapping[str, Subgroups], level: float) -> str:
    """Means by group, then the largest gap of each measure."""
    shown = main_measures(list(measures))[:MAX_COLUMNS]
    first = measures[shown[0]].groups
    rows = [
        (
            f"{group.name}{' *' if group.is_small else ''}",
            str(group.mean.count + group.mean.left_out),
            *(decimal(measures[name].groups[place].mean.value) for name in shown),
        )
        for place, group in enumerate(first)
    ]
    lines = [table((f"by {column}", "rows", *map(label, shown)), rows)]
    if any(group.is_small for group in first):
        lines.append("* too few rows to be compared")
    gaps = [
        (
            label(name),
            decimal(found.gap.difference.value),
            bounds(found.gap.difference),
            f"{found.gap.high_group} over {found.gap.low_group}",
        )
        for name, found in measures.items()
        if found.gap is not None
    ]
    header = ("largest gap", "gap", f"{level:.0%} interval", "between")
    lines += [
        table(header, gaps) + "\nintervals of gaps allow for the pair having been picked"
        if gaps
        else "no gap: fewer than two groups have enough rows"
    ]
    return "\n".join(lines)


def main_measures(names: Sequence[str]) -> list[str]:
    """Rewards without their parts and metrics without BLEU of low order, then the rest."""
    parts = [name for name in names if name.startswith("rewards/") and name.count("/") > 1]
    low = [METRIC + f"bleu_{order}" for order in (1, 2, 3)]
    later = [name for name in names if name.startswith("completions/")]
    return [*(name for name in names if name not in {*parts, *low, *later}), *later, *parts, *low]


def correlation_table(column: str, found: Mapping[str, Correlation], level: float) -> str:
    """Three coefficients per measure."""
    rows = [
        (
            label(name),
            str(each.pearson.count),
            *(with_bounds(part) for part in (each.pearson, each.spearman, each.kendall)),
        )
        for name, each in found.items()
    ]
    header = (f"with {column}", "rows", f"Pearson {level:.0%}", "Spearman", "Kendall")
    reasons = dict.fromkeys(each.pearson.reason for each in found.values() if each.pearson.reason)
    named = [
        reason.replace("the first column", column).replace("the second column", "the measure")
        for reason in reasons
    ]
    return "\n".join([table(header, rows), *(f"{DASH}: {reason}" for reason in named)])


def state_table(action: str, found: StateCorrelation, level: float) -> str:
    """rho per component, and R."""
    if found.reason is not None:
        return f"{action} with the state: none ({found.reason})"
    rows = [
        (f"component {place}", f"{share:.0%}", with_bounds(rho))
        for place, (rho, share) in enumerate(zip(found.components, found.explained, strict=True), start=1)
    ]
    return (
        table((f"{action} with the state", "variance", f"rho, {level:.0%}"), rows)
        + f"\nall together R {found.multiple:.2f}, adjusted {found.adjusted:.2f}, p {chance(found.p_value)}, "
        f"{found.count} rows"
    )


def comparison_rows(measures: Mapping[str, Comparison], names: Sequence[str]) -> list[tuple[str, ...]]:
    """One line per measure."""
    return [
        (
            label(name),
            decimal(each.first),
            decimal(each.second),
            f"{each.difference.value:+.3f}" if math.isfinite(each.difference.value) else DASH,
            bounds(each.difference),
            share(each.wins),
            share(each.ties),
            share(each.losses),
            DASH if each.p_value is None else chance(each.p_value),
        )
        for name, each in measures.items()
        if name in names
    ]


def comparison_header(versus: Versus, level: float) -> tuple[str, ...]:
    """Names of the columns."""
    return (
        "same rows", versus.label, "evaluated", "change", f"{level:.0%} interval", "wins", "ties", "losses",
        "p",
    )  # fmt: skip


def comparison_text(versus: Versus, names: Sequence[str], level: float) -> str:
    """The comparison as a table, with notes and warnings."""
    lines = [table(comparison_header(versus, level), comparison_rows(versus.measures, names))]
    if any(name.startswith(METRIC + "bleu") for name in versus.measures):
        lines.append(BLEU_NOTE)
    lines += [f"note: {text}" for text in versus.notes]
    lines += [f"WARNING {text}" for text in versus.warnings]
    return "\n".join(lines)


BLEU_NOTE = "bleu: scores of the corpus, which each draw of rows gives anew; wins by smoothed sentence BLEU"


def comparison_markdown(versus: Versus, names: Sequence[str], level: float) -> str:
    """The comparison as a Markdown page."""
    rows = comparison_rows(versus.measures, names)
    parts = [
        "# Two runs on the same rows",
        f"- evaluated: {versus.second}\n- {versus.label}: {versus.first}",
        markdown_table(comparison_header(versus, level), rows),
        BLEU_NOTE if any(name.startswith(METRIC + "bleu") for name in versus.measures) else "",
        "\n".join(f"- note: {text}" for text in versus.notes),
        "\n".join(f"- **warning**: {text}" for text in versus.warnings),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def decimal(value: float | None) -> str:
    """Three digits, or a dash."""
    return DASH if value is None or not math.isfinite(value) else f"{value:.3f}"


def bounds(estimate: Estimate) -> str:
    """[low, high], or a dash."""
    return f"[{estimate.low:.3f}, {estimate.high:.3f}]" if math.isfinite(estimate.low) else DASH


def with_bounds(estimate: Estimate) -> str:
    """A coefficient with its interval, two digits each."""
    if not math.isfinite(estimate.value):
        return DASH
    interval = f" [{estimate.low:.2f}, {estimate.high:.2f}]" if math.isfinite(estimate.low) else f" [{DASH}]"
    return f"{estimate.value:.2f}{interval}"


def share(value: float | None) -> str:
    """Percent, or a dash."""
    return DASH if value is None else f"{value:.0%}"


def chance(p_value: float) -> str:
    """A p-value in three digits."""
    return "<0.001" if p_value < 0.001 else f"{p_value:.3f}"
