"""The paper's order of rows in a fair trial: which rows, the rule, and what is said of them.

Table 1 of the Double-Head paper, networks trained as a whole, heads in the paper's proportion of
parameters (issue 22). The rule: all rows have one schedule, one start and the same seeds; a row is
judged by the AP of its last evaluation, and it has settled if its last three evaluations, a twelfth
of the schedule apart, lie within 0.3 AP. The schedule is a third at the full learning rate, then a
tenth of it, and a hundredth in the last quarter. Variations of the trial change one thing each.
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from doublehead_d2.analysis.paper_tables import (
    TABLE_3,
    Scores,
    claim_statement,
    markdown_table,
    order_statement,
    spread,
)

# Rows: their configs, before the overlays
ROWS = {
    "whole_single_fc": "Ablations/single_fc_w1.yaml",
    "whole_single_fc_doubled": "Ablations/single_fc_w1.yaml",
    "whole_single_conv": "Ablations/single_conv_w1.yaml",
    "whole_double_fc": "Ablations/double_fc_tuned.yaml",
    "whole_double_conv": "Ablations/double_conv_tuned.yaml",
    "whole_double_head": "Ablations/double_head_tuned.yaml",
    "whole_double_head_ext": "COCO-Detection/double_head_ext_rcnn_R_50_FPN_paper_1x.yaml",
}
# AP of the paper, in percent (Tables 1 and 3)
PAPER = {
    "whole_single_fc": 36.8,
    "whole_single_conv": 35.9,
    "whole_double_fc": 38.1,
    "whole_double_conv": 34.3,
    "whole_double_head": 39.5,
    "whole_double_head_ext": 40.3,
}
# The row whose box losses weigh twice as much against the RPN's
DOUBLED = "whole_single_fc_doubled"
# The row whose scores are fused, and that is scored in every other way, too (Table 3)
FUSED = "whole_double_head_ext"
# What the paper says: a row, and the row that it is to be better than
CLAIMS = {
    "An fc-head is better than a conv-head": ("whole_single_fc", "whole_single_conv"),
    "Doubled loss weights alone help": (DOUBLED, "whole_single_fc"),
    "Two fc-heads are better than one": ("whole_double_fc", "whole_single_fc"),
    "Two fc-heads are better than one of doubled weights": ("whole_double_fc", DOUBLED),
    "Two conv-heads are worse than one": ("whole_single_conv", "whole_double_conv"),
    "A conv-head localises better than an fc-head": ("whole_double_head", "whole_double_fc"),
    "Unfocused tasks and fusion help": ("whole_double_head_ext", "whole_double_head"),
}
METRICS = ("AP", "AP50", "AP75")


@dataclass(frozen=True)
class Variation:
    """One thing that the trial could have done otherwise.

    Args:
        title: what it changes.
        opts: config keys and values in turn.
        rows: the rows that it changes; all others stand as they are.
    """

    title: str
    opts: tuple[str, ...]
    rows: tuple[str, ...] = tuple(ROWS)


VARIATIONS = {
    # 32 groups, as detectron2 has them; five of the conv-head's eleven norms have 32 channels here.
    "gn": Variation(
        "GN for BN in the conv-head (32 groups; of one channel where there are 32 channels)",
        ("MODEL.ROI_DOUBLE_HEAD.CONV_HEAD.NORM", "GN"),
        ("whole_single_conv", "whole_double_conv", "whole_double_head", "whole_double_head_ext"),
    ),
    "larger": Variation(
        "Objects 1.5 times as large",
        (
            *("INPUT.MIN_SIZE_TRAIN", "(192,)", "INPUT.MAX_SIZE_TRAIN", "192"),
            *("INPUT.MIN_SIZE_TEST", "192", "INPUT.MAX_SIZE_TEST", "192"),
        ),
    ),
    "colors": Variation(
        "Nine classes",
        (
            *("DATASETS.TRAIN", "('shapes_colors_train',)"),
            *("DATASETS.TEST", "('shapes_colors_val',)", "MODEL.ROI_HEADS.NUM_CLASSES", "9"),
        ),
    ),
    "14x14": Variation(
        "RoIs of 14x14 (an fc-head's first layer is four times as large)",
        ("MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION", "14"),
    ),
}
# Rows of the variations: the row and the variation that each is made of
VARIED = {
    f"{row}_{name}": (row, name) for name, variation in VARIATIONS.items() for row in variation.rows
}
CONFIGS = {**ROWS, **{varied: ROWS[row] for varied, (row, _) in VARIED.items()}}
SETTLED_WITHIN = 0.3  # AP, of the last evaluations
LAST = 3  # evaluations

Curves = Mapping[str, Mapping[int, Sequence[tuple[int, float]]]]  # row, seed: (iteration, AP)


def base_row(row: str) -> str:
    """The row that a row varies; one of no variation is its own."""
    return VARIED[row][0] if row in VARIED else row


def variation_opts(row: str) -> list[str]:
    """Config keys and values in turn that a row of a variation has otherwise than its base."""
    return [*VARIATIONS[VARIED[row][1]].opts] if row in VARIED else []


def settled(curve: Sequence[tuple[int, float]]) -> bool:
    """Whether AP no longer changes: the last three evaluations lie within 0.3 AP."""
    last = [ap for _, ap in curve[-LAST:]]
    return len(last) == LAST and max(last) - min(last) <= SETTLED_WITHIN


def curve_table(curves: Curves) -> str:
    """AP over iterations, the mean over seeds, and how many runs have settled."""
    iterations = sorted(
        {i for runs in curves.values() for curve in runs.values() for i, _ in curve}
    )
    lines = [
        f"| row | {' | '.join(f'{i:,}' for i in iterations)} | settled |",
        "|" + "---|" * (len(iterations) + 2),
    ]
    for row, runs in curves.items():
        cells = []
        for iteration in iterations:
            found = [ap for curve in runs.values() for i, ap in curve if i == iteration]
            cells.append(f"{statistics.fmean(found):.1f}" if found else "–")
        done = sum(settled(curve) for curve in runs.values())
        lines.append(f"| {row} | {' | '.join(cells)} | {done} of {len(runs)} |")
    return "\n".join(lines)


def order_report(scores: Scores, curves: Curves, fusions: Scores) -> list[str]:
    """Lines in Markdown: the table, the order and the paper's claims, curves, fusions, variations.

    Args:
        scores: by row, of `ROWS` and `VARIED`, seed and metric, in percent; rows without a result
            are shown as missing, variations without any are left out.
        curves: AP over iterations by row and seed.
        fusions: of `FUSED`, by mode of `paper_tables.EXT_MODES`, seed and metric, in percent;
            without any, they have no table.
    """
    table = markdown_table({row: scores[row] for row in ROWS}, PAPER)
    lines = ["## The paper's order in a fair trial", table]
    order = order_statement(scores, list(PAPER), first=FUSED)
    lines += ["", f"- Order: {order}."]
    lines += [f"- {claim}: {claim_statement(scores, *pair)}." for claim, pair in CLAIMS.items()]
    of_rows = {row: runs for row, runs in curves.items() if row in ROWS}
    lines += ["", curve_table(of_rows), ""]
    if any(fusions.values()):
        order = order_statement(fusions, list(TABLE_3), first="complementary", last="cls_head")
        lines += [
            "### Fusion of its Double-Head-Ext, and its heads alone",
            markdown_table(fusions, TABLE_3),
            "",
            f"- Fusion: {order}.",
            "",
        ]
    return [*lines, *variation_report(scores, curves)]


def variation_report(scores: Scores, curves: Curves) -> list[str]:
    """Lines in Markdown: of every variation with a result a table, and the paper's claims in it.

    A row is held against the one that is not varied in the mean of the seeds that both have.

    Args:
        scores: by row, of `ROWS` and `VARIED`, seed and metric, in percent.
        curves: AP over iterations by row and seed.
    """
    lines = []
    for name, variation in VARIATIONS.items():
        names = {row: f"{row}_{name}" for row in variation.rows if scores.get(f"{row}_{name}")}
        if not names:
            continue
        lines += [f"### {variation.title}", f"`{' '.join(variation.opts)}`:", ""]
        lines += [
            f"| row | {' | '.join(METRICS)} | seeds | to the row as it stands | settled |",
            "|" + "---|" * (len(METRICS) + 4),
        ]
        for row, varied in names.items():
            runs = scores[varied]
            cells = [str(spread([x[m] for x in runs.values()])) for m in METRICS]
            cells.append(", ".join(map(str, sorted(runs))))
            both = sorted({*runs} & {*scores.get(row, {})})
            gains = [runs[seed]["AP"] - scores[row][seed]["AP"] for seed in both]
            gap = f"{statistics.fmean(gains):+.2f} AP" if gains else "–"
            if gains and len(both) < len(runs):
                gap += f" (seeds {', '.join(map(str, both))})"
            cells.append(gap)
            found = curves.get(varied, {}).values()
            cells.append(f"{sum(map(settled, found))} of {len(found)}")
            lines.append(f"| {varied} | {' | '.join(cells)} |")
        lines.append("")
        # What the variation does not touch stands as it is.
        known = {row: row for row in ROWS if row not in variation.rows} | names
        for claim, pair in CLAIMS.items():
            if names.keys() & {*pair} and known.keys() >= {*pair}:
                better, worse = (known[row] for row in pair)
                lines.append(f"- {claim}: {claim_statement(scores, better, worse)}.")
        lines.append("")
    return lines
