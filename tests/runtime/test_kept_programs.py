# SPDX-License-Identifier: Apache-2.0
"""Compiled programs that later commands read: in which folder, of whom, and how many."""

import os
import sys

import pytest

from cir_jax import main
from cir_jax.runtime import programs
from tests import programs as compiled_programs
from tests import runs

FOLDER = "JAX_COMPILATION_CACHE_DIR"


@pytest.fixture(autouse=True)
def before_jax(monkeypatch):
    """As a command finds it when it starts."""
    monkeypatch.delitem(sys.modules, "jax")
    monkeypatch.setattr(programs, "_kept", False)


def test_a_folder_for_each_kind_of_processor(tmp_path, monkeypatch):
    text = "processor: 0\nvendor_id: A\nmodel name: M\ncpu MHz: {}\nflags: fpu {}\n\nprocessor: 1\n"
    monkeypatch.setattr(programs, "_CPU", tmp_path / "cpuinfo")

    def kind(clock, flags):
        (tmp_path / "cpuinfo").write_text(text.format(clock, flags))
        return programs.kind()

    assert kind(1000, "avx2") == kind(2000, "avx2") != kind(1000, "avx2 avx512f")
    there = kind(1000, "avx2")
    monkeypatch.setattr(programs.metadata, "version", lambda name: "0.99.0")
    assert there != kind(1000, "avx2") and kind(1000, "avx2").startswith("jax-0.99.0-")
    (tmp_path / "cpuinfo").unlink()
    assert programs.kind()  # no Linux


def test_where_it_is_and_how_it_is_turned_off(tmp_path, monkeypatch):
    monkeypatch.setenv("CIR_JAX_CACHE", str(tmp_path / "cache"))

    def kept(**given):
        environment = dict(given)
        programs.keep(environment)
        return environment

    found = kept()
    assert found[FOLDER] == str(tmp_path / "cache" / "programs" / programs.kind())
    assert os.stat(found[FOLDER]).st_mode & 0o777 == 0o700
    assert programs.kept()
    assert found["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] == "0"
    here = kept(CIR_JAX_PROGRAMS=str(tmp_path / "here"))
    assert here[FOLDER] == str(tmp_path / "here" / programs.kind())
    for given in ({"CIR_JAX_PROGRAMS": "off"}, {FOLDER: "/mine"}):
        programs._kept = False
        assert kept(**given) == given and not programs.kept()
    monkeypatch.setitem(sys.modules, "jax", object())  # a program that uses the library
    assert kept() == {}


def test_a_folder_that_cannot_be_used_is_said_and_does_no_harm(tmp_path, monkeypatch, capsys):
    def said(place):
        environment = {programs.VARIABLE: str(place)}
        programs.keep(environment)
        assert environment == {programs.VARIABLE: str(place)}
        return capsys.readouterr().out

    folder = tmp_path / "open" / programs.kind()
    folder.mkdir(parents=True)
    folder.chmod(0o777)
    assert "(others can write there; chmod go-w makes it yours); CIR_JAX_PROGRAMS can" in said(
        tmp_path / "open"
    )
    (tmp_path / "file").touch()
    assert "(Not a directory)" in said(tmp_path / "file") or "exists" in said(tmp_path / "file")
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    assert "belongs to another user" in said(tmp_path / "theirs")


def test_what_was_used_least_recently_goes(tmp_path):
    for age, name in enumerate(["new", "old", "oldest"]):
        for kind in ("a", "b"):
            file = tmp_path / kind / f"{name}-cache"
            file.parent.mkdir(exist_ok=True)
            file.write_bytes(bytes(100))
            os.utime(file, (1e9 - 10 * age - (kind == "b"), 1e8))
    (tmp_path / "a" / "something else").write_bytes(bytes(1000))
    os.utime(tmp_path / "b" / "oldest-cache", (1e9 + 5, 1e8))  # was read just now
    programs.trim(tmp_path, 350)
    left = {str(file.relative_to(tmp_path)) for file in tmp_path.glob("*/*")}
    assert left == {"b/oldest-cache", "a/new-cache", "b/new-cache", "a/something else"}
    programs.trim(tmp_path / "not there", 0)


def test_every_command_keeps_them(tmp_path, monkeypatch, capsys):
    called = []
    monkeypatch.setattr(programs, "keep", lambda: called.append(1))
    assert main.main(["doctor", "fashioniq", str(tmp_path)]) == 2 and called == [1]


START = """
from cir_jax.runtime import programs
programs.keep()
import jax
"""


def test_another_command_compiles_nothing(tmp_path):
    environment = {k: v for k, v in runs.one_device().items() if not k.startswith("JAX_P")}
    environment |= {programs.VARIABLE: str(tmp_path), FOLDER: ""}
    compiled_programs.assert_the_second_compiles_nothing(START, environment)
