"""The road from a command to the server: a TCP proxy that can be cut, held up, closed, or lose replies."""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress

from tests.support.deadline import DEADLINE_S

# Closed like this, a socket says RST instead of FIN.
_RESET = struct.pack("ii", 1, 0)

_CHUNK = 65536


class Road:
    """Listen on a loopback port and forward to another; one thread of its own does it all."""

    def __init__(self, upstream: int) -> None:
        self.upstream = upstream  # where new connections lead to
        self._ways: set[tuple[asyncio.StreamWriter, asyncio.StreamWriter]] = set()
        self._swallows = self._refuses = False
        self.travellers = 0  # connections accepted so far
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._do(self._open)

    def close(self) -> None:
        """End every connection and listen no longer."""
        self.cut()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def ports(self) -> list[int]:
        """Return the ports that the server sees as its clients': pg_stat_activity.client_port."""
        return [there.get_extra_info("sockname")[1] for _, there in self._ways.copy()]

    def cut(self) -> None:
        """End every connection with RST, on both sides."""
        self._do(self._cut)

    def say(self, answer: bytes) -> None:
        """Answer every client in the server's place."""
        for here, _ in self._ways.copy():
            self._loop.call_soon_threadsafe(here.write, answer)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep every byte on the road, ends of connections too, until the block ends."""
        self._loop.call_soon_threadsafe(self._free.clear)
        try:
            yield
        finally:
            self._loop.call_soon_threadsafe(self._free.set)

    @contextmanager
    def swallowing(self) -> Iterator[None]:
        """Lose what the server replies while requests still arrive; the block ends with a cut."""
        self._swallows = True
        try:
            yield
        finally:
            self.cut()
            self._swallows = False

    @contextmanager
    def closed(self) -> Iterator[None]:
        """Reset every connection, and every new one until the block ends."""
        self._refuses = True
        try:
            self.cut()
            yield
        finally:
            self._refuses = False

    def _do(self, work: Callable[[], Awaitable[None]]) -> None:
        async def wait() -> None:
            await work()

        asyncio.run_coroutine_threadsafe(wait(), self._loop).result(DEADLINE_S)

    async def _open(self) -> None:
        self._free = asyncio.Event()
        self._free.set()
        self._listener = await asyncio.start_server(self._travel, "127.0.0.1", 0)
        self.port: int = self._listener.sockets[0].getsockname()[1]

    async def _cut(self) -> None:
        for way in self._ways.copy():
            for writer in way:
                _reset(writer)

    async def _travel(self, reader: asyncio.StreamReader, here: asyncio.StreamWriter) -> None:
        self.travellers += 1
        if self._refuses:
            _reset(here)
            return
        try:
            answers, there = await asyncio.open_connection("127.0.0.1", self.upstream)
        except OSError:
            _reset(here)
            return
        way = (here, there)
        self._ways.add(way)
        await asyncio.gather(
            self._carry(reader, there, replies=False), self._carry(answers, here, replies=True)
        )
        self._ways.discard(way)

    async def _carry(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, replies: bool
    ) -> None:
        with suppress(OSError):
            while data := await reader.read(_CHUNK):
                await self._free.wait()
                if not (replies and self._swallows):
                    writer.write(data)
                    await writer.drain()
        await self._free.wait()
        writer.close()


def _reset(writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):  # it has just been closed
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    writer.transport.abort()
