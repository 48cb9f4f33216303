"""A proxy between clients and a server that delays and cuts what passes."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Iterable, Iterator

# How many bytes each way a connection passes on before it is cut; None for any number.
Budget = tuple[int | None, int | None]


class CuttingProxy:
    """Passes bytes on between clients and a server, and cuts some connections.

    Args:
        port: the server's, on this host. :attr:`port` can be changed: new connections lead there.
        budgets: of the connections, in the order in which they are made; the rest has none.
        delay: seconds for which each piece of up to 64 KiB is held back.
    """

    def __init__(self, port: int, budgets: Iterable[Budget] = (), delay: float = 0.0) -> None:
        self.port = port
        self.delay = delay
        self.cuts = 0
        self._budgets = iter(budgets)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.own_port = self._listener.getsockname()[1]
        self.url = f"redis://127.0.0.1:{self.own_port}/0"
        self._sockets = [self._listener]
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self._sockets.append(client)
            try:
                server = socket.create_connection(("127.0.0.1", self.port))
            except OSError:  # as if the client had asked the server itself
                client.close()
                continue
            self._sockets.append(server)
            up, down = next(self._budgets, (None, None))
            pair = (client, server)
            for source, target, budget in ((client, server, up), (server, client, down)):
                thread = threading.Thread(target=self._pass_on, args=(source, target, budget, pair))
                self._threads.append(thread)
                thread.start()

    def _pass_on(
        self,
        source: socket.socket,
        target: socket.socket,
        budget: int | None,
        pair: tuple[socket.socket, socket.socket],
    ) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                if self.delay:
                    time.sleep(self.delay)
                if budget is not None and (budget := budget - len(data)) < 0:
                    target.sendall(data[:budget])
                    self.cuts += 1
                    break
                target.sendall(data)
        for one in pair:
            with contextlib.suppress(OSError):
                # At once and for good: who was only told that nothing more comes would go on
                # sending until his time is over.
                one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                one.shutdown(socket.SHUT_RDWR)
            one.close()

    def close(self) -> None:
        """Take no more connections, and wait until those that there are have been closed."""
        self._listener.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(30)
        for one in self._sockets:
            one.close()


@contextlib.contextmanager
def cutting_proxy(
    port: int, budgets: Iterable[Budget] = (), delay: float = 0.0
) -> Iterator[CuttingProxy]:
    """A proxy for as long as the context lasts; the clients have to close before its end."""
    proxy = CuttingProxy(port, budgets, delay)
    try:
        yield proxy
    finally:
        proxy.close()
