"""Locks between processes, on one machine or over a shared folder, that end when their process dies."""

import contextlib
import errno
import fcntl
import os
import struct
from collections.abc import Iterator
from pathlib import Path

from zskd_fast.errors import InputError

LOCK_NAME = ".lock"
_BUSY = (errno.EAGAIN, errno.EACCES)
_NOT_SUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


@contextlib.contextmanager
def locked(path: Path, byte: int = 0, *, wait: bool = False) -> Iterator[bool]:
    """Hold the lock on one byte of a file while the context is active; the file is created if needed and stays empty.

    Yields True with the lock. Yields False, without it, if another holder has it and ``wait`` is not set. This is an
    open file description lock: it excludes threads too, no other handle of the process on the file releases it, and
    the kernel releases it when its holder dies. Children that are forked while it is held keep it. Over NFS it works
    where byte-range locks work. Raises InputError if the file system has no locks.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        yield _acquire(descriptor, byte, wait, path)
    finally:
        os.close(descriptor)


def _acquire(descriptor: int, byte: int, wait: bool, path: Path) -> bool:
    # struct flock: type, whence, start, length and process id, which must be 0.
    request = struct.pack("hhqqi", fcntl.F_WRLCK, os.SEEK_SET, byte, 1, 0)
    try:
        fcntl.fcntl(descriptor, fcntl.F_OFD_SETLKW if wait else fcntl.F_OFD_SETLK, request)
    except OSError as error:
        if error.errno in _NOT_SUPPORTED:
            raise InputError(f"the file system of {path} has no locks; choose another folder") from error
        if error.errno in _BUSY and not wait:
            return False
        raise
    return True
