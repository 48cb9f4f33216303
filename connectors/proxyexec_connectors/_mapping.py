"""Files as memory, with no descriptor kept: for one reader, or shared with whoever writes.

:func:`map_private` is for a file that never changes: its memory goes when nobody refers to it.
Before Python 3.13, :mod:`mmap` keeps a duplicate of the file descriptor for as long as the
mapping lives, so that a list of a thousand results would exhaust the process's descriptors.
There, anonymous memory is mapped by :mod:`mmap`, which thereby looks after its lifetime, and
the file is mapped over it.

A :class:`Mapping` stays until it is closed, whoever still refers to its memory: whoever has one
knows better than :mod:`mmap` when it is to go.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import sys
from typing import Any, ClassVar

__all__ = ["LARGE_PAGE", "LONG_COPY", "Address", "Mapping", "map_private"]


def _large_page() -> int:
    try:
        with open("/sys/kernel/mm/transparent_hugepage/hpage_pmd_size", "rb") as file:
            return int(file.read())
    except (OSError, ValueError):
        return 0


LARGE_PAGE = _large_page()
"""How many bytes a large page has; 0 where there are none."""

_MAP_FIXED = 0x10
_MAP_NORESERVE = 0x4000
_PROT_NONE = 0
_FAILED = ctypes.c_void_p(-1).value
_PROTECTION = mmap.PROT_READ | mmap.PROT_WRITE

_libc = ctypes.CDLL(None, use_errno=True)
_mmap = _libc.mmap
_mmap.restype = ctypes.c_void_p
_mmap.argtypes = (
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_long,
)
_munmap = _libc.munmap
_munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
_madvise = _libc.madvise
_madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
_ioctl = _libc.ioctl
_ioctl.argtypes = (ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p)

LONG_COPY = 1 << 18
"""From so many bytes on, copying lets other threads run meanwhile."""


def map_private(descriptor: int, size: int) -> mmap.mmap:
    """Map the first ``size`` bytes of a file; writes stay with the mapping's holder.

    Raises:
        OSError: the process has as many mappings as it may have.
    """
    if sys.version_info >= (3, 13):
        return mmap.mmap(descriptor, size, access=mmap.ACCESS_COPY, trackfd=False)
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, prot=_PROTECTION)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    _map(size, mmap.MAP_PRIVATE | _MAP_FIXED, descriptor, start)
    return memory


class Mapping:
    """The first bytes of a file in this process's memory, until :meth:`close`.

    Args:
        descriptor: of the file; not needed any more afterwards.
        size: how many bytes.
        shared: whether what is written gets into the file. If not, it stays here.

    Raises:
        OSError: the process has as many mappings as it may have.
    """

    __slots__ = ("address", "size")

    def __init__(self, descriptor: int, size: int, *, shared: bool) -> None:
        kind = mmap.MAP_SHARED if shared else mmap.MAP_PRIVATE
        self.address = (_map_aligned if 0 < LARGE_PAGE <= size else _map)(size, kind, descriptor)
        self.size = size

    def lend(self, start: int, length: int) -> ctypes.Array[ctypes.c_char]:
        """Return some of the bytes as a buffer that can be referred to weakly."""
        return (ctypes.c_char * length).from_address(self.address + start)

    def touch(self) -> None:
        """Have the kernel enter all pages at once, instead of one by one when they are needed."""
        _madvise(self.address, self.size, _MADV_POPULATE_READ)  # where it cannot, it is slower

    def collapse(self) -> None:
        """Have the kernel put the file into large pages, as far as these fit in.

        Each must have a small page in its place already; the others are made, and zero.

        Raises:
            OSError: there is no room, or there are no large pages to be had (EINVAL also where
                the kernel knows none, before Linux 6.1).
        """
        if _madvise(self.address, self.size, _MADV_COLLAPSE):
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))

    def write(self, start: int, data: bytes | memoryview) -> None:
        """Copy bytes to a place in the mapping."""
        if len(data) < LONG_COPY:
            memoryview(self.lend(start, len(data))).cast("B")[:] = data
            return
        with Address(data) as source:
            ctypes.memmove(self.address + start, source, len(data))  # which lets go of the GIL

    def is_as_in_file(self) -> bool:
        """Tell that this process has written nothing into a mapping that is not shared.

        ``False`` also where the kernel does not tell (before Linux 6.7).
        """
        page, region = mmap.PAGESIZE, _PageRegion()
        request = _PagemapScan(
            size=ctypes.sizeof(_PagemapScan),
            start=self.address,
            end=self.address + (self.size + page - 1) // page * page,
            vec=ctypes.addressof(region),
            vec_len=1,
            max_pages=1,
            # What is in memory (or swapped out) and is not the file's.
            category_inverted=_PAGE_IS_FILE,
            category_mask=_PAGE_IS_FILE,
            category_anyof_mask=_PAGE_IS_PRESENT | _PAGE_IS_SWAPPED,
            return_mask=_PAGE_IS_FILE,
        )
        with contextlib.suppress(OSError):
            # Opened each time: the descriptor would be about the parent's memory after a fork.
            pagemap = os.open("/proc/self/pagemap", os.O_RDONLY | os.O_CLOEXEC)
            try:
                return bool(_ioctl(pagemap, _PAGEMAP_SCAN, ctypes.addressof(request)) == 0)
            finally:
                os.close(pagemap)
        return False

    def close(self) -> None:
        """Take the memory away; whoever still reads it crashes. Closing twice is fine."""
        address, self.address = self.address, 0
        if address:
            _munmap(address, self.size)


def _map(
    size: int, flags: int, descriptor: int, start: int | None = None, protection: int = _PROTECTION
) -> int:
    address: int | None = _mmap(start, size, protection, flags, descriptor, 0)
    if address is None or address == _FAILED:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return address


def _map_aligned(size: int, flags: int, descriptor: int) -> int:
    """Map a file where large pages of it can be entered as such; the kernel does not see to it."""
    whole = mmap.PAGESIZE * -(-size // mmap.PAGESIZE)
    reserve = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
    room = _map(whole + LARGE_PAGE, reserve, -1, protection=_PROT_NONE)
    start = LARGE_PAGE * -(-room // LARGE_PAGE)
    try:
        address = _map(size, flags | _MAP_FIXED, descriptor, start)
    except OSError:
        _munmap(room, whole + LARGE_PAGE)
        raise
    if start > room:
        _munmap(room, start - room)
    _munmap(start + whole, room + LARGE_PAGE - start)
    return address


class _PyBuffer(ctypes.Structure):
    """``Py_buffer``, as in CPython's stable interface."""

    _fields_: ClassVar[Any] = [
        ("buf", ctypes.c_void_p),
        ("obj", ctypes.c_void_p),
        ("len", ctypes.c_ssize_t),
        ("itemsize", ctypes.c_ssize_t),
        ("readonly", ctypes.c_int),
        ("ndim", ctypes.c_int),
        ("format", ctypes.c_char_p),
        ("shape", ctypes.c_void_p),
        ("strides", ctypes.c_void_p),
        ("suboffsets", ctypes.c_void_p),
        ("internal", ctypes.c_void_p),
    ]


class Address:
    """Where the bytes of a buffer are, for as long as the context lasts; read-only ones, too."""

    def __init__(self, data: bytes | memoryview) -> None:
        self._data = data
        self._buffer = _PyBuffer()

    def __enter__(self) -> int:
        # 0 is PyBUF_SIMPLE: bytes in a row.
        _get_buffer(self._data, ctypes.byref(self._buffer), 0)
        return int(self._buffer.buf)

    def __exit__(self, *_: object) -> None:
        _release_buffer(ctypes.byref(self._buffer))


_get_buffer = ctypes.pythonapi.PyObject_GetBuffer
_get_buffer.argtypes = (ctypes.py_object, ctypes.c_void_p, ctypes.c_int)
_release_buffer = ctypes.pythonapi.PyBuffer_Release
_release_buffer.argtypes = (ctypes.c_void_p,)
_release_buffer.restype = None


class _PagemapScan(ctypes.Structure):
    """``struct pm_scan_arg`` of linux/fs.h; see PAGEMAP_SCAN in the kernel's pagemap.rst."""

    _fields_: ClassVar[Any] = [
        (name, ctypes.c_uint64)
        for name in (
            "size",
            "flags",
            "start",
            "end",
            "walk_end",
            "vec",
            "vec_len",
            "max_pages",
            "category_inverted",
            "category_mask",
            "category_anyof_mask",
            "return_mask",
        )
    ]


class _PageRegion(ctypes.Structure):
    _fields_: ClassVar[Any] = [
        ("start", ctypes.c_uint64),
        ("end", ctypes.c_uint64),
        ("categories", ctypes.c_uint64),
    ]


# From Linux 5.14 and 6.1 on.
_MADV_POPULATE_READ = 22
_MADV_COLLAPSE = 25

_PAGEMAP_SCAN = 0xC0606610
_PAGE_IS_FILE, _PAGE_IS_PRESENT, _PAGE_IS_SWAPPED = 1 << 2, 1 << 3, 1 << 4
