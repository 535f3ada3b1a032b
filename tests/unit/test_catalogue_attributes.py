"""What a model knows an item by."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from export.catalogue import MAX_ATTRIBUTES, attributes_of


@pytest.mark.parametrize(
    ("title", "wanted"),
    [
        ("Alien (1979)", ["decade:1970"]),
        ("Gravity (2013)", ["year:2013"]),
        ("Gravity (2013) ", ["year:2013"]),
        ("2001: A Space Odyssey", []),
        ("(1999) a beginning", []),
        ("", []),
    ],
)
def test_the_year_at_the_end_of_a_title_is_an_attribute(title: str, wanted: list[str]) -> None:
    assert attributes_of(title, [], [], "") == wanted


def test_categories_year_creator_and_tags_have_names_of_their_own() -> None:
    names = attributes_of("Alien (1979)", ["Horror"], ["Horror"], "Horror")

    assert names == ["category:Horror", "decade:1970", "creator:Horror", "tag:Horror"]


@given(st.text(), st.lists(st.text(max_size=3)), st.lists(st.text(max_size=3)), st.text(max_size=3))
def test_attributes_are_few_and_stand_once(
    title: str, categories: list[str], tags: list[str], creator_id: str
) -> None:
    names = attributes_of(title, categories, tags, creator_id)

    assert len(names) == len(set(names)) <= MAX_ATTRIBUTES
    assert names == attributes_of(title, categories, tags, creator_id)
