"""Joining the processes of a sweep, and ending with a clear message when another of them has died.

JAX notices a dead process only when something is asked of it, waits for a hung one until a heartbeat is overdue, and then aborts with a
stack trace. So beside it each process keeps a line to process 0, over which both say every two seconds that they live.
"""

import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager, redirect_stdout, suppress
from typing import Any, NoReturn

BEAT = 2.0  # seconds between two signs of life
SILENCE = 20.0  # after so many a process is taken for dead
GRACE = 1.0  # for an error of all processes to be told by each, before the end of the first is
JOINING = 120.0  # to wait for all processes at the start
GO_ON = "what was saved of the sweep is gone on with by --resume and its --out, by any number of processes"

LIVES, LEAVES, DIED = b".", b"q", b"x"


def checked(coordinator: str | None, processes: int | None, process: int | None) -> None:
    """ValueError where the three do not say which process of which sweep this is."""
    given = {"--coordinator": coordinator, "--processes": processes, "--process": process}
    missing = [name for name, value in given.items() if value is None]
    if coordinator == "auto":
        if len(missing) < 2:
            raise ValueError("--coordinator auto finds out the number of processes and which this is: leave out --processes and --process")
        return
    if missing:
        raise ValueError(
            f"--coordinator HOST:PORT, --processes N and --process I go together: {' and '.join(missing)} is missing "
            "(or --coordinator auto under SLURM, Open MPI, Kubernetes or on Cloud TPU)"
        )
    assert coordinator is not None
    assert processes is not None
    assert process is not None
    if processes < 1 or not 0 <= process < processes:
        raise ValueError(f"--process must be 0 to --processes - 1, got --process {process} of --processes {processes}")
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise ValueError(f"--coordinator must be HOST:PORT, the address of process 0 such as 10.0.0.1:9999, got {coordinator!r}")
    try:
        socket.getaddrinfo(host.strip("[]"), int(port))
    except OSError as error:
        raise ValueError(f"--coordinator {coordinator}: there is no host {host!r} ({error.strerror or error})") from None


@contextmanager
def together(coordinator: str | None, processes: int | None, process: int | None) -> Iterator[None]:
    """This process as one of those of a sweep: process 0 speaks for all, the others say a line when they begin and end."""
    checked(coordinator, processes, process)
    if processes is not None and processes > 1:
        print(f"process {process} of {processes}: waits up to {JOINING:.0f} s for all at {coordinator}", flush=True)
    _initialize(coordinator, processes, process)
    import jax

    from .hosts import check_alike

    own, many = jax.process_index(), jax.process_count()
    if many == 1:
        yield
        return
    speaks = sys.stdout
    watch = Watch(None if coordinator == "auto" else str(coordinator).rpartition(":")[0].strip("[]"))
    versions = {"jax version": jax.__version__, "kind of device": jax.local_devices()[0].device_kind}
    check_alike(versions | {"number of devices": str(jax.local_device_count())})
    print(f"process {own} of {many}: {jax.local_device_count()} of {jax.device_count()} devices", file=speaks, flush=True)
    try:
        if own == 0:
            yield
        else:
            with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
                yield
    except jax.errors.JaxRuntimeError as error:
        time.sleep(GRACE + BEAT)  # if it is for the death of another, the watch says so and ends this process
        raise OSError(f"process {own}: {str(error).splitlines()[0]}") from error
    if own > 0:
        print(f"process {own} of {many}: done; process 0 has the results", file=speaks, flush=True)
    watch.leave()


@contextmanager
def ended_at_once() -> Iterator[None]:
    """Around all that a process of several does: after an error it does not wait for the others, as JAX would when Python ends."""
    try:
        yield
    except SystemExit as end:
        if end.code and "jax" in sys.modules and sys.modules["jax"].distributed.is_initialized():
            if Watch.here is not None:
                Watch.here.leaving = True
                time.sleep(1.5 * GRACE * (Watch.here.own == 0))
            _end(int(end.code))
        raise


class Watch:
    """The line of this process to process 0, or of process 0 to all others."""

    here: "Watch | None" = None

    def __init__(self, host: str | None):
        import jax

        from .hosts import from_first

        self.own, self.many = jax.process_index(), jax.process_count()
        self.leaving, self.lines, self.lock = False, dict[int, socket.socket](), threading.Lock()
        server = _server() if self.own == 0 else None

        def address() -> tuple[str, int, bytes]:
            assert server is not None
            return host or socket.gethostname(), server.getsockname()[1], secrets.token_bytes(16)

        where, port, word = from_first(address)
        if server is None:
            try:
                line = socket.create_connection((where, port), timeout=SILENCE)
            except OSError as error:
                raise OSError(f"process {self.own} cannot reach process 0 at {where}:{port}: {error.strerror or error}") from None
            line.sendall(word + self.own.to_bytes(4, "little"))
            self.lines[0] = line
        else:
            server.settimeout(SILENCE)
            while len(self.lines) < self.many - 1:
                line, _ = server.accept()
                line.settimeout(SILENCE)
                said = _exactly(line, 20)
                if said[:16] == word:
                    self.lines[int.from_bytes(said[16:], "little")] = line
            server.close()
        Watch.here = self
        for other, line in self.lines.items():
            line.settimeout(SILENCE)
            threading.Thread(target=self._listen, args=(other, line), daemon=True).start()
        threading.Thread(target=self._beat, daemon=True).start()

    def leave(self) -> None:
        """Say that all is done: what ends from now on has not died."""
        self.leaving = True
        self._say(LEAVES)

    def _say(self, what: bytes) -> None:
        with self.lock:
            for line in self.lines.values():
                with suppress(OSError):
                    line.sendall(what)

    def _beat(self) -> None:
        while not self.leaving:
            self._say(LIVES)
            time.sleep(BEAT)

    def _listen(self, other: int, line: socket.socket) -> None:
        try:
            while (said := _exactly(line, 1)) != LEAVES:
                if said == DIED:
                    other = int.from_bytes(_exactly(line, 4), "little")
                    raise ConnectionError
        except OSError as error:
            if self.leaving:
                return
            self._say(DIED + other.to_bytes(4, "little"))
            if other > 0:  # but without process 0 JAX aborts at once, so it is the last to go
                time.sleep(GRACE if self.own > 0 else 2 * GRACE)
            if self.leaving:
                return
            how = f"has not been heard of for {SILENCE:.0f} s" if isinstance(error, TimeoutError) else "has ended before the sweep was done"
            chief = ", the coordinator," if other == 0 else ""
            _end(1, f"process {self.own} of {self.many} ends: process {other}{chief} {how}; {GO_ON}")


def _initialize(coordinator: str | None, processes: int | None, process: int | None) -> None:
    import jax

    how: dict[str, Any] = {"initialization_timeout": int(2 * JOINING), "heartbeat_timeout_seconds": int(SILENCE + 20)}  # JAX aborts at them
    if coordinator != "auto":
        how |= {"coordinator_address": coordinator, "num_processes": processes, "process_id": process}
    with suppress(AttributeError):
        jax.config.update("jax_enable_preemption_service", False)  # it would catch SIGTERM, and the process would not end
    _without_library_lines()
    joining = ThreadPoolExecutor(1).submit(jax.distributed.initialize, **how)  # in a thread, since Ctrl-C cannot interrupt it
    until = time.monotonic() + JOINING
    try:
        while not joining.done():
            if time.monotonic() > until:
                raise OSError(
                    f"after {JOINING:.0f} s not all processes are there, or process 0 cannot be reached at {coordinator}: "
                    "is each one started, with the same --coordinator and --processes?"
                )
            wait([joining], 0.2)
        joining.result()
    except ValueError as error:
        if coordinator != "auto":
            raise
        raise ValueError(
            f"--coordinator auto: JAX finds no SLURM, Open MPI, Kubernetes or Cloud TPU here ({error}); "
            "give --coordinator HOST:PORT --processes N --process I"
        ) from None
    except RuntimeError as error:
        raise OSError(f"--coordinator {coordinator}: {str(error).splitlines()[0]}") from None


def _without_library_lines() -> None:
    """Gloo writes a line to standard output for every connection: it loses it, Python keeps it."""
    with suppress(OSError, ValueError):
        sys.stdout.flush()
        kept = os.dup(sys.stdout.fileno())
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.stdout = os.fdopen(kept, "w", buffering=1, encoding=sys.stdout.encoding)


def _server() -> socket.socket:
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True)
    return socket.create_server(("", 0))


def _exactly(line: socket.socket, count: int) -> bytes:
    said = b""
    while len(said) < count:
        if not (more := line.recv(count - len(said))):
            raise ConnectionError
        said += more
    return said


def _end(code: int, message: str = "") -> NoReturn:
    """At once: Python would wait for JAX, and JAX for the dead."""
    with suppress(Exception):
        if sys.stdout.isatty():
            sys.stdout.write("\x1b[?25h")  # a live bar hides the cursor
        sys.stdout.flush()
    with suppress(Exception):
        if message:
            sys.stderr.write(f"lossopt: {message}\n")
        sys.stderr.flush()
    os._exit(code)
