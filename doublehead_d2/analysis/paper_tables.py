"""The rows of the study and what is said about them: numbers alone.

Those of the Double-Head paper's Tables 1 and 3, TSD's ablation beside their equals, DetNet's Table
2 and the ladder from C4 to G-RCN.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

# COCO AP of the paper, in percent, by the config of the row (Table 1)
TABLE_1 = {
    "single_fc_w1": 36.8,
    "single_conv_w1": 35.9,
    "double_fc_w1": 37.3,
    "double_conv_w1": 33.8,
    "double_head_reverse_w1": 32.6,
    "double_head_w1": 38.8,
    "double_fc_tuned": 38.1,
    "double_conv_tuned": 34.3,
    "double_head_reverse_tuned": 32.0,
    "double_head_tuned": 39.5,
}
# By fusion (Table 3); "cls_head" is "no fusion"
TABLE_3 = {"cls_head": 39.7, "max": 39.9, "average": 40.1, "complementary": 40.3}
# Ways to score the Ext model: the fusions of Table 3, then (a) and (b) of Fig. 8; its (c) and (d)
# are "cls_head" and "complementary". Name to (score fusion, box source).
EXT_MODES = {
    **{fusion: (fusion, "reg_head") for fusion in TABLE_3},
    "reg_head_alone": ("reg_head", "reg_head"),
    "cls_head_alone": ("cls_head", "cls_head"),
}
EXT = "double_head_ext"
# TSD's ablation, after what each of its steps is held against: Double-FC is TSD without offsets and
# without a sibling head.
TSD = (
    "single_fc_w1",
    "double_fc_w1",
    "double_head_tuned",
    "tsd_no_sibling",
    "tsd_no_pc",
    "tsd_pc_cls",
    "tsd_pc_loc",
    "tsd_pc",
    "double_head_tsd",
)
# What TSD's paper claims, and what is asked of both systems joined: a row, and the row that it is
# to be better than
TSD_CLAIMS = {
    "TSD helps": ("tsd_pc", "single_fc_w1"),
    "The offsets help": ("tsd_no_sibling", "double_fc_w1"),
    "The sibling head helps": ("tsd_no_pc", "tsd_no_sibling"),
    "The progressive constraint helps": ("tsd_pc", "tsd_no_pc"),
    "A conv-head helps TSD": ("double_head_tsd", "tsd_pc"),
    "TSD helps Double-Head": ("double_head_tsd", "double_head_tuned"),
}
# COCO AP of DetNet's paper, in percent, of backbones trained from scratch (its Table 2)
BACKBONES = {"resnet_50_scratch_syncbn": 34.5, "detnet_59_scratch_syncbn": 36.3}
# Where its paper sees gains: over all, and most for large objects and at high IoUs
DETNET_CLAIMS = ("AP", "APm", "APl", "AP50", "AP85")
METRICS = ("AP", "AP50", "AP75")
BACKBONE_METRICS = ("AP", "APs", "APm", "APl", *(f"AP{iou}" for iou in range(50, 100, 5)))
# The ladder from C4 over the corrected protocol to G-RCN, then its controls
GRCN = (
    "faster_rcnn_c4",
    "faster_rcnn_c5",
    "grcn_separate",
    "grcn_separate_stride",
    "grcn_separate_context",
    "grcn",
    "grcn_swapped_strides",
    "grcn_context_add",
    "grcn_context_reg",
    "grcn_undilated",
)
# What G-RCN's abstract claims: a row, the row that it is to be better than, and by what
GRCN_CLAIMS = {
    "Conv5 in the backbone at stride 16 helps": ("faster_rcnn_c5", "faster_rcnn_c4", "AP70"),
    "Separating high-level features helps": ("grcn_separate", "faster_rcnn_c5", "AP70"),
    "A large stride helps classification": ("grcn_separate_stride", "grcn_separate", "AP"),
    "A large stride harms localisation": ("grcn_separate", "grcn_swapped_strides", "AP75"),
    "Context helps classification": ("grcn_separate_context", "grcn_separate", "AP"),
    "Context helps localisation (control)": ("grcn_context_reg", "grcn", "AP75"),
    "G-RCN helps": ("grcn", "faster_rcnn_c5", "AP70"),
}
GRCN_METRICS = ("AP", "AP70", "AP75")

Scores = Mapping[str, Mapping[int, Mapping[str, float]]]  # row, seed, metric: percent


@dataclass(frozen=True)
class Spread:
    """A metric over seeds, in percent: its mean and the standard deviation of single runs."""

    mean: float
    deviation: float | None  # None for a single seed
    count: int

    def __str__(self) -> str:
        if math.isnan(self.mean):  # of objects of a size that the data has none of
            return "–"
        spread = "" if self.deviation is None else f" ± {self.deviation:.2f}"
        return f"{self.mean:.2f}{spread}"


def spread(values: Sequence[float]) -> Spread:
    """Mean and sample standard deviation (n - 1) of at least one value; NaN where one is."""
    if any(map(math.isnan, values)):
        return Spread(math.nan, None, len(values))
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return Spread(statistics.fmean(values), deviation, len(values))


def summarize(scores: Scores, metrics: Sequence[str] = METRICS) -> dict[str, dict[str, Spread]]:
    """Spread of every metric over the seeds of every row that has any."""
    return {
        row: {metric: spread([run[metric] for run in by_seed.values()]) for metric in metrics}
        for row, by_seed in scores.items()
        if by_seed
    }


def markdown_table(
    scores: Scores, paper: Mapping[str, float], metrics: Sequence[str] = METRICS
) -> str:
    """Rows with mean ± standard deviation, seeds and the AP of the paper.

    Args:
        scores: results by row and seed; rows without a result are shown as missing.
        paper: AP in the paper by row, for those that are in it; without any, the table has no
            column for them.
        metrics: its columns.
    """
    summary = summarize(scores, metrics)
    columns = ["row", *metrics, "seeds", *(["AP in the paper (COCO)"] if paper else [])]
    lines = [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    for row in scores:
        cells = [str(summary[row][m]) if row in summary else "–" for m in metrics]
        cells.append(", ".join(map(str, sorted(scores[row]))) or "none yet")
        if paper:
            cells.append(str(paper.get(row, "–")))
        lines.append(f"| {row} | {' | '.join(cells)} |")
    return "\n".join(lines)


def order_statement(
    scores: Scores, rows: Sequence[str], *, first: str | None = None, last: str | None = None
) -> str:
    """Whether `first` has the highest and `last` the lowest mean AP of `rows`, in a sentence.

    Gaps are given with their standard error, from the differences within each seed, so that a
    reader sees whether they are more than the spread of seeds. Only seeds that all `rows` have
    are compared.
    """
    missing = [row for row in rows if not scores[row]]
    if missing:
        return f"not yet known: no result for {', '.join(missing)}"
    seeds = sorted(set.intersection(*(set(scores[row]) for row in rows)))
    if not seeds:
        return "not yet known: no seed has a result for every row"
    aps = {row: [scores[row][seed]["AP"] for seed in seeds] for row in rows}
    ranking = sorted(rows, key=lambda row: -statistics.fmean(aps[row]))
    statements = []
    for wanted, place, found, rival in (
        (first, "first", ranking[0], ranking[1]),
        (last, "last", ranking[-1], ranking[-2]),
    ):
        if wanted is None:
            continue
        other = rival if wanted == found else found
        gap = spread([a - b for a, b in zip(aps[wanted], aps[other], strict=True)])
        verdict = "yes" if wanted == found else f"no, {found} is"
        statements.append(f"{wanted} {place}: {verdict} ({_gap(gap)} to {other}{_error(gap)})")
    return "; ".join(statements)


def claim_statement(scores: Scores, row: str, baseline: str, metric: str = "AP") -> str:
    """Whether `row` has more of a metric than `baseline`, in a sentence.

    Only seeds that both have are compared.
    """
    seeds = sorted(set(scores[row]) & set(scores[baseline]))
    if not seeds:
        return f"not yet known: no seed has a result for {row} and {baseline}"
    gap = spread([scores[row][seed][metric] - scores[baseline][seed][metric] for seed in seeds])
    if math.isnan(gap.mean):
        return f"not known: the data has no object that {metric} looks at"
    verdict = "yes" if gap.mean > 0 else "no"
    return f"{verdict} ({_gap(gap, metric)} of {row} to {baseline}{_error(gap)})"


def _gap(gap: Spread, metric: str = "AP") -> str:
    return f"{gap.mean:+.2f} {metric}"


def _error(gap: Spread) -> str:
    if gap.deviation is None:
        return ", standard error unknown with a single seed"
    return f", standard error {gap.deviation / gap.count**0.5:.2f}"


def report(table_1: Scores, ext: Scores, tsd: Scores, backbones: Scores, grcn: Scores) -> str:
    """All tables in Markdown and whether what the papers claim appears in them."""
    singles = ["single_fc_w1", "single_conv_w1"]
    statements = []
    for group in ("w1", "tuned"):
        doubles = [row for row in TABLE_1 if row.startswith("double") and row.endswith(group)]
        order = order_statement(
            table_1,
            singles + doubles,
            first=f"double_head_{group}",
            last=f"double_head_reverse_{group}",
        )
        statements.append(f"- Table 1, weights {group}: {order}.")
    order = order_statement(ext, list(TABLE_3), first="complementary", last="cls_head")
    statements.append(f"- Table 3: {order}.")
    claims = [f"- {claim}: {claim_statement(tsd, *rows)}." for claim, rows in TSD_CLAIMS.items()]
    detnet = _detnet_report(backbones) if any(backbones.values()) else []
    ladder = _grcn_report(grcn) if any(grcn.values()) else []
    return "\n".join(
        [
            "Box AP in percent on shapes_hard_val, mean ± standard deviation of single runs.",
            "",
            "## Table 1: head structures",
            markdown_table(table_1, TABLE_1),
            "",
            "## Table 3: fusion of a Double-Head-Ext, and its heads alone",
            markdown_table(ext, TABLE_3),
            "",
            "## Does the paper's order appear?",
            *statements,
            "",
            "## TSD: its ablation",
            markdown_table(tsd, {}),
            "",
            *claims,
            "",
            *detnet,
            *ladder,
        ]
    )


def _detnet_report(backbones: Scores) -> list[str]:
    rows = ("detnet_59_scratch_syncbn", "resnet_50_scratch_syncbn")
    gains = [
        f"- DetNet gains in {metric}: {claim_statement(backbones, *rows, metric)}."
        for metric in DETNET_CLAIMS
    ]
    return [
        "## DetNet: backbones from scratch",
        markdown_table(backbones, BACKBONES, BACKBONE_METRICS),
        "",
        *gains,
        "",
    ]


def _grcn_report(grcn: Scores) -> list[str]:
    claims = [f"- {claim}: {claim_statement(grcn, *rows)}." for claim, rows in GRCN_CLAIMS.items()]
    return [
        "## G-RCN: from C4 over the corrected protocol, and controls",
        markdown_table(grcn, {}, GRCN_METRICS),
        "",
        *claims,
        "",
    ]
