"""Read dead-letters and redrive-log: what was refused, and what of it was sent again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from export.errors import DriftlineError
from stream.redrive.letters import REDRIVEN_FROM, Letter, LetterFilter, headers_of, letter_of
from stream.redrive.marks import Ledger, Mark, origins_sent, redrive_log
from stream.settings import Settings
from stream.verify.topics import KafkaLog


class NoSuchLetterError(DriftlineError):
    """There is no dead letter at a position."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be sent again, oldest first, and what of the letters meant is not."""

    letters: list[Letter]
    sent_before: int
    obstacles: Counter[str]  # why not -> letters


class Account:
    """Reads what one engine has refused, without a consumer group; never writes."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.log = KafkaLog(settings.bootstrap, settings.max_batch_bytes)
        self._topic = settings.topic("dead-letters")

    def letters(self, wanted: LetterFilter) -> Iterator[Letter]:
        """The letters meant, oldest first; of several letters of one record the first."""
        seen = set()
        for record in self.log.read(self._topic, "dead letters"):
            letter = letter_of(record, self.settings)
            if letter is not None and wanted.takes(letter) and letter.origin not in seen:
                seen.add(letter.origin)
                yield letter

    def records(self, letters: list[Letter]) -> Iterator[tuple[Letter, Any]]:
        """The letters with their records, in the same order; those that are gone are left out."""
        if not letters:
            return
        wanted = {(letter.partition, letter.offset): letter for letter in letters}
        first: dict[int, int] = {}
        for letter in letters:
            first[letter.partition] = min(first.get(letter.partition, letter.offset), letter.offset)
        for record in self.log.read(self._topic, "sending again", first):
            found = wanted.pop((record.partition, record.offset), None)
            if found is not None:
                yield found, record
            if not wanted:
                return

    def record(self, partition: int, offset: int) -> Any:
        """The record of dead-letters at a position. Raises NoSuchLetterError."""
        begins, ends = self.log.begins(self._topic), self.log.ends(self._topic)
        if begins.get(partition, 0) <= offset < ends.get(partition, 0):
            for record in self.log.read(self._topic, "dead letters", {**ends, partition: offset}):
                if record.offset == offset:
                    return record
        have = ", ".join(
            f"{p}:{begins[p]} to {p}:{e - 1}" for p, e in ends.items() if e > begins[p]
        )
        raise NoSuchLetterError(
            f"wanted the dead letter {partition}:{offset}, {self._topic} holds {have or 'none'}; "
            "`driftline dead-letters list --limit 20` names the newest"
        )

    def ledger(self) -> Ledger:
        """What was sent again by now. Raises RedriveLogError where that cannot be known."""
        ledger = Ledger()
        topic = redrive_log(self.settings).name
        if self.log.has(topic):
            for record in self.log.read(topic, "redrives"):
                ledger.take(record.value)
        return ledger

    def sent_of(self, mark: Mark) -> list[str]:
        """Which records of a sending that broke off are there: looks at all that came since."""
        found: set[str] = set()
        begins = {topic: self.log.begins(topic) for topic in mark.ends}
        for topic, ends in mark.ends.items():
            first = {int(partition): end for partition, end in ends.items()}
            for record in self.log.read(topic, f"looking through {topic}", first):
                if record.headers:
                    found.add(headers_of(record.headers).get(REDRIVEN_FROM, ""))
        return origins_sent(mark, found, begins)


def plan_of(letters: Iterator[Letter], ledger: Ledger, limit: int | None) -> Plan:
    """What of the letters meant is to be sent again: at most `limit` of them, the oldest."""
    to_send: list[Letter] = []
    sent_before = 0
    obstacles: Counter[str] = Counter()
    for letter in letters:
        if letter.origin in ledger.sent:
            sent_before += 1
        elif letter.obstacle:
            obstacles[letter.obstacle] += 1
        elif limit is None or len(to_send) < limit:
            to_send.append(letter)
    return Plan(to_send, sent_before, obstacles)
