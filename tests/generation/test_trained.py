# SPDX-License-Identifier: Apache-2.0
"""Pairs by a trained run of ours: features that are kept and never stale, and mined pairs."""

import shutil

import numpy as np
import pytest

from cir_jax import config
from cir_jax.data.triplets import Triplet
from cir_jax.datasets.readers import fashioniq
from cir_jax.errors import UserError
from cir_jax.generation import features, hard_negatives, pair
from cir_jax.generation.dedupe import Groups
from cir_jax.generation.images import Pool
from cir_jax.generation.trained import no_run
from cir_jax.retrieval import load
from cir_jax.training import train
from tests import runs


def opened(workdir):
    """What `cir-jax positives` hands to pairing: the model of a run."""
    return load.from_run(workdir)[1]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return runs.write_fashioniq(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def run(root, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")

    def trained(model):
        if not (folder / model).is_dir():
            trains(folder / model, root, "steps=2", model=model)
        return str(folder / model)

    return trained


def trains(workdir, root, *changes, model="cross_attention"):
    train.train(runs.tiny(workdir, root, "eval.benchmark=none", *changes, model=model))


@pytest.fixture(scope="module")
def pool(root):
    (human,) = fashioniq.read(root)
    names = dict.fromkeys(n for t in human.triplets for n in (t.reference, t.target))
    return Pool({n: human.paths[n] for n in names}, triplets=human.triplets)


def alone(pool):
    return Groups.make([[n] for n in pool.paths])


def encoded(run, paths):
    """Unit means of the target rows."""
    rows = load.from_run(run)[1].encode_gallery(paths).mean(axis=1)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.mark.parametrize("model, per_image", [("cross_attention", 1), ("sprc_shaped", 32)])
def test_features_of_a_run(model, per_image, run, pool, tmp_path):
    names, paths = list(pool.paths), list(pool.paths.values())
    found = features.from_run(run(model), names, paths, tmp_path, opened)
    assert load.from_run(run(model))[1].functions.target_shape[0] == per_image
    np.testing.assert_allclose(found, encoded(run(model), paths), atol=1e-6)
    again = features.from_run(run(model), names, paths, tmp_path, no_run)  # it is kept
    np.testing.assert_array_equal(again, found)


def test_features_are_never_stale(root, pool, tmp_path):
    names, paths = list(pool.paths), list(pool.paths.values())
    workdir, kept = tmp_path / "run", tmp_path / "kept"
    kept.mkdir()

    def now():
        return features.from_run(str(workdir), names, paths, kept, opened)

    fast = "optim.learning_rate=3e-2"
    trains(workdir, root, "steps=1", fast)
    first = now()
    trains(workdir, root, "steps=2", fast)  # goes on
    second = now()
    assert not np.allclose(first, second)
    shutil.rmtree(workdir)
    trains(workdir, root, "steps=2", fast, "seed=5")  # as many steps, other parameters
    third = now()
    assert not np.allclose(second, third)
    changed = tmp_path / "other.png"
    runs.write_image(changed, (250, 250, 0), 3)
    paths[4] = str(changed)  # another file of the same name
    fourth = now()
    runs.write_image(changed, (0, 250, 250), 4, size=(30, 20))  # replaced where it was
    fifth = now()
    np.testing.assert_allclose(fifth, encoded(str(workdir), paths), atol=1e-6)
    for one, other in ((third, fourth), (fourth, fifth)):
        assert [i for i in range(len(names)) if not np.allclose(one[i], other[i])] == [4]
    names, paths = names[::-1], paths[::-1]
    np.testing.assert_array_equal(now(), fifth[::-1])
    (kept / features.MADE_OF).unlink()  # killed between the two files
    np.save(kept / features.FILE, fifth * 0)
    np.testing.assert_array_equal(now(), fifth[::-1])


def test_a_full_disk_while_features_are_kept(run, pool, tmp_path, monkeypatch):
    def full(*_):
        raise OSError("3 requested and 1 written")

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(UserError, match=r"features.npy cannot be written \(3 requested and 1 wri"):
        features.from_run(
            run("cross_attention"), ["a"], [next(iter(pool.paths.values()))], tmp_path, opened
        )
    assert not (tmp_path / features.MADE_OF).exists()


def pairs(run, pool, workdir, *changes, groups=None):
    made = config.load("positives:folder", [f"pair.run={run}", *changes])
    names = [group[0] for group in (groups or alone(pool)).members]
    return pair.run(made, pool, groups or alone(pool), names, workdir, opened)


def test_window_of_a_run(run, pool, tmp_path):
    found = pairs(
        run("cross_attention"), pool, tmp_path, "pair.method=window", "pair.window=3,6",
        "pair.exclude_known=false",
    )  # fmt: skip
    names, unit = list(pool.paths), encoded(run("cross_attention"), list(pool.paths.values()))
    similarity = unit @ unit.T
    np.fill_diagonal(similarity, np.inf)
    assert len(found) == len(names)
    for one in found:
        a, b = names.index(one["reference"]), names.index(one["target"])
        assert 3 <= one["rank"] < 6
        better = np.count_nonzero(similarity[a] > similarity[a, b] + 1e-6)
        equal = np.count_nonzero(np.abs(similarity[a] - similarity[a, b]) <= 1e-6)
        assert better <= one["rank"] < better + equal


@pytest.mark.parametrize("model", ["cross_attention", "sprc_shaped"])
@pytest.mark.parametrize("top, each", [(5, 1), (23, 4)])
def test_mined_pairs(model, top, each, run, pool, tmp_path):
    groups = alone(pool)
    top = min(top, len(pool.paths) - 1)
    found = pairs(
        *(run(model), pool, tmp_path, "pair.method=mined"),
        *(f"pair.mined_top={top}", f"pair.per_image={each}"),
    )
    wanted = by_full_ranking(run(model), pool, groups, top, each)
    assert [{k: v for k, v in p.items() if k != "similarity"} for p in found] == wanted
    known = pool.known()
    assert found and not any((p["reference"], p["target"]) in known for p in found)
    assert all(p["reference"] != p["target"] != p["instead_of"] for p in found)


def by_full_ranking(run, pool, groups, top, each):
    """Every query alone, and its whole ranking."""
    _, retriever = load.from_run(run)
    names = [group[0] for group in groups.members]
    gallery = retriever.encode_gallery([pool.paths[n] for n in names])
    known = {(groups.first(t.reference), groups.first(t.target)) for t in pool.triplets}
    found = {}
    for t in pool.triplets:
        a, b = groups.first(t.reference), groups.first(t.target)
        if a == b:
            continue
        (query,) = retriever.encode_queries([pool.paths[a]], [t.eval_text])
        scores = (gallery @ query).max(axis=1)
        scores[names.index(a)] = -np.inf
        ranking = [names[i] for i in np.argsort(-scores, kind="stable")]
        ahead = ranking[: min(ranking.index(b), top)]
        wrong = [(rank, n) for rank, n in enumerate(ahead) if (a, n) not in known]
        for rank, name in wrong[:each]:
            pair = {"reference": a, "target": name, "rank": rank, "instead_of": b}
            found.setdefault((a, name), pair)
    return list(found.values())


def test_mining_sees_through_duplicates(run, pool, tmp_path):
    """Nothing is paired with a twin of its target or of its reference, under any name."""
    first = pool.triplets[0]
    twin_of_target, twin_of_reference = (
        n for n in list(pool.paths)[-2:] if n not in (first.reference, first.target)
    )
    members = [[n] for n in pool.paths if n not in (twin_of_target, twin_of_reference)]
    members[[m[0] for m in members].index(first.target)].append(twin_of_target)
    members[[m[0] for m in members].index(first.reference)].append(twin_of_reference)
    groups = Groups.make(members)
    loop = Triplet(first.reference, twin_of_reference, ("x",), "x", "s", "loop")
    pool = Pool(pool.paths, triplets=(first, loop))
    changes = ("pair.method=mined", f"pair.mined_top={len(members) - 1}", "pair.per_image=99")
    found = pairs(run("cross_attention"), pool, tmp_path, *changes, groups=groups)
    assert all(p["instead_of"] == first.target for p in found)
    assert not {p["target"] for p in found} & {*members[0], twin_of_target, twin_of_reference}
    assert [p["rank"] for p in found] == list(range(len(found)))


def test_mining_errors(run, pool, tmp_path):
    one = run("cross_attention")
    for top, message in ((0, "is out of range"), (len(pool.paths), "of .* images; use 1 to")):
        with pytest.raises(UserError, match=rf"mined_top={top} {message}"):
            pairs(one, pool, tmp_path, "pair.method=mined", f"pair.mined_top={top}")
    with pytest.raises(UserError, match="no annotated triplet is about images that have a caption"):
        pairs(one, Pool(pool.paths), tmp_path, "pair.method=mined")
    a, b = list(pool.paths)[:2]
    long = Triplet(a, b, ("x",), "word " * 90, "mine", "dress/7")
    with pytest.raises(UserError, match=r"mine triplet dress/7: 92 tokens, the limit is 77"):
        pairs(one, Pool(pool.paths, triplets=(long,)), tmp_path, "pair.method=mined")
    known = tuple(Triplet(a, n, ("x",), "x", "s", "0") for n in pool.paths if n != a)
    with pytest.raises(UserError, match=r"no pair was mined: .* raise pair.mined_top, or use anot"):
        pairs(one, Pool(pool.paths, triplets=known), tmp_path, "pair.method=mined")


def test_mined_pairs_are_told(run, pool, tmp_path, capsys):
    found = hard_negatives.mine(
        run("cross_attention"), pool, alone(pool), list(pool.paths), 5, 1, opened
    )
    said = capsys.readouterr().out
    assert f"mined {len(found)} pairs; " in said
    assert f" of {len(pool.triplets)} queries have a wrong image ahead of their target, amo" in said
