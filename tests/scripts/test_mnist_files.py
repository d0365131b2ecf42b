"""data/mnist_files.py: downloads from servers on loopback that misbehave, and files that are not MNIST's."""

import contextlib
import gzip
import hashlib
import http.server
import resource
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest

import make_multi_mnist
import mnist_files
from support import ROOT
from support.toolbox import assert_refused, run_script

CONTENT = bytes(range(256)) * 2000
NAME = "train-images-idx3-ubyte"
DIGEST = hashlib.sha256(CONTENT).hexdigest()
COLLECTION = mnist_files.Collection("Test", (), {NAME: (DIGEST, None)})
MNIST = ROOT.parent / "shared" / "mnist"  # the real files, where this workplace has them


@pytest.fixture(autouse=True)
def _without_a_proxy(monkeypatch):
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "127.0.0.1,localhost")


def give(handler, content, status=200, length=None, headers=()):
    handler.send_response(status)
    for header in (("Content-Length", str(length or len(content))), *headers):
        handler.send_header(*header)
    handler.end_headers()
    handler.wfile.write(content)


def whole(handler):
    give(handler, CONTENT)


def packed(handler):
    """As servers do that compress what they send, if the client accepts it."""
    if "gzip" in handler.headers.get("Accept-Encoding", ""):
        give(handler, gzip.compress(CONTENT), headers=[("Content-Encoding", "gzip")])
    else:
        give(handler, CONTENT)


def cut(handler):
    give(handler, CONTENT[:100_000], length=len(CONTENT))


def wrong(handler):
    give(handler, CONTENT[:-1] + b"x")


def not_found(handler):
    give(handler, b"no", status=404)


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


@pytest.mark.parametrize("behaviour", [whole, packed])
def test_a_file_is_fetched_unchanged_and_once(tmp_path, behaviour, capfd):
    with serving(behaviour) as (address, asked):
        for _ in range(2):
            mnist_files.download(COLLECTION, str(tmp_path), [address])
        assert asked == [f"/{NAME}.gz"]
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [(f"{NAME}.gz", CONTENT)]
    assert "100%" in capfd.readouterr().err, "there is a progress bar"


@pytest.mark.parametrize(
    "behaviour,words",
    [(wrong, [DIGEST, "does not match"]), (not_found, ["404"]), (cut, ["100000 bytes read"]), (None, ["refused"])],
)
def test_a_bad_mirror_is_named_with_its_reason_and_the_next_one_is_tried(tmp_path, behaviour, words):
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


def test_a_killed_download_leaves_no_file_of_that_name(tmp_path):
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


def limit_file_size():
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))


@pytest.mark.parametrize("disk_is_full", [False, True])
def test_a_failed_download_ends_in_one_message(tmp_path, disk_is_full):
    """The file is not MNIST's; or the system refuses to write more than 64 kB, for which no mirror is blamed."""
    folder = tmp_path / "mnist"
    with serving(whole) as (address, asked):
        command = [sys.executable, "-B", str(ROOT / "data" / "make_multi_mnist.py"), "--download", "--mirror", address]
        command += ["--mnist", str(folder), "--out", str(tmp_path / "out")]
        limit = limit_file_size if disk_is_full else None
        result = subprocess.run(command, capture_output=True, text=True, timeout=60, preexec_fn=limit)
    assert result.returncode == 2 and "Traceback" not in result.stderr
    message = result.stderr[result.stderr.index("error: ") :]
    words = ["File too large", f"{folder / NAME}.gz"] if disk_is_full else [f"error: {NAME}.gz", address, DIGEST]
    assert all(word in message for word in words), message
    assert asked and not list(folder.iterdir()) and not (tmp_path / "out").exists()


@pytest.mark.parametrize("package", ["pooch", "tqdm"])
def test_a_missing_package_for_downloads_is_named(tmp_path, package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    result = run_script(make_multi_mnist, "--download", "--mnist", tmp_path, "--out", "out")
    assert_refused(result, package, "pip install pooch tqdm")


def test_idx_files_are_read_byte_by_byte(tmp_path):
    """Written by hand from the format's description: big-endian sizes, then rows from the top left."""
    pixels = bytes(range(256)) * 7  # 1792 = 2 x 28 x 32, too many for two images of 28 x 28
    header = b"\0\0\x08\x03" + b"\0\0\0\x02" + b"\0\0\0\x1c" * 2
    (tmp_path / NAME).write_bytes(header + pixels[: 2 * 28 * 28])
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(b"\0\0\x08\x01\0\0\0\x02\x07\x03")
    images, labels = mnist_files.read_part(mnist_files.MNIST, str(tmp_path), "train", unchecked=True)
    assert images.shape == (2, 28, 28) and labels.tolist() == [7, 3]
    assert (images[0, 0, 5], images[0, 1, 0], images[1, 0, 0]) == (5, 28, 28 * 28 % 256)


@pytest.mark.skipif(not MNIST.is_dir(), reason=f"NOT CHECKED against MNIST itself: its files are not in {MNIST}")
def test_the_known_files_are_mnist():
    """By what is published: number of each digit, the first labels, mean and deviation of the pixels."""
    of_train = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    of_test = [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    for part, counts, first, mean, deviation in (
        ("train", of_train, [5, 0, 4, 1, 9, 2, 1, 3], 0.1307, 0.3081),
        ("t10k", of_test, [7, 2, 1, 0, 4, 1, 4, 9], 0.1325, 0.3105),
    ):
        images, labels = mnist_files.read_part(mnist_files.MNIST, str(MNIST), part)
        assert images.shape == (sum(counts), 28, 28) and images.dtype == labels.dtype == np.uint8
        assert np.bincount(labels).tolist() == counts and labels[:8].tolist() == first
        assert images.mean() / 255 == pytest.approx(mean, abs=5e-5)
        assert images.std() / 255 == pytest.approx(deviation, abs=5e-5)
