"""What the proxy does to a connection, seen from both of its ends."""

import asyncio
from collections.abc import AsyncIterator
from random import Random

import pytest
from tests.torture.proxy import Conduct, FaultProxy

WORDS = bytes(range(256)) * 8
PATIENCE = 20.0


class Speaker:
    """Answers one line with `WORDS`, then waits for the client to leave, and notes how it left."""

    def __init__(self) -> None:
        self.port = 0
        self.heard = b""
        self.left: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.more = asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            self.heard = await reader.readline()
            writer.write(WORDS)
            rest = await reader.read()
            self.left.set_result(f"fin {rest!r}")
            await self.more.wait()
            writer.write(b"more")
        except ConnectionResetError:
            self.left.set_result("rst")
        finally:
            writer.close()


@pytest.fixture
async def speaker() -> AsyncIterator[Speaker]:
    made = Speaker()
    server = await asyncio.start_server(made.serve, "127.0.0.1", 0)
    made.port = server.sockets[0].getsockname()[1]
    yield made
    made.more.set()
    server.close()


async def connect(proxy: FaultProxy) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
    writer.write(b"speak\n")
    return reader, writer


async def got(reader: asyncio.StreamReader, count: int = -1) -> list[bytes]:
    """Each read up to the end, or up to `count` bytes."""
    reads: list[bytes] = []
    async with asyncio.timeout(PATIENCE):
        while (count < 0 or sum(map(len, reads)) < count) and (data := await reader.read(65_536)):
            reads.append(data)
    return reads


def always(**conduct: object) -> "Choice":
    return Choice(Conduct(**conduct))  # type: ignore[arg-type]


class Choice:
    def __init__(self, conduct: Conduct) -> None:
        self.conduct = conduct

    def __call__(self, random: Random) -> Conduct:
        return self.conduct


async def test_without_a_fault_all_gets_through_both_ways(speaker: Speaker) -> None:
    async with FaultProxy(speaker.port, always()) as proxy:
        reader, writer = await connect(proxy)
        assert b"".join(await got(reader, len(WORDS))) == WORDS
        assert speaker.heard == b"speak\n"
        writer.close()
        assert await speaker.left == "fin b''"


@pytest.mark.parametrize("cut_at", [0, 1, 777])
async def test_fin_after_so_many_bytes(speaker: Speaker, cut_at: int) -> None:
    async with FaultProxy(speaker.port, always(cut="fin", cut_at=cut_at)) as proxy:
        reader, writer = await connect(proxy)
        assert b"".join(await got(reader)) == WORDS[:cut_at]
        writer.close()


async def test_rst_reaches_both_sides(speaker: Speaker) -> None:
    async with FaultProxy(speaker.port, always(cut="rst", cut_at=100)) as proxy:
        reader, writer = await connect(proxy)
        with pytest.raises(ConnectionResetError):
            await got(reader)
        assert await asyncio.wait_for(speaker.left, PATIENCE) == "rst"
        writer.transport.abort()


async def test_half_close_down_ends_for_the_client_only(speaker: Speaker) -> None:
    async with FaultProxy(speaker.port, always(cut="half_close_down", cut_at=100)) as proxy:
        reader, writer = await connect(proxy)
        assert b"".join(await got(reader)) == WORDS[:100]
        writer.write(b"still here")
        await writer.drain()
        assert not speaker.left.done()
        writer.close()
        assert await asyncio.wait_for(speaker.left, PATIENCE) == "fin b'still here'"


async def test_half_close_up_ends_for_the_server_only(speaker: Speaker) -> None:
    async with FaultProxy(speaker.port, always(cut="half_close_up", cut_at=100)) as proxy:
        reader, writer = await connect(proxy)
        assert await asyncio.wait_for(speaker.left, PATIENCE) == "fin b''"
        speaker.more.set()
        assert b"".join(await got(reader)) == WORDS + b"more"
        writer.close()


async def test_a_stall_lets_nothing_more_through_and_ends_nothing(speaker: Speaker) -> None:
    async with FaultProxy(speaker.port, always(cut="stall", cut_at=100)) as proxy:
        reader, writer = await connect(proxy)
        assert b"".join(await got(reader, 100)) == WORDS[:100]
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):  # a proof that nothing comes has to end somewhere
                await reader.read(1)
        assert not speaker.left.done()
        writer.close()
        assert (await asyncio.wait_for(speaker.left, PATIENCE)).startswith(("fin", "rst"))


async def test_slices_of_one_byte_arrive_as_many_reads(speaker: Speaker) -> None:
    async with FaultProxy(speaker.port, always(slice=1)) as proxy:
        reader, writer = await connect(proxy)
        reads = await got(reader, len(WORDS))
        assert b"".join(reads) == WORDS
        assert len(reads) > len(WORDS) / 8
        writer.close()


async def test_a_delay_holds_each_write_back(speaker: Speaker) -> None:
    async with FaultProxy(speaker.port, always(delay=0.05, slice=1024)) as proxy:
        loop = asyncio.get_running_loop()
        begun = loop.time()
        reader, writer = await connect(proxy)
        assert b"".join(await got(reader, len(WORDS))) == WORDS
        assert loop.time() - begun >= 0.1  # two writes
        writer.close()


async def test_a_server_that_is_not_there_resets_the_client(unused_tcp_port: int) -> None:
    async with FaultProxy(unused_tcp_port, always()) as proxy:
        reader, writer = await connect(proxy)
        with pytest.raises(ConnectionResetError):
            await got(reader)
        writer.transport.abort()


async def test_the_seed_decides_every_connection(speaker: Speaker) -> None:
    def choose(random: Random) -> Conduct:
        return Conduct(cut_at=random.randrange(1000))

    async def lengths(seed: int) -> list[int]:
        async with FaultProxy(speaker.port, choose, seed=seed) as proxy:
            found = []
            for _ in range(5):
                reader, writer = await connect(proxy)
                found.append(sum(map(len, await got(reader))))
                writer.close()
                speaker.left = asyncio.get_running_loop().create_future()
            return found

    first = await lengths(1)
    assert first == await lengths(1)
    assert first != await lengths(2)
    assert len(set(first)) > 1
