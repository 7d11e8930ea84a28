"""trainer.config.sections: what a YAML means, and how it says no."""

import datetime
from pathlib import Path

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from featurestore.errors import InputError
from trainer.config.reference import meanings
from trainer.config.sections import PointConfig, dump_yaml
from trainer.loop.grid import SweepConfig, load_point, safe_name
from trainer.loop.versions import resolved

MINIMAL = """
experiment: {name: exp013_dinov3, seed: 7}
head: {kind: cls_gating}
optimization: {lr: 1.0e-3, weight_decay: 0.01}
"""
CONFIGS = sorted((Path(__file__).parent.parent / "configs").glob("*.yaml"))


@pytest.fixture
def load(tmp_path):
    def load_text(text=MINIMAL, overrides=None):
        path = tmp_path / "sweep.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return SweepConfig.load(path, overrides)

    return load_text


def test_a_sweep_without_axes_is_one_point(load):
    sweep = load()
    assert sweep.points == [resolved(sweep.base)]
    assert (sweep.axes, sweep.names) == ({}, ["001_exp013_dinov3"])


def test_defaults_are_the_first_experiment(load):
    base = load().base
    assert (base.trainer.num_epochs, base.optimization.average_decay(1600), base.head.dropout) == (
        200,
        0.997,
        0.2,
    )
    assert (
        base.loss.main_weights == [1.0, 0.5, 0.3] and base.augmentation.mixup.disable_ratio == 0.2
    )


def test_last_axis_of_the_file_is_fastest(load):
    sweep = load(
        MINIMAL, {"optimization.weight_decay": [0.01, 0.1, 0], "optimization.lr": ["2e-3", 1e-3]}
    )
    assert sweep.axes == {
        "optimization.lr": [0.002, 0.001],
        "optimization.weight_decay": [0.01, 0.1, 0.0],
    }
    assert [(p.optimization.lr, p.optimization.weight_decay) for p in sweep.points] == [
        (0.002, 0.01),
        (0.002, 0.1),
        (0.002, 0.0),
        (0.001, 0.01),
        (0.001, 0.1),
        (0.001, 0.0),
    ]


def test_points_differ_in_the_axes_alone(load):
    sweep = load(MINIMAL, {"head.dropout": [0.1, 0.5]})
    first, second = sweep.points
    assert second.model_dump(exclude={"head"}) == first.model_dump(exclude={"head"})
    assert second.head == first.head.model_copy(update={"dropout": 0.5})


def test_names_say_what_differs(load):
    overrides = {"optimization.lr": ["2e-3", 1e-5], "optimization.weight_decay": [0.01, 1e-3]}
    assert load(MINIMAL, overrides).names == [
        "001_exp013_dinov3__lr-0_002__weight_decay-0_01",
        "002_exp013_dinov3__lr-0_002__weight_decay-0_001",
        "003_exp013_dinov3__lr-1e-05__weight_decay-0_01",
        "004_exp013_dinov3__lr-1e-05__weight_decay-0_001",
    ]


def test_names_speak_of_null_bool_and_lists(load):
    overrides = {
        "head.gate_hidden": [None],
        "head.normalize": [True],
        "loss.main_weights": [[1, 0.5, 0]],
    }
    (name,) = load(MINIMAL, overrides).names
    assert name == "001_exp013_dinov3__gate_hidden-null__normalize-true__main_weights-1-0_5-0"


def test_names_widen_beyond_999_points(load):
    sweep = load(
        MINIMAL, {"loss.beta": list(range(1, 51)), "head.shared_hidden": list(range(1, 22))}
    )
    assert len(sweep.points) == 1050 and sweep.names[0].startswith("0001_exp013")


def test_a_huge_grid_is_counted_without_being_made(load):
    axes = [
        "loss.beta",
        "loss.aux_weight",
        "loss.state_weight",
        "loss.height_weight",
        "optimization.lr",
    ]
    assert load(MINIMAL, {axis: list(range(1, 101)) for axis in axes}).n_combinations == 10**10


@pytest.mark.parametrize("text", ["../../etc", "a/b\\c:d", "x" * 500, "草 地", "."])
def test_safe_names_are_one_component(text):
    name = safe_name(text)
    assert name.isascii() and len(name) <= 200 and not set(name) & set("/\\:. \0")


def test_a_list_for_a_list_is_a_value(load):
    assert load(MINIMAL, {"loss.main_weights": [3, 2, 1]}).base.loss.main_weights == [3.0, 2.0, 1.0]


def test_a_list_of_lists_for_a_list_is_an_axis(load):
    sweep = load(MINIMAL, {"loss.main_weights": [[3, 2, 1], [1, 1, 1]]})
    assert [point.loss.main_weights for point in sweep.points] == [[3.0, 2.0, 1.0], [1.0, 1.0, 1.0]]


def test_overrides_replace_and_add(load):
    base = load(MINIMAL, {"experiment.seed": 8, "dataset.store": Path("s.h5"), "cv.fold": 0}).base
    assert (base.experiment.seed, base.dataset.store, base.cv.fold) == (8, Path("s.h5"), 0)


def test_a_section_of_comments_only_is_all_defaults(load):
    assert load(MINIMAL + "loss:\n  # beta: 2\n").base.loss.beta == 1.0


def test_fold_is_a_number_or_all_or_left_out(load):
    assert [load(MINIMAL, {"cv.fold": fold}).base.cv.fold for fold in (None, 2, "all")] == [
        None,
        2,
        "all",
    ]
    with pytest.raises(InputError, match="cv.fold"):
        load(MINIMAL, {"cv.fold": "most"})


def test_what_a_kind_does_not_read_makes_no_other_point(load):
    axes = {
        "head.kind": ["cls_gating", "density", "pooled_mlp"],
        "head.gate_hidden": [4, 8],
        "loss.intervals": [0, 5],
        "augmentation.mixup.kind": ["none", "patches"],
        "augmentation.mixup.alpha": [0.2, 1],
    }
    sweep = load(MINIMAL, axes | {"augmentation.mixup.enabled": True})
    by_kind = {
        kind: [
            name
            for name, point in zip(sweep.names, sweep.points, strict=True)
            if point.head.kind == kind
        ]
        for kind in axes["head.kind"]
    }
    assert {kind: len(names) for kind, names in by_kind.items()} == {
        "cls_gating": 12,
        "density": 3,
        "pooled_mlp": 6,
    }
    assert by_kind["density"][0] == "013_exp013_dinov3__head_kind-density__mixup_kind-none"
    assert sweep.points[12].head.gate_hidden == 4


def test_a_date_is_a_name(load):
    assert load(MINIMAL.replace("exp013_dinov3", "2026-12-28")).base.experiment.name == "2026-12-28"


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("optimization.lr", "abc", "optimization.lr: found 'abc', expected a valid number"),
        ("optimization.lr", [1e-3, "abc"], "optimization.lr: found 'abc', expected a valid number"),
        ("optimization.lr", True, "optimization.lr: found True, expected a valid number"),
        ("optimization.lr", "nan", "optimization.lr: found nan, expected a finite number"),
        ("optimization.lr", 10**400, "optimization.lr: found "),
        ("optimization.lr", 0, "optimization.lr: found 0, expected greater than 0"),
        ("optimization.lr", None, "optimization.lr: found None, expected a valid number"),
        ("optimization.lr", {"a": 1}, "optimization.lr: found {'a': 1}, expected a valid number"),
        ("trainer.batch_size", True, "trainer.batch_size: found True, expected a valid integer"),
        ("trainer.use_amp", 1, "trainer.use_amp: found 1, expected a valid boolean"),
        ("experiment.name", 13, "experiment.name: found 13, expected a valid string"),
        ("head.dropout", 1, "head.dropout: found 1, expected less than 1"),
        ("head.kind", "mlp", "head.kind: found 'mlp', expected one of attention, cls_gating,"),
        (
            "loss.main_weights",
            [1, 2],
            "loss.main_weights: found [1, 2], List should have at least 3 items, not 2",
        ),
        (
            "loss.main_weights",
            [1, 2, "x"],
            "loss.main_weights.2: found 'x', expected a valid number",
        ),
        ("loss.main_weights", [[1, 2, 3], 4], "loss.main_weights: found 4, expected a valid list"),
        (
            "dataset.target_cols",
            ["GDM_g"],
            "dataset.target_cols: found ['GDM_g']; this key is of the preset csiro",
        ),
        (
            "inference.tta_indices",
            [0, 0, 2],
            "inference.tta_indices: found [0, 0, 2], expected each once",
        ),
        ("cv.fold", 5, "cv: fold 5 does not exist: n_folds is 5"),
        ("cv.fold", -1, "cv.fold: found -1, expected greater than or equal to 0 or 'all'"),
        ("targets", "csiroo", "targets: found 'csiroo', expected 'csiro' or keys and values"),
        ("targets", {}, "targets: names no column; name those to be learned, or leave it out"),
        ("targets", {"A": 3}, "targets.A: found 3, expected keys and values"),
        ("targets", {"A": {"wieght": 3}}, "targets.A.wieght: unknown key; did you mean targets.A."),
        (
            "targets",
            {"A": {"weight": -1, "kind": "mass"}},
            "2 keys are wrong:\n"
            "  targets.A.kind: found 'mass', expected 'amount', 'level', 'share' or 'class'\n"
            "  targets.A.weight: found -1, expected greater than or equal to 0",
        ),
        (
            "inference.postprocess",
            [{"rule": "clp"}, "clip", {}],
            "3 keys are wrong:\n  inference.postprocess.0: found {'rule': 'clp'}, expected one of "
            "'wa_dead_zero', 'clip', 'factor'\n  inference.postprocess.1: found 'clip', expected "
            "keys and values\n  inference.postprocess.2: found {}, expected the key 'rule' in it",
        ),
        ("cv.groups", [], "cv.groups: found [], expected columns of the table, [Farm, Date] say"),
        ("cv.groups", 3, "cv.groups: found 3, expected columns of the table, [Farm, Date] say"),
        ("cv.groups", ["Farm", 3], "cv.groups: found ['Farm', 3], expected columns of the table"),
        ("cv.strata", "Farm", "cv.strata: found 'Farm', expected a valid list"),
        ("loss.beta", [], "loss.beta: no values"),
        ("loss.beta", [0.002, 1, "2e-3"], "loss.beta: 0.002 is there twice"),
        ("loss.bta", 1, "loss.bta: no such key to override; did you mean loss.beta?"),
        ("head.kind.x", 1, "head.kind.x: no such key to override; known: "),
    ],
)
def test_a_wrong_value_is_named(load, key, value, says):
    with pytest.raises(InputError) as refusal:
        load(MINIMAL, {key: value})
    assert f"sweep.yaml: {says}" in str(refusal.value)


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("experiment.seed", [1, 2]),
        ("experiment.name", ["a", "b"]),
        ("trainer.batch_size", [16, 32]),
        ("trainer.gradient_accumulation_steps", [1, 2]),
        ("trainer.num_epochs", [10, 20]),
        ("cv.fold", [0, 1]),
        ("cv.strata", [["Dry_Dead_g"], []]),
        ("cv.groups", [["Farm"], ["Date"]]),
        ("dataset.store", ["a", "b"]),
        ("backbone.hidden_dim", [192, 384]),
        ("augmentation.mixup.disable_ratio", [0.1, 0.2]),
        ("inference.tta_indices", [[0], [0, 1]]),
        ("cv.repeats", []),
    ],
)
def test_what_makes_the_stream_is_no_axis(load, key, values):
    with pytest.raises(InputError, match=rf"{key}: found .*cannot be a grid axis"):
        load(MINIMAL, {key: values})


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("[Farm, Date]", ["Farm", "Date"]),
        ("Farm", ["Farm"]),
        ("[site]", ["site"]),  # a column of that name
        ("site", "site"),
        ("none", "none"),
        ("null", None),
    ],
)
def test_groups_are_a_word_or_columns(load, given, meant):
    config = load(MINIMAL + f"cv: {{groups: {given}}}")
    assert config.base.cv.groups == meant and not config.axes


def test_leave_one_out_has_one_repeat(load):
    with pytest.raises(InputError, match="splitter leave_one_out has one result; set repeats to 1"):
        load(MINIMAL + "cv: {groups: [Farm], splitter: leave_one_out, repeats: 2}")
    # how many folds there are is not known yet
    load(MINIMAL + "cv: {groups: [Farm], splitter: leave_one_out, fold: 7}")


@pytest.mark.parametrize(
    "key", ["augmentation.mixup.enabled", "augmentation.mixup.alpha", "optimization.use_ema"]
)
def test_mixup_and_ema_are_axes(load, key):
    assert (
        load(
            MINIMAL, {key: [True, False] if key.split(".")[-1] != "alpha" else [0.2, 1]}
        ).n_combinations
        == 2
    )


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (
            "trainer: {batchsize: 3}",
            "trainer.batchsize: unknown key; did you mean trainer.batch_size?",
        ),
        (
            "augmentation: {mixup: {alfa: 3}}",
            "mixup.alfa: unknown key; did you mean augmentation.mixup.alpha?",
        ),
        ("trainer: {lr: 3}", "trainer.lr: unknown key; did you mean optimization.lr?"),
        ("optimisation: {}", "optimisation: unknown key; did you mean optimization?"),
        ("cv: {zzzz: 3}", "cv.zzzz: unknown key; known here: n_folds, repeats,"),
        ("loss: 3", "loss: found 3, expected a section with keys space, scale, beta,"),
        (
            "loss: [{beta: 1}]",
            "loss: found [{'beta': 1}], expected a section with keys space, scale, beta,",
        ),
    ],
)
def test_unknown_keys_are_refused_with_the_nearest(load, line, says):
    with pytest.raises(InputError) as refusal:
        load(MINIMAL + line)
    assert says in str(refusal.value)


def test_every_missing_key_is_listed(load):
    with pytest.raises(
        InputError, match=r"(?s)3 keys are wrong:.*experiment: missing.*head: missing.*lr: missing"
    ):
        load("optimization: {weight_decay: 0.1}")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            "cv: {tta: true}\nloss:\n  beta: 1\n  beta: 2\n",
            "key 'beta' is there twice, in lines 3 and 4",
        ),
        (
            "a: !!python/object/apply:os.system [ls]",
            "tags and aliases are not plain values (line 1, column 4)",
        ),
        ("a: &x [1]\nb: *x", "tags and aliases are not plain values (line 2, column 4)"),
        ("<<: {a: 1}", "a key must be a word"),
        ("on: 1", "a key must be a word"),
        ("a: 1\n---\nb: 1", "another document"),
        ("a: 0x_", "not a plain YAML config"),
        ("a: 1" + ":1" * 999 + ".5", "not a plain YAML config"),
        ("[" * 1000, "not a plain YAML config"),
        ("a: \0", "not a plain YAML config"),
        (b"a: \xff\xfe", "not a plain YAML config"),
        ("", "found None, expected keys and values"),
        ("- 1", "found [1], expected keys and values"),
    ],
)
def test_anything_but_plain_yaml_is_refused(load, text, says):
    with pytest.raises(InputError) as refusal:
        load(text)
    assert says in str(refusal.value)


def test_an_absent_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"nowhere.yaml: cannot be read \(No such file"):
        SweepConfig.load(tmp_path / "nowhere.yaml")


@settings(max_examples=30, deadline=None)
@given(
    name=st.text(min_size=1),
    lr=st.floats(1e-300, 1e300),
    store=st.sampled_from([None, Path("2e-3"), Path("a: b")]),
)
@example(name=12 * "\U0010aae9" + "&", lr=1.0, store=None)  # libyaml folds it elsewhere
def test_a_dumped_config_loads_again(tmp_path_factory, name, lr, store):
    point = PointConfig.model_validate(
        {
            "experiment": {"name": name, "seed": 1},
            "dataset": {"store": store},
            "head": {"kind": "density"},
            "optimization": {"lr": lr, "weight_decay": 0.1},
        }
    )
    path = tmp_path_factory.getbasetemp() / "config.yaml"
    text = dump_yaml(point)
    values = yaml.safe_load(text)
    assert text == yaml.safe_dump(values, sort_keys=False, default_flow_style=None, width=120)
    path.write_text(text)
    assert load_point(path) == resolved(point)


def test_a_run_has_no_grid(tmp_path):
    (tmp_path / "config.yaml").write_text(MINIMAL.replace("1.0e-3", "[1, 2]"))
    with pytest.raises(InputError, match=r"optimization.lr: a list where one value belongs"):
        load_point(tmp_path / "config.yaml")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_our_configs_load_and_open_with_their_question(path):
    assert SweepConfig.load(path).base.experiment.name == path.stem
    opening = path.read_text().split("\n\n")[0]
    assert opening.startswith("# ") and "?" in opening


def test_the_first_experiment_writes_out_what_other_defaults_would_change(load):
    sweep = SweepConfig.load(CONFIGS[0].with_name("exp013_dinov3.yaml"))
    given_there = {
        "experiment.seed": 42,
        "backbone.model_name": "vit_huge_plus_patch16_dinov3",
        "backbone.hidden_dim": 1280,
        "backbone.num_patches": 3600,
        "dataset.img_size": 960,
        "dataset.num_aug_patterns": 20,
        "optimization.lr": 2e-3,
        "optimization.weight_decay": 1e-2,
        "optimization.ema_decay": 0.997,  # at its 1600 steps the default's own
        "head.normalize": False,
        "loss.space": "raw",
        "loss.scale": "none",
        "optimization.decay_biases": True,
        "optimization.initial_biases": "drawn",
        "optimization.warmup_from_zero": True,
        "optimization.ema_delay": 1,
        "augmentation.mixup.enabled": True,
        "trainer.best_by": "loss",
        "inference.constraints": "clip",
        "inference.tta_indices": [0, 1, 2, 3],
        "cv.n_folds": 5,
        "cv.groups": "site",
        "cv.splitter": "group_kfold",
        "cv.strata": [],
    }
    assert len(sweep.points) == 6 and sweep.base == load(MINIMAL, given_there).base


def test_a_config_saved_before_there_were_versions_means_what_it_meant(tmp_path):
    """Keys it lacks have their defaults of then, and ridge's space is what ridge did then."""
    old = """
experiment: {name: old, seed: 7}
head: {kind: ridge}
loss: {space: log1p}
optimization: {lr: 1.0e-3, weight_decay: 0.01}
"""
    (tmp_path / "config.yaml").write_text(old)
    point = load_point(tmp_path / "config.yaml")
    assert (point.loss.space, point.loss.scale, point.head.normalize) == ("average", "none", False)
    assert (point.optimization.decay_biases, point.augmentation.mixup.enabled) == (True, True)

    for kind in ("gpr", "density"):
        (tmp_path / "config.yaml").write_text(old.replace("ridge", kind))
        assert load_point(tmp_path / "config.yaml").loss.space == "log1p"
    # what a sweep of before left out was raw for every kind
    (tmp_path / "config.yaml").write_text(old.replace("{space: log1p}", "").replace("ridge", "gpr"))
    assert load_point(tmp_path / "config.yaml").loss.space == "raw"


def test_a_grid_of_before_keeps_its_points_and_their_names(tmp_path):
    """Ridge read no loss.space: one point, whatever the axis says."""
    base = {
        "experiment": {"name": "old", "seed": 7},
        "head": {"kind": "ridge"},
        "optimization": {"lr": 1e-3, "weight_decay": 0.01},
    }
    axes = {"head.kind": ["ridge", "gpr"], "loss.space": ["raw", "sqrt"]}
    old = SweepConfig.of(base, axes, tmp_path)
    assert old.names == [
        "001_old__kind-ridge",
        "002_old__kind-gpr__space-raw",
        "003_old__kind-gpr__space-sqrt",
    ]
    assert [point.loss.space for point in old.points] == ["average", "raw", "sqrt"]


def test_null_is_what_the_kind_does_best(load):
    kinds = ["cls_gating", "density", "gpr", "kernel_ridge", "svr", "pls"]
    points = load(MINIMAL, {"head.kind": kinds}).points
    raw, root = ("raw", "sqrt")
    assert [point.loss.space for point in points] == [raw, raw, root, root, root, raw]
    assert [point.head.normalize for point in points[:2]] == [False, True]


def test_a_point_that_spells_the_default_out_is_no_other_point(load):
    axes = {"head.kind": ["density", "gpr"], "loss.space": [None, "raw", "sqrt"]}
    names = load(MINIMAL, axes | {"head.normalize": [None, True]}).names
    assert [name.split("__", 1)[1] for name in names] == [
        "kind-density__normalize-null__space-null",
        "kind-density__normalize-null__space-sqrt",
        "kind-gpr__space-null",
        "kind-gpr__space-raw",
    ]


def test_a_space_that_a_kind_does_not_take_is_refused(load):
    with pytest.raises(InputError, match="sweep.yaml: loss.space: found 'average', head.kind gpr"):
        load(MINIMAL, {"head.kind": ["ridge", "gpr"], "loss.space": "average"})


def test_group_kfold_has_one_repeat(load):
    with pytest.raises(
        InputError, match=r"sweep.yaml: cv: repeats 3: splitter group_kfold has one"
    ):
        load(MINIMAL, {"cv.splitter": "group_kfold", "cv.repeats": 3})


def test_every_key_explains_itself():
    assert [key for key, text in meanings(PointConfig).items() if not text] == []


def test_our_loader_leaves_pyyaml_as_it_was(load):
    load()
    assert yaml.safe_load("2026-12-28") == datetime.date(2026, 12, 28)
