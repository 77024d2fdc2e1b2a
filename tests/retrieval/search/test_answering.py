# SPDX-License-Identifier: Apache-2.0
"""Answers against the score written out by hand; paging, folding, what is left out, refusals."""

import shutil

import numpy as np
import pytest
from PIL import Image

from cir_jax.errors import UserError
from cir_jax.retrieval.search import answering, encoding, folding
from cir_jax.retrieval.search.asking import REACH, Question, Weights
from tests.evals.conftest import picture


def by_hand(index, images, text, avoid, w, u, v):
    """score(n) of every image, from the definition: one query, one maximum at a time."""
    one = index.model.retriever()
    rows = index.store.all.astype(np.float64)  # [N, K, D]
    best = lambda vectors: np.einsum("pd,nkd->npk", vectors, rows).max(axis=(1, 2))
    score = np.zeros(len(rows))
    for image in images:
        if text:
            score += w / len(images) * best(one.encode_queries([image], [text]))
        if u:
            score += u / len(images) * best(one.encode_gallery([image])[0])
    if not images:
        score += best(one.encode_queries(None, [text]))
    if avoid:
        score -= v * best(one.encode_queries(None, [avoid]))
    return score


def ask(index, *images, **options):
    return answering.answer(index, [Question(images=images, **options)])[0]


def ids(answer):
    return [hit.id for hit in answer.hits]


@pytest.fixture(params=[1, 4], ids=["K=1", "K=4"])
def any_index(request, index, rows4):
    return index if request.param == 1 else rows4


@pytest.mark.parametrize(
    "images, text, avoid, weights, formula",
    [
        ([0], "but red", "", (1, 0, 0.5), "query"),
        ([0], "but red", "", (1, 0.3, 0.5), "query + 0.3 image"),
        ([0], "but red", "stripes", (0.7, -0.2, 0.5), "0.7 query - 0.2 image - 0.5 avoided"),
        ([0], "but red", "", (0, 2, 0.5), "2 image"),
        ([0, 3, 7], "but red", "a dog", (1, 0.5, 1), "query + 0.5 image - avoided"),
        ([4], "", "", (5, 0, 0.5), "image"),
        ([4, 9], "", "stripes", (5, 9, 0.25), "image - 0.25 avoided"),
        ([], "green", "", (5, 1, 0.5), "query"),
        ([], "green", "red", (0, 0, -1.5), "query + 1.5 avoided"),
    ],
)
def test_scores_are_as_defined(any_index, images, text, avoid, weights, formula):
    index, files = any_index, [str(any_index.files[i]) for i in images]
    w, u, v = weights
    expected = by_hand(index, files, text, avoid, w, u if text else 1, v)
    numbers = {id: n for n, id in enumerate(index.catalogue.ids)}
    found = ask(index, *files, text=text, avoid=avoid, weights=Weights(*weights), k=24, fold=False)
    kept = [n for n in np.argsort(-expected, kind="stable") if n not in images]
    assert [numbers[id] for id in ids(found)] == kept
    np.testing.assert_allclose([hit.score for hit in found.hits], expected[kept], atol=2e-6)
    assert found.formula == f"score = {formula}"
    assert found.candidates == len(kept) and not found.more
    assert [hit.rank for hit in found.hits] == [*range(1, len(kept) + 1)]
    by_id = ask(
        index, *index.ids(*images), text=text, avoid=avoid, weights=Weights(*weights), k=24,
        fold=False,
    )  # fmt: skip
    assert ids(by_id) == ids(found)
    np.testing.assert_allclose(
        [hit.score for hit in by_id.hits], [hit.score for hit in found.hits], atol=2e-6
    )


def test_one_row_is_one_vector_and_several_are_groups(index, rows4):
    question = Question((5, 7), "but red", "stripes", Weights(1, 0.5, 2))
    for one, vectors, weights in ((index, 1, [1.0]), (rows4, 11, [0.5, 0.5, 0.25, 0.25, -2.0])):
        retriever = one.model.retriever(few=True)
        asked, _ = answering._checked(one, [question])
        [parts] = encoding.parts(asked, retriever, one.store)
        terms = encoding.terms(parts, asked[0], folds=one is index)
        assert terms.vectors.shape == (vectors, 6) and terms.vectors.dtype == np.float32
        assert terms.weights.tolist() == weights
        assert terms.folded == (one is index)
    assert terms.groups.tolist() == [0, 1, 2, 2, 2, 2, 3, 3, 3, 3, 4]


def test_pictures_and_arrays_are_images_too(index):
    file = index.files[2]
    with Image.open(file) as opened:
        decoded, array = opened.copy(), np.asarray(opened)
    expected = ask(index, str(file), text="but red", keep_reference=True)
    for image in (file, decoded, array):
        assert ids(ask(index, image, text="but red", keep_reference=True)) == ids(expected)


def test_the_reference_is_left_out(index, tmp_path):
    own = index.ids(3)[0]
    assert own not in ids(ask(index, own, k=24))
    assert ids(ask(index, own, k=1, keep_reference=True)) == [own]
    copy = tmp_path / "elsewhere.bin.png"
    shutil.copy(index.files[3], copy)
    found = ask(index, str(copy), k=24)
    assert found.left_out == (own,) and own not in ids(found) and found.candidates == 23
    with Image.open(copy) as opened:
        opened.resize((9, 9)).save(copy)  # another picture
    assert ask(index, str(copy), k=24).left_out == ()


def test_equal_files_are_left_out_together_and_folded(files, tmp_path, make, summed):
    place = tmp_path / "again.png"
    shutil.copy(files[6], place)
    index = make.Index([*files[:12], place], summed)
    one, other = index.ids(6, 12)
    assert ask(index, one, k=12).left_out == (one, other)
    hit = next(hit for hit in ask(index, 5, k=12).hits if hit.id in (one, other))
    assert (hit.id, hit.same) == (one, (other,))  # equal scores are ordered by id
    alone = {hit.id: hit for hit in ask(index, 5, k=12, fold=False).hits}
    assert alone[one].score == alone[other].score and alone[other].same == ()


@pytest.fixture
def crowded(tmp_path, make, summed):
    """Six pictures, and thirty that differ from the first of them by one value each."""
    files = [tmp_path / f"{i}.png" for i in range(6)]
    for i, file in enumerate(files):
        picture(file, i)
    pixels = np.asarray(Image.open(files[0])).copy()
    for i in range(30):
        changed = pixels.copy()
        changed[i % 12, i % 10, 0] ^= 1
        files.append(tmp_path / f"near{i}.png")
        Image.fromarray(changed).save(files[-1])
    return make.Index(files, summed)


def test_what_is_nearly_the_same_is_folded_and_enough_are_certain(crowded):
    first = str(crowded.files[0])
    found = ask(crowded, first, keep_reference=True, k=3)
    assert len(found.hits) == 3 and found.more
    assert len(crowded.store.asked) > 1  # it was read further than at first
    crowd = {*crowded.ids(0, *range(6, 36))}
    groups = [{hit.id, *hit.same} for hit in ask(crowded, first, k=6, keep_reference=True).hits]
    assert groups[0] == crowd and [len(group) for group in groups[1:]] == [1] * 5
    everything = ask(crowded, first, k=36, keep_reference=True, fold=False)
    assert len(everything.hits) == 36 and {hit.id for hit in everything.hits[:31]} == crowd


@pytest.mark.parametrize("fold", [True, False])
def test_pages_go_on_where_the_last_one_ended(crowded, any_index, fold):
    for index in (crowded, any_index):
        whole = ask(index, 5, text="but red", k=36, fold=fold)
        pages = []
        while not pages or pages[-1].more:
            offset = 2 * len(pages)
            pages.append(ask(index, 5, text="but red", k=2, offset=offset, fold=fold))
        hits = [hit for page in pages for hit in page.hits]
        assert [(h.id, h.score, h.rank) for h in hits] == [
            (h.id, h.score, h.rank) for h in whole.hits
        ]
        beyond = ask(index, 5, text="but red", k=2, offset=100, fold=fold)
        assert beyond.hits == () and not beyond.more


def test_min_score(index):
    everything = ask(index, 5, k=23)
    limit = everything.hits[4].score
    found = ask(index, 5, k=3, min_score=limit)
    assert ids(found) == ids(everything)[:3] and found.more
    found = ask(index, 5, k=23, min_score=limit)
    assert ids(found) == ids(everything)[:5] and not found.more
    assert found.candidates == 23
    assert not ask(index, 5, k=5, min_score=limit).more and not ask(index, 5, k=23).more
    assert ask(index, 5, min_score=5.0).hits == ()


def test_where_says_what_may_be_found(index):
    found = ask(index, 5, k=24, where="colour = 'red' and price < 20")
    expected = {
        id for id, row in zip(index.catalogue.ids, index.catalogue.table.to_pylist(), strict=True)
        if row["colour"] == "red" and row["price"] is not None and row["price"] < 20 and id != 5
    }  # fmt: skip
    assert {*ids(found)} == expected and found.candidates == len(expected) > 2
    kept = ask(index, 5, k=24, where="colour = 'red' and price < 20", keep_reference=True)
    assert kept.candidates == len(expected) + 1
    assert ask(index, 5, where="colour = 'blue'").hits == ()
    hit = ask(index, 7, where="name = '4.png'").hits[0]
    assert hit.name == "4.png"
    assert hit.fields == {"colour": "green", "price": None, "count": 0, "sale": True}


def test_a_batch_shares_the_calls_of_the_model(index):
    questions = [
        Question((str(index.files[i]),), f"text {i}", "stripes" if i % 2 else "", k=3)
        for i in range(6)
    ]
    questions += [Question((), "green", k=5), Question((9,), k=30, min_score=0.0)]
    questions += [Question((9,), "but red", exact=False), Question((11,), fold=False)]
    index.model.calls.clear()
    batch = answering.answer(index, questions)
    assert sorted(index.model.calls) == ["encode_queries", "encode_queries"]
    assert [exact for _, _, exact in index.store.asked[:2]] == [True, False]
    for question, answer in zip(questions, batch, strict=True):
        [alone] = answering.answer(index, [question])
        assert ids(alone) == ids(answer) and alone.more == answer.more
        np.testing.assert_allclose(
            [hit.score for hit in alone.hits], [hit.score for hit in answer.hits], atol=1e-6
        )
        assert answer.seconds["total"] == pytest.approx(
            sum(answer.seconds[part] for part in ("encode", "rank", "show"))
        )
    assert answering.answer(index, []) == []


@pytest.mark.parametrize("weights", [Weights(), Weights(0.5, 0.3, 2)])
def test_why_is_what_adds_up_to_the_score(any_index, weights):
    index = any_index
    found = ask(index, 5, 9, text="but red", avoid="dogs", weights=weights, why=True)
    one = index.model.retriever()
    halves = one.encode_halves([str(index.files[0])], ["but red"])
    queries = one.encode_queries([str(index.files[0])], ["but red"])
    np.testing.assert_allclose(halves.sum(axis=1), queries, atol=1e-6)
    assert sum(abs(hit.why["text"]) > 0.01 for hit in found.hits) >= 3
    for hit in found.hits:
        assert set(hit.why) == {"image", "text", "avoid"}
        assert sum(hit.why.values()) == pytest.approx(hit.score, abs=2e-6)
    alone = ask(index, 5, why=True).hits[0]
    assert alone.why == {"image": pytest.approx(alone.score, abs=1e-6), "text": 0.0}
    words = ask(index, text="but red", why=True).hits[0]
    assert words.why["text"] == pytest.approx(words.score, abs=1e-6)
    assert ask(index, 5, text="but red").hits[0].why is None


def test_a_model_that_is_no_sum_tells_no_why(files, make):
    class Mixed(make.Summed):
        sums, text_alone = False, False

    index = make.Index(files[:8], Mixed())
    assert ask(index, 5, text="but red", why=True).hits[0].why is None
    with pytest.raises(UserError, match=r"summed composes .* a text alone has no meaning"):
        ask(index, text="but red")
    with pytest.raises(UserError, match="words to avoid have no meaning"):
        ask(index, 5, text="but red", avoid="dogs")


@pytest.mark.parametrize(
    "change, message",
    [
        ({"k": 0}, "k=0 is not within 1 to 1000"),
        ({"k": 10**9}, "k=1000000000 is not within 1 to 1000"),
        ({"k": 2.0}, "k=2.0 is no whole number"),
        ({"k": True}, "k=True is no whole number"),
        ({"offset": -1}, "offset=-1 is not within"),
        ({"offset": REACH - 1, "k": 2}, "reach beyond the first 5000"),
        ({"min_score": float("nan")}, "min_score=nan is no number"),
        ({"min_score": "5"}, "min_score='5' is no number"),
        ({"weights": Weights(query=float("inf"))}, "the query weight is inf"),
        ({"weights": Weights(image=1001)}, "the image weight is 1001"),
        ({"weights": Weights(avoid=None)}, "the avoid weight is None"),
        ({"weights": (1, 0, 0.5)}, r"weights is \(1, 0, 0.5\); give Weights"),
        ({"weights": Weights(0, 0)}, "all weights are 0"),
        (
            {"text": "word " * 80},
            "text: 82 tokens, the limit is 77 with start and end.*shorten it$",
        ),
        ({"avoid": "word " * 80}, "avoid: 82 tokens"),
        ({"text": "x" * 10_001}, "text has 10,001 characters"),
        ({"text": 5}, "text is 5, a int"),
        ({"avoid": None}, "avoid is None"),
        ({"text": "a \ud83d b"}, "half a character"),
        ({"text": "", "images": ()}, "needs an image, a text or both$"),
        ({"text": " \n", "images": (), "avoid": "red"}, "only take away"),
        ({"images": (4,)}, "no image with the id 4; the index has 24 images"),
        ({"images": (-5,)}, "no image with the id -5"),
        ({"images": (10**30,)}, "no image with the id 1000"),
        ({"images": ("nowhere.png",)}, "nowhere.png does not exist"),
        ({"images": "a.png"}, "images is 'a.png'"),
        ({"images": (None,)}, "is a NoneType"),
        ({"images": (True,)}, "is a bool"),
        ({"images": (5,) * 17}, "17 reference images; a question may have 16"),
        ({"images": (np.zeros((4, 4)),)}, r"array \[4, 4\]"),
        ({"where": "nothing = 5"}, "where, character 1"),
    ],
)
def test_what_is_refused(index, change, message):
    question = Question(**{"images": (5,), "text": "but red", **change})
    with pytest.raises(UserError, match=message):
        answering.check(index, question)
    with pytest.raises(UserError, match=message):
        answering.answer(index, [question])
    with pytest.raises(UserError, match=f"question 1: .*{message}"):
        answering.answer(index, [Question((5,)), question])


def test_what_cannot_be_decoded_is_named(index, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(index.files[0].read_bytes()[:60])
    with pytest.raises(UserError, match=r"broken\.png"):
        ask(index, str(broken))
    index.path_of = lambda id: str(tmp_path / "gone.png")
    assert ask(index, 5).hits  # its rows are there
    with pytest.raises(UserError, match=r"gone\.png does not exist"):
        ask(index, 5, text="but red")


def test_long_texts_are_cut_where_the_model_was_trained_so(files, make, summed):
    index = make.Index(files[:8], summed, on_long="truncate")
    assert ask(index, 5, text="word " * 80).hits


def test_vectors_that_are_no_numbers_are_refused(index):
    index.model.params = index.model.params | {"mix": np.full((10, 6), np.nan, np.float32)}
    with pytest.raises(UserError, match="no numbers"):
        ask(index, 5, text="but red")


def test_search_is_one_question(index):
    hits = answering.search(index, 5, "but red", k=3, image_weight=0.5, avoid="dogs")
    expected = ask(index, 5, text="but red", k=3, weights=Weights(image=0.5), avoid="dogs")
    assert hits == list(expected.hits)
    assert answering.search(index, [5, 7]) == list(ask(index, 5, 7).hits)
    assert answering.search(index, text="red") == list(ask(index, text="red").hits)
    with pytest.raises(UserError, match=r"no option 'topk'.*image_weight"):
        answering.search(index, 5, topk=3)


def test_ranks_of_right_answers(index):
    question = Question((5,), "but red", k=2, offset=3, min_score=9.0)
    everything = ids(ask(index, 5, text="but red", k=24, fold=False))
    found = answering.ranks(index, question, [everything[7], everything[0], 5, 999])
    assert found == [8, 1, None, None]


def test_an_empty_index(make, summed, files):
    index = make.Index(files[:1], summed)
    found = ask(index, 5)
    assert found.hits == () and found.candidates == 0 and not found.more
    assert len(ask(index, str(files[3])).hits) == 1


def unit(rows):
    return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)


def test_folding_is_by_the_first_that_is_near():
    """Groups of a ranking, by the rule written as two loops; and a prefix has the same groups."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(90, 2, 8))
    which = rng.integers(0, 90, 700)
    rows = unit(centres[which] + 0.03 * rng.normal(size=(700, 2, 8)))
    contents = [bytes([i % 251, i // 251 % 3]) for i in range(700)]  # some twice
    flat = unit(rows.reshape(700, -1))
    expected, shown = [], []
    for i in range(700):
        near = [
            g for g, group in enumerate(expected)
            if 1 - flat[i] @ flat[shown[g]] <= 0.004 or contents[i] in {contents[j] for j in group}
        ]  # fmt: skip
        if near:
            expected[near[0]].append(i)
        else:
            expected.append([i])
            shown.append(i)
    assert folding.fold(rows, contents, 0.004) == expected
    assert 90 <= len(expected) < 600
    part = folding.fold(rows[:300], contents[:300], 0.004)
    assert [group[0] for group in part] == [g[0] for g in expected[: len(part)]]


def test_near_is_nearer_than_images_usually_are():
    rng = np.random.default_rng(1)
    apart = unit(rng.normal(size=(64, 1, 32)))
    assert folding.radius(apart) == 0.01
    # A model that gives all images nearly the same row: none of them is nearly the same for that.
    alike = unit(apart + 30 * unit(rng.normal(size=(1, 1, 32))))
    assert 0 < folding.radius(alike) < 1e-4
    assert len(folding.fold(alike, [bytes([i]) for i in range(64)], folding.radius(alike))) == 64
    assert folding.radius(apart[:1]) == 0.01
    assert folding.radius(np.ones((5, 1, 4), np.float32)) == 0
