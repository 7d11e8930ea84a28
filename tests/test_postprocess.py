"""trainer.score.postprocess: each rule by hand, and what holds after any list of them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from preset import TARGETS, csiro

from featurestore.errors import InputError
from trainer.config.rules import ClipRule, FactorRule, WaDeadZeroRule
from trainer.score.metrics import weighted_r2
from trainer.score.postprocess import RULES, Clip, Factor, WaDeadZero, apply, judge, rules_of

STATES = ["NSW", "Tas", "WA"]
NSW, TAS, WA = np.eye(3)
PARTS = {
    "Dry_Green_g": [0],
    "Dry_Dead_g": [1],
    "Dry_Clover_g": [2],
    "GDM_g": [0, 2],
    "Dry_Total_g": [0, 1, 2],
}
GRAMS = st.one_of(st.just(0.0), st.floats(0, 200))
TARGET = st.sampled_from(TARGETS)
CLIPS = st.tuples(TARGET, GRAMS, GRAMS).map(lambda x: Clip(x[0], min(x[1:]), max(x[1:])))
RULE = st.one_of(st.just(WaDeadZero()), CLIPS, st.builds(Factor, TARGET, st.floats(0.01, 10)))


def masses(green: float, dead: float, clover: float) -> np.ndarray:
    """(1, 5) in TARGETS order."""
    return np.array([[green, dead, clover, green + clover, green + clover + dead]], np.float64)


def applied(rule, *parts: float, state: np.ndarray = WA) -> list[float]:
    return apply([rule], masses(*parts), state[None], csiro(STATES))[0].tolist()


def test_dead_is_zero_in_wa():
    # GDM 4 and Total 11 are one mass: (.2 * 4 + .5 * 11) / .7 = 9, in the shares 3 : 1 of Green and
    # Clover.
    assert applied(WaDeadZero(), 3, 7, 1) == pytest.approx([6.75, 0, 2.25, 9, 9])


def test_dead_alone_becomes_green_in_wa():
    assert applied(WaDeadZero(), 0, 7, 0) == pytest.approx([5, 0, 0, 5, 5])


def test_dead_stays_elsewhere():
    assert applied(WaDeadZero(), 3, 7, 1, state=TAS) == [3, 7, 1, 4, 11]


def test_the_most_probable_state_decides():
    state_NC = np.array([[0.3, 0.3, 0.4], [0.45, 0.1, 0.45]])
    found = apply([WaDeadZero()], np.repeat(masses(3, 7, 1), 2, 0), state_NC, csiro(STATES))
    assert (found[:, 1] == [0, 7]).all()


@pytest.mark.parametrize("states", [STATES, STATES[::-1]], ids=["WA last", "WA first"])
def test_an_image_without_probabilities_is_of_no_state(states):
    """Wherever WA stands: what is not known must not be taken for the first or the last State."""
    unknown = np.full((1, 3), np.nan)
    assert apply([WaDeadZero()], masses(3, 7, 1), unknown, csiro(states))[0].tolist() == [
        3,
        7,
        1,
        4,
        11,
    ]


@pytest.mark.parametrize(
    "state, expected", [("WA", [6.75, 0, 2.25, 9, 9]), ("Tas", [3, 7, 1, 4, 11])]
)
def test_where_there_is_one_state_alone_all_images_are_of_it(state, expected):
    assert apply([WaDeadZero()], masses(3, 7, 1), np.ones((1, 1)), csiro([state]))[
        0
    ].tolist() == pytest.approx(expected)


def test_without_wa_among_the_states_nothing_changes():
    assert (
        apply([WaDeadZero()], masses(3, 7, 1), WA[None], csiro(["NSW", "Tas", "Vic"])).tolist()
        == masses(3, 7, 1).tolist()
    )


@pytest.mark.parametrize(
    "rule, expected",
    [
        (Clip("Dry_Dead_g", 0, 5), [3, 5, 1, 4, 9]),
        (Clip("GDM_g", 0, 2), [1.5, 7, 0.5, 2, 9]),
        (Clip("Dry_Total_g", 22, 99), [6, 14, 2, 8, 22]),
        (Clip("Dry_Total_g", 0, 99), [3, 7, 1, 4, 11]),
        (Factor("Dry_Clover_g", 2), [3, 7, 2, 5, 12]),
        (Factor("GDM_g", 0.5), [1.5, 7, 0.5, 2, 9]),
        (Factor("Dry_Total_g", 2), [6, 14, 2, 8, 22]),
    ],
    ids=str,
)
def test_parts_scale_along(rule, expected):
    assert applied(rule, 3, 7, 1) == pytest.approx(expected)


@pytest.mark.parametrize(
    "target, expected",
    [
        ("Dry_Green_g", [2, 0, 0, 2, 2]),
        ("Dry_Dead_g", [0, 2, 0, 0, 2]),
        ("Dry_Clover_g", [0, 0, 2, 2, 2]),
        ("GDM_g", [2, 0, 0, 2, 2]),
        ("Dry_Total_g", [2, 0, 0, 2, 2]),
    ],
)
def test_nothing_is_raised_as_green_where_it_can_be(target, expected):
    assert applied(Clip(target, 2, 9), 0, 0, 0) == expected


def test_a_trace_can_be_raised():
    assert applied(Clip("GDM_g", 2, 9), 0, 1, 5e-324) == [0, 1, 2, 2, 3]


def test_rules_follow_one_another():
    rules = [Factor("Dry_Dead_g", 2), Clip("Dry_Dead_g", 0, 5)]
    assert (
        apply(rules, masses(3, 4, 1), None, csiro())[0, 1] == 5
        and apply(rules[::-1], masses(3, 4, 1), None, csiro())[0, 1] == 8
    )


@given(rules=st.lists(RULE, max_size=5), parts_N3=arrays(np.float64, (4, 3), elements=GRAMS))
def test_sums_hold_after_any_rules(rules, parts_N3):
    before = np.concatenate([masses(*parts) for parts in parts_N3])
    green, dead, clover, gdm, total = after = apply(
        rules, before, np.stack([WA, TAS, WA, NSW]), csiro(STATES)
    ).T
    assert (after >= 0).all()
    assert (gdm == green + clover).all() and (total == gdm + dead).all()


@given(target=TARGET, parts=st.tuples(GRAMS, GRAMS, GRAMS), ends=st.tuples(GRAMS, GRAMS))
def test_a_clipped_mass_is_within_its_bounds(target, parts, ends):
    low, high = sorted(ends)
    found = apply([Clip(target, low, high)], masses(*parts), None, csiro())[
        0, TARGETS.index(target)
    ]
    # 1e-300 g: parts of a mass near the smallest float, 5e-324, are rounded to 0
    assert low * (1 - 1e-12) - 1e-300 <= found <= high * (1 + 1e-12)


@given(target=TARGET, parts=st.tuples(*[st.floats(0.1, 200)] * 3), factor=st.floats(0.01, 10))
def test_a_factor_keeps_shares(target, parts, factor):
    found = apply([Factor(target, factor)], masses(*parts), None, csiro())[0, list(PARTS[target])]
    np.testing.assert_allclose(found, factor * masses(*parts)[0, list(PARTS[target])])


@pytest.mark.parametrize(
    "rule", [Clip("GDM_g", 0, 999), Factor("Dry_Total_g", 1), WaDeadZero()], ids=str
)
def test_rows_that_no_rule_touches_keep_every_bit(rule):
    total, gdm, green = -np.sort(-np.random.default_rng(0).uniform(0, 90, (3, 50)), axis=0)
    # as constraints leave them: not the sums of their parts
    before = np.stack([green, total - gdm, gdm - green, gdm, total], 1)
    assert (apply([rule], before, np.tile(TAS, (50, 1)), csiro(STATES)) == before).all()


@pytest.mark.parametrize(
    "rule", [WaDeadZero(), Clip("GDM_g", 5, 9), Factor("Dry_Total_g", 2)], ids=str
)
def test_nan_stays_nan(rule):
    assert np.isnan(
        apply([rule], np.full((2, 5), np.nan), np.stack([WA, np.full(3, np.nan)]), csiro(STATES))
    ).all()


def test_leading_axes_are_kept():
    stack = np.random.default_rng(0).uniform(0, 9, (2, 7, 3))
    before = np.stack([np.concatenate([masses(*parts) for parts in each]) for each in stack])
    state = np.random.default_rng(1).dirichlet(np.ones(3), (2, 7))
    rules = [WaDeadZero(), Factor("Dry_Green_g", 1.1)]
    expected = [apply(rules, *each, csiro(STATES)) for each in zip(before, state, strict=True)]
    np.testing.assert_array_equal(apply(rules, before, state, csiro(STATES)), expected)


@pytest.mark.parametrize("rule", [WaDeadZero(), Clip("GDM_g", 5, 9), Factor("GDM_g", 2)], ids=str)
def test_whole_grams_are_computed_as_fractions(rule):
    whole = masses(3, 7, 1).astype(np.int64)
    expected = apply([rule], masses(3, 7, 1), WA[None], csiro(STATES))
    np.testing.assert_array_equal(apply([rule], whole, WA[None], csiro(STATES)), expected)


@pytest.mark.parametrize("rule", [WaDeadZero(), Clip("GDM_g", 5, 9), Factor("GDM_g", 2)], ids=str)
def test_inputs_are_not_written_to(rule):
    before, state = masses(3, 7, 1), WA[None].copy()
    after = apply([rule], before, state, csiro(STATES))
    assert before.dtype == after.dtype == np.float64 and not np.array_equal(after, before)
    after[:] = 99
    assert before.tolist() == masses(3, 7, 1).tolist() and state.tolist() == [WA.tolist()]


def test_masses_without_rules_are_a_copy():
    before = masses(3, 7, 1)
    apply([], before, None, csiro())[0, 0] = 99
    assert before.tolist() == masses(3, 7, 1).tolist()


@pytest.mark.parametrize(
    "state, states",
    [(None, STATES), (np.empty((1, 0)), [])],
    ids=["heads tell none", "no States known"],
)
def test_a_rule_that_needs_state_is_refused_without(state, states):
    with pytest.raises(
        InputError, match="inference.postprocess: wa_dead_zero needs the predicted State"
    ):
        apply([Factor("GDM_g", 2), WaDeadZero()], masses(3, 7, 1), state, csiro(states))


def test_no_images_need_no_state():
    assert apply([WaDeadZero()], np.empty((0, 5)), None, csiro(STATES)).shape == (0, 5)


def test_probabilities_of_other_states_are_refused():
    with pytest.raises(ValueError, match=r"probabilities are \(1, 3\), of 2 words"):
        apply([WaDeadZero()], masses(3, 7, 1), WA[None], csiro(STATES[:2]))


def test_rules_of_a_config():
    sections = [
        WaDeadZeroRule(rule="wa_dead_zero"),
        ClipRule(rule="clip", target="GDM_g", low=1.0, high=9.0),
        FactorRule(rule="factor", target="Dry_Dead_g", factor=1.1),
    ]
    assert rules_of(sections) == [WaDeadZero(), Clip("GDM_g", 1, 9), Factor("Dry_Dead_g", 1.1)]
    assert list(RULES) == [section.rule for section in sections]


def test_judge_leaves_out_each_rule_alone():
    truth, before = masses(3, 4, 1), masses(3, 7, 1)
    rules = [Clip("Dry_Dead_g", 0, 5), Factor("Dry_Dead_g", 0.8)]
    found = judge(rules, lambda some: weighted_r2(truth, apply(some, before, None, csiro())))
    assert found == pytest.approx(
        {
            "all": 1,
            "none": weighted_r2(truth, before),
            "without clip Dry_Dead_g to 0..5": weighted_r2(truth, masses(3, 5.6, 1)),
            "without factor Dry_Dead_g x 0.8": weighted_r2(truth, masses(3, 5, 1)),
        }
    )


def test_judge_tells_equal_rules_apart_by_place():
    assert list(judge([WaDeadZero()] * 2, len)) == [
        "all",
        "none",
        "without wa_dead_zero",
        "without wa_dead_zero (rule 2)",
    ]
