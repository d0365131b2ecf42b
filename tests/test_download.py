"""data/mnist_files.py against servers on loopback that misbehave."""

import contextlib
import hashlib
import http.server
import resource
import subprocess
import sys
import threading

import pytest
from conftest import ROOT

import mnist_files

CONTENT = bytes(range(256)) * 2000
NAME = "train-images-idx3-ubyte"
COLLECTION = mnist_files.Collection("Test", (), {NAME: (hashlib.sha256(CONTENT).hexdigest(), None)})


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.asked.append(self.headers.get("Range"))
        self.server.behaviour(self)

    def log_message(self, *_):
        pass

    def give(self, content, status=200, length=None, headers=()):
        self.send_response(status)
        self.send_header("Content-Length", str(len(content) if length is None else length))
        for header in headers:
            self.send_header(*header)
        self.end_headers()
        self.wfile.write(content)


def whole(handler, content=CONTENT):
    """Answers ranges, as mirrors do."""
    asked = handler.headers.get("Range")
    if asked is None:
        handler.give(content)
    else:
        first = int(asked[len("bytes=") : -1])
        handler.give(content[first:], 206)


def cut_once(handler):
    """Ends the first answer in the middle; goes on from there when asked."""
    if len(handler.server.asked) == 1:
        handler.give(CONTENT[:100_000], length=len(CONTENT))
    else:
        whole(handler)


def cut_without_ranges(handler):
    if len(handler.server.asked) == 1:
        handler.give(CONTENT[:100_000], length=len(CONTENT))
    else:
        handler.give(CONTENT)


def cut_always(handler):
    handler.give(CONTENT[:1000], length=len(CONTENT), status=200)


def wrong(handler):
    handler.give(CONTENT[:-1] + b"x")


def html(handler):
    handler.give(b"<!DOCTYPE html><html>sign in</html>")


def not_found(handler):
    handler.give(b"no", 404)


def broken(handler):
    handler.give(b"no", 503)


@contextlib.contextmanager
def serving(behaviour):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.behaviour, server.asked = behaviour, []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server, f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
        server.server_close()


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("behaviour,ranges", [
    (whole, [None]),
    (cut_once, [None, "bytes=100000-"]),
    (cut_without_ranges, [None, "bytes=100000-"]),
])  # fmt: skip
def test_a_file_is_fetched_and_a_cut_one_resumed(tmp_path, behaviour, ranges):
    with serving(behaviour) as (server, address):
        mnist_files.download(COLLECTION, str(tmp_path), [address])
        assert server.asked == ranges
        mnist_files.download(COLLECTION, str(tmp_path), [address])
        assert server.asked == ranges, "what is there is not fetched again"
    assert names(tmp_path) == [f"{NAME}.gz"]
    assert (tmp_path / f"{NAME}.gz").read_bytes() == CONTENT


def test_a_download_goes_on_where_an_earlier_run_was_cut(tmp_path):
    (tmp_path / f"{NAME}.gz.part").write_bytes(CONTENT[:77])
    with serving(whole) as (server, address):
        mnist_files.download(COLLECTION, str(tmp_path), [address])
        assert server.asked == ["bytes=77-"]
    assert (tmp_path / f"{NAME}.gz").read_bytes() == CONTENT


@pytest.mark.parametrize("behaviour,word", [
    (wrong, "SHA-256"), (html, "HTML"), (not_found, "404"), (broken, "503"), (cut_always, "cut"),
])  # fmt: skip
def test_a_bad_mirror_is_named_with_its_reason_and_the_next_one_tried(tmp_path, behaviour, word):
    with serving(behaviour) as (_, bad):
        with pytest.raises(ValueError) as caught:
            mnist_files.download(COLLECTION, str(tmp_path), [bad])
        assert bad in str(caught.value) and word in str(caught.value)
        assert not (tmp_path / f"{NAME}.gz").exists(), "nothing half-written under a final name"
        with serving(whole) as (_, good):
            mnist_files.download(COLLECTION, str(tmp_path), [bad, good])
    assert (tmp_path / f"{NAME}.gz").read_bytes() == CONTENT


def test_a_mirror_without_the_file_leaves_what_was_fetched_before(tmp_path):
    (tmp_path / f"{NAME}.gz.part").write_bytes(CONTENT[:77])
    with serving(not_found) as (_, address):
        with pytest.raises(ValueError, match="404"):
            mnist_files.download(COLLECTION, str(tmp_path), [address])
    assert (tmp_path / f"{NAME}.gz.part").read_bytes() == CONTENT[:77]


def test_no_server_at_all_is_named(tmp_path):
    with serving(whole) as (_, address):
        pass
    with pytest.raises(ValueError, match=address):
        mnist_files.download(COLLECTION, str(tmp_path), [address])


def test_a_full_disk_ends_in_one_message(tmp_path):
    """The system refuses to write more than 64 kB, as a full disk would; the command line says so."""

    def limit():
        import signal

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))

    with serving(whole) as (_, address):
        command = [sys.executable, "-B", str(ROOT / "data" / "make_multi_mnist.py"), "--download", "--mirror", address]
        command += ["--mnist", str(tmp_path / "mnist"), "--out", str(tmp_path / "out")]
        result = subprocess.run(command, capture_output=True, text=True, timeout=60, preexec_fn=limit)
    assert result.returncode == 2 and "Traceback" not in result.stderr
    message = result.stderr[result.stderr.index("error: ") :]
    assert "File too large" in message and str(tmp_path / "mnist" / "train-images-idx3-ubyte.gz.part") in message
    assert not [name for name in names(tmp_path / "mnist") if not name.endswith(".part")]


def test_the_command_line_downloads_and_checks(tmp_path):
    with serving(whole) as (server, address):
        command = [sys.executable, str(ROOT / "data" / "make_multi_mnist.py"), "--download", "--mirror", address]
        command += ["--mnist", str(tmp_path / "mnist"), "--out", str(tmp_path / "out")]
        result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert result.returncode == 2 and "SHA-256" in result.stderr, "this server's file is not MNIST's"
    assert server.asked and not (tmp_path / "out").exists()
