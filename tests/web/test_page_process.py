"""The page as a process beside a real Kafka and a real worker."""

from __future__ import annotations

import asyncio
import json
import subprocess
import time
import uuid

from aiohttp import ClientSession, CookieJar, TCPConnector
from engine import COMMAND, Engine, environment
from kafka import KafkaAdminClient
from page_process import PageProcess, click, first, wait_ready

#: A viewer's list must come within, after the click.
LIST_WITHIN_S = 5.0
VIEWERS = 200


def browser_like(page: PageProcess) -> ClientSession:
    return ClientSession(cookie_jar=CookieJar(unsafe=True), connector=TCPConnector(limit=0))


async def post(session: ClientSession, page: PageProcess, path: str, **body: object) -> int:
    """The status of what the page's script would send."""
    headers = {"Origin": page.url.rstrip("/")}
    body = {"event_id": uuid.uuid4().hex, **body}
    async with session.post(page.url + path, headers=headers, json=body) as answer:
        return answer.status


async def test_a_visitors_click_is_an_event_and_the_list_comes_back_with_its_raw_messages(
    engine: Engine, page: PageProcess
) -> None:
    engine.worker().start()
    engine.wait_until_all_is_done()  # before, there is nothing to make a list of
    async with browser_like(page) as session:
        await wait_ready(session, page)
        await session.get(page.url)
        async with session.get(page.url + "events") as stream:
            hello = await first(stream, ["hello"], lambda hello: True)
            event_id = uuid.uuid4().hex
            status = await post(session, page, "api/click", event_id=event_id, item_id="jazz-1")
            assert status == 202
            yours = await first(
                stream, ["you"], lambda you: you["shown"] and you["shown"]["event_id"] == event_id
            )

        assert yours["clicks"] == 1
        places = yours["shown"]["places"]
        assert "jazz-1" not in [place["item"]["id"] for place in places]
        because = [card["title"] for place in places for card in place["because"]]
        assert "A Love Supreme" in because
        raw_at = page.url + "raw/" + yours["shown"]["rec_id"]

        async def raw() -> dict[str, dict[str, object]]:
            async with session.get(raw_at) as answer:
                assert answer.status == 200
                return dict(await answer.json())

        messages = await raw()
        async with asyncio.timeout(10):
            while messages["decision"] is None:
                messages = await raw()
        assert messages["recommendation"]["user_id"] == hello["visitor"]
        assert messages["decision"]["rec_id"] == yours["shown"]["rec_id"]

    events = [json.loads(record.value) for record in engine.read("user-events")]
    written = [event for event in events if event["event_id"] == event_id]
    assert [event["user_id"] for event in written] == [hello["visitor"]]
    assert written[0]["source"] == "driftline-page"


async def test_a_visitor_is_held_to_a_rate(engine: Engine, page: PageProcess) -> None:
    async with browser_like(page) as session:
        await wait_ready(session, page)
        await session.get(page.url)
        sent = [post(session, page, "api/click", item_id="jazz-1") for _ in range(40)]
        statuses = await asyncio.gather(*sent)

    assert set(statuses) == {202, 429}
    assert statuses.count(202) < 25


async def test_a_click_without_a_cookie_is_nobodys(engine: Engine, page: PageProcess) -> None:
    async with browser_like(page) as session:
        await wait_ready(session, page)
        assert await post(session, page, "api/click", item_id="jazz-1") == 403


async def test_a_page_that_only_shows_writes_nothing(engine: Engine) -> None:
    before = sum(engine.ends(engine.topic("user-events")).values())
    page = PageProcess(engine, "--read-only")
    async with browser_like(page) as session:
        await wait_ready(session, page)
        await session.get(page.url)
        assert await post(session, page, "api/visit") == 403
        assert await post(session, page, "api/click", item_id="jazz-1") == 403

    assert page.stop() == 0
    assert sum(engine.ends(engine.topic("user-events")).values()) == before


async def test_two_hundred_viewers_are_told_at_once(engine: Engine, page: PageProcess) -> None:
    engine.worker().start()
    engine.wait_until_all_is_done()  # before, there is nothing to make a list of
    async with browser_like(page) as session:
        await wait_ready(session, page)
        await session.get(page.url)
        streams = [
            await session.get(page.url + f"events?user=past-{number % 24}")
            for number in range(VIEWERS)
        ]
        hellos = [first(stream, ["hello"], lambda hello: True) for stream in streams]
        visitors = {hello["visitor"] for hello in await asyncio.gather(*hellos)}
        assert len(visitors) == 1 and all(visitors)
        event_id = uuid.uuid4().hex
        begun = time.perf_counter()
        await post(session, page, "api/click", event_id=event_id, item_id="chess-2")
        lists = [
            first(
                stream,
                ["you"],
                lambda you: you["shown"] and you["shown"]["event_id"] == event_id,
            )
            for stream in streams
        ]
        await asyncio.gather(*lists)
        took_s = time.perf_counter() - begun
        figures = [
            first(stream, ["engine"], lambda told: told["viewers"] == VIEWERS) for stream in streams
        ]
        await asyncio.gather(*figures)
        for stream in streams:
            stream.close()
        print(
            f"{VIEWERS} viewers had the list {took_s * 1000:.0f} ms after the click; the page "
            f"holds {page.memory_bytes() / 2**20:.0f} MiB"
        )

    assert took_s < LIST_WITHIN_S
    assert page.memory_bytes() < 500 * 2**20


async def test_an_engine_that_stops_is_said_to_and_so_is_its_return(
    engine: Engine, page: PageProcess
) -> None:
    worker = engine.worker().start()
    async with browser_like(page) as session:
        await wait_ready(session, page)
        async with session.get(page.url + "events") as stream:
            await first(stream, ["engine"], lambda told: told["lag"] == 0)
            worker.kill()
            now_ms = int(time.time() * 1000)
            engine.send([click("past-1", 5000, now_ms, "jazz-3")])
            silent = await first(stream, ["engine"], lambda told: not told["worker"]["answers"])
            assert silent["lag"] == 1
            worker.start()
            back = await first(stream, ["engine"], lambda told: told["worker"]["answers"])
            assert back["worker"]["since_ms"] > now_ms and back["worker"]["silent_ms"] >= 3000


def create_topic(engine: Engine, name: str) -> None:
    admin = KafkaAdminClient(bootstrap_servers=engine.bootstrap)
    admin.create_topics({engine.topic(name): {"num_partitions": 1, "replication_factor": 1}})
    admin.close()


async def test_a_truth_topic_that_comes_later_is_read(engine: Engine, page: PageProcess) -> None:
    now_ms = int(time.time() * 1000)
    truth = {
        "schema": "driftline.demo-truth/1",
        "user_id": "past-3",
        "event_time": now_ms,
        "now": [{"label": "jazz", "weight": 0.6}],
        "jump": {"label": "jazz", "event_time": now_ms, "event": 1},
    }
    async with browser_like(page) as session:
        await wait_ready(session, page)
        async with session.get(page.url + "events?user=past-3") as stream:
            assert not (await first(stream, ["user"], lambda user: True))["is_simulated"]
            create_topic(engine, "demo-truth")
            value = json.dumps(truth).encode()
            engine.producer.send(engine.topic("demo-truth"), key=b"past-3", value=value)
            engine.send([click("past-3", 6000, now_ms, "jazz-3")])
            user = await first(
                stream, ["user"], lambda user: user["steps"][-1]["truth"] is not None
            )

    assert user["is_simulated"] and user["jump"]["label"] == "jazz"


async def test_lists_of_the_past_are_judged_when_the_page_starts_later(engine: Engine) -> None:
    engine.worker().start()
    engine.wait_until_all_is_done()
    now_ms = int(time.time() * 1000)
    number = 7000
    for _ in range(3):  # each after the lists of the one before
        engine.send(
            click(f"past-{user}", number + user, now_ms + user, "cooking-4") for user in range(24)
        )
        number += 24
        engine.wait_until_all_is_done()
    page = PageProcess(engine)
    async with browser_like(page) as session:
        await wait_ready(session, page)
        async with session.get(page.url + "events") as stream:
            rates = await first(stream, ["rates"], lambda rates: rates["judged"])

    assert page.stop() == 0
    assert rates["judged"] >= 40
    assert rates["now"][0]["method"] == "engine"


def run_page(*options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, "page", *options],
        capture_output=True,
        text=True,
        timeout=60,
        env=environment(),
    )


def test_what_is_missing_is_named(engine: Engine) -> None:
    no_topics = run_page("--bootstrap", engine.bootstrap, "--prefix", "nothing-", "--port", "0")
    assert no_topics.returncode == 2 and "driftline topics create" in no_topics.stderr
    assert "Traceback" not in no_topics.stderr

    no_kafka = run_page("--bootstrap", "127.0.0.1:1", "--port", "0")
    assert no_kafka.returncode == 2 and "127.0.0.1:1" in no_kafka.stderr
    assert "Traceback" not in no_kafka.stderr


def test_a_port_that_is_taken_is_named(engine: Engine, page: PageProcess) -> None:
    port = page.url.rstrip("/").rsplit(":", 1)[1]
    done = run_page("--bootstrap", engine.bootstrap, "--prefix", engine.prefix, "--port", port)

    assert done.returncode == 2 and f"port {port}" in done.stderr and "--port" in done.stderr
    assert "Traceback" not in done.stderr
