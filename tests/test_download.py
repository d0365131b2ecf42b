"""data/mnist_files.py against servers on loopback that misbehave."""

import contextlib
import gzip
import hashlib
import http.server
import resource
import subprocess
import sys
import threading

import pytest
from conftest import ROOT

import make_multi_mnist
import mnist_files

CONTENT = bytes(range(256)) * 2000
NAME = "train-images-idx3-ubyte"
DIGEST = hashlib.sha256(CONTENT).hexdigest()
COLLECTION = mnist_files.Collection("Test", (), {NAME: (DIGEST, None)})


def whole(handler, content=CONTENT):
    give(handler, content)


def packed(handler):
    """As servers do that pack on the way, if the client takes it."""
    if "gzip" in handler.headers.get("Accept-Encoding", ""):
        give(handler, gzip.compress(CONTENT), headers=[("Content-Encoding", "gzip")])
    else:
        give(handler, CONTENT)


def cut(handler):
    give(handler, CONTENT[:100_000], length=len(CONTENT))


def wrong(handler):
    give(handler, CONTENT[:-1] + b"x")


def html(handler):
    give(handler, b"<!DOCTYPE html><html>sign in</html>")


def not_found(handler):
    give(handler, b"no", status=404)


def broken(handler):
    give(handler, b"no", status=503)


def give(handler, content, status=200, length=None, headers=()):
    handler.send_response(status)
    for header in (("Content-Length", str(length or len(content))), *headers):
        handler.send_header(*header)
    handler.end_headers()
    handler.wfile.write(content)


@contextlib.contextmanager
def serving(behaviour):
    """Address of a server, and the list of paths it was asked for."""
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            behaviour(self)

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=[0.02], daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", asked
        finally:
            server.shutdown()


def command_line(tmp_path, address, **options):
    command = [sys.executable, "-B", str(ROOT / "data" / "make_multi_mnist.py"), "--download", "--mirror", address]
    command += ["--mnist", str(tmp_path / "mnist"), "--out", str(tmp_path / "out")]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, **options)


@pytest.mark.parametrize("behaviour", [whole, packed])
def test_a_file_is_fetched_as_it_is_and_once(tmp_path, behaviour, capfd):
    with serving(behaviour) as (address, asked):
        for _ in range(2):
            mnist_files.download(COLLECTION, str(tmp_path), [address])
        assert asked == [f"/{NAME}.gz"], "what is there is not fetched again"
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [(f"{NAME}.gz", CONTENT)]
    assert "100%" in capfd.readouterr().err, "there is a progress bar"


@pytest.mark.parametrize("behaviour,words", [
    (wrong, [DIGEST, "does not match"]), (html, [DIGEST]), (not_found, ["404"]), (broken, ["503"]),
    (cut, ["100000 bytes read"]), (None, ["refused"]),
])  # fmt: skip
def test_a_bad_mirror_is_named_with_its_reason_and_the_next_one_tried(tmp_path, behaviour, words):
    with serving(behaviour) as (bad, _), serving(not_found) as (worse, _), serving(whole) as (good, _):
        if behaviour is None:  # nobody listens
            bad = "http://127.0.0.1:9"
        with pytest.raises(ValueError) as caught:
            mnist_files.download(COLLECTION, str(tmp_path), [bad, worse])
        message = str(caught.value)
        assert all(word in message for word in [f"{bad}/{NAME}.gz", *words, f"{worse}/{NAME}.gz", "404"])
        assert not list(tmp_path.iterdir()), "nothing is left"
        mnist_files.download(COLLECTION, str(tmp_path), [bad, good])
    assert (tmp_path / f"{NAME}.gz").read_bytes() == CONTENT


def test_a_killed_download_leaves_nothing_that_is_taken_for_the_file(tmp_path):
    waiting, end = threading.Event(), threading.Event()

    def slow(handler):
        cut(handler)
        waiting.set()
        end.wait(60)

    code = f"import mnist_files; mnist_files.download(mnist_files.MNIST, {str(tmp_path)!r}, [{{!r}}])"
    with serving(slow) as (address, _):
        process = subprocess.Popen([sys.executable, "-c", code.format(address)], cwd=ROOT / "data")
        assert waiting.wait(60)
        process.kill()
        process.wait()
        end.set()
    assert mnist_files.find(str(tmp_path), NAME) is None
    with serving(whole) as (address, _):
        mnist_files.download(COLLECTION, str(tmp_path), [address])
    assert (tmp_path / f"{NAME}.gz").read_bytes() == CONTENT


def test_a_full_disk_ends_in_one_message(tmp_path):
    """The system refuses to write more than 64 kB, as a full disk would; no other mirror is blamed for it."""

    def limit():
        import signal

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))

    with serving(whole) as (address, _):
        result = command_line(tmp_path, address, preexec_fn=limit)
    assert result.returncode == 2 and "Traceback" not in result.stderr
    message = result.stderr[result.stderr.index("error: ") :]
    assert "File too large" in message and str(tmp_path / "mnist" / f"{NAME}.gz") in message
    assert not list((tmp_path / "mnist").iterdir())


def test_the_command_line_refuses_what_is_not_mnists_file(tmp_path):
    with serving(whole) as (address, asked):
        result = command_line(tmp_path, address)
    assert result.returncode == 2 and "Traceback" not in result.stderr
    assert f"error: {NAME}.gz" in result.stderr and address in result.stderr and DIGEST in result.stderr
    assert asked and not (tmp_path / "out").exists()


@pytest.mark.parametrize("package", ["pooch", "tqdm"])
def test_without_pooch_the_message_says_what_to_install(tmp_path, package, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setattr(sys, "argv", ["make_multi_mnist.py", "--download", "--mnist", str(tmp_path), "--out", "out"])
    with pytest.raises(SystemExit) as caught:
        make_multi_mnist.main()
    assert caught.value.code == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ") and package in message and "pip install pooch tqdm" in message
