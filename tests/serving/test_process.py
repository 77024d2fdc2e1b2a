# SPDX-License-Identifier: Apache-2.0
"""`cir-jax serve` as a process: what it serves is what the library gives, and how it ends."""

import base64
import json
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest

import cir_jax
from cir_jax import config, contract
from cir_jax.commands import serve as command
from cir_jax.convert import exporting
from cir_jax.errors import UserError
from cir_jax.main import main
from cir_jax.retrieval import golden, load
from tests import readmes, runs

README = "cir_jax/serving/README.md"
TEXTS = ["", "but red", "a blue thing of another kind"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with pictures, weights of a tiny CLIP and an index of these by those."""
    root = tmp_path_factory.mktemp("served")
    tiny = runs.tiny(root / "run", root, "data.text_lengths=32", model="clip_sum")
    functions = contract.build(tiny.model)
    params = {path: np.asarray(x) for path, x in functions.init(0).items()}
    exporting.write(
        root / "tiny.safetensors", functions, params, params,
        layout="safetensors", record={"format": 1}, data=tiny.data.to_dict(),
    )  # fmt: skip
    for number in range(6):
        colour = list(runs.COLORS)[number % 4]
        runs.write_image(root / "photos" / f"{colour}-{number}.png", runs.COLORS[colour], number)
    shutil.copy(root / "photos" / "red-0.png", root / "a.jpg")
    return root


@pytest.fixture(scope="module")
def model(place):
    return cir_jax.load(place / "tiny.safetensors", device=jax.devices()[0])


@pytest.fixture(scope="module")
def index(place, model):
    return model.index(place / "photos", place / "INDEX")


class Server:
    """A process of `cir-jax serve`."""

    def __init__(self, place, *flags):
        self.process = subprocess.Popen(
            [sys.executable, "-m", "cir_jax.main", "serve", "INDEX", *flags],
            cwd=place,
            env=runs.one_device() | {"PYTHONPATH": str(readmes.HERE)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.lines, self.errors = [], []
        for line in self.process.stdout:
            self.lines.append(line)
            if line.startswith("ready: "):
                break
        else:
            raise AssertionError(self.process.communicate())
        self.url = self.lines[-1].split()[1]
        # What it writes on is read, so that no pipe is full.
        for stream, kept in ((self.process.stdout, self.lines), (self.process.stderr, self.errors)):
            threading.Thread(target=kept.extend, args=(stream,), daemon=True).start()

    def ask(self, path, body=None):
        data = None if body is None else json.dumps(body).encode()
        head = {"Content-Type": "application/json"}
        request = urllib.request.Request(self.url + path, data, head)
        with urllib.request.urlopen(request, timeout=120) as answer:
            return json.load(answer)

    def stop(self, number=signal.SIGTERM):
        self.process.send_signal(number)
        return self.process.wait(120)


@pytest.fixture(scope="module")
def server(place, index):
    found = Server(place, "--port", "0", "--batch", "1")
    yield found
    found.process.kill()
    found.process.wait()


def test_the_served_vector_is_that_of_the_model(server, place, model):
    photo = place / "photos" / "red-0.png"
    sent = "data:image/png;base64," + base64.b64encode(photo.read_bytes()).decode()
    image = {"type": "image_url", "image_url": {"url": sent}}
    parts = [[image], *([image, {"type": "text", "text": text}] for text in TEXTS[1:])]
    body = {"model": "INDEX", "input": [{"content": one} for one in parts] + TEXTS[1:]}
    found = [item["embedding"] for item in server.ask("v1/embeddings", body)["data"]]
    expected = np.concatenate(
        [
            model.encode_images([photo])[:, 0],
            model.encode_queries([photo] * 2, TEXTS[1:]),
            model.encode_queries(texts=TEXTS[1:]),
        ]
    )
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("form", ["messages", "contents"])
def test_a_model_of_the_server_is_the_model(server, place, model, form, tmp_path, monkeypatch):
    """What `cir-jax evaluate --config served:...` gets of a real process."""
    monkeypatch.setenv("CIR_JAX_CACHE", str(tmp_path))
    changes = [f"model.url={server.url}", "model.tower=INDEX", f"model.form={form}",
               "model.dtype=float32", "model.key_variable="]  # fmt: skip
    _, served = load.from_weights(config.load("served:folder", changes), "")
    photos = [str(place / "photos" / name) for name in ("red-0.png", "blue-2.png")]
    np.testing.assert_allclose(
        served.encode_gallery(photos), model.encode_images(photos), atol=1e-6
    )
    np.testing.assert_allclose(
        served.encode_queries(photos, TEXTS[1:]), model.encode_queries(photos, TEXTS[1:]), atol=1e-6
    )
    facts = served.functions.embedder.facts()
    assert facts["tokens"] > 0 and facts["values"] == {"encoding": "JSON", "type": "float32"}
    with pytest.raises(UserError, match=r"answered 404 .*there is no index 'INDE'"):
        other = config.load("served:folder", [*changes, "model.tower=INDE"])
        load.from_weights(other, "")


def test_a_search_is_that_of_the_library(server, place, index):
    for question in ({"text": "but red"}, {"images": [{"id": 1}], "text": "but red"}):
        found = server.ask("search", {**question, "why": True})["results"]
        image = 1 if "images" in question else None
        expected = index.search(image, "but red", why=True)
        assert [hit["id"] for hit in found] == [hit.id for hit in expected]
        for one, other in zip(found, expected, strict=True):
            assert one["score"] == pytest.approx(other.score, abs=1e-6)
            assert {k: v for k, v in one["why"].items() if v is not None} == pytest.approx(
                dict(other.why), abs=1e-6
            )


def test_commands_and_python_of_the_readme(server, place, monkeypatch):
    port = server.url.rpartition(":")[2].strip("/")
    monkeypatch.chdir(place)
    asked = [c for c in readmes.COMMANDS if c.startswith("curl ")]
    assert len(asked) >= 6
    for line in asked:
        if shutil.which("curl") is None:
            pytest.skip("curl is not installed")
        words = shlex.split(line.replace("localhost:8000", f"localhost:{port}"))
        done = subprocess.run([*words, "-sS", "--fail-with-body"], capture_output=True, timeout=120)
        assert done.returncode == 0, (line, done.stdout, done.stderr)
    assert (place / "small.webp").read_bytes()[:4] == b"RIFF"
    script = readmes.SCRIPTS[README].replace("localhost:8000", f"localhost:{port}")
    exec(compile(script, README, "exec"), {"__name__": README})


def test_flags_of_the_readme(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "token").write_text("0123456789abcdef\n")
    lines = [c for c in readmes.COMMANDS if c.startswith("cir-jax serve ")]
    for line in lines:
        settings = command._settings(parsed(*shlex.split(line)[2:]))
        assert bool(settings.token) == ("--token-file" in line)
    assert len(lines) >= 2


def test_an_index_that_is_rebuilt_is_taken_over(server, place, model):
    before = server.ask("api/info")["indexes"][0]
    runs.write_image(place / "photos" / "green-new.png", runs.COLORS["green"], 99)
    updated = model.index(place / "photos", place / "INDEX")
    while server.ask("api/info")["indexes"][0]["generation"] == before["generation"]:
        assert server.ask("search", {"text": "a"})["results"]  # the old one answers
        time.sleep(0.1)
    after = server.ask("api/info")["indexes"][0]
    assert after["images"] == before["images"] + 1 == len(updated)
    id = updated.catalogue.number_of("green-new.png")
    assert server.ask(f"api/images?offset={before['images']}")["images"][0]["id"] == id
    assert server.ask("search", {"images": [{"id": id}], "text": "a"})["results"]


def test_other_vectors_than_the_index_was_made_with(place, model, index):
    command.check_vectors(index)
    made = model.golden()
    kept = golden.beside(place / "INDEX")
    before = kept.read_bytes() if kept.exists() else None
    kept.write_bytes(replace(made, queries=-made.queries).encoded())
    with pytest.raises(UserError, match="does not give the vectors that are kept with the index"):
        command.check_vectors(index)
    kept.unlink() if before is None else kept.write_bytes(before)


def test_its_port_is_in_use(server, place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    port = server.url.rpartition(":")[2].strip("/")
    assert main(["serve", "INDEX", "--port", port]) == 2
    assert f"port {port} of 127.0.0.1 is in use" in capsys.readouterr().err


def test_it_ends_when_it_is_told_to(server):
    """After all others: requests that are under way are answered, and its status is 0."""
    answers = []

    def ask():
        answers.append(server.ask("search", {"text": "one more", "k": 3}))

    asking = threading.Thread(target=ask)
    asking.start()
    asking.join()
    assert server.stop() == 0 and len(answers[0]["results"]) == 3
    assert [line for line in server.errors if '"route": "/search"' in line]
    assert not [line for line in server.errors if "Traceback" in line or "one more" in line]
    with pytest.raises(urllib.error.URLError):
        server.ask("healthz")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--host", "0.0.0.0"], "there is no token"),
        (["--host", "0.0.0.0", "--token-file", "short"], "at least 16"),
        (["--token-file", "empty"], "is empty"),
        (["--token-file", "none"], "cannot be read"),
        (["--host", "no.such.host.invalid"], "there is no token"),
        (["--host", "127.0.0.300", "--token-file", "long"], "no name or address"),
        (["--port", "70000"], "0 and 65535"),
        (["--batch", "0"], "--batch=0"),
        (["--rate", "nan"], "--rate=nan"),
        (["--token-env", "NO_SUCH_VARIABLE"], "there is no such variable"),
        (["--name", "https://search.example.org/"], "no name of a host"),
        (["--port", "0", "--held-out", "none"], "holds no image out"),
        (["other", "--model", "x"], "there are several"),
        (["--port", "0"], "no index"),
    ],
)
def test_what_it_does_not_start_with(tmp_path, monkeypatch, capsys, flags, words):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(command.TOKEN_VARIABLE, raising=False)
    for name, text in (("short", "abc"), ("empty", " \n"), ("long", "0123456789abcdef")):
        Path(name).write_text(text)
    assert main(["serve", "nothing", *flags]) == 2
    said = capsys.readouterr().err
    assert words in said and "0123456789abcdef" not in said


def test_the_token_comes_from_the_environment_too(monkeypatch):
    monkeypatch.setenv(command.TOKEN_VARIABLE, "0123456789abcdef")
    assert command._settings(parsed("x", "--host", "0.0.0.0")).token == "0123456789abcdef"
    monkeypatch.setenv("MINE", "fedcba9876543210")
    assert command._settings(parsed("x", "--token-env", "MINE")).token == "fedcba9876543210"


def test_a_package_that_is_missing(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert main(["serve", "x"]) == 2
    assert "cir_jax[serve]" in capsys.readouterr().err


def test_a_host_of_this_machine_alone_needs_no_token():
    from cir_jax.serving.settings import is_loopback

    assert all(map(is_loopback, ("127.0.0.1", "localhost", "::1", "127.1.2.3")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "192.168.1.1", "example.org", "")))


def test_nothing_listens_before_it_is_warm(place):
    """The port is taken at once, so that a second server is told, and refuses whoever connects."""
    from cir_jax.serving import running
    from cir_jax.serving.settings import Settings

    with running.bound(Settings(port=0)) as port, pytest.raises(ConnectionRefusedError):
        socket.create_connection(port.getsockname()).close()


def parsed(*flags):
    import argparse

    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return parser.parse_args(flags)
