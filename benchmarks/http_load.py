"""A client that is not the bottleneck: one thread, one epoll, keep-alive connections that each send their next request
when the last is answered, and no more understanding of HTTP than the answers of the measured services need.

Run as a process of its own, which reads its Work from standard input and prints what it Took.
"""

import select
import socket
import sys
import time

import msgspec
from msgspec import Struct

DRAIN_S = 10.0
CREATED = b"201"
MARK = b'"id":"'
ID_CHARS = 36


class Work(Struct, frozen=True, kw_only=True):
    """Attributes:
    name: of this taking; every Idempotency-Key begins with it.
    repeat_every: one request in so many sends again the key that its connection sent last.
    """

    port: int
    path: str
    headers: dict[str, str]
    body: str
    connections: int
    name: str
    seconds: float
    warm_up_s: float = 0.5
    repeat_every: int = 100


class Took(Struct, frozen=True, kw_only=True):
    """What was answered.

    Attributes:
        accepted: new jobs acknowledged after the warm-up, until the time was up.
        replayed: repeats in that time, each answered with the first one's id.
        latencies_ms: of both, in order.
        ids: of every job acknowledged from the first request to the last, each once.
        busy: this process's share of a core.
    """

    accepted: int
    replayed: int
    seconds: float
    latencies_ms: list[float]
    ids: list[str]
    busy: float


class _Connection:
    __slots__ = ("got", "id", "key", "repeats", "sent_at", "socket")

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=DRAIN_S)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.got = b""
        self.id = b""
        self.key = b""
        self.repeats = False
        self.sent_at = 0.0


class Client:
    def __init__(self, work: Work) -> None:
        self._work = work
        body = work.body.encode()
        lines = [f"POST {work.path} HTTP/1.1", f"Host: 127.0.0.1:{work.port}", "Content-Type: application/json"]
        lines += [f"{name}: {value}" for name, value in work.headers.items()]
        self._head = "\r\n".join([*lines, f"Content-Length: {len(body)}", "Idempotency-Key: "]).encode()
        self._tail = b"\r\n\r\n" + body
        self._sent = 0
        self._ids: list[bytes] = []
        self._latencies: list[float] = []
        self._accepted = self._replayed = 0

    def run(self) -> Took:
        """Warm up, measure, and wait for the last answers.

        Raises:
            RuntimeError: an answer is not what it should be.
            TimeoutError: the last answers do not come.
        """
        epoll = select.epoll()
        connections = {one.socket.fileno(): one for one in (self._connect() for _ in range(self._work.connections))}
        for number, one in connections.items():
            epoll.register(number, select.EPOLLIN)
            self._send(one)
        self._until(epoll, connections, time.perf_counter() + self._work.warm_up_s)
        self._latencies, self._accepted, self._replayed = [], 0, 0
        began, busy = time.perf_counter(), time.process_time()
        self._until(epoll, connections, began + self._work.seconds)
        took_s, busy_s = time.perf_counter() - began, time.process_time() - busy
        accepted, replayed, latencies = self._accepted, self._replayed, sorted(self._latencies)
        self._drain(epoll, connections)
        return Took(
            accepted=accepted,
            replayed=replayed,
            seconds=took_s,
            latencies_ms=[1_000 * each for each in latencies],
            ids=[each.decode() for each in self._ids],
            busy=busy_s / took_s,
        )

    def _connect(self) -> _Connection:
        return _Connection(self._work.port)

    def _until(self, epoll: select.epoll, connections: dict[int, _Connection], ends: float) -> None:
        while (left := ends - time.perf_counter()) > 0:
            for number, _ in epoll.poll(left):
                one = connections[number]
                if self._received(one):
                    self._send(one)

    def _drain(self, epoll: select.epoll, connections: dict[int, _Connection]) -> None:
        deadline = time.perf_counter() + DRAIN_S
        while connections:
            ready = epoll.poll(max(0.0, deadline - time.perf_counter()))
            if not ready:
                raise TimeoutError(f"{len(connections)} answers did not come")
            for number, _ in ready:
                if self._received(connections[number]):
                    epoll.unregister(number)
                    connections.pop(number).socket.close()

    def _send(self, one: _Connection) -> None:
        self._sent += 1
        one.repeats = bool(one.key) and self._sent % self._work.repeat_every == 0
        if not one.repeats:
            one.key = b"%s-%d" % (self._work.name.encode(), self._sent)
        one.sent_at = time.perf_counter()
        one.socket.sendall(self._head + one.key + self._tail)

    def _received(self, one: _Connection) -> bool:
        """Whether the answer is whole; if so, it was noted."""
        chunk = one.socket.recv(65536)
        if not chunk:
            raise RuntimeError("the server hung up")
        one.got += chunk
        end = one.got.find(b"\r\n\r\n")
        if end < 0:
            return False
        head = one.got[:end].lower()
        at = head.index(b"content-length: ") + 16
        line_end = head.find(b"\r", at)
        length = int(head[at : line_end if line_end > 0 else end])
        if len(one.got) < end + 4 + length:
            return False
        answer, one.got = one.got, b""
        found = answer.find(MARK, end)
        if answer[9:12] != CREATED or found < 0:
            raise RuntimeError(f"refused: {answer[:2_000]!r}")
        given = answer[found + len(MARK) : found + len(MARK) + ID_CHARS]
        self._latencies.append(time.perf_counter() - one.sent_at)
        if not one.repeats:
            self._accepted += 1
            self._ids.append(given)
        elif given == one.id:
            self._replayed += 1
        else:
            raise RuntimeError(f"the key {one.key!r} led to {one.id!r} and then to {given!r}")
        one.id = given
        return True


if __name__ == "__main__":
    wanted = msgspec.json.decode(sys.stdin.buffer.read(), type=Work)
    sys.stdout.buffer.write(msgspec.json.encode(Client(wanted).run()))
