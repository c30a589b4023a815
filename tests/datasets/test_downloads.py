"""Look-up order, pinned checksums, and transfers from a server on this machine that breaks in every usual way."""

import errno
import gzip
import hashlib
import io
import os
import shutil
import socket
import tarfile
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import seeds

from landscape import datasets
from landscape.datasets import downloads
from landscape.datasets.downloads import Pinned, Source


class Server(ThreadingHTTPServer):
    """Serves `content` (name -> bytes); `asked` lists (name, Range); `faults` (name -> list) are used up in turn."""

    daemon_threads = True

    def __init__(self, content):
        super().__init__(("127.0.0.1", 0), Handler)
        self.content, self.faults, self.asked = dict(content), {}, []

    @property
    def address(self):
        return f"http://127.0.0.1:{self.server_port}/"


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_GET(self):
        name, wanted = self.path[1:], self.headers.get("Range")
        self.server.asked.append((name, wanted))
        fault = self.server.faults.get(name, [])
        fault = fault.pop(0) if fault else ""
        content = self.server.content.get(name)
        if fault == "404" or content is None:
            return self.send_error(404)
        content = bytes(len(content)) if fault == "wrong" else content
        start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted and fault != "whole" else 0
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        body = content[start:]
        if fault == "truncated":
            body = body[: len(body) // 2]
        if fault == "slow":
            time.sleep(2)
        try:
            self.wfile.write(body)
        except (BrokenPipeError, ConnectionResetError):
            return None
        return None


def starts(server, name):
    """The first byte of each request for a file."""
    return [int(wanted[len("bytes=") : -1]) if wanted else 0 for asked, wanted in server.asked if asked == name]


@contextmanager
def serving(content):
    server = Server(content)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def pin(path, content):
    return Pinned(path, len(content), hashlib.sha256(content).hexdigest())


def digits(count=12):
    """The four files of a small MNIST, packed, by name."""
    rng = seeds.generator()
    files = {}
    for part in ("train", "t10k"):
        files[f"{part}-images-idx3-ubyte"] = bytes(16) + rng.integers(0, 256, 784 * count, np.uint8).tobytes()
        files[f"{part}-labels-idx1-ubyte"] = bytes(8) + rng.integers(0, 10, count, np.uint8).tobytes()
    return files


@pytest.fixture
def source(monkeypatch, tmp_path):
    """Two servers with a small MNIST pinned in place of the real one, an empty cache, no folder in the environment."""
    plain = digits()
    packed = {f"{name}.gz": gzip.compress(content) for name, content in plain.items()}
    monkeypatch.delenv(downloads.VARIABLE, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(downloads, "TIMEOUT", (1.0, 0.4))
    monkeypatch.setattr(downloads, "CHUNK", 256)
    with serving(packed) as first, serving(packed) as second:
        small = Source(
            files=tuple(pin(f"MNIST/raw/{name}", content) for name, content in packed.items()),
            mirrors=(first.address, second.address),
            unpacked=tuple(pin(f"MNIST/raw/{name}", content) for name, content in plain.items()),
        )
        monkeypatch.setitem(downloads.SOURCES, "mnist", small)
        yield Here(packed, plain, first, second, tmp_path)


class Here:
    def __init__(self, packed, plain, first, second, folder):
        self.packed, self.plain, self.first, self.second = packed, plain, first, second
        self.root, self.cache = folder / "root", folder / "cache" / "landscape"
        self.name = "train-images-idx3-ubyte.gz"

    def put(self, root, files):
        (root / "MNIST/raw").mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            (root / "MNIST/raw" / name).write_bytes(content)

    def asked(self):
        return len(self.first.asked) + len(self.second.asked)


# transfers -----------------------------------------------------------------------------------------------------------


def test_fetches_all_files_in_torchvisions_layout_and_leaves_nothing_else(source):
    found = downloads.fetch("mnist", source.root, progress=False)
    assert {path.name: path.read_bytes() for path in found} == source.packed
    assert sorted(path for path in source.root.rglob("*") if path.is_file()) == sorted(found)
    assert found == downloads.verify("mnist", source.root)


def test_what_is_there_and_right_is_not_fetched_again(source):
    source.put(source.root, source.packed)
    (source.root / "MNIST/raw" / source.name).write_bytes(b"damaged")
    downloads.fetch("mnist", source.root, progress=False)
    assert source.first.asked == [(source.name, None)]
    downloads.fetch("mnist", source.root, progress=False)
    assert len(source.first.asked) == 1
    source.put(other := source.root.with_name("plain"), source.plain)
    downloads.fetch("mnist", other, progress=False)
    assert source.asked() == 1


@pytest.mark.parametrize("faults", [["404"], ["wrong"], ["slow"], ["truncated", "404"], ["truncated", "slow"]])
def test_the_second_mirror_is_tried_when_the_first_fails_and_goes_on_where_it_stopped(source, faults):
    source.first.faults[source.name] = list(faults)
    found = downloads.fetch("mnist", source.root, progress=False)
    assert found[0].read_bytes() == source.packed[source.name]
    assert starts(source.first, source.name)[0] == 0
    assert len(starts(source.first, source.name)) == len(faults)
    (start,) = starts(source.second, source.name)
    assert 0.4 < start / len(source.packed[source.name]) <= 0.5 if "truncated" in faults else start == 0
    assert not starts(source.second, source.name.replace("images-idx3", "labels-idx1"))


def test_a_broken_transfer_goes_on_where_it_stopped(source):
    source.first.faults[source.name] = ["truncated", "truncated"]
    found = downloads.fetch("mnist", source.root, progress=False)
    size = len(source.packed[source.name])
    first, second, third = starts(source.first, source.name)
    assert first == 0 < second < third < size
    assert found[0].read_bytes() == source.packed[source.name]
    assert not source.second.asked


def test_a_later_call_goes_on_where_an_earlier_one_was_killed(source):
    whole = source.packed[source.name]
    source.put(source.root, {f".{source.name}.part": whole[:1000]})
    downloads.fetch("mnist", source.root, progress=False)
    assert source.first.asked[0] == (source.name, "bytes=1000-")
    assert (source.root / "MNIST/raw" / source.name).read_bytes() == whole


@pytest.mark.parametrize("beginning", ["wrong bytes", "too long", "mirror cannot resume"])
def test_a_beginning_that_cannot_be_used_is_thrown_away(source, beginning):
    whole = source.packed[source.name]
    part = {"wrong bytes": bytes(1000), "too long": whole + b"more", "mirror cannot resume": whole[:1000]}[beginning]
    source.first.faults[source.name] = ["whole", ""] if beginning == "mirror cannot resume" else []
    source.put(source.root, {f".{source.name}.part": part})
    downloads.fetch("mnist", source.root, progress=False)
    assert (source.root / "MNIST/raw" / source.name).read_bytes() == whole
    assert source.first.asked[:2][-1 if beginning != "too long" else 0] == (source.name, None)
    assert not source.second.asked


def test_when_every_mirror_fails_each_is_named_with_its_reason_and_nothing_wrong_is_kept(source):
    source.first.faults[source.name] = ["404"]
    source.second.faults[source.name] = ["wrong"]
    with pytest.raises(ConnectionError) as caught:
        downloads.fetch("mnist", source.root, progress=False)
    text = str(caught.value)
    assert f"MNIST/raw/{source.name} ({len(source.packed[source.name]):,} bytes) could not be fetched" in text
    assert f"{source.first.address}{source.name} (404" in text
    assert f"{source.second.address}{source.name} (wrong checksum)" in text
    assert len(text) < 400
    assert not [path for path in source.root.rglob("*") if path.is_file()]


def test_a_mirror_that_is_not_there_is_no_obstacle(source, monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{free.getsockname()[1]}/"
    monkeypatch.setitem(
        downloads.SOURCES, "mnist", downloads.SOURCES["mnist"]._replace(mirrors=(nobody, source.second.address))
    )
    assert len(downloads.fetch("mnist", source.root, progress=False)) == 4
    monkeypatch.setitem(downloads.SOURCES, "mnist", downloads.SOURCES["mnist"]._replace(mirrors=(nobody,)))
    with pytest.raises(ConnectionError, match=rf"{nobody}.*ubyte\.gz \(no connection, or lost\)$"):
        downloads.fetch("mnist", source.root.with_name("another"), progress=False)


def test_a_mirror_that_always_breaks_off_is_given_up(source):
    source.first.faults[source.name] = ["truncated"] * 50
    downloads.fetch("mnist", source.root, progress=False)
    assert len(starts(source.first, source.name)) == downloads.ATTEMPTS


def test_an_archive_is_unpacked_file_by_file_and_nothing_else_is(source, monkeypatch):
    files = {f"small-batches/{k}": seeds.generator().bytes(3000) for k in range(3)}
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz") as tar:
        for name, content in {**files, "../outside": b"evil", "small-batches/more": b"evil"}.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    source.first.content["small.tar.gz"] = archive.getvalue()
    small = Source(
        files=tuple(pin(name, content) for name, content in files.items()),
        mirrors=(source.first.address,),
        archive=pin("small.tar.gz", archive.getvalue()),
    )
    monkeypatch.setitem(downloads.SOURCES, "cifar10", small)
    found = downloads.fetch("cifar10", source.root, progress=False)
    assert {str(path.relative_to(source.root)): path.read_bytes() for path in found} == files
    assert sorted(p for p in source.root.parent.rglob("*") if p.is_file() and "cache" not in p.parts) == sorted(found)
    found[1].write_bytes(b"damaged")
    before = found[0].stat().st_mtime_ns
    downloads.fetch("cifar10", source.root, progress=False)
    assert found[1].read_bytes() == files["small-batches/1"]
    assert found[0].stat().st_mtime_ns == before


def test_a_full_disk_is_not_blamed_on_the_mirrors(source, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        downloads.fetch("mnist", source.root, progress=False)
    assert not source.second.asked


# look-up -------------------------------------------------------------------------------------------------------------


def test_the_folder_given_comes_first_and_no_network_is_used(source, monkeypatch):
    source.put(source.root, source.plain)
    monkeypatch.setenv(downloads.VARIABLE, str(source.root.with_name("elsewhere")))
    assert len(datasets.mnist(source.root)) == 12
    monkeypatch.setenv(downloads.VARIABLE, str(source.root))
    assert len(datasets.mnist(split="test")) == 12
    assert source.asked() == 0


def test_then_the_cache_then_the_mirrors_which_fill_it(source):
    source.root.mkdir()
    fetched = datasets.mnist(source.root, limit=5)
    assert source.asked() == 4
    assert {p.name: p.read_bytes() for p in (source.cache / "MNIST/raw").iterdir()} == source.packed
    assert datasets.mnist(source.root, limit=5).fingerprint == fetched.fingerprint
    assert datasets.mnist(limit=5).fingerprint == fetched.fingerprint
    assert source.asked() == 4


def test_a_cache_with_half_a_file_is_filled_again(source):
    source.put(source.cache, {name: content[:100] for name, content in source.packed.items()})
    assert len(datasets.mnist()) == 12


def test_when_there_are_no_data_anywhere_the_error_says_all_one_needs(source):
    for server in (source.first, source.second):
        server.content.clear()
    with pytest.raises(FileNotFoundError) as caught:
        datasets.mnist()
    text = str(caught.value)
    assert len(text.splitlines()) <= 3
    wanted = [
        source.first.address,
        source.second.address,
        "LANDSCAPE_DATA",
        str(source.cache),
        "landscape data fetch mnist",
    ]
    for name in ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"):
        wanted.append(f"MNIST/raw/{name} ({len(source.packed[name]):,} bytes)")
    assert [part for part in wanted if part not in text] == []


def test_a_folder_that_lacks_some_files_is_not_completed_from_elsewhere(source):
    source.put(source.cache, source.packed)
    source.put(source.root, {k: v for k, v in source.packed.items() if k != source.name})
    with pytest.raises(FileNotFoundError, match=rf"{source.name} is missing in {source.root}"):
        datasets.mnist(source.root)
    assert len(datasets.mnist(source.root, split="test")) == 12
    assert source.asked() == 0


def test_a_folder_that_does_not_exist_is_refused(source):
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        datasets.mnist(source.root / "typo")
    assert source.asked() == 0


# wrong files ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("files", ["packed", "plain"])
def test_a_file_of_the_wrong_size_is_refused_even_where_it_is_not_needed(source, files):
    content = getattr(source, files)
    name = next(name for name in content if name.startswith("t10k-images"))
    source.put(source.root, {**content, name: content[name][:-7]})
    size = len(content[name])
    with pytest.raises(ValueError, match=rf"MNIST/raw/{name} has {size - 7:,} bytes; wanted {size:,}\.\n"):
        datasets.mnist(source.root, limit=1)


@pytest.mark.parametrize("files", ["packed", "plain"])
@pytest.mark.parametrize("kind", ["images", "labels"])
def test_a_file_with_one_changed_bit_is_never_used(source, files, kind):
    content = getattr(source, files)
    name = next(name for name in content if name.startswith(f"train-{kind}"))
    changed = bytearray(content[name])
    seed = seeds.draw()
    changed[np.random.default_rng(seed).integers(len(changed))] ^= 1
    source.put(source.root, {**content, name: bytes(changed)})
    with pytest.raises(ValueError, match=rf"MNIST/raw/{name} has sha256 .*; wanted"):
        datasets.mnist(source.root, limit=1)
    with pytest.raises(ValueError, match=rf"MNIST/raw/{name} has sha256 .*; wanted"):
        downloads.verify("mnist", source.root)
    assert len(datasets.mnist(source.root, split="test")) == 12, seed


def test_verify_names_everything_that_is_wrong(source):
    source.put(source.root, {"train-labels-idx1-ubyte": b"short"})
    with pytest.raises(ValueError, match=r"fetch mnist") as caught:
        downloads.verify("mnist", source.root)
    assert str(caught.value).count("is missing in") == 3
    assert "train-labels-idx1-ubyte has 5 bytes" in str(caught.value)
    source.put(source.root, source.plain)
    assert [path.name for path in downloads.verify("mnist", source.root)] == list(source.plain)


def test_there_are_two_data_sets():
    assert set(downloads.SOURCES) == {"mnist", "cifar10"}
    for act in (downloads.verify, downloads.fetch):
        with pytest.raises(ValueError, match="no data set 'imagenet'; there are mnist, cifar10"):
            act("imagenet")


def test_the_pinned_checksums_are_those_of_the_real_files(data_root):
    for name in downloads.SOURCES:
        assert len(downloads.verify(name, data_root)) == len(downloads.SOURCES[name].files)


def test_the_real_files_with_one_cut_short(data_root, tmp_path):
    shutil.copytree(data_root / "cifar-10-batches-py", tmp_path / "cifar-10-batches-py", copy_function=os.symlink)
    third = tmp_path / "cifar-10-batches-py/data_batch_3"
    third.unlink()
    third.write_bytes(bytes(2**20))
    with pytest.raises(ValueError, match="data_batch_3") as caught:
        datasets.cifar10(tmp_path, limit=10)
    assert str(caught.value) == (
        "cifar-10-batches-py/data_batch_3 has 1,048,576 bytes; wanted 31,035,999.\n"
        "  Fetch it again with `landscape data fetch cifar10`, or point --data-root at a complete copy."
    )
