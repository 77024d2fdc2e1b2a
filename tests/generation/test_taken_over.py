# SPDX-License-Identifier: Apache-2.0
"""Who waits for whom, and who does the work of a worker that was killed."""

import json
from types import SimpleNamespace

import pytest

from cir_jax.errors import UserError
from cir_jax.generation import dedupe, journal, shared_steps, workers
from cir_jax.generation.workers import Share, Workers
from cir_jax.runtime import supervision
from tests.generation import pictures
from tests.generation.shared_work import AGAIN, SAME, leave_lease, rewriting, worker


@pytest.fixture
def root(tmp_path):
    """Twelve pictures, the last the same as the first."""
    return pictures.folder(tmp_path / "in")


@pytest.fixture
def counting(tmp_path):
    return pictures.Counting(tmp_path)


@pytest.fixture
def soon(monkeypatch):
    """Who is waited for is soon taken for dead."""
    monkeypatch.setattr(workers, "_POLL", 0.02)
    monkeypatch.setattr(workers, "_LEASE", 0.2)
    monkeypatch.setattr(shared_steps, "_RACE", 0.0)


def test_one_that_lives_is_waited_for(tmp_path, monkeypatch):
    """For as long as it shows it; patience is for those that do not."""
    monkeypatch.setattr(workers, "_POLL", 0.01)
    found, looks, share = Workers(tmp_path, 2), [], Share((1,), 2, 0.05)
    found.mark(1, "hashed", {"a": 1})

    def seen(folder):
        looks.append(folder)
        if len(looks) == 30:
            found.mark(2, "hashed", {"a": 1})
        return "nonce", len(looks)

    monkeypatch.setattr("cir_jax.runtime.lease.seen", seen)
    found.wait_for("hashed", {"a": 1}, share)
    assert len(looks) == 30 and set(looks) == {found.folder(2)}
    assert found.missing("hashed", {"a": 2}) == [1, 2]  # done, but of something else
    # One that only sees to those that were killed is done when it knows that others live.
    found.wait_for("hashed", {"a": 2}, Share((1,), 2, 60), leave=True)
    assert len(looks) == 34
    monkeypatch.setattr("cir_jax.runtime.lease.seen", lambda folder: ("nonce", 1))
    with pytest.raises(supervision.Stopped, match="workers 1, 2 of 2 have not hashed their parts"):
        found.wait_for("hashed", {"a": 2}, share)
    found.wait_for("hashed", {"a": 2}, share, leave=True)


def test_a_step_is_done_when_its_files_are_there(tmp_path):
    """The mount of another host may show them later than the mark."""
    found = Workers(tmp_path, 1)
    file = found.folder(1) / "captions.jsonl"
    journal.write_lines(file, [{"image": "a"}])
    found.mark(1, "captioned", {}, ["captions.jsonl", "captions_refused.jsonl"])
    assert found.missing("captioned", {}) == []
    with file.open("ab") as longer:
        longer.write(b"{}\n")
    assert found.missing("captioned", {}) == []
    file.write_text("{}\n")
    assert found.missing("captioned", {}) == [1]
    file.unlink()
    assert found.missing("captioned", {}) == [1]


@pytest.mark.usefixtures("soon")
@pytest.mark.parametrize("which, wait", [("1,2/2", "0"), ("1/2", "60")])
def test_a_worker_that_dies_is_taken_over(which, wait, tmp_path, counting, monkeypatch, capsys):
    """By one that is told to, or that waits. It asks again for what was under way, and no more."""
    root, made = pictures.folder(tmp_path / "in", 30), tmp_path / "made"
    assert worker(made, root, "1/2", *counting.sets) == AGAIN
    add, kept = journal.Journal.add, []

    def dying(self, *records):
        if self.path.name == "captions.jsonl":
            if len(kept) == 4:
                raise KeyboardInterrupt
            kept.append(records[0]["image"])
        add(self, *records)

    with monkeypatch.context() as patch:
        patch.setattr(journal.Journal, "add", dying)
        assert worker(made, root, "2/2", *counting.sets) == 130
    first = [key for key, _, _ in counting.asked()]
    assert first[:4] == kept and len(first) == 5
    with (Workers(made, 2).folder(2) / "captions.jsonl").open("a") as torn:
        torn.write('{"image": "00.png", "text": "a pic')
    leave_lease(made, 2, 2)
    capsys.readouterr()
    assert worker(made, root, which, *counting.sets, wait=wait) == 0
    assert "process 1 on elsewhere) was not seen for 0 s: its folder is taken over" in (
        capsys.readouterr().out
    )
    again = [key for key, _, _ in counting.asked()]
    assert not set(again) & set(kept) and len(kept) + len(again) == 29 == len({*kept, *again})
    assert pictures.make(made, root, *counting.sets) == 0 and counting.asked() == []
    assert pictures.make(tmp_path / "one", root, *counting.sets) == 0
    for name in SAME:
        assert (made / name).read_bytes() == (tmp_path / "one" / name).read_bytes(), name


@pytest.mark.usefixtures("soon")
def test_all_steps_of_one_that_dies_are_taken_over(tmp_path, root, counting):
    """From its hashes to the pairs, which are the work of worker 1."""
    changes, made, one = [*counting.sets, *rewriting(counting)], tmp_path / "made", tmp_path / "one"
    leave_lease(made, 2, 1)
    assert worker(made, root, "2/2", *changes, wait="60") == 0
    asked = counting.asked()
    assert pictures.make(made, root, *changes) == 0 and counting.asked() == []
    assert pictures.make(one, root, *changes) == 0
    assert sorted(counting.asked()) == sorted(asked) and len(asked) == 22
    assert (made / "triplets.jsonl").read_bytes() == (one / "triplets.jsonl").read_bytes()


@pytest.mark.usefixtures("soon")
def test_of_two_that_take_over_at_once_one_does_the_work(tmp_path, root, counting, monkeypatch):
    """The other goes on to wait for it."""
    made, leases = tmp_path / "made", []
    leave_lease(made, 2, 1)

    def faster(seconds):
        leave_lease(made, 2, 1)
        leases.append(seconds)

    monkeypatch.setattr(shared_steps, "time", SimpleNamespace(sleep=faster))
    assert worker(made, root, "2/2", *counting.sets, wait="0.7") == AGAIN
    assert leases and counting.asked() == []
    hashed = pictures.lines(Workers(made, 2).folder(2) / dedupe.HASHES)
    assert 0 < len(hashed) < 12 and not (Workers(made, 2).folder(1) / dedupe.HASHES).exists()


def test_one_process_does_the_work_of_a_worker(tmp_path, root, counting, capsys):
    made = tmp_path / "made"
    with Workers(made, 2).held(1) as check:
        assert worker(made, root, "1/2", *counting.sets) == 2
        assert "does the work of worker 1 in" in capsys.readouterr().err
        check()
        lease = Workers(made, 2).folder(1) / ".lease"
        lease.write_text(json.dumps(json.loads(lease.read_text()) | {"nonce": "other"}))
        with pytest.raises(UserError, match="has taken over"):
            check()


def test_one_that_was_taken_over_asks_for_nothing_more(tmp_path, root, counting, monkeypatch):
    """A machine that stood still for long: what it is told in the end must not be kept twice."""
    monkeypatch.setattr("cir_jax.generation.generate_text._CHECKED", 0.0)
    made, checks = tmp_path / "made", []

    def taken(self):
        checks.append(1)
        if counting.calls.exists():
            raise UserError("has taken over")

    monkeypatch.setattr("cir_jax.runtime.lease.Lease._check", taken)
    assert worker(made, root, "1/1", *counting.sets) == 2
    assert len(counting.asked()) == 1 and len(checks) == 4
    assert pictures.lines(Workers(made, 1).folder(1) / "captions.jsonl") == []
    assert not (Workers(made, 1).folder(1) / "captioned.json").exists()
    counting.calls.write_text("[]\n")  # nothing is asked for where it is known before
    assert worker(made, root, "1/1", *counting.sets) == 2
    assert counting.asked() == [[]]
