"""Files of a bundle, each opened once: the bytes that are hashed are the bytes that are used.

A file that is hashed by its path and then loaded by its path can be another one the second time. So
a file is opened once, and what is read from its descriptor is hashed on the way. Whoever replaces,
changes or deletes the file meanwhile causes an error, or nothing at all.
"""

from __future__ import annotations

import hashlib
import os
import stat
import weakref
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from hybrid_deploy.bundle.hash_cache import HashCache
from hybrid_deploy.bundle.manifest import FileRecord
from hybrid_deploy.errors import BundleError

_CHUNK_BYTES = 1 << 18  # stays in the cache of a core between reading, hashing and copying
_REMEDY = "copy the bundle again"
_OPEN_FLAGS = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOFOLLOW", 0)
_OPEN_FLAGS |= getattr(os, "O_NONBLOCK", 0)  # a named pipe without a writer would block
_OPEN_FLAGS |= getattr(os, "O_BINARY", 0)


class BundleFile:
    """One file, open for reading; closed when it is no longer used.

    Attributes:
        path: path that it was opened by, for messages.
        size_bytes: size of the file.

    Args:
        folder: folder of the bundle.
        name: path of the file, relative to the folder.
        expected: size and hash from the manifest; None for a file that this process wrote itself
            and that no manifest lists.
        hashes: hashes that were checked before; None hashes the file at every reading.

    Raises:
        BundleError: the file is missing, is no file, or has another size than expected.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        expected: FileRecord | None,
        hashes: HashCache | None = None,
    ) -> None:
        self.path = folder / name
        self._folder, self._name = folder, name
        self._expected, self._hashes = expected, hashes
        try:
            self._descriptor = os.open(self.path, _OPEN_FLAGS)
        except OSError as error:
            raise self._missing(error) from error
        self._close = weakref.finalize(self, os.close, self._descriptor)
        status = os.fstat(self._descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise self._missing(None)
        self.size_bytes = status.st_size
        if expected is not None and expected.size_bytes != self.size_bytes:
            raise self._changed()

    def read(self) -> bytes:
        """Returns the content of the file.

        Raises:
            BundleError: the content is not the expected one.
        """
        content = bytearray()
        self._read(content.extend)
        return bytes(content)

    def read_into(self, buffer: memoryview) -> None:
        """Reads the content of the file into a buffer of `size_bytes`.

        Raises:
            BundleError: the content is not the expected one; the buffer must not be used.
        """
        filled = 0

        def append(chunk: memoryview) -> None:
            nonlocal filled
            buffer[filled : filled + len(chunk)] = chunk
            filled += len(chunk)

        self._read(append)

    def copy_to(self, path: Path, mode: int = 0o600) -> None:
        """Writes the content to a new file.

        Args:
            path: path of the file, which does not exist.
            mode: permissions of the file, less those that the umask takes; only this user can read
                it by default.

        Raises:
            BundleError: the content is not the expected one; the copy must not be used.
            OSError: the copy cannot be written, for want of space for example.
        """
        copy = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with os.fdopen(copy, "wb") as file:  # buffered: a full disk takes a part of a chunk first
            self._read(file.write)

    def check(self) -> None:
        """Checks the content of the file, unless it was checked before and has not changed since.

        Raises:
            BundleError: the content is not the expected one.
        """
        if self._expected is not None and not self._is_known(os.fstat(self._descriptor)):
            self._read(lambda chunk: None)

    def close(self) -> None:
        """Closes the file."""
        self._close()

    def _read(self, consume: Callable[[memoryview], object]) -> None:
        """Reads and hashes the file from its descriptor; the bytes that `consume` gets are hashed.

        The hash of an unchanged file is known, so that its bytes are only read.
        """
        before = os.fstat(self._descriptor)
        digest = None if self._expected is None or self._is_known(before) else hashlib.sha256()
        buffer = memoryview(bytearray(min(_CHUNK_BYTES, self.size_bytes)))
        for start in range(0, self.size_bytes, _CHUNK_BYTES):
            chunk = buffer[: self.size_bytes - start]
            if os.preadv(self._descriptor, [chunk], start) != len(chunk):
                raise self._changed()
            if digest is not None:
                digest.update(chunk)
            consume(chunk)
        self._verify(before, None if digest is None else digest.hexdigest())

    def _verify(self, before: os.stat_result, sha256: str | None) -> None:
        """Checks the hash of what was read, or that a file of known hash stayed unchanged."""
        if self._expected is None:
            return
        if sha256 is None:
            if not self._is_known(os.fstat(self._descriptor)):
                raise self._changed()
        elif sha256 != self._expected.sha256:
            raise self._changed()
        elif self._hashes is not None:
            self._hashes.remember(self._name, sha256, before, os.fstat(self._descriptor))

    def _is_known(self, status: os.stat_result) -> bool:
        if self._hashes is None or self._expected is None:
            return False
        return self._hashes.sha256(self._name, status) == self._expected.sha256

    def _missing(self, error: OSError | None) -> BundleError:
        reason = "missing" if isinstance(error, (FileNotFoundError, NotADirectoryError)) else None
        reason = reason or (f"not readable ({error.strerror})" if error else "no file")
        return BundleError(f"{self._folder} is incomplete: {self._name} is {reason}; {_REMEDY}")

    def _changed(self) -> BundleError:
        return BundleError(f"{self._folder} is damaged: {self._name} was changed; {_REMEDY}")


def read_small_file(folder: Path, name: str, max_bytes: int) -> bytes:
    """Returns the content of a file that no manifest lists, without following a link.

    Args:
        folder: folder of the file.
        name: name of the file.
        max_bytes: most that is read.

    Raises:
        BundleError: the file is missing, is a link or no file, or is larger.
    """
    if (folder / name).is_symlink():
        raise BundleError(f"{folder / name} is a link, a file was expected; {_REMEDY}")
    with closing(BundleFile(folder, name, None)) as file:
        if file.size_bytes > max_bytes:
            raise BundleError(
                f"{folder / name} is damaged: it has {file.size_bytes} bytes, at most {max_bytes} "
                f"are read of it; {_REMEDY}"
            )
        return file.read()
