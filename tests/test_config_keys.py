"""Config changes that cannot be made: what is said of them, and what is named instead."""

from pathlib import Path

import pytest

from builders import default_cfg
from conftest import TINY_EXT
from doublehead_d2 import model_zoo
from doublehead_d2.config import merge_opts
from doublehead_d2.config.keys import NAMES, differences, leaves, nearest_keys

FUSION = "MODEL.ROI_DOUBLE_HEAD.SCORE_FUSION"


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (["MODEL.ROI_DOUBLE_HEAD.SCORE_FUSON", "max"],
         f"'MODEL.ROI_DOUBLE_HEAD.SCORE_FUSON' is no config key; did you mean {FUSION}"),
        (["SCORE_FUSION", "max"], f"'SCORE_FUSION' is no config key; did you mean {FUSION}"),
        (["model.device", "cpu"], "'model.device' is no config key; did you mean MODEL.DEVICE"),
        (["SOLVER.MAX_ITER.X", "1"], "'SOLVER.MAX_ITER.X' is no config key"),
        (["qqqqq", "1"], "'qqqqq' is no config key; config changes are KEY VALUE, in turn"),
        (["SOLVER.AMP", "True"],
         r"SOLVER.AMP is True; it is a section and takes no value, its keys do: ENABLED"),
        (["SOLVER.BASE_LR", "fast"], "BASE_LR is 'fast'; allowed: a float, such as 0.001$"),
        (["SOLVER.BASE_LR", "1"], 'BASE_LR is 1; allowed: a float, such as 0.001; write "1.0"$'),
        (["SOLVER.MAX_ITER", "1.5"], "MAX_ITER is 1.5; allowed: an int, such as 40000$"),
        (["SOLVER.MAX_ITER", "True"], "MAX_ITER is True; allowed: an int, such as 40000$"),
        (["OUTPUT_DIR", "2024"], "OUTPUT_DIR is 2024; allowed: a str, .*; write \"'2024'\"$"),
        (["TEST.AUG.ENABLED", "yes"],
         r'ENABLED is \'yes\'; allowed: a bool, such as False \(write "True" or "False"\)$'),
        (["SOLVER.STEPS", "(200)"], r'STEPS is 200; allowed: a tuple, .*; write "\(200,\)"$'),
        (["MODEL.ROI_HEADS.IN_FEATURES", "p2"],
         r"IN_FEATURES is 'p2'; allowed: a list, .*; write \"\['p2'\]\"$"),
        (["DATASETS.TRAIN", "(one,two)"],
         r"DATASETS.TRAIN is '\(one,two\)'; allowed: a name, or several, written "
         r"DATASETS.TRAIN \"\('one','two'\)\"$"),
        (["DATASETS.TEST", "3"], "DATASETS.TEST is 3; allowed: a name, or several"),
        (["DATASETS.TEST", "None"], "DATASETS.TEST is None; allowed: a name, or several"),
        (["SOLVER.MAX_ITER", "{[]: 1}"], r"MAX_ITER is '{\[\]: 1}'; allowed: an int"),
        (["SOLVER.MAX_ITER", "5", "OUTPUT_DIR"], "^OUTPUT_DIR has no value"),
        (["SOLVER.MAX_ITER", "OUTPUT_DIR", "out"], "^SOLVER.MAX_ITER has no value"),
        (["SOLVER.MAX_ITER", "5", "out"], "'out' is no config key.*KEY VALUE, in turn"),
        (["SOLVER.MAX_ITER", "5", "--resume"], "^'--resume' stands behind a config change"),
        (["SOLVER.MAX_ITER", "5", "--num-gpus", "2"], "^'--num-gpus' stands behind a config"),
        (["SOLVER.MAX_ITER=5"], "^'SOLVER.MAX_ITER=5': write SOLVER.MAX_ITER 5, two words$"),
        ([3, 4], "'3' is no config key"),
    ],
)  # fmt: skip
def test_changes_that_cannot_be_made(opts: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        merge_opts(default_cfg(), opts)


def test_changes_that_can_be_made_are_yacs_own() -> None:
    opts = ["SOLVER.BASE_LR", "1e-2", "SOLVER.STEPS", "[5, 6]", "OUTPUT_DIR", "'3'"]
    opts += ["DATASETS.TRAIN", "('one', 'two')", "SOLVER.WEIGHT_DECAY_BIAS", "0.5", "SEED", 7]
    ours, theirs = default_cfg(), default_cfg()
    merge_opts(ours, opts)
    theirs.merge_from_list(opts)
    assert ours == theirs and ours.OUTPUT_DIR == "3" and ours.SOLVER.STEPS == (5, 6)


@pytest.mark.parametrize("key", NAMES)
def test_one_name_stands_alone(key: str, tmp_path: Path) -> None:
    for word in ("shapes_val", "'shapes_val'", "('shapes_val')", "('shapes_val',)"):
        cfg = default_cfg()
        merge_opts(cfg, [f"DATASETS.{key}", word])
        assert cfg.DATASETS[key] == ("shapes_val",), word
    (tmp_path / "base.yaml").write_text(f"DATASETS: {{{key}: other}}")
    (tmp_path / "a.yaml").write_text(f"_BASE_: base.yaml\nDATASETS:\n  {key}: shapes_val\n")
    cfg = model_zoo.read_config(str(tmp_path / "a.yaml"))
    assert cfg.DATASETS[key] == ("shapes_val",)
    (tmp_path / "b.yaml").write_text(f"DATASETS: {{{key}: [one, two]}}")
    model_zoo.merge_config(cfg, str(tmp_path / "b.yaml"))
    assert cfg.DATASETS[key] == ("one", "two")
    (tmp_path / "b.yaml").write_text("SEED: 3")
    model_zoo.merge_config(cfg, str(tmp_path / "b.yaml"))
    assert cfg.DATASETS[key] == ("one", "two")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("MODEL: {ROI_DOUBLE_HEAD: {SCORE_FUSON: max}}",
         f"'MODEL.ROI_DOUBLE_HEAD.SCORE_FUSON' is no config key; did you mean {FUSION}"),
        ("SOLVER: {BASE_LR: fast}", "SOLVER.BASE_LR is 'fast'; allowed: a float, such as"),
        ("SOLVER: {STEPS: 200}", r'SOLVER.STEPS is 200; .*; write "\(200,\)"'),
        ("SOLVER: 3", "SOLVER is 3; it is a section and takes no value"),
        ("DATASETS: {TEST: 3}", "DATASETS.TEST is 3; allowed: a name, or several"),
        ("SOLVER: {BASE_LR: 2020-01-01}", "SOLVER.BASE_LR"),
        ("_BASE_: base.yaml\nMODEL: {DEVICE: {A: 1}}", "DEVICE"),
        ("VERSION: 9", "v9"),
    ],
)  # fmt: skip
def test_files_whose_keys_or_values_are_none(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("MODEL: {DEVICE: cpu}")
    path = tmp_path / "a.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        model_zoo.read_config(str(path))
    assert str(error.value).startswith(f"'{path}': ") and "\n" not in str(error.value)


@pytest.mark.slow
def test_every_key_that_lacks_a_letter_is_named() -> None:
    cfg = default_cfg()
    missed = [key for key in leaves(cfg) if key not in nearest_keys(cfg, key[:-3] + key[-2:])]
    assert len(leaves(cfg)) > 200 and missed == []


def test_differences_of_two_configs() -> None:
    before = model_zoo.read_config(model_zoo.get_config_file(TINY_EXT))
    after = before.clone()
    assert differences(before, after) == []
    merge_opts(after, ["SOLVER.MAX_ITER", "5", "MODEL.DEVICE", "cpu"])
    after.DATASETS.CLASS_NAMES = [f"class {i}" for i in range(80)]
    changes = differences(before, after)
    iterations = before.SOLVER.MAX_ITER
    assert f"SOLVER.MAX_ITER: {iterations} -> 5" in changes
    assert "MODEL.DEVICE: 'cuda' -> 'cpu'" in changes
    (names,) = (line for line in changes if line.startswith("DATASETS.CLASS_NAMES: [] -> ['cl"))
    assert len(changes) == 3 and names.endswith(" ...") and len(names) < 120
