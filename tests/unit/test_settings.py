"""Settings come from file, environment and options; all that is wrong is said at once."""

from __future__ import annotations

import msgspec
import pytest

from export.event_types import DEFAULT_EVENT_TYPES, EventRole
from export.settings import SettingsError
from models.settings import load_trainer_settings
from stream.events import RankedItem, Reason, encode
from stream.kafka.wiring import BrokerLimits, faust_settings
from stream.reasons import MAX_ITEMS
from stream.settings import LISTED_ITEM_BYTES, Settings, load_settings


def test_without_anything_said_every_setting_has_its_default():
    assert load_settings(None, {}, {}) == Settings()


def test_environment_goes_before_file_and_options_before_both(tmp_path):
    path = tmp_path / "driftline.toml"
    path.write_text('prefix = "file-"\ngroup = "file"\ninstance = "file"\n')
    environment = {"DRIFTLINE_PREFIX": "env-", "DRIFTLINE_GROUP": "env", "HOME": "/"}

    settings = load_settings(path, {"prefix": "option-", "data_dir": None}, environment)

    assert (settings.prefix, settings.group, settings.instance) == ("option-", "env", "file")
    assert settings.data_dir == Settings().data_dir


def test_all_that_is_wrong_is_named_at_once_with_where_it_stands(tmp_path):
    path = tmp_path / "driftline.toml"
    path.write_text('partitions = 0\ncolour = "red"\n[event_types.click]\nrole = "best"\n')
    environment = {"DRIFTLINE_BATCH_RECORDS": "many", "DRIFTLINE_SPEED": "9"}

    with pytest.raises(SettingsError) as caught:
        load_settings(path, {"popularity_share": "1.5", "list_size": 3}, environment)

    message = str(caught.value)
    wrong = [line for line in message.splitlines() if not line.startswith("Settings are")]
    assert len(wrong) == 7
    for name in ("partitions", "colour", "event_types", "batch_records", "speed"):
        assert any(name in line for line in wrong), name
    for origin in (str(path), "DRIFTLINE_BATCH_RECORDS", "--popularity-share", "--list-size"):
        assert any(line.startswith(origin) for line in wrong), origin
    assert "bootstrap" in message.splitlines()[-1]


def test_an_event_that_could_not_be_sent_on_may_not_be_accepted():
    large = 2**21

    with pytest.raises(SettingsError, match="max_request_bytes"):
        load_settings(overrides={"max_event_bytes": large}, environment={})
    wide = load_settings(
        overrides={"max_event_bytes": large, "max_request_bytes": 2 * large}, environment={}
    )
    assert wide.max_event_bytes == large


def test_requests_have_room_for_a_dead_letter_and_so_for_every_row():
    with pytest.raises(SettingsError, match="a dead letter takes up to 196608"):
        load_settings(overrides={"max_request_bytes": 196_607, "list_length": 5}, environment={})
    assert load_settings(overrides={"max_request_bytes": 196_608, "list_length": 5}, environment={})


@pytest.mark.parametrize(("request_bytes", "batch_bytes"), [(200_000, 200_000), (2**21, 2**19)])
def test_no_batch_of_records_is_larger_than_a_request(request_bytes, batch_bytes):
    limits = BrokerLimits(max_request_bytes=request_bytes)

    assert faust_settings(limits)["producer_max_batch_size"] == batch_bytes


def test_a_list_that_could_not_be_sent_may_not_be_wanted():
    with pytest.raises(SettingsError) as refused:
        load_settings(overrides={"list_length": 200, "max_event_bytes": 2**21}, environment={})
    assert "list_length = 200" in str(refused.value)
    assert "max_event_bytes" in str(refused.value)
    wide = load_settings(
        overrides={"list_length": 200, "max_request_bytes": 1_400_000}, environment={}
    )
    assert wide.list_length == 200


def test_no_item_of_a_list_takes_more_than_settings_reckon_with():
    longest = "\x01" * 256

    reason = Reason("because_item", [longest] * MAX_ITEMS)
    entry = RankedItem(longest, -1.2345678901234567e-300, "sequence", reason)

    assert 6_000 < len(encode(entry)) < LISTED_ITEM_BYTES


@pytest.mark.parametrize(
    ("variable", "text", "name", "value"),
    [
        ("DRIFTLINE_PARTITIONS", "16", "partitions", 16),
        ("DRIFTLINE_BATCH_WAIT_MS", "0.5", "batch_wait_ms", 0.5),
        ("DRIFTLINE_MODEL", "false", "model", False),
        ("DRIFTLINE_PREFIX", "shop-", "prefix", "shop-"),
        (
            "DRIFTLINE_POPULARITY_HALF_LIVES_MS",
            "[1000, 5000]",
            "popularity_half_lives_ms",
            (1000, 5000),
        ),
        (
            "DRIFTLINE_EVENT_TYPES",
            '{"watch": {"role": "positive", "weight": 2}}',
            "event_types",
            {"watch": EventRole("positive", 2.0)},
        ),
    ],
)
def test_a_variable_is_read_as_what_the_setting_is(variable, text, name, value):
    assert getattr(load_settings(None, {}, {variable: text}), name) == value


def test_an_option_is_text_and_read_as_what_the_setting_is():
    settings = load_settings(None, {"partitions": "3", "model": "false", "batch_wait_ms": "2"}, {})

    assert (settings.partitions, settings.model, settings.batch_wait_ms) == (3, False, 2.0)


def test_a_name_that_looks_like_a_number_stays_a_name_for_worker_and_trainer():
    assert load_settings(None, {}, {"DRIFTLINE_INSTANCE": "7"}).instance == "7"
    assert load_trainer_settings(None, {}, {"DRIFTLINE_PREFIX": "7"}).prefix == "7"


def test_what_worker_and_trainer_share_has_the_same_defaults():
    workers = msgspec.to_builtins(Settings())
    trainers = msgspec.to_builtins(load_trainer_settings(None, {}, {}))

    assert trainers == {name: workers[name] for name in trainers}


@pytest.mark.parametrize("text", [None, "partitions = ", b"\xff"])
def test_a_file_that_cannot_be_read_is_named(tmp_path, text):
    path = tmp_path / "driftline.toml"
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())

    with pytest.raises(SettingsError, match=r"driftline\.toml: wanted a TOML file"):
        load_settings(path, {}, {})


def test_variables_of_the_tests_are_no_settings():
    assert load_settings(None, {}, {"DRIFTLINE_TEST_BOOTSTRAP": "x:1"}) == Settings()


def test_an_event_type_of_the_settings_goes_before_the_default_of_the_same_name():
    settings = Settings(event_types={"click": EventRole("ignored"), "wink": EventRole("positive")})

    assert settings.role_of("click") == EventRole("ignored")
    assert settings.role_of("wink") == EventRole("positive")
    assert settings.role_of("view") == DEFAULT_EVENT_TYPES["view"]
    assert settings.role_of("shrug") is None


def test_every_default_obeys_the_bounds_of_its_own_setting():
    defaults = msgspec.to_builtins(Settings())

    assert msgspec.convert(defaults, Settings) == Settings()
