# SPDX-License-Identifier: Apache-2.0
"""launch/environment.sh: what is installed, when, and what happens after an interruption."""

from pathlib import Path

import pytest

from tests.launch.calls import call, copy_checkout


@pytest.fixture
def demo(tmp_path, fake_python):
    """Runs the demo of a copied checkout; returns its result and what Python was asked to do."""
    root = copy_checkout(tmp_path / "checkout")

    def run(script="demo.sh", root=root, **environment):
        log = Path(fake_python["LOG"])
        log.unlink(missing_ok=True)
        done = call(script, root=root, **fake_python | environment)
        return done, log.read_text().splitlines() if log.exists() else []

    return run


def installs(lines):
    return [line for line in lines if line.startswith("-m pip install")]


def test_second_run_installs_nothing(demo):
    done, lines = demo()
    assert done.returncode == 0, done.stderr
    assert len(installs(lines)) == 1 and installs(lines)[0].endswith("checkout[demo]")
    assert lines[-1] == "demo"
    done, lines = demo()
    assert done.returncode == 0 and not installs(lines) and lines[-1] == "demo"


def test_environment_of_the_tests_serves_the_demo(demo):
    assert installs(demo("test.sh")[1])[0].endswith("[test]")
    assert not installs(demo()[1])
    assert not installs(demo("test.sh")[1])


def test_environment_of_the_demo_does_not_serve_the_tests(demo):
    demo()
    assert len(installs(demo("test.sh")[1])) == 1


def test_interrupted_install_is_done_again(demo, tmp_path):
    (tmp_path / "no_network").touch()
    done, lines = demo()
    assert done.returncode == 1 and len(installs(lines)) == 1 and lines[-1] != "demo"
    (tmp_path / "no_network").unlink()
    done, lines = demo()
    assert done.returncode == 0 and len(installs(lines)) == 1 and lines[-1] == "demo"


def test_half_made_environment_gets_its_pip(demo, tmp_path):
    demo()
    (tmp_path / "venv/.cir_jax-demo").unlink()
    (tmp_path / "no_pip").touch()
    done, lines = demo()
    assert done.returncode == 0, done.stderr
    assert lines.index("-m ensurepip") < lines.index(installs(lines)[0])
    assert not any(line.startswith("-m venv") for line in lines)


def test_environment_of_a_removed_python_is_made_anew(demo, tmp_path):
    demo()
    (tmp_path / "venv/bin/python").unlink()
    (tmp_path / "venv/bin/python").symlink_to(tmp_path / "gone")
    done, lines = demo()
    assert done.returncode == 0, done.stderr
    assert f"-m venv --clear {tmp_path / 'venv'}" in lines and len(installs(lines)) == 1


@pytest.mark.parametrize("change", ["pyproject", "python", "place"])
def test_change_installs_again(change, demo, tmp_path):
    demo()
    root = tmp_path / "checkout"
    if change == "pyproject":
        (root / "pyproject.toml").open("a").write("# another dependency\n")
    elif change == "python":
        (tmp_path / "version").write_text("Python 3.12.1")
    else:
        root = root.rename(tmp_path / "moved")
    assert len(installs(demo(root=root)[1])) == 1
    assert not installs(demo(root=root)[1])


def test_python_that_is_too_old_is_named(demo, tmp_path):
    done, lines = demo(OLD="1")
    assert done.returncode == 2 and not installs(lines)
    assert f"PYTHON={tmp_path}/bin/python3.11 is no Python 3.11 or newer" in done.stderr
