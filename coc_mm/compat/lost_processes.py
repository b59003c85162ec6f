"""Processes that end together when one of them is lost, and say which.

A process group notices a killed member late and namelessly: gloo's peers fail with "connection
reset", after the loader workers of the killed process have let go of the sockets they inherited;
NCCL's wait for the timeout; and a process between two collectives notices nothing. Here each
process holds a connection to process 0, which the system closes at the moment a process dies.
"""

import json
import os
import secrets
import selectors
import socket
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch.distributed as dist
from mmengine.dist import broadcast_object_list, get_rank, get_world_size

__all__ = ['LOST_STATUS', 'watching_processes']

#: Exit status of the processes that remain when one is lost (EX_TEMPFAIL: try again).
LOST_STATUS = 75
# Seconds that the others have to end by themselves after one ended with an error.
_GRACE = 10.0
# Seconds until a message about the reason follows the failure of a collective.
_PATIENCE = 5.0
# Seconds that processes have to connect.
_CONNECT = 60.0
# A machine that lost its power closes nothing: it is asked every 10 s, after 30 s of silence.
_KEEPALIVE = {'TCP_KEEPIDLE': 30, 'TCP_KEEPINTVL': 10, 'TCP_KEEPCNT': 3}

_WATCHED = False
_OPEN: 'weakref.WeakSet[socket.socket]' = weakref.WeakSet()


def _close_in_child() -> None:
    # Workers of a data loader outlive their parent for seconds, with all that was open in it.
    for connection in list(_OPEN):
        connection.close()


os.register_at_fork(after_in_child=_close_in_child)


def _kept(connection: socket.socket) -> socket.socket:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _KEEPALIVE.items():
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    _OPEN.add(connection)
    return connection


class _Line:
    """A connection that carries JSON objects, one in a line."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = _kept(connection)
        self.rank: int | None = None
        self._rest = b''

    def send(self, **content) -> None:
        with suppress(OSError):  # its end is noticed where it is read
            self.connection.sendall(json.dumps(content).encode() + b'\n')

    def receive(self) -> tuple[list[dict], bool]:
        """Read what has come; return the objects, and whether the other side is still there."""
        try:
            data = self.connection.recv(65536)
        except OSError:
            data = b''
        *lines, self._rest = (self._rest + data).split(b'\n')
        return [json.loads(line) for line in lines], bool(data)

    def close(self) -> None:
        self.connection.close()


class _Watch:
    """The connections of one process, read by a thread of their own."""

    def __init__(self) -> None:
        self.rank, self.world = get_rank(), get_world_size()
        self.places: dict[int, tuple[str, int]] = {}  # rank -> host, process id
        self.ended: set[int] = set()
        self.leaving = threading.Event()  # this process ends by itself
        self.told = threading.Event()  # an error elsewhere is the reason
        self._decided = threading.Event()  # no need to wait longer for this process
        self._lines: list[_Line] = []
        self._selector = selectors.DefaultSelector()
        self._connect()
        if len(self.places) == self.world:
            threading.Thread(target=self._read, name='lost processes', daemon=True).start()

    def _connect(self) -> None:
        """Connect everybody to process 0, and tell everybody who is where."""
        address = os.environ.get('MASTER_ADDR', '127.0.0.1')
        listener: Any = None
        call: list[Any] = [None]
        if self.rank == 0:
            local = address in ('127.0.0.1', 'localhost')
            listener = socket.create_server(('127.0.0.1' if local else '', 0), backlog=self.world)
            call = [(listener.getsockname()[1], secrets.token_hex(16))]
        broadcast_object_list(call)
        port, token = call[0]
        me = dict(token=token, rank=self.rank, host=socket.gethostname(), pid=os.getpid())
        if self.rank == 0:
            self.places[0] = me['host'], me['pid']
            self._accept(listener, token)
        else:
            with suppress(OSError):  # process 0 notices, and tells everybody
                line = _Line(socket.create_connection((address, port), timeout=_CONNECT))
                line.rank = 0
                line.send(**me)
                line.connection.settimeout(None)
                self._lines.append(line)
        places = [self.places]
        broadcast_object_list(places)
        self.places = places[0]
        if len(self.places) < self.world:
            self._do_without(f'{address}:{port}')
        for line in self._lines:
            self._selector.register(line.connection, selectors.EVENT_READ, line)

    def _do_without(self, address: str) -> None:
        for line in self._lines:
            line.close()
        self._lines = []
        if self.rank == 0:
            absent = ', '.join(str(r) for r in range(self.world) if r not in self.places)
            print(
                f'several processes: {address} cannot be reached by process {absent}, so that a '
                'lost process is noticed by the timeout alone (env_cfg.dist_cfg.timeout).',
                flush=True,
            )

    def _accept(self, listener: socket.socket, token: str) -> None:
        end = time.monotonic() + _CONNECT
        with listener, suppress(TimeoutError):
            while len(self.places) < self.world:
                listener.settimeout(max(end - time.monotonic(), 0.01))
                line = _Line(listener.accept()[0])
                line.connection.settimeout(10)
                try:
                    said = json.loads(line.connection.makefile('rb').readline(1024))
                    if not secrets.compare_digest(said['token'], token):
                        raise ValueError
                except (OSError, ValueError, KeyError, TypeError, RecursionError):  # a stranger
                    line.close()
                    continue
                line.connection.settimeout(None)
                line.rank = said['rank']
                self.places[line.rank] = said['host'], said['pid']
                self._lines.append(line)

    # The thread

    def _read(self) -> None:
        while self._selector.get_map():
            for key, _ in self._selector.select():
                said, there = key.data.receive()
                for content in said:
                    self._hear(key.data.rank, content)
                if not there:
                    self._selector.unregister(key.fileobj)
                    if key.data.rank not in self.ended:
                        self._lost(key.data.rank)

    def _hear(self, rank: int, content: dict) -> None:
        rank = content.get('of', rank)  # process 0 hands on what others said
        if content['event'] == 'lost':
            self._lost(rank)
        self.ended.add(rank)
        if content['event'] == 'failed' and not self.told.is_set():
            self.told.set()
            self._hand_on(rank, content)
            threading.Thread(
                target=self._after_grace, args=(rank, content['text']), daemon=True
            ).start()

    def _hand_on(self, rank: int, content: dict) -> None:
        if self.rank == 0:
            for line in self._lines:
                if line.rank != rank:
                    line.send(**content, of=rank)

    def _lost(self, rank: int) -> None:
        if self.leaving.is_set():
            return
        self._hand_on(rank, dict(event='lost'))
        self._say(
            rank,
            'was lost: killed from outside, for example for want of memory, or with its machine. '
            'The others end with it.\nResume from the last checkpoint: the same command with '
            '--resume.',
        )
        os._exit(LOST_STATUS)

    def _after_grace(self, rank: int, text: str) -> None:
        self._decided.wait(_GRACE)
        if self.leaving.is_set():
            return
        self._say(rank, f'ended with an error: {text}\nThis process waited for it, and ends too.')
        os._exit(LOST_STATUS)

    def _say(self, rank: int, text: str) -> None:
        """Write the message, in one process of each machine."""
        host, pid = self.places[rank]
        own = self.places[self.rank][0]
        here = [r for r, place in self.places.items() if place[0] == own and r != rank]
        if self.rank == min(here):
            message = f'error: process {rank} of {self.world} (pid {pid} on {host}) {text}'
            sys.stdout.flush()
            print(message, file=sys.stderr, flush=True)

    # The process itself

    def end(self, event: str, text: str = '') -> None:
        """Tell the others that this process ends by itself."""
        self.leaving.set()
        self._decided.set()
        for line in self._lines:
            line.send(event=event, text=text)

    def wait_for_reason(self) -> None:
        """Give the thread time to end this process with the reason of a failure."""
        if self.told.wait(_PATIENCE):
            self._decided.set()
            time.sleep(_GRACE)  # the thread ends the process meanwhile


def _is_of_a_peer(error: BaseException) -> bool:
    """Whether an exception may be another process's fault: torch raises them as RuntimeError."""
    text = str(error)
    names = ('gloo', 'NCCL', 'Connection', 'Broken pipe', 'Socket', 'peer', 'store')
    known = isinstance(error, (dist.DistError, ConnectionError))
    return known or (isinstance(error, RuntimeError) and any(name in text for name in names))


@contextmanager
def watching_processes() -> Iterator[None]:
    """End this process, with a message, when another process of the group is lost.

    Does nothing for a single process, or inside another such context. The message names the lost
    process; status :data:`LOST_STATUS` is that of the remaining ones. Where a process ended with
    an error of its own, the others have ten seconds to do so as well.
    """
    global _WATCHED
    if _WATCHED or get_world_size() == 1:
        yield
        return
    watch = _Watch()
    _WATCHED = True
    try:
        yield
    except Exception as error:
        if _is_of_a_peer(error):
            watch.wait_for_reason()
        watch.end('failed', f'{type(error).__name__}: {error}'.split('\n')[0][:500])
        raise
    except KeyboardInterrupt:
        watch.end('failed', 'interrupted')
        raise
    except SystemExit:  # all stop together, process 0 perhaps later: it writes a checkpoint
        watch.end('ended')
        raise
    else:
        watch.end('ended')
    finally:
        _WATCHED = False
