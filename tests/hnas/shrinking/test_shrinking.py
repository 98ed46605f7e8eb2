"""Shrinking: guards, order of the drops, restored options, the stages, and the log."""

from __future__ import annotations

import json
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hnas import spaces
from hnas.journal import Journal
from hnas.sampling import draws as paths
from hnas.shrinking import evidence
from hnas.shrinking import loop as shrinking
from hnas.shrinking.edits import Edit, ShrinkRules, drop_worst, replay, revive
from hnas.shrinking.loop import StageTraining
from hnas.space import Space
from hnas.study import Study
from hnas.training.loop import Observer, Schedule
from tests.hnas import tiny
from tests.hnas.planted import BAD, digits, known, one_line

STEP = Schedule(((1, 0.05),))


def every(space: Space) -> list[tuple[str, object]]:
    return [(f"{slot}.op", option) for slot in space.slots for option in space.choices[f"{slot}.op"].options]


def ascending(space: Space) -> dict[tuple[str, object], float]:
    return {place: float(k) for k, place in enumerate(every(space))}


# --- one shrinking ----------------------------------------------------------------------------------------------------


def shrink(space: Space, scores, drop: int | None = None, *, whole=None, stage: int = 0, **rules):
    return drop_worst(space, scores, ShrinkRules(drop, **rules), whole=whole, stage=stage)


def test_the_worst_go_and_the_log_says_why():
    space = digits()
    scores = dict.fromkeys(every(space), 5.0) | {BAD: 1.0, ("blocks.0.op", "dw5"): 2.0}
    left, edits = shrink(space, scores, 2, stage=3)
    assert [(e.kind, e.choice, e.option, e.score, e.stage) for e in edits] == [
        ("drop", *BAD, 1.0, 3),
        ("drop", "blocks.0.op", "dw5", 2.0, 3),
    ]
    assert left.size == 4 * 5 * 4 * 5
    assert space.size == 625, "the space itself is not touched"


def test_a_threshold_drops_all_that_score_no_more():
    space = digits()
    left, edits = shrink(space, ascending(space), threshold=1.0)
    assert [e.option for e in edits] == ["identity", "conv1"]
    assert shrink(space, ascending(space), 1, threshold=1.0)[1] == edits[:1]
    assert left.choices["blocks.0.op"].options == ("avg3", "dw5", "conv3")


def test_an_option_without_a_score_stays():
    space = digits()
    scored = {place: 0.0 for place in every(space) if place[1] != "identity"}
    left, _ = shrink(space, scored, force=True, threshold=1.0)
    assert {choice.options for choice in left.choices.values()} == {("identity",)}


@given(st.integers(0, 10**6), st.integers(0, 40), st.integers(1, 3), st.sampled_from([0.25, 0.5, 0.75, 1.0]))
def test_no_slot_is_emptied_and_no_type_vanishes_from_more_slots_than_it_may(seed, drop, keep, spread):
    space, rng = SPACE, Random(seed)
    scores = {place: rng.random() for place in every(space)}
    left, edits = shrink(space, scores, drop, keep=keep, spread=spread)
    assert len(edits) <= drop
    assert all(len(left.choices[f"{slot}.op"].options) >= keep for slot in left.slots)
    for kind in paths.slot_types(space, "blocks.0"):
        gone = sum(kind not in left.choices[f"{slot}.op"].options for slot in left.slots)
        assert gone <= spread * 4
    forced, more = shrink(space, scores, drop, keep=keep, force=True)
    assert len(more) == min(drop, 4 * (5 - keep))
    assert all(len(forced.choices[f"{slot}.op"].options) >= keep for slot in forced.slots)


SPACE = digits()


def test_the_guard_counts_from_the_whole_space():
    space = digits()
    scores = {(f"blocks.{k}.op", "conv3"): float(k) for k in range(4)}
    left, edits = shrink(space, scores, 4)
    assert len(edits) == 2, "half of four slots"
    rest = {place: score for place, score in scores.items() if place[1] in left.choices[place[0]].options}
    assert shrink(left, rest, 4, whole=space)[1] == ()
    assert len(shrink(left, rest, 4)[1]) == 1, "without the whole, what is left is the whole"
    assert len(shrink(left, rest, 4, whole=space, force=True)[1]) == 2


def test_sizes_can_be_dropped_too_and_no_guard_on_types_holds_them():
    space = tiny.space()
    sizes = [name for name in space.choices if name.endswith(".kernel")]
    sizes = [name for name in sizes if len(space.choices[name].options) > 1]
    left, edits = shrink(space, {(name, 5): 0.0 for name in sizes}, 99)
    assert len(edits) == len(sizes) > 4
    assert all(left.choices[name].options == (3,) for name in sizes)
    assert all(left.sample(Random(k)) in space for k in range(5))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s: shrink(s, {}), "nothing says what to drop; give drop .* or threshold"),
        (lambda s: shrink(s, {BAD: float("nan")}, 1), r"the score of blocks\.2\.op='conv1' is NaN"),
        (lambda s: shrink(s, {("blocks.9.op", "conv1"): 0.0}, 1), "has a score but is not an option of this space"),
        (lambda s: shrink(s.without(*BAD), {BAD: 0.0}, 1), "has a score but is not an option of this space"),
        (lambda s: Edit.from_json({"kind": "drop"}), "is not an edit of a space"),
        (lambda s: Edit.from_json({"kind": "paint", "choice": "a"}), "no edit 'paint'; known: drop, revive, split"),
    ],
)
def test_what_cannot_be_meant_is_one_line(call, message):
    with pytest.raises(ValueError, match=message) as caught:
        call(digits())
    assert one_line(caught)


# --- the log ----------------------------------------------------------------------------------------------------------


def test_the_log_is_json_and_makes_the_space_again():
    space = digits()
    left, first = shrink(space, ascending(space), 5)
    scores = {place: score for place, score in ascending(space).items() if place[1] in left.choices[place[0]].options}
    left, second = shrink(left, scores, 3, whole=space, stage=1)
    back, third = revive(left, space, [*first, *second], 2, 1)
    text = json.dumps([edit.to_json() for edit in (*first, *second, *third)])
    again = [Edit.from_json(record) for record in json.loads(text)]
    assert again == [*first, *second, *third]
    assert replay(again, space).to_json() == back.to_json()
    assert spaces.restore(back.to_json()).size == back.size


def test_what_was_best_of_what_went_earlier_returns_once_and_in_its_place():
    space = digits()
    log = [
        Edit("drop", "blocks.0.op", "conv1", 0.1, 0),
        Edit("drop", "blocks.1.op", "avg3", 0.3, 0),
        Edit("drop", "blocks.2.op", "dw5", 0.9, 1),
    ]
    left = replay(log, space)
    back, edits = revive(left, space, log, 1, 1)
    assert [(e.choice, e.option) for e in edits] == [("blocks.1.op", "avg3")], "dw5 went in this stage"
    assert back.choices["blocks.1.op"].options == space.choices["blocks.1.op"].options
    again = [*log, *edits, Edit("drop", "blocks.1.op", "avg3", 0.3, 2)]
    _, more = revive(replay(again, space), space, again, 5, 3)
    assert [(e.choice, e.option) for e in more] == [("blocks.2.op", "dw5"), ("blocks.0.op", "conv1")]


# --- the loop ---------------------------------------------------------------------------------------------------------


def shrunk(study: Study, stages: int = 3, *, worth=None, log=None, say=None, drop: int = 2, **rules) -> Space:
    worth = worth or (lambda study, space: ascending(space))
    training = StageTraining([STEP] * stages, lambda *_: (), observer=Observer(on_message=say))
    space, rules = study.supernet.space, ShrinkRules(drop, **rules)
    return shrinking.run_stages(study, space, worth, training, rules, key="test", log=log)


def test_every_stage_trains_on_what_the_one_before_left():
    study, log, said = known(), [], []
    left = shrunk(study, log=log, say=said.append)
    assert [space.size for space in study.spaces] == [625, 625 * 3 // 5, 625 * 1 // 5]
    assert left.size == study.spaces[-1].size
    assert [edit.stage for edit in log] == [0, 0, 1, 1]
    assert said == ["stage 0: 2 operations dropped", "stage 1: 2 operations dropped"]


def test_it_ends_where_enough_is_gone_or_nothing_may_go():
    assert shrunk(known(), stages=9, until=400).size == 375
    study = known()
    left = shrunk(study, stages=99, drop=5)
    assert len(study.spaces) < 10
    assert all(len(choice.options) >= 1 for choice in left.choices.values())
    forced = shrunk(known(), stages=99, drop=5, force=True)
    assert forced.size == 1


def test_what_returns_is_trained_and_scored_again():
    study, log = known(), []
    shrunk(study, stages=4, back=1, log=log, force=True)
    revived = [edit for edit in log if edit.kind == "revive"]
    assert [edit.stage for edit in revived] == [1, 2]
    assert (revived[0].choice, revived[0].option) == ("blocks.0.op", "conv1")
    assert "conv1" in study.spaces[2].choices["blocks.0.op"].options
    with pytest.raises(ValueError, match="2 options are restored for 2 that are dropped: the space would never shrink"):
        shrunk(known(), back=2)


def test_a_replay_asks_for_no_evidence_again(tmp_path):
    file = tmp_path / "journal.jsonl"
    first, again = [], []
    journal = Journal(file)
    whole = shrunk(known(journal=journal), log=first)
    journal.close()

    def never(study: Study, space: Space):
        raise AssertionError("the journal knows")

    journal = Journal(file)
    left = shrunk(known(journal=journal), log=again, worth=never)
    journal.close()
    assert left.to_json() == whole.to_json()
    assert again == first


@pytest.mark.parametrize("key", ["shrink/pwsnas/{'samples': 20}/50/1.5/0/44a82281f275", "unshare/1.5/2/0/0/0/digits"])
def test_stages_of_an_earlier_version_are_refused_before_anything_is_trained(tmp_path, key):
    file = tmp_path / "journal.jsonl"
    file.write_text(json.dumps([key, [], 1.0]) + "\n")
    journal = Journal(file)
    study = known(journal=journal)
    with pytest.raises(ValueError, match="stages of an earlier version of hnas; begin again with another") as caught:
        shrunk(study)
    journal.close()
    assert one_line(caught)
    assert study.spaces == []


def test_a_key_is_the_digest_of_what_a_stage_depends_on():
    """Equal records have equal keys in every process; a changed rule is another stage."""
    first, again, other = known(), known(), known()
    shrunk(first)
    shrunk(again)
    shrunk(other, keep=2)
    keys = [key for key in first.journal.entries if key.startswith("stage/")]
    assert keys == [key for key in again.journal.entries if key.startswith("stage/")]
    assert not set(keys) & set(other.journal.entries)
    assert all(len(key) == len("stage/") + 16 for key in keys)


def test_a_space_without_a_decision_is_trained_and_left_alone():
    space = digits()
    lone = paths.keep_types(space, dict.fromkeys(space.slots, ("conv3",)))
    study, training = known(space), StageTraining([STEP] * 3, lambda *_: ())
    assert shrinking.run_stages(study, lone, lambda *_: {}, training, ShrinkRules(1), key="x") is lone
    assert study.spaces == [lone]


@pytest.mark.parametrize("name", ["angle", "one_shot_accuracy", "magnitude", "chance"])
def test_every_evidence_fits_the_loop(name):
    study = known()
    options = {"angle": {"samples": 10}, "one_shot_accuracy": {"samples": 2}}.get(name, {})
    left = shrunk(study, worth=lambda study, space: evidence.load(name).scores(study, space, **options))
    assert left.size < 625
