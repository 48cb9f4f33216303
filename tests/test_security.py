"""What another user of the machine can do to ours: not read, not write, not replace, not stop.

The attacker and the victim are processes of two users, started from root's; without root, nothing
here is run. They are told what to do step by step, so each attack happens at its moment.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import multiprocessing
import os
import re
import signal
import stat
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest

import proxyexec_connectors.file
from proxyexec import ProxyAlways, StoreExecutor
from proxyexec.errors import ConnectorUnavailableError, UnsafeDirectoryError
from proxyexec_connectors import _host_cache, _sessions
from proxyexec_connectors._host_cache import HostCache, Known
from proxyexec_connectors._layout import pieces
from proxyexec_connectors.file import FileConnector
from tests.conftest import wait_for_evictions

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be other users")

ATTACKER = 65534
VICTIMS = [65533, 0]

PATIENCE = 60
LARGE = 1 << 20

FORK = multiprocessing.get_context("fork")

# For a victim in the middle of something.
REACHED, GO_ON = FORK.Semaphore(0), FORK.Semaphore(0)

_PR_SET_DUMPABLE = 4


class User:
    """A process of some user, which does what it is told."""

    def __init__(self, number):
        self.number = number
        self._pipe, theirs = FORK.Pipe()
        self.process = FORK.Process(target=_be, args=(number, theirs, self._pipe))
        self.process.start()
        theirs.close()
        if not self.end():
            pytest.skip("this root cannot be another user")

    def begin(self, function, *arguments):
        self._pipe.send((function, arguments))

    def end(self):
        assert self._pipe.poll(PATIENCE), "it hangs"
        result, error = self._pipe.recv()
        if error is not None:
            raise error
        return result

    def do(self, function, *arguments):
        self.begin(function, *arguments)
        return self.end()

    def close(self):
        with contextlib.suppress(OSError):
            self._pipe.send(None)
        self._pipe.close()
        self.process.join(PATIENCE)
        assert self.process.exitcode is not None
        self.process.close()


def _be(number, pipe, parents):
    parents.close()
    try:
        os.setgroups([])
        os.setresgid(number, number, number)
        os.setresuid(number, number, number)
    except PermissionError:
        pipe.send((False, None))
        return
    # As of a process that the user has started: its /proc files are his.
    ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 1)
    os.umask(0o022)
    pipe.send((True, None))
    with contextlib.suppress(EOFError):
        while (told := pipe.recv()) is not None:
            function, arguments = told
            try:
                pipe.send((function(*arguments), None))
            except Exception as error:
                pipe.send((None, error))


@pytest.fixture
def users():
    """Makes processes of users."""
    made = []

    def make(number):
        made.append(User(number))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture
def attacker(users):
    return users(ATTACKER)


@pytest.fixture(params=VICTIMS, ids=["user", "root"])
def victim(request, users, places):
    return users(request.param)


@pytest.fixture
def places(monkeypatch):
    """Memory and disk for everybody, as /dev/shm and /tmp are."""
    with (
        tempfile.TemporaryDirectory(dir="/dev/shm", prefix="pxs-") as memory,
        tempfile.TemporaryDirectory(dir="/var/tmp", prefix="pxs-") as disk,
    ):
        for one in (memory, disk):
            os.chmod(one, 0o1777)
        monkeypatch.setattr(proxyexec_connectors.file, "_SHARED_MEMORY", memory)
        monkeypatch.setattr(_host_cache, "_SHARED_MEMORY", memory)
        monkeypatch.setattr(tempfile, "tempdir", disk)
        yield Path(memory), Path(disk)


# --- what the victim does ------------------------------------------------------------------

open_here = {}


def open_connector(directory=None, spill=None):
    """Store objects of each kind; return the directories of the sessions."""
    connector = open_here["connector"] = FileConnector(directory, spill=spill)
    connector.put("small", [b"secret"])
    for key in ("large", "gone"):
        connector.put(key, [b"secret" * (LARGE // 6)])
    connector.evict(["gone"])
    assert holds()
    return connector._roots


def holds():
    """Tell that all is as it was stored."""
    connector = open_here["connector"]
    large = b"secret" * (LARGE // 6)
    return connector.get("small")[0] == b"secret" and connector.get("large")[0] == large


def close_connector():
    open_here.pop("connector").close()


def look(*roots):
    """Return owner and mode of all that is below, and of the directories themselves."""
    found = {}
    for root in roots:
        for folder, folders, files in os.walk(root):
            for path in (folder, *(os.path.join(folder, name) for name in files)):
                status = os.lstat(path)
                found[path] = status.st_uid, stat.filemode(status.st_mode)
    return found


def compute():
    """Run a task; its data go the usual way."""
    pool = ProcessPoolExecutor(1, mp_context=FORK)
    with StoreExecutor(pool, should_proxy=ProxyAlways(), lazy=False) as executor:
        result = executor.submit(sorted, "secret" * 1000).result()[:3]
    wait_for_evictions()  # and for the store's end
    return result


# --- permissions ---------------------------------------------------------------------------


@pytest.mark.parametrize("directory", [None, "deep/down/objects"])
def test_all_is_private_whatever_the_umask(victim, places, directory):
    memory, disk = places
    given = None if directory is None else str(memory / directory)
    spill = None if directory is None else str(disk / directory)
    victim.do(os.umask, 0)
    roots = victim.do(open_connector, given, spill)
    assert len(roots) == 2
    found = victim.do(look, *roots)
    assert len(found) >= 7  # in both: the directory, the lock, the session; then objects
    for path, (owner, mode) in found.items():
        assert owner == victim.number
        assert mode in ("drwx------", "-rw-------"), path
    if directory is not None:
        for above in ("deep", "deep/down"):
            for place in places:
                # Who may write into these may replace what is in them.
                assert stat.S_IMODE((place / above).stat().st_mode) == 0o755
    victim.do(close_connector)


def write_without_unnamed_files(directory):
    """As on NFS: a file has a name while it is written."""
    connector = FileConnector(directory)
    write_all = proxyexec_connectors.file._write_all
    seen = []

    def look_and_write(descriptor, parts):
        seen.append(look(connector._places[0]))
        write_all(descriptor, parts)

    proxyexec_connectors.file._write_all = look_and_write
    unnamed, os.O_TMPFILE = os.O_TMPFILE, os.O_DIRECTORY
    try:
        connector.put("key", [b"secret"])
    finally:
        proxyexec_connectors.file._write_all, os.O_TMPFILE = write_all, unnamed
        connector.close()
    return seen[0]


def test_files_with_temporary_names_are_private(victim, places):
    victim.do(os.umask, 0)
    found = victim.do(write_without_unnamed_files, str(places[1] / "objects"))
    [temporary] = [path for path in found if "/~key-" in path]
    assert found[temporary] == (victim.number, "-rw-------")


def try_all(paths, process):
    """Try whatever one might do to another user's things; return what was not refused."""
    own = os.path.join(os.path.dirname(paths[0]), "own")
    done = []

    def attempt(what, function, *arguments):
        try:
            result = function(*arguments)
        except OSError:
            return
        if isinstance(result, int):
            os.close(result)
        done.append((what, *arguments))

    def lock(path):
        descriptor = os.open(path, os.O_RDONLY)
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return descriptor

    for path in paths:
        attempt("read", os.open, path, os.O_RDONLY)
        attempt("write", os.open, path, os.O_WRONLY)
        attempt("lock", lock, path)
        attempt("truncate", os.truncate, path, 0)
        attempt("list", os.listdir, path)
        attempt("make", os.mkdir, f"{path}/new")
        attempt("link", os.link, path, own)
        attempt("rename", os.rename, path, own)
        attempt("unlink", os.unlink, path)
        attempt("remove", os.rmdir, path)
        attempt("chmod", os.chmod, path, 0o777)
    # By way of the process that has them open.
    for name in ("fd", "map_files", "cwd"):
        attempt("list", os.listdir, f"/proc/{process}/{name}")
    for name in ("mem", "maps", "environ", *(f"fd/{number}" for number in range(30))):
        attempt("read", os.open, f"/proc/{process}/{name}", os.O_RDONLY)
    for number in range(30):
        attempt("link", link_descriptor, f"/proc/{process}/fd/{number}", own)
    return done


def link_descriptor(source, target):
    # With a descriptor, which an absolute path does not use, what the link leads to is linked.
    root = os.open("/", os.O_RDONLY)
    try:
        os.link(source, target, src_dir_fd=root, follow_symlinks=True)
    finally:
        os.close(root)


def test_nobody_else_reads_writes_replaces_or_locks_anything(victim, attacker, places):
    roots = victim.do(open_connector)
    assert roots == [str(place / f"proxyexec-{victim.number}") for place in places]
    paths = list(victim.do(look, *roots))
    assert attacker.do(try_all, paths, victim.process.pid) == []
    assert victim.do(holds)
    victim.do(close_connector)
    assert [list(place.iterdir()) for place in places] == [[], []]


def leave_open(root):
    os.umask(0)
    os.mkdir(root, 0o777)
    for name in ("file", "other"):
        Path(root, name).touch(0o666)
    return [root, f"{root}/file", f"{root}/other"]


def test_what_is_open_is_found_by_who_tries_all(victim, attacker, places):
    """Or the test before this one would mean nothing."""
    paths = victim.do(leave_open, str(places[1] / "objects"))
    found = {what for what, *_ in attacker.do(try_all, paths, attacker.process.pid)}
    assert found >= {"read", "write", "lock", "truncate", "list", "make", "link", "rename"}


# --- names that others have taken ----------------------------------------------------------


def be_there(path, what, others):
    """Take a name, in one of the ways there are."""
    os.umask(0)
    if what == "link":
        os.symlink(others, path)
    elif what == "own link":
        os.mkdir(path + "-target", 0o777)
        os.symlink(path + "-target", path)
    elif what == "dangling link":
        os.symlink(path + "-target", path)
    elif what == "file":
        Path(path).touch(0o666)
    elif what == "pipe":
        os.mkfifo(path, 0o666)
    else:
        os.mkdir(path, int(what, 8))


SQUATTERS = ["777", "700", "link", "own link", "dangling link", "file", "pipe"]


@pytest.mark.parametrize("what", SQUATTERS)
def test_who_takes_our_names_stops_nobody(victim, attacker, users, places, what):
    usual = [place / f"proxyexec-{victim.number}" for place in places]
    precious = places[1] / "precious"
    victim.do(os.mkdir, str(precious), 0o700)
    for path in usual:
        attacker.do(be_there, str(path), what, str(precious))
    before = [sorted(place.iterdir()) for place in places]
    roots = victim.do(open_connector)
    for root, path in zip(roots, usual, strict=True):
        assert re.fullmatch(re.escape(f"{path}-") + "[0-9a-f]{16}", root)
    assert all(owner == victim.number for owner, _ in victim.do(look, *roots).values())
    assert attacker.do(try_all, list(victim.do(look, *roots)), victim.process.pid) == []
    # Others of the same user meet there, so that they sweep what is left.
    fellow = users(victim.number)
    assert fellow.do(open_connector) == roots
    fellow.process.kill()
    fellow.process.join()
    assert fellow.process.exitcode == -signal.SIGKILL
    locks = [name for name in victim.do(os.listdir, roots[0]) if name.endswith(".lock")]
    assert len(locks) == 2
    heir = users(victim.number)
    assert heir.do(open_connector) == roots
    locks = [name for name in victim.do(os.listdir, roots[0]) if name.endswith(".lock")]
    assert len(locks) == 2
    heir.do(close_connector)
    assert victim.do(holds)
    assert victim.do(compute) == ["c"] * 3
    victim.do(close_connector)
    assert [sorted(place.iterdir()) for place in places] == before
    for path in places[0].rglob("*"):
        assert not path.is_dir() or not list(path.iterdir())
    assert victim.do(os.listdir, str(precious)) == []


def test_who_takes_further_names_stops_nobody(victim, attacker, places):
    """Those that look like the ones that are used instead."""
    taken = [
        f"{place}/proxyexec-{victim.number}{end}"
        for place in places
        for end in ("", "-0123456789abcdef", "-ffffffffffffffff")
    ]
    for number, path in enumerate(taken):
        attacker.do(be_there, path, SQUATTERS[number % len(SQUATTERS)], "/nowhere")
    roots = victim.do(open_connector)
    assert not set(roots) & set(taken)
    victim.do(close_connector)
    assert not any(os.path.lexists(root) for root in roots)


@pytest.mark.parametrize("way", ["directory", "spill"])
@pytest.mark.parametrize("what", ["777", "700"])
def test_a_directory_that_was_asked_for_is_that_one_or_none(victim, attacker, places, way, what):
    path = str(places[1] / f"proxyexec-{victim.number}")
    attacker.do(be_there, path, what, None)
    with pytest.raises(UnsafeDirectoryError, match=f"belongs to user {ATTACKER}; choose another"):
        if way == "directory":
            victim.do(open_connector, path)
        else:
            victim.do(open_connector, str(places[0] / "mine"), path)
    assert [path.name for path in places[0].iterdir()] == []
    assert os.listdir(path) == []


def test_a_directory_of_ours_that_others_may_write_into(victim, places):
    directory = str(places[1] / "objects")
    victim.do(os.mkdir, directory)
    victim.do(os.chmod, directory, 0o770)
    with pytest.raises(UnsafeDirectoryError, match=f"run: chmod go-w {re.escape(directory)}"):
        victim.do(open_connector, directory)
    victim.do(os.chmod, directory, 0o750)
    victim.do(open_connector, directory)
    victim.do(close_connector)
    # The usual one: another one is used until that is mended.
    usual = str(places[0] / f"proxyexec-{victim.number}")
    victim.do(os.mkdir, usual)
    victim.do(os.chmod, usual, 0o770)
    assert victim.do(open_connector)[0] != usual
    victim.do(close_connector)
    assert os.listdir(places[0]) == [os.path.basename(usual)]


def lay_out(root, others):
    """Leave things in a directory under names that sessions have there."""
    os.umask(0)
    names = [f"{root}/session-{number:016x}" for number in range(6)]
    os.symlink(f"{others}/made", f"{names[0]}.lock")
    os.mkfifo(f"{names[1]}.lock")
    Path(f"{names[2]}.lock").touch()
    os.link(f"{names[2]}.lock", f"{names[3]}.lock")
    os.mkdir(f"{names[4]}.lock")
    for name in names[1:4]:
        os.symlink(others, name)
    Path(f"{names[5]}.lock").touch()
    os.mkdir(names[5])
    os.symlink(others, f"{names[5]}/~free")


def test_what_was_left_while_others_could_write_there(victim, attacker, places):
    """Links are not followed, pipes not waited for; the victim's things stay."""
    root, precious = str(places[1] / "objects"), str(places[1] / "precious")
    for path in (root, precious):
        victim.do(os.mkdir, path, 0o700)
    victim.do(open_connector, precious)
    [session] = [path for path in victim.do(os.listdir, precious) if not path.endswith(".lock")]
    victim.do(os.chmod, root, 0o777)
    # He cannot know the name of the session; we tell him.
    attacker.do(lay_out, root, f"{precious}/{session}")
    before = victim.do(look, precious)
    victim.do(os.chmod, root, 0o700)
    assert victim.do(open_and_close, root)
    assert victim.do(look, precious) == before
    assert victim.do(holds)
    victim.do(close_connector)
    assert os.listdir(precious) == []


def open_and_close(root):
    with contextlib.closing(FileConnector(root)) as connector:
        connector.put("key", [b"x"])
        return connector.get("key")[0] == b"x"


# --- places where others may rename what is ours -------------------------------------------


def open_haltingly(directory):
    """Let others act when the directory has been looked at, before anything is made in it."""
    sweep = _sessions.sweep

    def wait_and_sweep(root):
        REACHED.release()
        assert GO_ON.acquire(timeout=PATIENCE)
        sweep(root)

    _sessions.sweep = wait_and_sweep
    try:
        open_connector(directory)
    finally:
        _sessions.sweep = sweep


def replace(path):
    os.umask(0)
    os.rename(path, f"{path}-away")
    os.mkdir(path, 0o777)


@pytest.mark.parametrize("usual", [True, False])
def test_nothing_is_made_in_a_directory_that_was_put_in_place_of_ours(
    victim, attacker, places, usual
):
    """Where /tmp is not sticky, or a directory above ours is somebody else's."""
    for place in places:
        place.chmod(0o777)
    path = str(places[0] / (f"proxyexec-{victim.number}" if usual else "objects"))
    victim.do(os.mkdir, path, 0o700)
    victim.begin(open_haltingly, None if usual else path)
    assert REACHED.acquire(timeout=PATIENCE)
    attacker.do(replace, path)
    for _ in places:
        GO_ON.release()
    with pytest.raises(ConnectorUnavailableError):
        victim.end()
    while REACHED.acquire(block=False):
        pass
    while GO_ON.acquire(block=False):
        pass
    assert not os.path.exists(path) or os.listdir(path) == []


def test_a_session_whose_directory_was_replaced_is_gone_and_not_another(victim, attacker, places):
    for place in places:
        place.chmod(0o777)
    root, _ = victim.do(open_connector)
    attacker.do(replace, root)
    # He cannot list what he has taken away, so he does not know what to call his own.
    with pytest.raises(PermissionError):
        attacker.do(os.listdir, f"{root}-away")
    victim.do(close_connector)
    assert not os.path.exists(root) or os.listdir(root) == []


# --- addresses, the host cache -------------------------------------------------------------


def set_a_trap(root):
    """Keep a session of one's own for others to find."""
    os.umask(0)
    place = f"{root}/session-0123456789abcdef"
    os.makedirs(place, 0o755)
    with open(f"{place}/key", "wb") as file:
        file.write(b"".join(pieces([b"evil"])[0]))
    return f"file://{root}?session=session-0123456789abcdef"


def attach_and_get(address):
    return bytes(FileConnector.attach(address).get("key")[0])


def test_sessions_of_others_are_not_attached_to(victim, attacker, places):
    address = attacker.do(set_a_trap, str(places[1] / "trap"))
    with pytest.raises(UnsafeDirectoryError, match=f"belongs to user {ATTACKER}"):
        victim.do(attach_and_get, address)


SESSION = "0123456789abcdef"


def fetch_by_host(umask=0):
    """Fetch an object by way of the host cache; return what is to be seen of it, and whether."""
    os.umask(umask)
    cache = HostCache(SESSION, 1 << 20, lambda objects: [True] * len(objects))
    try:
        content = b"secret" * 1000

        def receive(write):
            write(memoryview(content), 0)

        kept = cache.obtain(Known("key", b"t" * 16), len(content), receive)
        assert kept is None or bytes(kept) == content
        return kept is not None, look(cache._root)
    finally:
        cache.leave()


def test_what_hosts_share_is_private(victim, places):
    kept, found = victim.do(fetch_by_host)
    assert kept
    assert len(found) == 4  # the directory, a lock, the session, an object
    for path, (owner, mode) in found.items():
        assert owner == victim.number
        assert mode in ("drwx------", "-rw-------"), path
    assert list(places[0].iterdir()) == []


@pytest.mark.parametrize("what", SQUATTERS)
def test_who_takes_our_name_gets_nothing_of_what_hosts_share(victim, attacker, places, what):
    path = places[0] / f"proxyexec-{victim.number}"
    attacker.do(be_there, str(path), what, str(places[1]))
    kept, _ = victim.do(fetch_by_host)
    assert not kept
    assert not path.is_dir() or list(path.iterdir()) == []


def hold_things(root):
    """Have a directory in the victim's place, with what his session would be, and what is in it."""
    os.umask(0)
    os.makedirs(f"{root}/session-{SESSION}")
    Path(f"{root}/session-{SESSION}/thing").touch()


def close_cache():
    HostCache(SESSION, 1 << 20, lambda objects: [True] * len(objects)).remove()


def test_what_others_keep_under_our_name_is_not_removed(victim, attacker, places):
    path = places[0] / f"proxyexec-{victim.number}"
    attacker.do(hold_things, str(path))
    victim.do(close_cache)
    assert (path / f"session-{SESSION}" / "thing").exists()


def leave_session(root, what, others):
    os.umask(0)
    name = f"{root}/session-{SESSION}"
    if what == "link for a lock":
        os.symlink(f"{others}/made", f"{name}.lock")
    elif what == "link":
        os.symlink(others, name)
    else:
        os.mkdir(name, 0o777)


@pytest.mark.parametrize("what", ["link for a lock", "link", "directory"])
def test_a_shared_session_that_others_have_made(victim, attacker, places, what):
    """In our directory, while they could write to it; its name can be known."""
    path, precious = str(places[0] / f"proxyexec-{victim.number}"), str(places[1] / "precious")
    for one in (path, precious):
        victim.do(os.mkdir, one, 0o700)
    victim.do(os.chmod, path, 0o777)
    attacker.do(leave_session, path, what, precious)
    victim.do(os.chmod, path, 0o700)
    kept, _ = victim.do(fetch_by_host)
    assert not kept
    assert victim.do(os.listdir, precious) == []
