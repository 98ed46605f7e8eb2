"""Series and text as tasks: labels, losses, metrics and baselines."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hnas import spaces, tasks
from hnas.data.text import NGram, alphabet_of, encode
from hnas.recipes.progress import judge_sequence
from hnas.study import Study
from hnas.supernet import Supernet

SERIES, TEXT = tasks.load("series"), tasks.load("text")


def csv(file, **columns):
    rows = zip(*columns.values(), strict=True)
    file.write_text(",".join(columns) + "\n" + "".join(",".join(map(str, row)) + "\n" for row in rows))
    return file


@pytest.fixture
def ramp(tmp_path):
    """A column that counts, and one of period 6."""
    rows = range(400)
    return csv(tmp_path / "ramp.csv", count=list(rows), wave=[(k % 6) * 1.5 for k in rows])


def test_labels_are_the_targets_a_horizon_later(ramp):
    task = SERIES.open_task(ramp, horizon=3, window=10, burn=2, targets=("count",), batch_size=4)
    raw, labels = task.batch(0)
    deviation = task.scaling["count"][1]
    assert raw.shape == (4, 10, 2)
    assert labels.shape == (4, 10, 1)
    ahead = labels[..., 0].numpy() - raw[..., 0]
    np.testing.assert_allclose(ahead * deviation, 3, rtol=1e-4)
    assert task.space_arguments == {"features": 2, "outputs": 1, "window": 10}


def test_scaling_is_that_of_the_training_rows_alone(tmp_path):
    values = np.random.default_rng(0).normal(5, 2, 400)
    first = SERIES.open_task(csv(tmp_path / "a.csv", x=values), window=10, burn=2).scaling
    values[300:] += 1000  # rows of search and test
    assert SERIES.open_task(csv(tmp_path / "b.csv", x=values), window=10, burn=2).scaling == first
    values[10] += 1000  # a training row
    assert SERIES.open_task(csv(tmp_path / "c.csv", x=values), window=10, burn=2).scaling != first


def test_a_constant_column_is_not_scaled_and_is_no_target(tmp_path):
    """A sensor that is switched on after the training rows had a million in the unit of its deviation."""
    wave, switched, tiny = np.sin(np.arange(400.0)), [0] * 350 + [1] * 50, [k % 3 * 1e-9 for k in range(400)]
    file = csv(tmp_path / "a.csv", wave=wave, switched=switched, tiny=tiny)
    task = SERIES.open_task(file, window=10, burn=2, targets=("wave",))
    assert float(np.abs(task.features).max()) < 2
    assert float(task.features[:, 2].std()) == pytest.approx(1, rel=0.01)
    with pytest.raises(ValueError, match="column 'switched' has one value in all training rows, so that there is noth"):
        SERIES.open_task(file, window=10, burn=2)


def test_a_series_with_a_large_offset_keeps_its_steps(tmp_path):
    """Values were rounded to float32 before their mean was taken away: all of these were equal."""
    wave = np.arange(400) % 5
    far = SERIES.open_task(csv(tmp_path / "a.csv", x=wave + 1700000000), window=10, burn=2)
    near = SERIES.open_task(csv(tmp_path / "b.csv", x=wave), window=10, burn=2)
    np.testing.assert_allclose(far.features, near.features, atol=1e-6)


def test_loss_and_metric_leave_the_burn_in_out(ramp):
    task = SERIES.open_task(ramp, window=10, burn=4)
    _, labels = task.held("search")
    wrong = labels.clone()
    wrong[:, :4] += 100
    assert task.metric(wrong, labels) == 0.0
    assert float(task.loss(wrong, labels)) == 0.0
    wrong[:, 4:] += 2
    assert task.metric(wrong, labels) == pytest.approx(-4.0, rel=1e-5)
    assert float(task.loss(wrong, labels, teacher=wrong)) == pytest.approx(2.0, rel=1e-5)
    assert task.metric(labels * float("nan"), labels) == -1e9
    assert task.score.text(-0.25) == "0.2500"


def test_simple_forecasts_have_the_errors_of_their_definition(ramp):
    task = SERIES.open_task(ramp, horizon=2, window=12, burn=2, targets=("count",))
    (persistence, *_), deviation = task.baselines("test").values(), task.scaling["count"][1]
    assert persistence == pytest.approx(-((2 / deviation) ** 2), rel=1e-3)
    seasonal = SERIES.open_task(ramp, horizon=2, window=12, burn=2, targets=("wave",)).baselines("test")
    assert seasonal["seasonal naive, 6 rows"] == 0.0
    assert seasonal["persistence"] < -0.1


def test_a_target_of_the_same_row_is_no_feature():
    task = SERIES.open_task(None, source="gated_recall", length=500, horizon=0, targets=("target",), window=10, burn=3)
    assert task.names == (("signal", "gate"), ("target",))
    raw, labels = task.batch(0)
    (smean, sdev), (gmean, gdev), (tmean, tdev) = (task.scaling[name] for name in ("signal", "gate", "target"))
    signal, gate = raw[..., 0] * sdev + smean, raw[..., 1] * gdev + gmean
    target = labels[..., 0].numpy() * tdev + tmean
    np.testing.assert_allclose(target[:, 2:], signal[:, :-2] * gate[:, 2:], atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "a series is a CSV file .* neither is given"),
        ({"source": "weather"}, "no source 'weather' of a series; known: lorenz, gated_recall"),
        ({"source": "lorenz", "targets": ("t",)}, "no column 't'; known: x, y, z"),
        ({"source": "lorenz", "horizon": 0}, "leave a column out of targets"),
        ({"source": "lorenz", "length": 200, "horizon": 190}, "200 rows are too few"),
        ({"source": "lorenz", "targets": ("x", "x")}, "targets name a column twice: x, x; name each once"),
        ({"source": "lorenz", "season": 10**6}, "season is 1000000, and the series has 2600 training rows"),
    ],
)
def test_wrong_options_are_one_line(options, message):
    with pytest.raises(ValueError, match=message) as caught:
        SERIES.open_task(None, **options)
    assert "\n" not in str(caught.value)


@pytest.fixture
def book(tmp_path):
    file = tmp_path / "book.txt"
    file.write_text("the cat sat on the mat. " * 60)
    return file


def test_text_predicts_the_next_character(book):
    task = TEXT.open_task(book, window=16, burn=4, batch_size=3)
    raw, labels = task.batch(0)
    assert np.array_equal(raw[:, 1:], labels[:, :-1].numpy())
    (x,) = task.inputs(raw, ())
    assert x.shape == (3, 16, len(task.alphabet))
    assert torch.equal(x.argmax(2), torch.from_numpy(raw))
    certain = torch.nn.functional.one_hot(labels, len(task.alphabet)).float() * 50
    assert task.metric(certain, labels) == pytest.approx(0.0, abs=1e-6)
    assert task.metric(torch.zeros_like(certain), labels) == pytest.approx(-np.log2(len(task.alphabet)))
    assert float(task.loss(certain, labels)) < 1e-6 < float(task.loss(-certain, labels))


def test_the_n_gram_model_is_made_once(book, monkeypatch):
    """Each split that it was asked about made it again, which takes minutes for a large text."""
    made = []
    monkeypatch.setattr("hnas.tasks.text.NGram", lambda *given: made.append(given) or NGram(*given))
    task = TEXT.open_task(book, window=16, burn=4)
    assert task.notes == (
        f"baseline  {-task.baselines('search')['a 5-gram model']:.3f} bits per character of a 5-gram model",
    )
    assert task.baselines("test").keys() == task.baselines("search").keys()
    assert len(made) == 1


def test_the_search_rows_are_counted_without_being_cut(monkeypatch):
    task = SERIES.open_task(None, source="lorenz", length=400, window=8, burn=2)
    count = len(task.held("search")[1])
    monkeypatch.setattr(type(task), "held", None)
    assert Study(None, task).search_images == count


def test_the_training_of_each_baseline_is_announced():
    """A training seemed to hang at its end."""
    task = SERIES.open_task(None, source="lorenz", length=400, window=8, burn=2)
    space, said = spaces.load("recurrent_cell")(**task.space_arguments, widths=[4], nodes=[1]), []
    record = judge_sequence(Study(Supernet(space), task), 2, said.append)
    assert [line.split()[1] for line in said] == ["LSTM", "GRU"]
    assert {line.removeprefix("baseline  ") for line in said} < set(record["baselines"])


def test_an_n_gram_model_is_a_distribution_that_learns(book):
    task = TEXT.open_task(book, window=16, burn=4)
    size = len(task.alphabet)
    model = NGram(task.tokens[:400].tolist(), size)
    for context in ([], [0], task.tokens[5:9].tolist(), [3, 3, 3, 3]):
        assert sum(model.probability(context, token) for token in range(size)) == pytest.approx(1)
    assert model.bits(task.tokens[400:800]) < 0.5 < NGram([0, 1], size).bits(task.tokens[400:800])


def test_an_unknown_character_is_one_line():
    with pytest.raises(ValueError, match="character 3 of the text is 'z', which was not in the training text"):
        encode("abz", "abc")
    with pytest.raises(ValueError, match="1 different characters"):
        alphabet_of("aaaa")
    with pytest.raises(ValueError, match="give --data FILE"):
        TEXT.open_task(None)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "book.txt is empty; give a UTF-8 text file"),
        (b"ab\0" * 900, "book.txt is no text: character 3 is NUL"),
        (bytes(range(256)), "book.txt is no UTF-8 text"),
        ("abc".encode("utf-16"), "book.txt is no UTF-8 text"),
        (b"abc", "3 rows are too few"),
        (
            "".join(map(chr, range(32, 900))).encode(),
            "868 different characters; a network of characters takes 2 to 512",
        ),
    ],
)
def test_a_faulty_text_is_one_line(tmp_path, content, message):
    file = tmp_path / "book.txt"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        TEXT.open_task(file)
    assert "\n" not in str(caught.value)


def test_a_season_is_found_in_the_training_rows_alone(tmp_path):
    values = np.sin(2 * np.pi * np.arange(600) / 12)
    first = SERIES.open_task(csv(tmp_path / "a.csv", x=values)).season
    values[400:] = 90 * np.sin(2 * np.pi * np.arange(200) / 7)  # planted: rows that come later have another season
    assert SERIES.open_task(csv(tmp_path / "b.csv", x=values)).season == first == 12


def test_the_seed_of_a_run_draws_batches_and_no_other_series():
    first, second = (
        SERIES.open_task(None, source="lorenz", length=400, window=8, burn=2, seed=seed) for seed in (0, 1)
    )
    assert first.digest == second.digest
    assert not np.array_equal(first.batch(0)[0], second.batch(0)[0])
