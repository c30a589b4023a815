"""Data files with pinned sizes and checksums, the places where they are looked for, and their mirrors.

Files are looked for in this order: in the folder that is given or named by LANDSCAPE_DATA, in torchvision's layout; in
the cache; on the mirrors, which fill the cache. A file of another size or checksum is never used.
"""

import errno
import gzip
import hashlib
import io
import os
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pooch

from landscape.files import atomic

VARIABLE = "LANDSCAPE_DATA"
TIMEOUT = (10.0, 30.0)  # seconds: to connect, between two packets
CHUNK = 2**16  # bytes; what a broken transfer may lose
ATTEMPTS = 5  # from one mirror, each going on where the last one broke off
REASONS = {"ConnectionError": "no connection, or lost", "ConnectTimeout": "no connection", "ReadTimeout": "no answer"}
OWN_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS)


class Pinned(NamedTuple):
    """A file: its path under the data root, its size in bytes and its sha256 (hex)."""

    path: str
    size: int
    sha256: str


class Source(NamedTuple):
    """The files of a data set and where they come from.

    Attributes:
        files: As they are fetched.
        mirrors: Addresses of folders, fastest first, official last.
        unpacked: What may stand in place of `files`, in the same order; () for nothing.
        archive: The tar file that is fetched instead of `files` and contains them.
    """

    files: tuple[Pinned, ...]
    mirrors: tuple[str, ...]
    unpacked: tuple[Pinned, ...] = ()
    archive: Pinned | None = None


class Located(NamedTuple):
    """A file that is there: the data set, the data root, and which file under it."""

    name: str
    root: Path
    pinned: Pinned


def _pins(folder: str, table: str) -> tuple[Pinned, ...]:
    rows = [line.split() for line in table.strip().splitlines()]
    return tuple(Pinned(folder + name, int(size), sha256) for name, size, sha256 in rows)


SOURCES = {
    "mnist": Source(
        files=_pins(
            "MNIST/raw/",
            """
            train-images-idx3-ubyte.gz 9912422 440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609
            train-labels-idx1-ubyte.gz 28881 3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c
            t10k-images-idx3-ubyte.gz 1648877 8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6
            t10k-labels-idx1-ubyte.gz 4542 f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6
            """,
        ),
        unpacked=_pins(
            "MNIST/raw/",
            """
            train-images-idx3-ubyte 47040016 ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db
            train-labels-idx1-ubyte 60008 65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5
            t10k-images-idx3-ubyte 7840016 0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7
            t10k-labels-idx1-ubyte 10008 ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2
            """,
        ),
        mirrors=(
            "https://ossci-datasets.s3.amazonaws.com/mnist/",
            "https://storage.googleapis.com/cvdf-datasets/mnist/",
        ),
    ),
    "cifar10": Source(
        files=_pins(
            "cifar-10-batches-py/",
            """
            data_batch_1 31035704 54636561a3ce25bd3e19253c6b0d8538147b0ae398331ac4a2d86c6d987368cd
            data_batch_2 31035320 766b2cef9fbc745cf056b3152224f7cf77163b330ea9a15f9392beb8b89bc5a8
            data_batch_3 31035999 0f00d98ebfb30b3ec0ad19f9756dc2630b89003e10525f5e148445e82aa6a1f9
            data_batch_4 31035696 3f7bb240661948b8f4d53e36ec720d8306f5668bd0071dcb4e6c947f78e9682b
            data_batch_5 31035623 d91802434d8376bbaeeadf58a737e3a1b12ac839077e931237e0dcd43adcb154
            test_batch 31035526 f53d8d457504f7cff4ea9e021afcf0e0ad8e24a91f3fc42091b8adef61157831
            batches.meta 158 f962466ef690d46b226450fb9aadc74ba4bc64a76aa526b5827fe4bc5c7125cb
            """,
        ),
        mirrors=("https://www.cs.toronto.edu/~kriz/",),
        archive=Pinned(
            "cifar-10-python.tar.gz", 170498071, "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce"
        ),
    ),
}


def data_folder(root: Path | str | None = None) -> Path:
    """The folder given, else that of LANDSCAPE_DATA, else the cache."""
    return Path(root or os.environ.get(VARIABLE) or pooch.os_cache("landscape"))


def find(name: str, wanted: Sequence[str], root: Path | str | None = None) -> list[Located]:
    """The wanted files of a data set, from the folder given, the cache or the mirrors.

    The sizes of all its files that are there are checked at once, the checksum of each when it is read. A folder that
    holds one of the files is taken for the copy to use: what it lacks is not looked for elsewhere.

    Args:
        name: "mnist" or "cifar10".
        wanted: Paths from `SOURCES[name].files`.
        root: The data root; LANDSCAPE_DATA when None.

    Raises:
        FileNotFoundError: A wanted file is nowhere to be had; names files, sizes, addresses and the variable.
        ValueError: A file has the wrong size.
    """
    given = root or os.environ.get(VARIABLE)
    if given and not Path(given).is_dir():
        raise FileNotFoundError(
            f"there is no folder {given} (from --data-root or {VARIABLE}).\n"
            f"  Name the folder that holds {wanted[0]}, or give neither to use the cache."
        )
    if given and _there(name, Path(given)):
        return _pick(name, wanted, Path(given))
    cache = Path(pooch.os_cache("landscape"))
    there = _there(name, cache)
    if not there.keys() >= set(wanted) or any(_size(cache / pinned.path) != pinned.size for pinned in there.values()):
        _fill(name, wanted, cache, given)
    return _pick(name, wanted, cache)


def read(file: Located, count: int | None = None) -> bytes:
    """The content of a file, unpacked; its checksum is compared before a byte of it is used.

    Args:
        file: From `find`.
        count: Unpack only so many bytes.

    Raises:
        ValueError: The file does not have its pinned checksum.
    """
    content = (file.root / file.pinned.path).read_bytes()
    if hashlib.sha256(content).hexdigest() != file.pinned.sha256:
        raise ValueError(_complaint(file))
    if not file.pinned.path.endswith(".gz"):
        return content[:count]
    with gzip.open(io.BytesIO(content)) as stream:
        return stream.read(-1 if count is None else count)


def verify(name: str, root: Path | str | None = None) -> list[Path]:
    """The files of a data set, each there (packed or not) with its pinned size and checksum.

    Args:
        name: "mnist" or "cifar10".
        root: The data root; LANDSCAPE_DATA, else the cache, when None.

    Raises:
        ValueError: A file is missing or differs; the message names all of them.
    """
    folder = data_folder(root)
    there = _there(name, folder)
    files = [there.get(pinned.path, pinned) for pinned in _source(name).files]
    wrong = [text for pinned in files if (text := _difference(folder, pinned))]
    if wrong:
        raise ValueError(f"{'; '.join(wrong)}.\n  Fetch again with `landscape data fetch {name} --data-root {folder}`.")
    return [folder / pinned.path for pinned in files]


def fetch(name: str, folder: Path | str | None = None, *, progress: bool = True) -> list[Path]:
    """Download a data set into a folder in torchvision's layout; files that are there and right are left alone.

    A broken transfer goes on where it stopped, now or in the next call.

    Args:
        name: "mnist" or "cifar10".
        folder: The data root; LANDSCAPE_DATA, else the cache, when None.
        progress: Say what is fetched from where, with a bar on a terminal or in a notebook.

    Raises:
        ConnectionError: No mirror gave a file with the pinned checksum; names each address and what happened there.
        OSError: The folder cannot be written or the disk is full.
    """
    source, folder = _source(name), data_folder(folder)
    there = _there(name, folder)
    lacking = [pinned for pinned in source.files if _difference(folder, there.get(pinned.path, pinned))]
    if lacking and source.archive:
        _download(source.archive, source.mirrors, folder, progress)
        _unpack(folder / source.archive.path, lacking, folder)
    elif lacking:
        for pinned in lacking:
            _download(pinned, source.mirrors, folder, progress)
    return verify(name, folder)


class _Resuming(NamedTuple):
    """A downloader for pooch that keeps received bytes in `part` and asks a mirror only for the rest."""

    part: Path
    size: int
    progress: bool

    def __call__(self, url: str, output_file: str, _: object) -> None:
        start = _size(self.part)
        headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={start}-"} if start else {})
        download = pooch.HTTPDownloader(self.progress and _watched(), CHUNK, headers=headers, timeout=TIMEOUT)
        if start < self.size:
            with open(self.part, "ab") as file:
                download(url, file, None)
        arrived = _size(self.part)
        if arrived < self.size:
            raise EOFError(f"ended after {arrived:,} of {self.size:,} bytes")
        os.replace(self.part, output_file)


def _download(pinned: Pinned, mirrors: Sequence[str], folder: Path, progress: bool) -> None:
    target, happened = folder / pinned.path, []
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.part")
    download = _Resuming(part, pinned.size, progress)
    for url in (mirror + target.name for mirror in mirrors):
        for _ in range(ATTEMPTS):
            before = _size(part)
            try:
                return _retrieve(url, pinned, target, download)
            except (OSError, ValueError, EOFError) as error:
                if isinstance(error, OSError) and error.errno in OWN_DISK:
                    raise
                reason = _reason(error)
            if _size(part) == before:  # otherwise more arrived, or a bad beginning was thrown away
                break
        happened.append(f"{url} ({reason})")
    raise ConnectionError(f"{pinned.path} ({pinned.size:,} bytes) could not be fetched: {'; '.join(happened)}")


def _watched() -> bool:
    return sys.stderr.isatty() or "ipykernel" in sys.modules


def _reason(error: Exception) -> str:
    """The cause of a failed transfer in a few words."""
    answer = getattr(error, "response", None)
    if answer is not None:
        return f"{answer.status_code} {answer.reason}"
    if isinstance(error, ValueError):
        return "wrong checksum"
    return str(error) if isinstance(error, EOFError) else REASONS.get(type(error).__name__, type(error).__name__)


def _retrieve(url: str, pinned: Pinned, target: Path, download: Any) -> None:
    """Call pooch.retrieve without its log lines."""
    log = pooch.get_logger()
    level = log.level
    log.setLevel(level if download.progress else "WARNING")
    try:
        pooch.retrieve(url, f"sha256:{pinned.sha256}", target.name, target.parent, downloader=download)
    finally:
        log.setLevel(level)


def _unpack(archive: Path, files: Sequence[Pinned], folder: Path) -> None:
    """Take the named files out of a tar file whose checksum was right, then remove it."""
    wanted = {pinned.path for pinned in files}
    with tarfile.open(archive) as tar:
        for member in tar:
            if member.name in wanted and (stream := tar.extractfile(member)):
                content = stream.read()
                atomic.write_atomic(folder / member.name, lambda path, content=content: path.write_bytes(content))
    archive.unlink()


def _fill(name: str, wanted: Sequence[str], cache: Path, given: Path | str | None) -> None:
    """Fetch into the cache, or say everything a person needs to find the files."""
    try:
        fetch(name, cache)
    except ConnectionError as error:
        sizes = {pinned.path: pinned.size for pinned in _source(name).files}
        files = ", ".join(f"{path} ({sizes[path]:,} bytes)" for path in wanted)
        raise FileNotFoundError(
            f"{name} is neither in {given or f'{VARIABLE} (not set)'} nor in {cache}; {error}.\n"
            f"  Wanted: {files}.\n"
            f"  Run `landscape data fetch {name} --data-root DIR` where there is a network, then set {VARIABLE}=DIR."
        ) from error


def _source(name: str) -> Source:
    if name not in SOURCES:
        raise ValueError(f"there is no data set {name!r}; there are {', '.join(SOURCES)}.")
    return SOURCES[name]


def _there(name: str, root: Path) -> dict[str, Pinned]:
    """Path of each file that is there, packed -> what stands for it."""
    source = _source(name)
    pairs = zip(source.files, source.unpacked or source.files, strict=True)
    chosen = {packed.path: [p for p in (packed, plain) if (root / p.path).is_file()] for packed, plain in pairs}
    return {path: found[0] for path, found in chosen.items() if found}


def _pick(name: str, wanted: Sequence[str], root: Path) -> list[Located]:
    there = _there(name, root)
    for pinned in there.values():
        if _size(root / pinned.path) != pinned.size:
            raise ValueError(_complaint(Located(name, root, pinned)))
    for pinned in _source(name).files:
        if pinned.path in wanted and pinned.path not in there:
            raise FileNotFoundError(_complaint(Located(name, root, pinned)))
    return [Located(name, root, there[path]) for path in wanted]


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _difference(root: Path, pinned: Pinned) -> str:
    """The fault of a file in words; empty if it exists with its size and checksum."""
    path = root / pinned.path
    if not path.is_file():
        return f"{pinned.path} is missing in {root} (wanted {pinned.size:,} bytes)"
    if _size(path) != pinned.size:
        return f"{pinned.path} has {_size(path):,} bytes; wanted {pinned.size:,}"
    with open(path, "rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    return "" if found == pinned.sha256 else f"{pinned.path} has sha256 {found[:12]}…; wanted {pinned.sha256[:12]}…"


def _complaint(file: Located) -> str:
    return (
        f"{_difference(file.root, file.pinned)}.\n"
        f"  Fetch it again with `landscape data fetch {file.name}`, or point --data-root at a complete copy."
    )
