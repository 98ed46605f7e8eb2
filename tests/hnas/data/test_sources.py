"""Listings of folders and shards: every image once, in lanes, and one line for a damaged shard."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pytest

from hnas.data import shards
from hnas.data.folders import find_files
from hnas.data.shards import find_shards, members
from hnas.data.sources import Example, read_example
from tests.hnas.imagenet import pairs, write_folder, write_shard, write_shards
from tests.hostile.builders import TERABYTE, fifo


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("folder"))


@pytest.fixture(scope="module")
def tars(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(tmp_path_factory.mktemp("tars"))


def one_line(error: pytest.ExceptionInfo[BaseException]) -> bool:
    return "\n" not in str(error.value)


def test_sizes_beside_the_shards_save_counting(tmp_path, monkeypatch):
    root = write_shards(tmp_path)
    counted, _ = find_shards(root)
    for part in ("val", "train"):
        sizes = {file.name: 12 for file in (root / part).glob("*.tar")}
        (root / part / "sizes.json").write_text(json.dumps(sizes))
    monkeypatch.setattr(shards, "members", None)
    assert find_shards(root)[0].digest == counted.digest
    (root / "train" / "sizes.json").write_text(json.dumps({**sizes, "shard-000003.tar": "many"}))
    with pytest.raises(ValueError, match=r'gives "many" as the size of shard-000003.tar; expected a number from 1 on'):
        find_shards(root)


@pytest.mark.parametrize("cut", [0, 100, 512, 700, 5000, -10240, -9000])
def test_a_shard_that_is_cut_short_is_one_line_with_its_name(tmp_path, cut):
    file = tmp_path / "shard-000000.tar"
    write_shard(file, pairs(0, 6))
    size = file.stat().st_size
    with tarfile.open(file) as archive:
        end = max(member.offset_data + (member.size + 511) // 512 * 512 for member in archive)
    file.write_bytes(file.read_bytes()[: cut if cut >= 0 else end + (0 if cut == -10240 else -300)])
    assert file.stat().st_size < size
    with pytest.raises(
        ValueError, match=r"shard-000000.tar is not a complete tar file: .*make or copy the shard"
    ) as caught:
        list(members(str(file), 4))
    assert one_line(caught)


@pytest.mark.parametrize(
    ("examples", "message"),
    [
        ([("1.jpg", b"x"), ("1.cls", b"four")], "1.cls contains 'four', expected a class number below 4"),
        ([("1.jpg", b"x"), ("1.cls", b"4")], "1.cls contains '4', expected a class number below 4"),
        ([("1.jpg", b"x"), ("2.cls", b"1")], "contains no pairs of an image and its class"),
        ([("1.txt", b"x")], "contains no pairs of an image and its class"),
    ],
)
def test_a_shard_that_holds_something_else_is_one_line(tmp_path, examples, message):
    write_shard(tmp_path / "a.tar", examples)
    with pytest.raises(ValueError, match=message) as caught:
        list(members(str(tmp_path / "a.tar"), 4))
    assert one_line(caught)


def test_a_shard_with_a_damaged_header_is_not_taken_for_a_short_one(tmp_path):
    file = tmp_path / "a.tar"
    write_shard(file, pairs(0, 6))
    with tarfile.open(file) as archive:
        third = archive.getmembers()[4].offset
    content = bytearray(file.read_bytes())
    content[third : third + 100] = b"\xff" * 100
    file.write_bytes(content)
    with pytest.raises(ValueError, match=f"it ends at byte {third}; make or copy the shard again"):
        list(members(str(file), 4))


def test_links_and_absurd_sizes_in_a_shard_lead_nowhere(tmp_path, monkeypatch):
    file = tmp_path / "a.tar"
    with tarfile.open(file, "w") as archive:
        link = tarfile.TarInfo("0.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/hostname"
        archive.addfile(link)
        for name, content in [("0.cls", b"0"), *pairs(1, 1), ("../../evil.jpg", b"x"), ("../../evil.cls", b"0")]:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    found = list(members(str(file), 4))
    assert [example.member for example in found] == ["000001.jpg", "../../evil.jpg"]
    assert read_example(found[1]) == b"x"  # of the shard: names are never paths
    monkeypatch.setattr(shards, "LARGEST", 10)
    with pytest.raises(ValueError, match=r"000001.jpg has .* bytes; an image has at most 10"):
        list(members(str(file), 4))


def test_a_file_that_has_gone_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"gone.jpg cannot be read: No such file"):
        read_example(Example(str(tmp_path / "gone.jpg"), 0))
    (tmp_path / "a.tar").write_bytes(b"12345")
    with pytest.raises(ValueError, match=r"a.tar: 1.jpg is cut short: 3 of 9 bytes"):
        read_example(Example(str(tmp_path / "a.tar"), 0, 2, 9, "1.jpg"))


def _terabyte(file: Path) -> None:
    with file.open("wb") as stream:
        stream.truncate(TERABYTE)


@pytest.mark.parametrize(("spoil", "reason"), [(fifo, "is not a plain file"), (_terabyte, "at most .* are read")])
def test_pipes_and_files_without_end_are_refused_before_they_are_opened(tmp_path, spoil, reason):
    root = write_shards(tmp_path)
    for name, read in (
        ("0.jpg", lambda file: read_example(Example(file, 0))),
        ("0.tar", lambda file: read_example(Example(file, 0, 512, 9, "1.jpg"))),
        ("0.tar", lambda file: list(members(file, 4))),
        ("train/shard-000000.tar", lambda _: find_shards(root)),
        ("classes.txt", lambda _: find_shards(root)),
    ):
        spoil(root / name)
        with pytest.raises(ValueError, match=f"{name} .*{reason}") as caught:
            read(str(root / name))
        assert one_line(caught)


def test_shards_are_held_out_whole(tars):
    train, held = find_shards(tars)
    assert [Path(file).name for file in held["search"].files] == ["shard-000005.tar"]
    assert [Path(file).name for file in held["calibration"].files] == ["shard-000004.tar"]
    assert [Path(file).parent.name for file in held["test"].files] == ["val"]
    assert len(train.files) == 4
    assert len(train) == 48


def test_an_epoch_of_files_has_every_image_once(folder):
    source, _ = find_files(folder)
    streams = source.lanes(0, 1, 4, range(4), 0)
    share = len(source) // 4
    names = [next(lane).name for lane in streams for _ in range(share)]
    assert len(set(names)) == len(names) == 4 * share


def test_an_epoch_of_shards_mixes_within_and_among_them(tars, monkeypatch):
    monkeypatch.setattr(shards, "BUFFER", 4)
    source, _ = find_shards(tars)
    (lane,) = source.lanes(0, 0, 1, [0], 0)
    found = [next(lane) for _ in range(len(source))]
    assert {example.name for example in found} == {example.name for example in source.examples()}
    assert [example.offset for example in found[:12]] != sorted(example.offset for example in found[:12])
    again = source.lanes(0, 0, 1, [0], 7)[0]
    assert [next(again) for _ in range(5)] == found[7:12]
