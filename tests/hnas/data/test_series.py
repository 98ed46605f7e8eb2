"""Series and windows: splits in time order without leaks, and one line about every fault of a file."""

from __future__ import annotations

import time
from datetime import date, timedelta

import numpy as np
import pytest

from hnas.data.series import Table, gated_recall, lorenz, read_csv, season_of
from hnas.data.windows import Windows


@pytest.mark.parametrize(("horizon", "burn", "alpha"), [(1, 8, 0.0), (5, 0, 0.5), (0, 3, 0.3)])
def test_no_row_is_judged_in_two_splits(horizon, burn, alpha):
    windows = Windows.divide(rows=1000, window=20, burn=burn, horizon=horizon, alpha=alpha)
    judged = {}
    for split, (begin, end) in windows.spans.items():
        rows = (windows.starts(split)[:, None] + np.arange(burn, 20) + horizon).ravel()
        assert begin <= rows.min()
        assert rows.max() < end
        assert windows.starts(split).min() >= 0
        judged[split] = set(rows.tolist())
        if split != "train":
            assert len(judged[split]) == len(rows)  # each label counts once
    assert list(windows.spans)[-2:] == ["search", "test"]
    assert sum(map(len, judged.values())) == len(set().union(*judged.values()))


def test_a_batch_depends_on_seed_and_step_alone():
    windows = Windows.divide(rows=500, window=10, burn=2, horizon=1)
    assert np.array_equal(windows.batch(7, 4, 0), windows.batch(7, 4, 0))
    assert not np.array_equal(windows.batch(7, 4, 0), windows.batch(8, 4, 0))
    values = np.arange(500)
    starts = windows.batch(7, 4, 0)
    assert np.array_equal(windows.cut(values, starts, 1), windows.cut(values, starts) + 1)


def test_windows_of_a_long_sequence_are_drawn_and_counted_without_a_list_of_them():
    """Every batch made an array of all training windows."""
    windows = Windows.divide(rows=10**13, window=10, burn=2, horizon=1)
    assert windows.batch(0, 4, 0).max() < 0.65 * 10**13
    assert windows.per_epoch(32) > 10**9
    assert len(windows.first_rows("search")) > 10**9
    few = Windows.divide(rows=500, window=10, burn=2, horizon=1)
    assert set(few.batch(0, 10**4, 0).tolist()) == set(few.starts("train").tolist()) == set(few.first_rows("train"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rows": 100, "horizon": 90}, "100 rows are too few for a window of 16 rows and a horizon of 90"),
        ({"rows": 20}, "20 rows are too few"),
        ({"rows": 500, "horizon": 10**30}, "500 rows are too few"),
        ({"rows": 500, "burn": 16}, "burn is 16, and a window has 16 rows; burn is from 0 to 15"),
    ],
)
def test_too_few_rows_are_one_line(arguments, message):
    with pytest.raises(ValueError, match=message) as caught:
        Windows.divide(**{"window": 16, "burn": 4, "horizon": 1, **arguments})
    assert "\n" not in str(caught.value)


DAYS = [(date(2024, 1, 1) + timedelta(days=k)).isoformat() for k in range(6)]


def table(*rows: str) -> str:
    return "\n".join(rows) + "\n"


def test_numbers_are_read_and_timestamps_left_out(tmp_path):
    file = tmp_path / "power.csv"
    file.write_text(table("day,load,wind", *(f"{day},{k},{2 * k}.5" for k, day in enumerate(DAYS))))
    found = read_csv(file)
    assert found.columns == ("load", "wind")
    assert found.values.dtype == np.float64
    assert found.values[:, 1].tolist() == [0.5, 2.5, 4.5, 6.5, 8.5, 10.5]
    assert found.take(["wind"]).shape == (6, 1)
    with pytest.raises(ValueError, match="no column 'rain'; known: load, wind"):
        found.take(["rain"])


def test_months_are_even(tmp_path):
    file = tmp_path / "co2.csv"
    file.write_text(table("month,co2", *(f"2024-{month:02}-01,{month}" for month in range(1, 13))))
    assert len(read_csv(file).values) == 12
    file.write_text(table("month,co2", *(f"2024-{month:02}-01,{month}" for month in (1, 2, 3, 5, 6))))
    with pytest.raises(ValueError, match="line 5: timestamps are irregular: '2024-05-01' follows '2024-03-01'"):
        read_csv(file)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (table("a,b", "1,2", "3,"), "line 3 has a gap in column 'b'"),
        (table("a,b", "1,2", "nan,3"), "line 3 has 'nan' in column 'a', which is no finite number"),
        (table("a,b", "1,2", "1e99,3"), "line 3 has '1e99' in column 'a'"),
        (table("a,b", "1,2", "x,3"), "line 3 has 'x' in column 'a'"),
        (table("a,b", "1,2", "3"), "line 3 has 1 cells, the header line has 2"),
        (table("a,a", "1,2"), "line 1 names the columns, each once"),
        (table("a"), "has 1 lines"),
        (table("day", *DAYS), "has one column, 'day', of timestamps; a series needs a column of numbers"),
        (table("day,a", *(f"{day},1" for day in (*DAYS[:3], DAYS[4]))), "line 5: timestamps are irregular"),
        (table("day,a", *(f"{day},1" for day in reversed(DAYS))), "timestamps are irregular"),
        (table("day,a", "2024-01-01,1", "soon,2"), "line 3 has 'soon' in column 'day', which is no timestamp"),
        (table("a,b", "NA,1", "2,2"), "line 2 has 'NA' in column 'a', which is no timestamp and no finite number"),
        (table("a;b", "1,5;2", "3;4"), "line 1 separates columns by ';'; separate them by commas"),
        (table("a\tb", "1\t2", "3\t4"), "line 1 separates columns by"),
        (table("1.5,2", "3,4", "5,6"), "line 1 has the values 1.5, 2 in place of names; add a header line"),
        (table("2024-01-01,2", "2024-01-02,4"), "line 1 has the values 2024-01-01, 2 in place of names"),
        (table("", "", "a,b", "", "1,2", "3,"), "line 6 has a gap in column 'b'"),
        (table('"a', 'c",b', "1,2", "3,"), "line 4 has a gap in column 'b'"),
        (table(",b", "1,2"), "line 1 names the columns, each once and at most 1024; got '', 'b'"),
        (table("a,b", "1_0,2", "3,4"), "line 2 has '1_0' in column 'a'"),
    ],
)
def test_a_faulty_file_is_one_line(tmp_path, text, message):
    file = tmp_path / "bad.csv"
    file.write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        read_csv(file)
    assert "\n" not in str(caught.value)


def test_a_regular_series_is_regular_in_every_time_zone(tmp_path, monkeypatch):
    """Times without a zone were those of the machine: in Berlin 02:00 and 03:00 are one moment on 31 March 2024."""
    file = tmp_path / "hourly.csv"
    file.write_text(table("time,a", *(f"2024-03-31T0{hour}:00,{hour}" for hour in range(6))))
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    try:
        assert len(read_csv(file).values) == 6
    finally:
        monkeypatch.undo()
        time.tzset()


def test_a_timestamp_that_is_not_finite_is_named_with_its_line(tmp_path):
    file = tmp_path / "nan.csv"
    file.write_text(table("time,a", "0,1", "1,1", "nan,1", "3,1"))
    with pytest.raises(ValueError, match="line 4 has 'nan' in column 'time', which is no timestamp"):
        read_csv(file, "time")


def test_names_of_pandas_a_byte_order_mark_and_old_line_ends_are_read(tmp_path):
    file = tmp_path / "pandas.csv"
    file.write_bytes("\ufeff0,1\r1,2\r3,4\r".encode())
    found = read_csv(file)
    assert found.columns == ("0", "1")
    assert found.values.tolist() == [[1, 2], [3, 4]]


def test_large_values_keep_their_small_steps(tmp_path):
    """As float32 all rows were equal."""
    file = tmp_path / "meter.csv"
    file.write_text(table("a", *(f"123456789.{k}" for k in range(5))))
    assert len(set(read_csv(file).values[:, 0].tolist())) == 5


def test_two_series_that_differ_by_little_have_two_digests():
    """As float32 they were one."""
    rows = 1e9 + np.arange(5.0)[:, None]
    assert Table(("a",), rows).digest == Table(("a",), rows.copy()).digest
    assert len({Table(("a",), rows + shift).digest for shift in (-3, 0, 3)}) == 3


def test_a_missing_or_binary_file_is_one_line(tmp_path):
    with pytest.raises(FileNotFoundError, match="no series"):
        read_csv(tmp_path / "none.csv")
    (tmp_path / "b.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="no UTF-8 text"):
        read_csv(tmp_path / "b.csv")


def test_lorenz_obeys_its_equations():
    values = lorenz(400).values.astype(np.float64)
    assert np.array_equal(lorenz(400).values, lorenz(400).values)
    assert not np.array_equal(lorenz(400).values, lorenz(400, seed=1).values)
    x, y, _ = values.T
    slope = (x[2:] - x[:-2]) / 0.1  # central differences
    assert np.corrcoef(slope, 10 * (y - x)[1:-1])[0, 1] > 0.98
    assert np.abs(values).max() < 60


def test_gated_recall_is_a_product_of_the_past_and_the_present():
    signal, gate, target = gated_recall(50).values.T
    np.testing.assert_allclose(target[2:], signal[:-2] * gate[2:], rtol=1e-6)
    assert target[0] == target[1] == 0


def test_a_season_is_found_under_a_trend():
    rows = np.arange(300)
    wave = (np.sin(2 * np.pi * rows / 12) + rows / 10)[:, None].astype(np.float32)
    assert season_of(wave, 32) == 12
