"""Scores in the folder of a supernet: evaluated once, kept through a kill, read for the same weights and images."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest

from hnas.cli import deploy_main
from hnas.deployment.options import MOST_SCORES
from hnas.deployment.scores import encode_scores, read_scores, score_subnets, scores_of
from hnas.deployment.source import open_source
from hnas.study import Study
from hnas.supernet import Supernet
from tests.hnas import tiny

SPACE = tiny.space()


class _Killed(Exception):
    pass


def _scores(file: Path, count: int, notify: Any = lambda _: None) -> dict[Any, float]:
    return score_subnets(Study(Supernet(SPACE), tiny.task()), file, "mine", count, notify)


def test_scores_are_the_accuracies_of_the_subnets_and_are_read_again(tmp_path: Path) -> None:
    file = tmp_path / "scores.jsonl"
    found = _scores(file, 12)
    assert len(found) == 12
    assert {SPACE.smallest, SPACE.largest} <= set(found)
    study = Study(Supernet(SPACE), tiny.task())
    assert all(study.accuracy(arch) == accuracy for arch, accuracy in list(found.items())[:4])
    entries = read_scores(file)
    assert scores_of(entries, SPACE, "mine") == found
    assert scores_of(entries, SPACE, "of other weights") == {}
    assert read_scores(tmp_path / "missing.jsonl") == {}


def test_a_killed_scoring_evaluates_nothing_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "scores.jsonl"
    evaluated: list[Any] = []
    accuracy = Study.accuracy
    monkeypatch.setattr(Study, "accuracy", lambda study, arch: evaluated.append(arch) or accuracy(study, arch))

    def kill(done: int) -> None:
        if done == 6:
            raise _Killed

    with pytest.raises(_Killed):
        _scores(file, 10, kill)
    found = _scores(file, 10)
    assert evaluated == list(found)
    assert len(evaluated) == 10


def test_a_study_takes_known_accuracies_for_its_own() -> None:
    study = Study(Supernet(SPACE), tiny.task(), known={SPACE.smallest: 0.125})
    assert study.search_accuracy(SPACE.smallest) == study.score(SPACE.smallest).metrics["accuracy"] == 0.125
    assert not study.scored(SPACE.smallest)  # what the journal holds costs no time; to price this one does


@pytest.mark.parametrize(
    "answer", [1.5, -0.1, "0.5", None, True, [0.5], 1], ids=["above", "below", "text", "null", "true", "list", "whole"]
)
def test_no_other_value_is_an_accuracy(answer: Any) -> None:
    places = ",".join("0" for _ in SPACE.choices)
    assert scores_of({f"mine/{places}": 0.5}, SPACE, "mine") == {SPACE.smallest: 0.5}
    assert scores_of({f"mine/{places}": answer}, SPACE, "mine") == {}


@pytest.mark.parametrize("places", ["", "0", "9", "-1", "x", "0,0,0", "²", "0" * 5000])
def test_what_is_no_member_is_left_out(places: str) -> None:
    whole = ",".join([places, *("0" for _ in list(SPACE.choices)[1:])])
    for key in (places, whole):
        if key != ",".join("0" for _ in SPACE.choices):
            assert scores_of({f"mine/{key}": 0.5}, SPACE, "mine") == {}


def test_a_damaged_file_is_one_line(tmp_path: Path) -> None:
    file = tmp_path / "scores.jsonl"
    file.write_text(json.dumps(["mine/0", 0.5, 0.0]) + "\nno line\n" + json.dumps(["mine/1", 0.5, 0.0]) + "\n")
    with pytest.raises(ValueError, match="is damaged; delete it"):
        read_scores(file)


def test_of_very_many_scores_a_spread_is_read() -> None:
    rng = Random(0)
    scores = {SPACE.sample(rng): rng.random() for _ in range(MOST_SCORES + 200)}
    entries = {f"mine/{places}": accuracy for places, accuracy in encode_scores(SPACE, scores).items()}
    found = scores_of(entries, SPACE, "mine")
    assert MOST_SCORES / 2 <= len(found) <= MOST_SCORES
    assert found.items() <= scores.items()
    assert min(found.values()) < 0.05
    assert max(found.values()) > 0.95


def test_the_scores_of_the_shipped_supernet_are_read() -> None:
    """They were made for these weights, this space and these images: a change of any would drop them without a word."""
    source = open_source(None, None)
    assert len(source.scores) == 393
    assert source.supernet.space.largest in source.scores


@pytest.mark.slow
def test_scored_by_the_command_for_its_own_weights_space_and_images(trained: Path, capsys: Any) -> None:
    given = ["score", "--supernet", str(trained / "trained"), "--data", str(trained / "photos"), "--subnets", "6"]
    assert deploy_main([*given, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["subnets"] == 6
    source = open_source(trained / "trained", trained / "photos")
    assert len(source.scores) == 6
    assert max(source.scores.values()) == said["highest"]
    fewer = replace(source.supernet.space, choices=_without_the_first(source.supernet.space.choices))
    source.supernet.space = fewer
    assert scores_of(read_scores(trained / "trained/scores.jsonl"), fewer, source.identity) == {}
    for number in ("0", "501"):
        assert deploy_main([*given[:-1], number]) == 2
        assert f"subnets is {number}; give 1 to 500" in capsys.readouterr().err
    assert deploy_main(["score", "--supernet", str(trained / "missing")]) == 2
    assert "no folder" in capsys.readouterr().err


def _without_the_first(choices: Any) -> Any:
    name = next(name for name, choice in choices.items() if len(choice.options) > 1)
    return {**choices, name: replace(choices[name], options=choices[name].options[1:])}
