"""A whole file as private, writable memory: mapped copy-on-write, with no descriptor kept.

Before Python 3.13, :mod:`mmap` keeps a duplicate of the file descriptor for as long as the
mapping lives, so that a list of a thousand results would exhaust the process's descriptors.
There, anonymous memory is mapped by :mod:`mmap`, which thereby looks after its lifetime, and
the file is mapped over it.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import sys

__all__ = ["map_private"]

if sys.version_info >= (3, 13):

    def map_private(descriptor: int, size: int) -> mmap.mmap:
        """Map the first ``size`` bytes; writes stay with the mapping's holder.

        Raises:
            OSError: the process has as many mappings as it may have.
        """
        return mmap.mmap(descriptor, size, access=mmap.ACCESS_COPY, trackfd=False)

else:
    _MAP_FIXED = 0x10
    _FAILED = ctypes.c_void_p(-1).value
    _mmap = ctypes.CDLL(None, use_errno=True).mmap
    _mmap.restype = ctypes.c_void_p
    _mmap.argtypes = (
        ctypes.c_void_p,
        ctypes.c_size_t,
        ctypes.c_int,
        ctypes.c_int,
        ctypes.c_int,
        ctypes.c_long,
    )
    _PROTECTION = mmap.PROT_READ | mmap.PROT_WRITE

    def map_private(descriptor: int, size: int) -> mmap.mmap:
        """Map the first ``size`` bytes; writes stay with the mapping's holder.

        Raises:
            OSError: the process has as many mappings as it may have.
        """
        memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, prot=_PROTECTION)
        start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        flags = mmap.MAP_PRIVATE | _MAP_FIXED
        if _mmap(start, size, _PROTECTION, flags, descriptor, 0) == _FAILED:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))
        return memory
