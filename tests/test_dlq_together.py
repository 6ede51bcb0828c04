"""Several who work on the same dead letters at once, and what comes while one of them looks: nothing is destroyed unseen."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from rabbitevents import BrokerError, Bus, Properties
from rabbitevents.testing import EmbeddedBroker
from rabbitevents_deadletter import DeadLetterMessage, DeadLetters, Lines, Selection, read_lines
from rabbitevents_deadletter.workbench import deadletters
from rabbitevents_deadletter.workbench.lines import edited
from tests.deadletters import (
    DEAD,
    QUEUE,
    Place,
    failing,
    fill,
    ids,
    letters,
    of,
    put,
    raw,
    ready,
    service,
    tools,
    until,
)

ROOT = Path(__file__).parent.parent


@pytest.fixture(params=["embedded", "rabbitmq"])
def place(request: pytest.FixtureRequest) -> Place:
    """Both brokers."""
    if request.param == "embedded":
        return EmbeddedBroker()
    url: str = request.getfixturevalue("rabbit_url")
    return url


@asynccontextmanager
async def slow_replay(place: Place) -> AsyncGenerator[asyncio.Event]:
    """A replay that has begun, goes on slowly, and is interrupted at the end."""
    first = asyncio.Event()
    async with tools(place) as dead:
        replaying = asyncio.ensure_future(dead.replay(rate=0.5, watch=lambda result, letter: first.set()))
        await first.wait()
        try:
            yield first
        finally:
            replaying.cancel()
            await asyncio.wait({replaying})


# --- somebody else holds letters -----------------------------------------------------------------------------------


async def test_a_look_says_that_somebody_else_holds_letters(place: Place) -> None:
    await fill(place, 20)

    async with slow_replay(place), tools(place) as dead:
        summary = await dead.summary()
    async with tools(place) as dead:
        afterwards = await dead.summary()

    assert (summary.others, summary.looked_at, summary.partial) == (1, 0, True)
    assert (afterwards.others, afterwards.looked_at, afterwards.partial) == (0, 19, False)


@pytest.mark.parametrize("what", ["replay", "discard"])
async def test_while_somebody_replays_nothing_else_is_replayed_or_discarded(
    what: str, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deadletters, "PATIENCE", 0.3)
    await fill(place, 1_500)

    async with slow_replay(place), tools(place) as dead:
        with pytest.raises(
            BrokerError, match=r"somebody else looks at queue 'shop\.record\.dead', .*it was left to them"
        ):
            await (dead.replay() if what == "replay" else dead.discard())

    assert await ready(place) + await ready(place, QUEUE) == 1_500
    assert await ready(place, QUEUE) <= 2


async def test_somebody_elses_short_look_is_waited_for(place: Place) -> None:
    await fill(place, 5)

    async with tools(place) as dead, Bus(of(place), declare="none") as other:
        async with other.browse(DEAD, hold=2):
            replaying = asyncio.ensure_future(dead.replay())
            await asyncio.wait({replaying}, timeout=0.3)
            meanwhile = await ready(place, QUEUE)
        result = await replaying

    assert (meanwhile, result.done) == (0, 5)


async def test_of_two_replays_at_once_each_event_is_replayed_once(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deadletters, "PATIENCE", 0.0)
    await fill(place, 300)

    async with tools(place) as one, tools(place) as other:
        both = await asyncio.gather(one.replay(), other.replay(), return_exceptions=True)
        async with tools(place) as third:
            rest = await third.replay()

    done = [each.done for each in (*both, rest) if not isinstance(each, BaseException)]
    assert sum(done) == 300
    assert sum(isinstance(each, BrokerError) for each in both) >= 1  # in the order of both, no order would be left
    assert all(isinstance(each, BrokerError) for each in both if isinstance(each, BaseException))
    assert await ready(place, QUEUE) == 300
    assert await ready(place) == 0


async def run_dlq(url: str, *arguments: str, stdin: int = asyncio.subprocess.DEVNULL) -> asyncio.subprocess.Process:
    """Begin `rabbitevents dlq` at a broker for ``shop.record``."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "plugins"), os.environ.get("PYTHONPATH", "")])
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "rabbitevents", "dlq", *arguments, "--queue", QUEUE),
        env={**os.environ, "PYTHONPATH": path, "AMQP_URL": url},
        stdin=stdin,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


async def test_list_and_show_do_not_say_that_nothing_is_there_while_a_replay_holds_it(rabbit_url: str) -> None:
    await fill(rabbit_url, 20)

    async with slow_replay(rabbit_url):
        listing, showing = await run_dlq(rabbit_url, "list"), await run_dlq(rabbit_url, "show")
        listed, shown = await listing.communicate(), await showing.communicate()

    for process, (out, said) in ((listing, listed), (showing, shown)):
        assert process.returncode == 1
        assert b"no dead letters" not in out + said
        assert b"somebody else holds who looks at it, or replays it, was not seen" in said


async def test_with_a_url_alone_list_says_what_amqp_does_not_tell(rabbit_url: str) -> None:
    await fill(rabbit_url, 1)
    path = os.pathsep.join([str(ROOT), str(ROOT / "plugins"), os.environ.get("PYTHONPATH", "")])

    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "rabbitevents", "dlq", "list", "--url", rabbit_url),
        env={**os.environ, "PYTHONPATH": path},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, said = await process.communicate()

    assert out == b"no dead letters\n"  # in delay.lost, the one queue whose name everybody knows
    assert b"AMQP tells nobody which queues there are: name them with --queue, or the bus as MODULE:BUS" in said
    assert process.returncode == 1


# --- what comes meanwhile ------------------------------------------------------------------------------------------


async def test_discard_takes_what_it_counted_and_not_what_came_while_it_asked(rabbit_url: str) -> None:
    await fill(rabbit_url, 2)

    process = await run_dlq(rabbit_url, "discard", stdin=asyncio.subprocess.PIPE)
    assert process.stderr is not None
    asked = await process.stderr.readuntil(b"for good?")
    same = [raw(b"{}", properties=Properties(type="order.placed", message_id=f"id-{i}")) for i in range(5)]
    async with service(rabbit_url, failing()) as bus:
        for message in same:  # two of them are the same events again
            await bus.send(message)
        await until(bus, 7)
    out, said = await process.communicate(b"y\n")

    assert b"2 would be discarded" in asked
    assert process.returncode == 0, (out, said)
    assert b"2 discarded, 5 not meant" in said
    assert ids(await letters(rabbit_url)) == [f"id-{i}" for i in range(5)]


async def test_only_letters_that_were_seen_are_taken(place: Place) -> None:
    await fill(place, 3)
    seen: set[bytes] = set()

    async with tools(place) as dead:
        await dead.look(take=lambda letter: seen.add(letter.digest()))
        await put(place, raw(b"{}", queue=DEAD, properties=Properties(message_id="id-1")))
        discarded = await dead.discard(only=seen)

    assert (discarded.done, discarded.looked_at) == (3, 4)
    assert ids(await letters(place)) == ["id-1"]


async def test_a_letter_is_the_same_at_every_look(place: Place) -> None:
    await fill(place, 3)

    looks = [[letter.digest() for letter in await letters(place)] for _ in range(3)]

    assert looks[0] == looks[1] == looks[2]
    assert len(set(looks[0])) == 3


# --- several letters of one event ----------------------------------------------------------------------------------


async def duplicates(place: Place, number: int = 3) -> None:
    """Have a service fail with the same event several times."""
    async with service(place, failing()) as bus:
        for i in range(number):
            body = b'{"order_id": "o-%d"}' % i
            await bus.send(raw(body, properties=Properties(type="order.placed", message_id="same")))
        await until(bus, number)


async def test_an_export_of_several_letters_of_one_event_edits_each(place: Place, tmp_path: Path) -> None:
    await duplicates(place)
    path = tmp_path / "dead.jsonl"
    async with tools(place) as dead:
        with Lines(path) as lines:
            await dead.export(lines)
        path.write_text(path.read_text().replace("o-1", "one").replace("o-2", "two"))
        edits = edited(path, Selection())
        await put(place, raw(b"{}", queue=DEAD, properties=Properties(message_id="same")))  # not in the file
        result = await dead.replay(edits.selection, bodies=edits.bodies, only=edits.only)

    assert result.done == 3
    assert await bodies(place) == [b'{"order_id": "o-0"}', b'{"order_id": "one"}', b'{"order_id": "two"}']
    assert ids(await letters(place)) == ["same"]


async def test_an_edited_letter_without_an_id_is_found_again(place: Place, tmp_path: Path) -> None:
    await fill(place, 0)
    await put(place, raw(b'{"order_id": "wrong"}', queue=DEAD), raw(b'{"order_id": "other"}', queue=DEAD))
    path = tmp_path / "dead.jsonl"
    async with tools(place) as dead:
        with Lines(path) as lines:
            await dead.export(lines, limit=1)
        path.write_text(path.read_text().replace("wrong", "right"))
        edits = edited(path, Selection())
        result = await dead.replay(edits.selection, bodies=edits.bodies, only=edits.only)

    assert result.done == 1
    assert await bodies(place) == [b'{"order_id": "right"}']


async def test_an_edit_to_nothing_is_an_edit(place: Place) -> None:
    await fill(place, 1)

    async with tools(place) as dead:
        await dead.replay(bodies={"id-0": b""})

    assert await bodies(place) == [b""]


async def bodies(place: Place) -> list[bytes]:
    """The bodies in ``shop.record``."""
    async with Bus(of(place), declare="none") as bus, bus.browse(QUEUE) as look:
        return [delivery.body async for delivery in look]


# --- a slow replay -------------------------------------------------------------------------------------------------


async def test_a_slow_replay_looks_again_and_again_and_replays_each_once(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deadletters, "LONGEST", 0.05)
    await fill(place, 12)
    told: list[DeadLetterMessage] = []
    async with service(place, failing()) as bus:
        result = await DeadLetters(bus, QUEUE).replay(
            Selection(types=("order.*",)), rate=40, watch=lambda _, letter: told.append(letter) if letter else None
        )
        await until(bus, 12)

    assert (result.done, result.failed) == (12, 0)
    assert sorted(ids(told)) == sorted(f"id-{i}" for i in range(12))
    assert [letter.replayed for letter in await letters(place)] == [1] * 12


async def test_a_replay_of_several_looks_ends_at_its_limit(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deadletters, "LONGEST", 0.0)
    await fill(place, 6)

    async with tools(place) as dead:
        result = await dead.replay(limit=3)

    assert (result.done, result.ended) == (3, "limit")
    assert await ready(place, QUEUE) == 3
    assert sorted(ids(await letters(place))) == ["id-3", "id-4", "id-5"]


async def test_what_dies_during_a_slow_replay_is_not_replayed(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deadletters, "LONGEST", 0.05)
    await fill(place, 5)

    async with service(place, failing()) as bus:
        number = iter(range(1_000))

        async def die_too() -> None:
            while True:
                body, id = b'{"order_id": "new"}', f"new-{next(number)}"
                await bus.send(raw(body, properties=Properties(type="order.placed", message_id=id)))
                await asyncio.sleep(0.02)

        dying = asyncio.ensure_future(die_too())
        async with asyncio.timeout(20):
            result = await DeadLetters(bus, QUEUE).replay(Selection(types=("order.*",)), rate=20)
        dying.cancel()

    assert result.done == 5


async def test_lines_of_a_file_are_replayed_to_another_queue(place: Place, tmp_path: Path) -> None:
    await fill(place, 2)
    await fill_other(place)
    path = tmp_path / "dead.jsonl"
    async with tools(place) as dead:
        with Lines(path) as lines:
            await dead.discard(lines=lines, limit=1)
        await dead.replay_exported(read_lines(path), to="shop.other")
        await dead.replay(to="shop.other")

    assert await ready(place, "shop.other") == 2
    assert await ready(place, QUEUE) == 0


async def fill_other(place: Place) -> None:
    """Have another queue, ``shop.other``, with nobody there."""
    from rabbitevents import Router

    router = Router("shop")

    @router.on("nothing", name="other")
    async def other() -> None:
        """Handle nothing."""

    async with Bus(of(place), router):
        pass
