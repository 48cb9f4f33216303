"""Seals: how a store tells that an object is what was stored, before anything is unpickled.

A seal holds a secret of one session. Whoever stores an object makes a digest of its key, its frames
and their lengths with that secret; the digest travels in the object's reference. Whoever fetches
the object makes the digest again. Only who knows the secret can make one, and it is nowhere near
the objects:

- It is pickled with the store, hence with what an executor sends to its workers, on the base
  executor's own channel.
- It is left out where a store is pickled into something that may be stored itself. Whoever
  unpickles that has been handed the secret before, as it travels beside (see
  :class:`proxyexec._context.Stored`), or cannot use the store.

Digests are made by AES-GMAC, where the library for that is there when a store is made: it takes a
tenth of the time of hash functions, or less. It needs a *nonce* for each, a number that is never
used twice with a secret, which is a part of the digest. Without the library, HMAC-SHA-256 of the
standard library does. Nothing here knows connectors.
"""

from __future__ import annotations

import functools
import hmac
import os
import secrets
import struct
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from proxyexec_connectors._layout import flatten
from proxyexec_connectors.errors import MissingExtraError

from proxyexec._proxy import embed_store, is_embedding
from proxyexec.errors import CorruptObjectError, IntegrityError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM
    from proxyexec_connectors.protocol import Frames

    from proxyexec._proxy import Reference

__all__ = ["Seal", "handed_seal", "untouched", "verified"]

_SECRET_BYTES = 32
_TAG_BYTES = 16

# Made up at random: with 2 ** 32 objects in one session, two have the same with a chance of one in
# 2 ** 33.
_NONCE_BYTES = 12

# Setting up takes longer than joining frames of so many bytes does, for which it is done once.
_JOINED_BYTES = 1 << 14

# OpenSSL counts in integers of 32 bits.
_AT_ONCE = 1 << 26

# Secrets of so many sessions are remembered, those last handed to this process.
_HANDED_AT_MOST = 1024

_GMAC, _HMAC = "AES-GMAC", "HMAC-SHA-256"


class Seal:
    """What makes and checks the digests of one session.

    Args:
        address: of the session.
        url: of its place, for messages.
        method: what makes digests.
        secret: known to whoever may; ``None`` in a process that has not been handed it.
    """

    __slots__ = ("_secret", "address", "method", "url")

    def __init__(self, address: str, url: str, method: str, secret: bytes | None) -> None:
        self.address = address
        self.url = url
        self.method = method
        self._secret = secret

    @classmethod
    def new(cls, address: str, url: str) -> Seal:
        """Make up the secret of a new session."""
        method = _HMAC if find_spec("cryptography") is None else _GMAC
        return cls(address, url, method, secrets.token_bytes(_SECRET_BYTES))

    def __reduce__(self) -> tuple[Any, ...]:
        secret = self._secret
        if is_embedding():
            embed_store(self.address)
            secret = None
        return _arrived, (self.address, self.url, self.method, secret)

    def __repr__(self) -> str:
        return f"Seal({self.address!r})"  # never the secret

    def digest(self, key: str, frames: Frames) -> bytes:
        """Make the digest of the object that is, or is going to be, stored under ``key``.

        Raises:
            IntegrityError: this process does not know the secret.
            MissingExtraError: what makes the session's digests is not installed here.
        """
        nonce = secrets.token_bytes(_NONCE_BYTES)
        return nonce + self._tag(key, frames, nonce)

    def fits(self, reference: Reference, frames: Frames) -> bool:
        """Tell whether ``frames`` are what was stored when a reference was made.

        Raises what :meth:`digest` does.
        """
        digest = reference.digest
        if len(digest) != _NONCE_BYTES + _TAG_BYTES:
            return False
        tag = self._tag(reference.key, frames, digest[:_NONCE_BYTES])
        return hmac.compare_digest(tag, digest[_NONCE_BYTES:])

    def _tag(self, key: str, frames: Frames, nonce: bytes) -> bytes:
        secret = self._secret
        if secret is None:
            handed = handed_seal(self.address)
            if handed is None or handed._secret is None:
                raise IntegrityError(key, self.url, _NOT_HANDED)
            secret = self._secret = handed._secret
        views = [flatten(frame) for frame in frames]
        name = key.encode("utf-8", "surrogatepass")
        # With all lengths, so that bytes cannot move from one frame, or from the key, to the next.
        lengths = [len(name), *[view.nbytes for view in views]]
        head = struct.pack(f"<Q{len(lengths)}Q", len(lengths), *lengths) + name
        return _METHODS[self.method](secret, nonce, head, views)


def verified(
    reference: Reference, url: str, seal: Seal | None, get: Callable[[str], Frames | None]
) -> Frames | None:
    """Return the frames that a reference leads to, if they are what was stored.

    Args:
        reference: the reference.
        url: of its store's place, for messages.
        seal: the store's; ``None`` if it has none that this process knows of.
        get: returns what is stored under a key.

    Raises:
        IntegrityError: they are not, or nobody can tell.
    """
    key = reference.key
    if seal is None:
        raise IntegrityError(key, url, _NOT_HANDED)
    if not reference.digest:
        raise IntegrityError(key, url, "its reference carries no digest, as all of this store do")
    try:
        frames = get(key)
    except CorruptObjectError as error:
        raise IntegrityError(key, url, f"it is not what was stored: {error.reason}") from error
    if frames is not None and not seal.fits(reference, frames):
        raise IntegrityError(key, url, "it is not what was stored: its digest is another")
    return frames


def untouched(
    url: str, seal: Seal | None, get: Callable[[str], Frames | None]
) -> Callable[[Reference], Frames | None]:
    """Return a function that gets what a reference leads to, to compare it; see :func:`verified`.

    What was tampered with is the same as nothing. A store without a seal cannot tell.
    """
    if seal is None:
        return lambda reference: get(reference.key)

    def get_untouched(reference: Reference) -> Frames | None:
        try:
            return verified(reference, url, seal, get)
        except IntegrityError:
            return None

    return get_untouched


def handed_seal(address: str) -> Seal | None:
    """Return the seal of a session, if this process was handed its secret."""
    return _handed.get(address)


def _arrived(address: str, url: str, method: str, secret: bytes | None) -> Seal:
    """Unpickle a seal, and remember its secret for what comes without."""
    seal = Seal(address, url, method, secret)
    if secret is not None:
        with _handed_lock:
            _handed[address] = seal
            _handed.move_to_end(address)
            while len(_handed) > _HANDED_AT_MOST:
                _handed.popitem(last=False)
    return seal


def _by_gmac(secret: bytes, nonce: bytes, head: bytes, views: Sequence[memoryview]) -> bytes:
    if sum(view.nbytes for view in views) <= _JOINED_BYTES:
        return _aes_gcm(secret).encrypt(nonce, b"", b"".join((head, *views)))
    _aes_gcm(secret)  # says it if there is no library
    from cryptography.hazmat.primitives.ciphers import (  # noqa: PLC0415 - not everywhere
        Cipher,
        algorithms,
        modes,
    )

    state = Cipher(algorithms.AES(secret), modes.GCM(nonce)).encryptor()
    state.authenticate_additional_data(head)
    for view in views:
        for start in range(0, view.nbytes, _AT_ONCE):
            state.authenticate_additional_data(view[start : start + _AT_ONCE])
    state.finalize()  # there is nothing to encrypt
    return state.tag


@functools.lru_cache(maxsize=64)
def _aes_gcm(secret: bytes) -> AESGCM:
    try:
        from cryptography.hazmat.primitives.ciphers.aead import (  # noqa: PLC0415 - not everywhere
            AESGCM,
        )
    except ImportError as missing:
        raise MissingExtraError("a store that was made with AES-GMAC", "redis") from missing
    return AESGCM(secret)


def _by_hmac(secret: bytes, nonce: bytes, head: bytes, views: Sequence[memoryview]) -> bytes:
    state = hmac.new(secret, nonce + head, "sha256")
    for view in views:
        state.update(view)
    return state.digest()[:_TAG_BYTES]


_METHODS: dict[str, Callable[[bytes, bytes, bytes, Sequence[memoryview]], bytes]] = {
    _GMAC: _by_gmac,
    _HMAC: _by_hmac,
}

_NOT_HANDED = (
    "this process cannot verify it, for it was not handed the store's secret; the secret travels "
    "with the store: send the store itself, or an executor's task, to the process"
)

_handed: OrderedDict[str, Seal] = OrderedDict()
_handed_lock = threading.Lock()


def _after_fork() -> None:
    global _handed_lock
    _handed_lock = threading.Lock()


os.register_at_fork(after_in_child=_after_fork)
