"""Which events a list answers, when a crash cuts batches anew and lists come twice."""

from __future__ import annotations

from stream.bench.open_loop import Answers, Unanswered, _List, _Trigger


class Load:
    """Events of one user, due one second after another; lists are there a second later."""

    def __init__(self, *events: str) -> None:
        self.answers, self.unanswered = Answers(), Unanswered()
        self.unanswered.begin(len(events))
        for at, event in enumerate(events):
            self.unanswered.sent("ada", event, float(at))

    def take(self, trigger: str, coalesced: int = 1) -> int:
        """How many events have no list yet, after this one."""
        self.unanswered.take(_List("ada", _Trigger(trigger, coalesced)), 9.0, self.answers)
        return self.unanswered.left


def test_a_list_answers_all_before_its_trigger_and_as_many_as_it_says():
    load = Load("a", "b", "c", "d")

    assert load.take("b") == 2
    assert load.take("c", 2) == 0
    assert load.answers.latency_ms == [9000.0, 8000.0, 7000.0, 6000.0]
    assert len(load.answers.list_s) == 2


def test_a_list_that_comes_again_answers_what_is_new_in_it():
    load = Load("a", "b", "c")

    assert load.take("a") == 2
    assert load.take("a") == 2, "the same batch, once more"
    assert load.take("a", 2) == 1, "with the next event"
    assert load.take("b") == 1, "cut once more"
    assert load.take("c") == 0
    assert not load.answers.mismatched


def test_a_list_of_an_event_that_nobody_has_sent_is_told():
    load = Load("a")

    assert load.take("z") == 1
    assert load.answers.mismatched == 1
    assert load.take("a") == 0


def test_a_list_of_the_load_before_answers_nothing_of_this_one():
    load = Load("a")
    load.take("a")
    load.unanswered.begin(1)
    load.unanswered.sent("ada", "b", 0.0)

    assert load.take("a") == 1
    assert not load.answers.mismatched
