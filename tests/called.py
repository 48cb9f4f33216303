"""What calls of other processes call: importable by name from the root of the checkout."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time


class LocalError(Exception):
    """An error with two facts."""

    def __init__(self, one, other):
        super().__init__(f"{one} and {other}")
        self.one, self.other = one, other

    def __reduce__(self):
        return LocalError, (self.one, self.other)


class NoText(ValueError):
    def __str__(self):
        raise RuntimeError("no text")


def add(one, other=0):
    return one + other


def same(one, other):
    return one is other


def fail(*facts):
    raise LocalError(*facts)


def fail_with(error):
    raise error


def leave(status):
    sys.exit(status)


def leave_at_once(status):
    os.write(1, b"before it left\n")
    os._exit(status)


def kill_itself(number):
    os.kill(os.getpid(), number)
    time.sleep(60)


def loud(text="said"):
    """Write to both streams in every way that there is."""
    print(f"{text} by print")
    print(f"{text} by print", file=sys.stderr)
    sys.stdout.flush()
    os.write(1, f"{text} by write\n".encode())
    subprocess.run(["sh", "-c", f"echo {text} by a child; echo {text} by a child >&2"], check=True)
    libc = ctypes.CDLL(None)
    libc.puts(f"{text} by C".encode())
    libc.fflush(None)
    return len(text)


def here():
    """Where the call runs, and what is there."""
    found = [
        os.path.relpath(os.path.join(folder, name))
        for folder, _, names in os.walk(".")
        for name in names
    ]
    return os.getcwd(), sorted(found)


def write_files(**files):
    for name, text in files.items():
        path = name.replace("__", "/").replace("_dot_", ".")
        os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
        with open(path, "w") as file:
            file.write(text)
    return sorted(files)


def environment(*names):
    return [os.environ.get(name) for name in names]


def flags():
    return (
        sys.flags.dev_mode,
        dict(sys._xoptions),
        [one for one in sys.warnoptions if "Bytes" not in one],
        sys.flags.optimize,
    )


def hash_of(text):
    return hash(text)


def say_and_wait(started, release=None):
    """Say by a file that the call runs, with its process id, and wait."""
    part = f"{started}.{os.getpid()}"  # each rank has its own
    with open(part, "w") as file:
        file.write(str(os.getpid()))
    os.replace(part, started)
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and not (release and os.path.exists(release)):
        time.sleep(0.01)


def start_and_wait(started):
    """Start a process that ignores its end, say so, and wait."""
    script = (
        "import os, signal, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
        "open(sys.argv[1] + '.part', 'w').write(str(os.getpid()));"
        "os.replace(sys.argv[1] + '.part', sys.argv[1]); time.sleep(300)"
    )
    subprocess.Popen([sys.executable, "-c", script, started])
    while True:
        time.sleep(60)


def deaf(started):
    """Ignore being asked to end."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    say_and_wait(started)


def fork_and_return():
    return os.fork() == 0


def leave_a_process(started):
    """Return at once, and leave a process that would go on."""
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"])


def in_a_pool(method):
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor

    with ProcessPoolExecutor(1, multiprocessing.get_context(method)) as pool:
        return list(pool.map(add, range(3), range(3)))


def close_everything():
    os.closerange(3, 1024)
    return "closed"


def unprintable_result():
    return lambda: None


def lock():
    import threading

    return threading.Lock()


def rank_and_size():
    from mpi4py import MPI

    world = MPI.COMM_WORLD
    print(f"this is rank {world.Get_rank()}")
    with open(f"of-{world.Get_rank()}.txt", "w") as file:
        file.write("there")
    return world.Get_rank(), world.Get_size(), world.allreduce(world.Get_rank() + 1)


def fails_on(rank, how):
    """Fail on one rank, and have the others wait for it."""
    from mpi4py import MPI

    world = MPI.COMM_WORLD
    if world.Get_rank() == rank:
        if how == "raise":
            raise LocalError("rank", rank)
        if how == "exit":
            sys.exit(5)
        os._exit(7)
    world.Barrier()
    world.Barrier()


def of_rank(size):
    from mpi4py import MPI

    return bytes([MPI.COMM_WORLD.Get_rank()]) * size
