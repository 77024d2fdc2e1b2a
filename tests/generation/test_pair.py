# SPDX-License-Identifier: Apache-2.0
"""Which pairs are drawn, which never are, and what is said where there are too few."""

import json
from collections import Counter

import numpy as np
import pytest

from cir_jax import config
from cir_jax.data.triplets import Triplet
from cir_jax.errors import UserError
from cir_jax.generation import features, pair
from cir_jax.generation.dedupe import Groups
from cir_jax.generation.images import Pool
from cir_jax.generation.trained import no_run
from cir_jax.retrieval import load

NAMES = [f"i{n}" for n in range(12)]


def pool_of(known=(), names=NAMES):
    triplets = tuple(Triplet(a, b, ("x",), "x", "s", str(n)) for n, (a, b) in enumerate(known))
    return Pool(dict.fromkeys(names, ""), triplets=triplets)


def draw(workdir, *changes, known=(), groups=None, names=NAMES, images=None, open_run=no_run):
    """[(reference, target)], as returned, after a look at the file."""
    groups = groups or Groups.make([[n] for n in names])
    made = config.load("positives:folder", changes)
    found = pair.run(made, pool_of(known, images or names), groups, names, workdir, open_run)
    assert [json.loads(line) for line in (workdir / pair.FILE).open()] == found
    return [(p["reference"], p["target"]) for p in found]


@pytest.fixture
def rows(tmp_path):
    """Options of a window, with features on a circle: image n is most like n + 1 and n - 1."""
    angles = 2 * np.pi * np.arange(12) / 12 + 1e-3 * np.arange(12) ** 2
    np.save(tmp_path / "rows.npy", np.stack([np.cos(angles), np.sin(angles)], axis=1))
    return ("pair.method=window", f"pair.features={tmp_path / 'rows.npy'}")


def test_random_pairs(tmp_path):
    found = draw(tmp_path)
    assert [a for a, _ in found] == NAMES and all(a != b for a, b in found)
    assert found == draw(tmp_path) != draw(tmp_path, "seed=1")
    many = draw(tmp_path, "pair.per_image=11")
    assert set(many) == {(a, b) for a in NAMES for b in NAMES if a != b} and len(many) == 132


@pytest.mark.parametrize("method", ["random", "window"])
@pytest.mark.parametrize("seed", range(5))
def test_known_pairs_are_never_drawn_and_k_is_kept(method, seed, tmp_path, rows):
    twins = Groups.make([["i0", "twin"], *([n] for n in NAMES[1:])])
    known = [("i0", f"i{n}") for n in range(1, 8)] + [("twin", "i8"), ("i3", "twin"), ("i4", "i4")]
    changes = ["pair.window=0,0", *rows] if method == "window" else []
    found = draw(
        *(tmp_path, f"seed={seed}", "pair.per_image=3", *changes), known=known, groups=twins
    )
    assert Counter(a for a, _ in found) == dict.fromkeys(NAMES, 3)
    assert len(set(found)) == 36 and all(a != b for a, b in found)
    assert {b for a, b in found if a == "i0"} == {"i9", "i10", "i11"}
    assert ("i3", "i0") not in found
    allowed = draw(
        *(tmp_path, "pair.per_image=10", "pair.exclude_known=false", *changes),
        known=known, groups=twins,
    )  # fmt: skip
    assert len(set(allowed) & {("i0", f"i{n}") for n in range(1, 9)}) >= 7


def test_known_pairs_outside_a_window_cost_nothing(tmp_path, rows):
    # All of the seven are nearer than rank 9: the window has three images left, and three do.
    near = [("i0", f"i{n % 12}") for n in (1, 2, 3, 4, -1, -2, -3)]
    options = ("pair.window=9,12", "pair.per_image=3", *rows)
    found = draw(tmp_path, *options, known=near)
    assert Counter(a for a, _ in found) == dict.fromkeys(NAMES, 3)
    with pytest.raises(
        UserError, match=r"per_image=3, but image 'i0' has only 2 of 3 candidates left: .*exclude_k"
    ):
        draw(tmp_path, *options, known=[*near, ("i0", "i6")])


def test_windows_are_ranks(tmp_path, rows):
    nearest = draw(tmp_path, "pair.window=1,2", *rows)
    assert all((int(a[1:]) - int(b[1:])) % 12 in (1, 11) for a, b in nearest)
    assert draw(tmp_path, "pair.window=0,2", *rows) == nearest  # rank 0 is the image itself
    made = config.load("positives:folder", ["pair.window=3,9", "pair.per_image=2", *rows])
    found = pair.run(made, pool_of(), Groups.make([[n] for n in NAMES]), NAMES, tmp_path)
    unit = np.load(tmp_path / "rows.npy")
    order = np.argsort(-(unit @ unit.T), axis=1)
    for one in found:
        a, b = int(one["reference"][1:]), int(one["target"][1:])
        assert 3 <= one["rank"] < 9 and order[a, one["rank"]] == b
        assert one["similarity"] == pytest.approx(unit[a] @ unit[b], abs=1e-4)


def test_only_references_of_annotated_triplets(tmp_path):
    twins = Groups.make([["i0", "twin"], *([n] for n in NAMES[1:])])
    known = [("i5", "i1"), ("i2", "i3"), ("i5", "i7"), ("twin", "i1")]
    found = draw(tmp_path, "pair.references_only=true", known=known, groups=twins)
    assert [a for a, _ in found] == ["i2", "i5"]  # i0 is a reference under another name only
    with pytest.raises(UserError, match="no image is the reference of an annotated triplet"):
        draw(tmp_path, "pair.references_only=true")


def test_keep(tmp_path):
    everything = draw(tmp_path)
    kept = draw(tmp_path, "pair.keep=5")
    assert len(kept) == 5 == len(set(kept) & set(everything))
    assert kept != [p for p in everything if p in kept]  # in the order of the draw
    assert sorted(draw(tmp_path, "pair.keep=12")) == sorted(everything)


@pytest.mark.parametrize(
    "changes, message",
    [
        (["pair.method=windows"], r"method='windows' is unknown; use .* Did you mean 'window'"),
        (["pair.per_image=12"], r"per_image=12, but image 'i0' has only 11 of 11 candidates left"),
        (["pair.per_image=0"], r"pair.per_image=0 is out of range; it must be at least 1"),
        (["pair.keep=13"], r"pair.keep=13 of 12 pairs; use 0 for all of them, or a larger"),
        (["pair.method=mined"], r"pair.method=mined needs pair.run, the folder of a trained run"),
        (["pair.method=window"], r"needs features of the images: either pair.features, a .npy"),
        (["pair.run=x"], r"pair.run is set, but pair.method=random would .*=window or mined"),
        (["pair.features=x"], r"pair.features is set, but pair.method=random would not look at it"),
        (["pair.feature_names=x"], r"pair.feature_names is set, but .* set pair.method=window"),
    ],
)  # fmt: skip
def test_errors(changes, message, tmp_path):
    with pytest.raises(UserError, match=message):
        draw(tmp_path, *changes)
    assert not (tmp_path / pair.FILE).exists()


@pytest.mark.parametrize(
    "changes, message",
    [
        (["pair.window=10000,20000"], r"window=10000,20000 does not fit 12 images, whose ranks"),
        (["pair.window=3,13"], r"pair.window=3,13 does not fit 12 images, whose ranks are 0 to 11"),
        (["pair.window=5,5"], "pair.window=5,5 does not fit"),
        (["pair.window=-1,5"], r"pair.window=\(-1, 5\) is out of range"),
        (["pair.window=12,0"], "pair.window=12,0 does not fit"),
        (["pair.window=3"], r"pair.window=\(3,\); give two ranks, from and to"),
        (["pair.window=far,near"], r"pair.window=\('far', 'near'\) is out of range"),
        (["pair.window=1.5,3"], r"pair.window=\(1.5, 3\); give two ranks"),
        (["pair.window=3,5", "pair.per_image=3"], r"'i0' has only 2 of 2 candidates left"),
        (["pair.window=0,2", "pair.per_image=2"], r"'i0' has only 1 of 2 candidates left"),
        (["pair.window=0,0", "pair.run=x"], r"either pair.features, a .npy file, or pair.run"),
    ],
)  # fmt: skip
def test_window_errors(changes, message, tmp_path, rows):
    with pytest.raises(UserError, match=message):
        draw(tmp_path, *rows, *changes)


def test_names_of_features_without_features(tmp_path):
    with pytest.raises(UserError, match=r"pair.feature_names needs pair.features"):
        draw(tmp_path, "pair.method=window", "pair.run=x", "pair.feature_names=y")


def test_no_such_run(tmp_path):
    for method, rest in (("window", ["pair.window=0,0"]), ("mined", [])):
        with pytest.raises(UserError, match=r"no checkpoint 'best' in .*nowhere; there are steps"):
            draw(
                *(tmp_path, f"pair.method={method}", *rest),
                f"pair.run={tmp_path / 'nowhere'}",
                known=[("i0", "i1")],
                open_run=load.from_run,
            )
    with pytest.raises(UserError, match=r"pair.run=x needs a function that opens a trained run"):
        draw(tmp_path, "pair.method=mined", "pair.run=x", known=[("i0", "i1")])


def test_features_of_a_file(tmp_path):
    given = np.arange(1, 13, dtype=np.float16).reshape(4, 3)
    np.save(tmp_path / "f.npy", given)
    unit = given.astype(np.float32) / np.linalg.norm(given.astype(np.float32), axis=1)[:, None]
    found = features.from_file(str(tmp_path / "f.npy"), "", list("abcd"))
    np.testing.assert_allclose(found, unit, rtol=1e-6)
    (tmp_path / "n.json").write_text('["d", "x", "a", "b"]')
    (tmp_path / "n.txt").write_bytes("\ufeffd\nx\na\nb\n".encode())
    for names in ("n.json", "n.txt"):
        found = features.from_file(str(tmp_path / "f.npy"), str(tmp_path / names), list("abd"))
        np.testing.assert_allclose(found, unit[[2, 3, 0]], rtol=1e-6)
        with pytest.raises(UserError, match=rf"{names} lacks 1 of 3 images, 'c' the first"):
            features.from_file(str(tmp_path / "f.npy"), str(tmp_path / names), list("abc"))


@pytest.mark.parametrize(
    "content, names, message",
    [
        (None, None, r"f.npy cannot be read \(.*No such file.*\); save it with numpy.save"),
        (b"no array", None, r"f.npy cannot be read \(.*\); save it with numpy.save"),
        (b"", None, r"f.npy cannot be read"),
        (np.ones((3, 2, 1)), None, r"f.npy is float64 \(3, 2, 1\); expected floats \[N, C\]"),
        (np.ones((3, 2), int), None, r"f.npy is int64 \(3, 2\); expected floats \[N, C\]"),
        ({"a": np.ones(3)}, None, r"f.npy holds several arrays; save one as .npy"),
        (np.ones((4, 2)), None, r"has 4 rows for 3 images; give the names of its rows in pair.fea"),
        (np.full((3, 2), np.nan), None, r"f.npy: 3 of 3 rows are zero or not finite, row 0 the fi"),
        (np.ones((3, 2)), b"a\nb\n", r"names.txt has 2 names for the 3 rows of .*f.npy"),
        (np.ones((3, 2)), b"a\nb\nb", r"names.txt names an image twice"),
        (np.ones((3, 2)), b"a\nb\nc2", r"names.txt lacks 1 of 3 images, 'c' the first; Did you m"),
        (np.ones((3, 2)), b"a\nb\n\xff\xfe", r"names.txt is not UTF-8 text .* one name per line"),
        (np.ones((3, 2)), "missing", r"no file pair.feature_names=.*names.txt; write one name per"),
    ],
)  # fmt: skip
def test_unusable_files_of_features(content, names, message, tmp_path):
    file, listed = tmp_path / "f.npy", tmp_path / "names.txt"
    if isinstance(content, bytes):
        file.write_bytes(content)
    elif isinstance(content, dict):
        with file.open("wb") as out:
            np.savez(out, **content)
    elif content is not None:
        np.save(file, content)
    if isinstance(names, bytes):
        listed.write_bytes(names)
    with pytest.raises(UserError, match=message):
        features.from_file(str(file), str(listed) if names else "", ["a", "b", "c"])


def test_pairs_of_a_file(tmp_path):
    file = tmp_path / "mine.jsonl"
    file.write_text(
        '{"reference": "i1", "target": "i0", "why": "x"}\n{"reference": "i2", "target": "i3"}\n'
    )
    options = ("pair.method=file", f"pair.file={file}")
    assert draw(tmp_path, *options) == [("i1", "i0"), ("i2", "i3")]
    assert '"why": "x"' in (tmp_path / pair.FILE).read_text()
    for line, message in (
        ('{"reference": "i1", "target": "i99"}', r"mine.jsonl:1: image 'i99' is not among the 12"),
        ('{"reference": "i1", "target": "i1"}', "mine.jsonl:1 pairs image 'i1' with itself"),
        ("", "holds no pair of images that have a caption"),
    ):
        file.write_text(line)
        with pytest.raises(UserError, match=message):
            draw(tmp_path, *options)
    with pytest.raises(UserError, match=r"pair.method=file needs pair.file"):
        draw(tmp_path, "pair.method=file")
    with pytest.raises(UserError, match=r"pair.window is set, but pair.method=random"):
        draw(tmp_path, "pair.window=1,3")


@pytest.mark.parametrize("method", ["random", "window", "file"])
def test_excluded_pairs_are_never_made(method, tmp_path, rows):
    file, mine = tmp_path / "excluded.jsonl", tmp_path / "mine.jsonl"
    pairs = [("i0", f"i{n}") for n in range(1, 9)] + [("twin", "i9"), ("elsewhere", "i1")]
    lines = [{"reference": a, "excluded": b, "text": "x", "id": a + b} for a, b in pairs]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    mine.write_text(
        '{"reference": "i0", "target": "i9"}\n{"reference": "i0", "target": "i10"}\n'
        '{"reference": "i1", "target": "i0"}\n'
    )
    changes = {
        "random": ("pair.per_image=2",),
        "window": ("pair.per_image=2", "pair.window=0,0", *rows),
        "file": ("pair.method=file", f"pair.file={mine}"),
    }[method]
    twins = Groups.make([["i0", "twin"], *([n] for n in NAMES[1:])])
    images = [*NAMES, "twin"]
    found = draw(tmp_path, *changes, f"pair.excluded={file}", groups=twins, images=images)
    own = {b for a, b in found if a == "i0"}
    assert own == ({"i10"} if method == "file" else {"i10", "i11"})  # i9 by the twin's pair
    assert len(found) == (2 if method == "file" else 24)
    everything = {*draw(tmp_path, *changes, groups=twins, images=images)}
    assert everything - {*found}  # without the key such pairs are made


def test_excluded_pairs_that_cannot_be(tmp_path):
    file = tmp_path / "excluded.jsonl"
    key = f"pair.excluded={file}"
    for line, message in (
        ('{"reference": "i1"}', r"excluded.jsonl:1.*excluded"),
        ('{"reference": "x", "excluded": "y"}', "none of its 1 pairs is about these images"),
    ):
        file.write_text(line)
        with pytest.raises(UserError, match=message):
            draw(tmp_path, key)
    lines = [json.dumps({"reference": "i0", "excluded": n}) for n in NAMES[1:]]
    file.write_text("\n".join(lines))
    with pytest.raises(UserError, match=r"'i0' has only 0 of 11.*pair.excluded names"):
        draw(tmp_path, key)
    mine = tmp_path / "mine.jsonl"
    mine.write_text('{"reference": "i0", "target": "i3"}')
    with pytest.raises(UserError, match="leaves no pair"):
        draw(tmp_path, key, "pair.method=file", f"pair.file={mine}")
