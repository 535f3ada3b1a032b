"""Public data sets are read in time order, or refused by file and line."""

from __future__ import annotations

from pathlib import Path

import pytest

from export.datasets import DatasetError, DatasetItem, Interaction, read_dataset


def test_movietweetings_is_read_in_time_order_with_its_catalogue(tmp_path: Path) -> None:
    (tmp_path / "ratings.dat").write_text("1::10::8::200\n2::11::7::100\n")
    (tmp_path / "movies.dat").write_text("10::Alien (1979)::Horror|Sci-Fi\n11::Untitled\n")

    data = read_dataset(tmp_path, "movietweetings")

    assert data.interactions == [
        Interaction("2", "11", 100.0, "rate", 7.0),
        Interaction("1", "10", 200.0, "rate", 8.0),
    ]
    assert data.items["10"] == DatasetItem("Alien (1979)", ("Horror", "Sci-Fi"))
    assert data.items["11"] == DatasetItem("Untitled", ())


def test_rsc15_is_read_from_both_of_its_files(tmp_path: Path) -> None:
    (tmp_path / "train_full.txt").write_text("SessionId\tItemId\tTime\n3\t21\t5.5\n")
    (tmp_path / "test.txt").write_text("SessionId,ItemId,Time\n1,22,4.25\n")

    data = read_dataset(tmp_path, "rsc15")

    assert [event.item for event in data.interactions] == ["22", "21"]
    assert data.interactions[0] == Interaction("1", "22", 4.25, "click", None)


def test_jsonl_may_carry_types_values_and_items(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_text(
        '{"user": "a", "item": "x", "time": 1}\n\n'
        '{"user": "b", "item": "y", "time": 2, "type": "like", "value": 3, "title": "Y",'
        ' "categories": ["c"]}\n'
    )

    data = read_dataset(path, "jsonl")

    assert data.interactions[1] == Interaction("b", "y", 2.0, "like", 3.0)
    assert data.items == {"y": DatasetItem("Y", ("c",))}


@pytest.mark.parametrize(
    "line", ["[]", "{}", '{"user": "a", "item": "x", "time": NaN}', "nonsense"]
)
def test_a_wrong_line_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "events.jsonl"
    path.write_text('{"user": "a", "item": "x", "time": 1}\n' + line + "\n")

    with pytest.raises(DatasetError, match="line 2"):
        read_dataset(path, "jsonl")


def test_missing_files_and_unknown_formats_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="cannot be read"):
        read_dataset(tmp_path, "movietweetings")
    with pytest.raises(DatasetError, match="rsc15"):
        read_dataset(tmp_path, "netflix")
