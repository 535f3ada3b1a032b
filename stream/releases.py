"""Follow the releases that go live, check each in a process of its own, and hand it over warm."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import msgspec
from mode import Service

from export.errors import DriftlineError
from export.items import ItemIndex
from export.release import Release, open_release
from stream.catalogue import Catalogue
from stream.events import ReleaseStage, decode_release_stage
from stream.ranker import ModelRanker, Ranker
from stream.readers import TopicReader, wait_caught_up
from stream.settings import Settings

#: A release's check and warm-up may take so long.
_CHECK_TIMEOUT_S = 120.0
_FIRST_LOOK_TIMEOUT_S = 60.0


class ReleaseSwap(msgspec.Struct, frozen=True):
    """On `release-log`: a worker ranks with a release from these offsets of user-events on."""

    schema: Literal["driftline.release-swap/1"]
    name: str
    version: int
    sha256: str
    from_offsets: dict[str, int]  # partition -> first offset
    at: int  # milliseconds since 1970, UTC


class RefusedReleaseError(DriftlineError):
    """A release did not pass its check, and does not rank."""


class ReleaseWatch(Service):  # type: ignore[misc]
    """Makes the newest live release of the settings' name the worker's ranker.

    A release that is broken, too large, or computes other numbers than it was exported with is
    refused, and the former one goes on.
    """

    def __init__(
        self,
        settings: Settings,
        index: ItemIndex,
        catalogue: Catalogue,
        swap: Callable[[Ranker], None],
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self._settings = settings
        self._index = index
        self._catalogue = catalogue
        self._swap = swap
        self._wanted: ReleaseStage | None = None
        self._changed = asyncio.Event()
        self._one_at_a_time = asyncio.Lock()
        self._ranking = 0  # version
        self.reader = TopicReader(
            settings.bootstrap,
            settings.topic("model-releases"),
            self._take,
            max_batch_bytes=settings.max_batch_bytes,
        )

    async def on_start(self) -> None:
        await self.add_runtime_dependency(self.reader)

    async def first_look(self) -> None:
        """Take over what is live at the start, before the first batch is ranked."""
        await wait_caught_up([self.reader], _FIRST_LOOK_TIMEOUT_S)
        await self._take_over()

    def _take(self, records: list[Any]) -> None:
        for record in records:
            if record.value is None:
                continue
            try:
                stage = decode_release_stage(record.value)
            except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
                self.log.warning(
                    "passed over a record of model-releases",
                    extra={"offset": record.offset, "error": str(error)},
                )
                continue
            if stage.stage == "live" and stage.name == self._settings.release:
                self._wanted = stage
                self._changed.set()

    @Service.task  # type: ignore[untyped-decorator]
    async def _follow(self) -> None:
        while not self.should_stop:
            await self._changed.wait()
            if self.reader.caught_up.is_set():
                await self._take_over()
            else:
                await self.sleep(0.2)

    async def _take_over(self) -> None:
        async with self._one_at_a_time:
            await self._take_over_wanted()

    async def _take_over_wanted(self) -> None:
        stage = self._wanted
        self._changed.clear()
        if stage is None or stage.version == self._ranking:
            return
        try:
            ranker = await self._prepared(stage)
        except (DriftlineError, OSError, TimeoutError) as error:
            self.log.error(
                "release %s/%d is refused, the former one goes on: %s",
                stage.name,
                stage.version,
                error,
            )
            return
        self._swap(ranker)
        self._ranking = stage.version
        self.log.info("release %s/%d ranks from now on", stage.name, stage.version)

    async def _prepared(self, stage: ReleaseStage) -> Ranker:
        path = Path(self._settings.registry) / stage.name / str(stage.version)
        await check_release(path, self._settings.release_budget_ms)
        release = await asyncio.to_thread(open_release, path)
        if release.sha256 != stage.sha256:
            raise RefusedReleaseError(
                f"{path}: wanted the release that was announced (sha256 {stage.sha256}), got "
                f"{release.sha256}; announce the release again"
            )
        return await asyncio.to_thread(self._warm, release)

    def _warm(self, release: Release) -> ModelRanker:
        settings = self._settings
        ranker = ModelRanker(
            release, self._index, self._catalogue, settings.device, settings.inference_threads
        )
        ranker.warm_up(settings.max_rank_batch)
        return ranker


async def check_release(path: Path, budget_ms: int) -> None:
    """Run the check of a release in a child process with bounded memory.

    Raises RefusedReleaseError with what the check printed.
    """
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "stream.check_release",
        str(path),
        str(budget_ms),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        output, _ = await asyncio.wait_for(process.communicate(), _CHECK_TIMEOUT_S)
    except TimeoutError:
        process.kill()
        await process.wait()
        raise RefusedReleaseError(f"{path}: its check took over {_CHECK_TIMEOUT_S} s") from None
    if process.returncode:
        text = output.decode(errors="replace").strip()[-2000:]
        raise RefusedReleaseError(f"{path}: its check ended with {process.returncode}: {text}")
