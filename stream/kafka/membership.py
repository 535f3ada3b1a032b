"""Keeps a worker's place in its group: asks again where the group refuses, ends where it must.

aiokafka leaves the group when nobody has polled for a while, and waits for a poll before it joins
again. Faust polls for a worker that has partitions, and only for that: a spare would be out for
ever, when it is needed too. Whether a worker moves is for guard and watchdog to see.

aiokafka keeps an error of the group for whoever polls next, and its coordination stands still until
then. Faust never asks for it: nobody would see the error, and the worker be out of its group for
ever.

And aiokafka's heartbeats and commits do not carry the name of a static member: the group tells two
workers of one name in turn that it does not know them, and each takes the name from the other
again. Whoever joins with the member id that it had is told that another has the name
(KIP-345, FENCED_INSTANCE_ID).
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from aiokafka import errors as aiokafka_errors
from aiokafka.errors import BrokerResponseError

from export.errors import DriftlineError
from stream.kafka.tasks import Crash, crash_soon, crash_with

logger = logging.getLogger(__name__)

#: How long the group may go on refusing.
LONGEST_S = 30.0
#: Longest time between two tries; the first come sooner.
PAUSE_S = 5.0
#: A refusal after so long without one has nothing to do with those before.
QUIET_S = 2 * PAUSE_S


class FencedInstanceIdError(BrokerResponseError):  # type: ignore[misc]
    """Another member has the name of this one. aiokafka does not know this error."""

    errno = 82
    message = "FENCED_INSTANCE_ID"


class MembershipError(DriftlineError):
    """The group has no place for this worker."""


class Membership:
    """Follows one consumer's coordinator from its start on.

    `crash` is awaited once: with a MembershipError when another worker has the name of this one, or
    the group has refused for LONGEST_S; with whatever ended the coordination if it ends itself.
    """

    def __init__(self, coordinator: Any, crash: Crash) -> None:
        self._coordinator = coordinator
        self._reset_generation = coordinator.reset_generation
        self._rejoin = coordinator._do_rejoin_group
        self._crash = crash
        self._first_s = self._last_s = float("-inf")
        self._lost_member_id = ""
        self._is_joining = False

    def follow(self) -> None:
        """From now on, and for as long as the coordinator is there."""
        self._coordinator._max_poll_interval = float("inf")
        aiokafka_errors.kafka_errors[FencedInstanceIdError.errno] = FencedInstanceIdError
        self._coordinator._push_error_to_user = self._try_again
        closing = self._coordinator._closing
        crash_with(self._coordinator._coordination_task, self._crash, is_closing=closing.done)
        if self._coordinator._group_instance_id is not None:
            self._coordinator.reset_generation = self._note_lost_member
            self._coordinator._do_rejoin_group = self._rejoin_by_name

    # -- two workers of one name ------------------------------------------------------------

    def _note_lost_member(self) -> None:
        """While it joins as who it was, the group has forgotten it: it may join as new then."""
        member_id = self._coordinator.member_id or self._lost_member_id
        self._lost_member_id = "" if self._is_joining else member_id
        self._reset_generation()

    async def _rejoin_by_name(self, subscription: Any) -> bool:
        self._coordinator.member_id = self._coordinator.member_id or self._lost_member_id
        self._is_joining = True
        try:
            has_joined: bool = await self._rejoin(subscription)
        finally:
            self._is_joining = False
        if has_joined:
            self._lost_member_id = ""
        return has_joined

    # -- refused ----------------------------------------------------------------------------

    async def _try_again(self, error: BaseException) -> None:
        now_s = asyncio.get_running_loop().time()
        if now_s - self._last_s > QUIET_S:
            self._first_s = now_s
        self._last_s = now_s
        refused_s = now_s - self._first_s
        end = self._reason_to_end(error, refused_s)
        if end is not None:
            crash_soon(self._crash, end)
            await self._coordinator._closing  # no further try
            return
        logger.warning(
            "Group %r refuses this worker, which will try again: %s",
            self._coordinator.group_id,
            error,
        )
        await asyncio.wait([self._coordinator._closing], timeout=min(max(refused_s, 1.0), PAUSE_S))
        self._coordinator.request_rejoin()  # heartbeats that ended begin anew with it

    def _reason_to_end(self, error: BaseException, refused_s: float) -> MembershipError | None:
        group = self._coordinator.group_id
        if FencedInstanceIdError.__name__ in str(error):  # aiokafka puts the one into another
            return MembershipError(
                f"wanted to be the only worker named {self._coordinator._group_instance_id!r} in "
                f"group {group!r}, and another one took that name: give each an `instance` of its "
                "own (--instance), or none"
            )
        if refused_s >= LONGEST_S:
            return MembershipError(
                f"wanted a place in group {group!r}, and was refused for {refused_s:.0f} s: "
                f"{error}. Look for a foreign consumer in that group, and whether the broker "
                "allows this group and `session_timeout_s`"
            )
        return None
