"""Links between workers and the broker: they delay, reorder, lose answers, and can be cut."""

from __future__ import annotations

import asyncio
import contextvars
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from aiokafka.errors import KafkaConnectionError

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Weather:
    """How a network behaves: mean delay one way, and shares of requests and answers lost."""

    delay_s: float
    lost_requests: float
    lost_answers: float


class Link:
    """One worker's connection. While it is cut, requests and answers wait, as TCP keeps them.

    What was sent before its worker died may still arrive, unless the link is cut then.
    """

    def __init__(self, rng: random.Random, weather: Weather) -> None:
        self._rng = rng
        self._weather = weather
        self._is_open = asyncio.Event()
        self._is_open.set()
        self._is_dead = False
        # a dict keeps their order: that of a set of tasks is not the seed's
        self._tasks: dict[asyncio.Task[None], None] = {}

    async def call(self, act: Callable[[], T]) -> T:
        """Do something at the broker.

        Raises KafkaConnectionError when the connection broke: it may have been done, or not.
        """
        answer: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        task = asyncio.get_running_loop().create_task(
            self._carry(act, answer), context=contextvars.Context()
        )
        self._tasks[task] = None
        task.add_done_callback(self._tasks.pop)
        return await answer

    def cut(self) -> None:
        """Nothing gets through until `heal`."""
        self._is_open.clear()

    def heal(self) -> None:
        self._is_open.set()

    def die(self) -> None:
        """The worker is gone: some of what it has just sent arrives, no answer matters."""
        self._is_dead = True
        for task in list(self._tasks):
            if not self._is_open.is_set() or self._rng.random() < 0.5:
                task.cancel()

    async def _carry(self, act: Callable[[], T], answer: asyncio.Future[T]) -> None:
        await self._transit()
        if self._rng.random() < self._weather.lost_requests:
            self._break(answer)
            return
        try:
            result = act()
        except Exception as error:
            await self._transit()
            if not answer.done():
                answer.set_exception(error)
            return
        if self._is_dead:
            return
        await self._transit()
        if self._rng.random() < self._weather.lost_answers:
            self._break(answer)
        elif not answer.done():
            answer.set_result(result)

    async def _transit(self) -> None:
        await asyncio.sleep(self._rng.expovariate(1 / self._weather.delay_s))
        while not self._is_open.is_set():
            await self._is_open.wait()
            await asyncio.sleep(self._rng.expovariate(1 / self._weather.delay_s))

    def _break(self, answer: asyncio.Future[T]) -> None:
        if not answer.done():
            answer.set_exception(KafkaConnectionError("the connection broke"))
