"""Both stores find the same, the index opens whole or not at all, and no case is ever its own evidence."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secondlook.agents.base import Agent
from secondlook.agents.case import Case, Evidence, Neighbour, Task
from secondlook.agents.errors import ConfigError, RetrievalError
from secondlook.agents.photo import Photo
from secondlook.agents.prediction import Failure, Prediction
from secondlook.retrieval import chroma
from secondlook.retrieval.chroma import ChromaStore
from secondlook.retrieval.index import (
    ENOUGH_GROUPS,
    MANIFEST,
    SAME_IMAGE,
    Index,
    build_index,
    near_duplicate_limit,
    open_index,
)
from secondlook.retrieval.neighbour_vote import NeighbourVote, Weighting
from secondlook.retrieval.search import Searcher
from secondlook.retrieval.store import Floats, Item, MemoryStore, Store, check_embeddings

DATA = Path(os.environ.get("SECONDLOOK_DATA", Path(__file__).parents[2] / "shared" / "data"))
FEATURES = DATA / "orchestrator-agent-trust" / "clip_vitb32_train512.npz"
TASK = Task(labels=("black-rot", "healthy", "rust", "scab"))


def unit(rows: object) -> Floats:
    rows = np.asarray(rows, dtype=np.float64)
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def random_items(n: int, per_group: int | None = None) -> list[Item]:
    return [
        Item(
            id=f"{i:05d}",
            label=TASK.labels[i % 4],
            group=None if per_group is None else f"leaf {i // per_group}",
            path=f"photos/{i}.jpg" if i % 2 else None,
            digest=f"{i:064x}",
        )
        for i in range(n)
    ]


def case_of(content: bytes, group: str | None = None) -> Case:
    """Return a case whose image has a digest but could never be decoded."""
    return Case(id="case", photo=Photo.of(content), group=group)


@pytest.fixture(params=["memory", "chroma"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    made: Store = MemoryStore() if request.param == "memory" else ChromaStore(tmp_path / "store")
    yield made
    made.close()


# --- the contract of every store


def test_a_store_finds_the_most_similar_first_and_breaks_ties_by_id(store: Store) -> None:
    items = random_items(4)
    # Cosines with (1, 0): 0.6, 1, 0.6, -0.8. Added in two parts, the second before the first by id.
    store.add(items[2:], [[0.6, -0.8], [-0.8, 0.6]])
    store.add(items[:2], [[0.6, 0.8], [1.0, 0.0]])
    (row,) = store.query([[1.0, 0.0]], k=4)
    assert [hit.item for hit in row] == [items[1], items[0], items[2], items[3]]
    assert [hit.similarity for hit in row] == pytest.approx([1, 0.6, 0.6, -0.8], abs=1e-6)


def test_a_store_gives_back_what_it_was_given_none_and_unicode_included(store: Store) -> None:
    items = [
        Item(id="leaf äpfel/§ 1.jpg", label="scab", group=None, path=None, digest="ff"),
        Item(id="a", label="rust", group="leaf 7", path="photos/ä.jpg", digest="00"),
    ]
    store.add(items, [[0.0, 1.0], [0.6, 0.8]])
    held = store.all()
    assert held.items == (items[1], items[0])
    np.testing.assert_allclose(held.embeddings, [[0.6, 0.8], [0.0, 1.0]], atol=1e-6)
    assert (len(store), store.dim) == (2, 2)


def test_a_store_returns_all_it_holds_where_k_is_larger(store: Store) -> None:
    store.add(random_items(3), unit([[1, 0], [1, 1], [0, 1]]))
    assert [len(row) for row in store.query(unit([[1, 0], [0, 1]]), k=50)] == [3, 3]


def test_an_empty_store_finds_nothing(store: Store) -> None:
    store.add([], np.empty((0, 2)))
    assert (len(store), store.dim, store.all().items) == (0, 0, ())
    assert store.query([[1.0, 0.0], [0.0, 1.0]], k=3) == [[], []]


def test_a_store_refuses_what_is_not_a_batch_of_unit_vectors(store: Store) -> None:
    items = random_items(2)
    store.add(items[:1], [[1.0, 0.0]])
    with pytest.raises(ValueError, match=r"embeddings: expected \[N=1, D=2\], got \(1, 3\)"):
        store.add(items[1:], [[1.0, 0.0, 0.0]])
    with pytest.raises(ValueError, match=r"expected \[N, D=2\], got \(2,\)"):
        store.query([1.0, 0.0], k=1)
    with pytest.raises(ValueError, match="row 1 has length 2"):
        store.query([[1.0, 0.0], [2.0, 0.0]], k=1)
    with pytest.raises(ValueError, match="row 0 has length nan"):
        store.query([[np.nan, 0.0]], k=1)
    with pytest.raises(ValueError, match="k: expected at least 1, got 0"):
        store.query([[1.0, 0.0]], k=0)
    with pytest.raises(ValueError, match="the id '00000' stands twice"):
        store.add(items[:1], [[1.0, 0.0]])
    assert len(store) == 1


def test_chroma_adds_and_reads_more_than_it_takes_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, items = unit(np.random.default_rng(0).normal(size=(250, 8))), random_items(250)
    store = ChromaStore(tmp_path)
    assert store._client.get_max_batch_size() > 1000
    monkeypatch.setattr(type(store._client), "get_max_batch_size", lambda _: 100)
    monkeypatch.setattr(chroma, "QUERY_ROWS", 60)
    store.add(items[:230], rows[:230])
    store.add(items[230:], rows[230:])
    assert [hits[0].item for hits in store.query(rows, k=1)] == items
    store.close()
    again = ChromaStore(tmp_path)
    assert again.all().items == tuple(items)
    np.testing.assert_allclose(again.all().embeddings, rows, atol=1e-6)
    again.close()


@given(seed=st.integers(0, 2**32 - 1), n=st.integers(1, 40), k=st.integers(1, 45))
@settings(max_examples=60, deadline=None)
def test_exact_search_equals_sorting_every_cosine(seed: int, n: int, k: int) -> None:
    rng = np.random.default_rng(seed)
    # Axis-aligned rows make many exact ties, at the border of the k as well.
    rows = np.eye(3, dtype=np.float32)[rng.integers(3, size=n)]
    items = [random_items(n)[i] for i in rng.permutation(n)]
    store = MemoryStore()
    store.add(items, rows)
    asked = unit(rng.normal(size=(5, 3)))
    for row, hits in zip(check_embeddings(asked), store.query(asked, k), strict=True):
        wanted = sorted((-float(row @ e), item.id) for item, e in zip(items, rows, strict=True))[:k]
        assert [hit.item.id for hit in hits] == [id_ for _, id_ in wanted]


def test_chroma_finds_what_exact_search_finds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    # Twenty clusters in a narrow cone, as real features lie.
    centres = rng.normal(size=(20, 128)) * 0.5 + rng.normal(size=128) * 2
    rows = unit(centres[rng.integers(20, size=3000)] + rng.normal(size=(3000, 128)) * 0.5)
    exact, graph = MemoryStore(), ChromaStore(tmp_path)
    seconds = []
    for store in (exact, graph):
        store.add(random_items(2000), rows[:2000])
        store.query(rows[:1], k=20)  # loads what is loaded once
        start = time.perf_counter()
        store.query(rows[2000:], k=20)
        seconds.append(time.perf_counter() - start)
    with capsys.disabled():
        print(f"\n1,000 queries on 2,000 x 128: Chroma takes {seconds[1] / seconds[0]:.2f} times as long as numpy")
    assert_same_neighbours(exact, graph, rows[2000:], k=20)
    graph.close()


def assert_same_neighbours(exact: Store, other: Store, asked: Floats, k: int) -> None:
    """Both find the same items, but for those within a millionth of the k-th best."""
    for wanted, got in zip(exact.query(asked, k), other.query(asked, k), strict=True):
        border = wanted[-1].similarity + 1e-6
        assert {h.item for h in wanted if h.similarity > border} <= {h.item for h in got}
        np.testing.assert_allclose([h.similarity for h in got], [h.similarity for h in wanted], atol=2e-6)


# --- the index


def small_index(folder: Path, per_group: int | None = 2) -> Index:
    rows = unit(np.random.default_rng(0).normal(size=(12, 4)))
    return build_index(folder, random_items(12, per_group), rows, "encoder-1")


def test_an_index_opens_with_what_was_built(tmp_path: Path) -> None:
    with small_index(tmp_path / "deep" / "index") as index:
        manifest = index.manifest
    with open_index(tmp_path / "deep" / "index", "encoder-1") as again:
        assert again.manifest == manifest
        assert again.store.all().items == tuple(random_items(12, 2))
    assert (manifest.n, manifest.dim, manifest.groups, manifest.encoder_digest) == (12, 4, 6, "encoder-1")
    assert manifest.labels == {"black-rot": 3, "healthy": 3, "rust": 3, "scab": 3}


def test_an_index_that_cannot_be_used_says_what_is_wrong_and_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"There is no index in .*nowhere.*\nRun fit first\."):
        open_index(tmp_path / "nowhere", "encoder-1")
    with pytest.raises(ConfigError, match="There is nothing to index"):
        build_index(tmp_path, [], np.empty((0, 4)), "encoder-1")
    small_index(tmp_path).close()
    with pytest.raises(ConfigError, match=r"made with encoder encoder-1, this model uses encoder-2\.\nRun fit again"):
        open_index(tmp_path, "encoder-2")
    whole = (tmp_path / MANIFEST).read_text()
    for text, wrong in {
        "{": "not readable as JSON",
        "[]": "is of version None",
        whole.replace('"version": 1', '"version": 2'): "is of version 2, this secondlook reads version 1",
        whole.replace('"n": 12', '"n": 13'): "is not whole: it holds 12 items of 4 dimensions, not 13 of 4",
        whole.replace('"store": "', '"store": "../'): "is not a manifest",
        whole.replace('"n": 12', '"m": 12'): "is not a manifest",
    }.items():
        (tmp_path / MANIFEST).write_text(text)
        with pytest.raises(ConfigError, match=wrong):
            open_index(tmp_path, "encoder-1")
    (tmp_path / MANIFEST).write_text(whole)
    shutil.rmtree(tmp_path / json.loads(whole)["store"])
    with pytest.raises(ConfigError, match=r"is not whole: chroma-\w+ is missing"):
        open_index(tmp_path, "encoder-1")


def test_a_build_killed_at_the_last_moment_leaves_the_old_index(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def kill(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", kill)
        with pytest.raises(KeyboardInterrupt):
            small_index(tmp_path)
        with pytest.raises(ConfigError, match="There is no index"):
            open_index(tmp_path, "encoder-1")
    first = small_index(tmp_path).manifest
    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", kill)
        with pytest.raises(KeyboardInterrupt):
            small_index(tmp_path)
    with open_index(tmp_path, "encoder-1") as index:
        assert index.manifest == first
    small_index(tmp_path).close()
    assert len(list(tmp_path.glob("chroma-*"))) == 1, "a finished build clears up after killed ones"


def test_searching_leaves_the_folder_as_it_is_and_outlives_it(tmp_path: Path) -> None:
    small_index(tmp_path).close()
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for path in (*tmp_path.rglob("*"), tmp_path):
        path.chmod(0o555 if path.is_dir() else 0o444)
    first, second = open_index(tmp_path, "encoder-1"), open_index(tmp_path, "encoder-1")
    rows = first.store.all().embeddings
    assert first.store.query(rows, k=3) == second.store.query(rows, k=3)
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for path in (tmp_path, *tmp_path.rglob("*")):
        path.chmod(0o755)
    shutil.rmtree(tmp_path)
    first.close()
    first.close()
    assert [row[0].similarity for row in second.store.query(rows, k=1)] == pytest.approx([1] * 12, abs=1e-6)
    second.close()


def test_a_store_whose_files_are_gone_or_broken_fails_with_a_sentence(tmp_path: Path) -> None:
    store = ChromaStore(tmp_path / "store")
    store.add(random_items(2), np.eye(2))
    store.close()
    store = ChromaStore(tmp_path / "store")
    (tmp_path / "store" / "chroma.sqlite3").write_bytes(b"")
    with pytest.raises(RetrievalError, match=r"The evidence store .*store did not answer: "):
        store.query(np.eye(2), k=1)
    store.close()
    small_index(tmp_path / "index").close()
    next((tmp_path / "index").rglob("chroma.sqlite3")).write_bytes(b"nonsense" * 1000)
    with pytest.raises(RetrievalError, match=r"did not answer: .*not a database"):
        open_index(tmp_path / "index", "encoder-1")


def test_the_near_duplicate_limit_is_the_closest_that_two_groups_come() -> None:
    n = ENOUGH_GROUPS + 1
    rows = np.zeros((n + 2, n + 1))
    rows[np.arange(n), np.arange(n)] = 1
    items = [Item(id=str(i), label="scab", group=f"leaf {i}", digest=str(i)) for i in range(n)]
    # The twin of leaf 0 is nearest of all, but of the same group; leaf 1's file stands in leaf 2's group as well.
    rows[n, 0], rows[n, n] = 0.995, np.sqrt(1 - 0.995**2)
    rows[n + 1, 1] = 1
    rows[3, 3], rows[3, 4] = np.sqrt(1 - 0.7**2), 0.7
    items.append(Item(id="twin", label="scab", group="leaf 0", digest="twin"))
    items.append(Item(id="copy", label="scab", group="leaf 2", digest="1"))
    assert near_duplicate_limit(items, rows) == pytest.approx(0.7 + 1e-6, abs=2e-7)


def test_without_enough_groups_only_the_same_picture_is_a_duplicate() -> None:
    rows = np.eye(ENOUGH_GROUPS + 5)
    few = [
        i.model_copy(update={"group": f"leaf {k % (ENOUGH_GROUPS - 1)}"}) for k, i in enumerate(random_items(len(rows)))
    ]
    assert near_duplicate_limit(few, rows) == SAME_IMAGE
    assert near_duplicate_limit(random_items(len(rows)), rows) == SAME_IMAGE
    # The same photograph in two groups: then even the measured limit stays below 1.
    grouped = random_items(len(rows), per_group=1)
    rows[1] = rows[0]
    assert near_duplicate_limit(grouped, rows) == SAME_IMAGE


# --- the leak guard


def test_no_case_is_shown_itself_its_group_or_a_near_duplicate(tmp_path: Path) -> None:
    own = case_of(b"not an image", group="leaf 3")
    angles = np.deg2rad([0, 0.1, 10, 20, 30, 40])
    items = [
        Item(id="itself", label="scab", digest=own.photo.digest),
        Item(id="again", label="scab", digest="1"),  # cosine .9999985 > .9999
        Item(id="sister", label="scab", group="leaf 3", digest="2"),
        Item(id="near", label="rust", group="leaf 4", path="near.jpg", digest="3"),
        Item(id="nobody's", label="rust", digest="4"),
        Item(id="far", label="scab", group="leaf 5", digest="5"),
    ]
    rows = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    with build_index(tmp_path, items, rows, "encoder-1") as index:
        (found,) = Searcher(index, k=10).search([[1.0, 0.0]], [own])
        (stranger,) = Searcher(index, k=3).search([[1.0, 0.0]], [case_of(b"another")])
        assert Searcher(index, k=3).search(np.empty((0, 2)), []) == []
    assert [n.id for n in found] == ["near", "nobody's", "far"]
    near = Neighbour(id="near", label="rust", similarity=found[0].similarity, group="leaf 4", path="near.jpg")
    assert found[0] == near
    assert near.similarity == pytest.approx(np.cos(np.deg2rad(20)), abs=1e-6)
    # Another file in the same place: the index's copies are the case again, the sister is honest evidence.
    assert [n.id for n in stranger] == ["sister", "near", "nobody's"]


def test_a_case_whose_group_fills_the_first_fetch_still_gets_k_neighbours(tmp_path: Path) -> None:
    # 40 photographs of the case's own leaf lie nearer than the 8 of others.
    angles = np.deg2rad(np.arange(48) + 2)
    items = [i.model_copy(update={"group": "mine" if k < 40 else None}) for k, i in enumerate(random_items(48))]
    with build_index(tmp_path, items, np.stack([np.cos(angles), np.sin(angles)], axis=1), "encoder-1") as index:
        mine, other = Searcher(index, k=5).search([[1.0, 0.0]] * 2, [case_of(b"1", "mine"), case_of(b"2", "other")])
        (all_there_are,) = Searcher(index, k=20).search([[1.0, 0.0]], [case_of(b"1", "mine")])
    assert [n.id for n in mine] == ["00040", "00041", "00042", "00043", "00044"]
    assert [n.id for n in other] == ["00000", "00001", "00002", "00003", "00004"]
    assert len(all_there_are) == 8


# --- the vote


def neighbour(label: str, similarity: float) -> Neighbour:
    return Neighbour(id=f"{label} {similarity}", label=label, similarity=similarity)


def ask(vote: NeighbourVote, *evidence: Evidence | None) -> list[Prediction | Failure]:
    photo = Photo.of(b"never decoded")
    return asyncio.run(vote.predict([Case(id=str(i), photo=photo, evidence=e) for i, e in enumerate(evidence)]))


def test_a_vote_is_the_share_of_similarity_per_label() -> None:
    evidence = Evidence(neighbours=(neighbour("scab", 0.9), neighbour("rust", 0.6), neighbour("scab", 0.5)))
    vote = NeighbourVote(TASK)
    assert isinstance(vote, Agent)
    (by_similarity,) = ask(vote, evidence)
    assert isinstance(by_similarity, Prediction)
    assert (by_similarity.agent, by_similarity.look, by_similarity.scale) == ("neighbour-vote", 2, "vote")
    # scab (.9 + .5) / 2.0, rust .6 / 2.0
    assert by_similarity.scores == pytest.approx((0, 0, 0.3, 0.7))
    (by_head,) = ask(NeighbourVote(TASK, name="count", weighting="uniform"), evidence)
    assert by_head == Prediction(agent="count", look=2, scale="vote", scores=(0, 0, 1 / 3, 2 / 3))


def test_a_vote_without_voices_is_a_failure_and_never_a_uniform_guess() -> None:
    first, none, opposed = ask(
        NeighbourVote(TASK), None, Evidence(), Evidence(neighbours=(neighbour("scab", -0.2), neighbour("rust", 0.0)))
    )
    assert first == Failure(agent="neighbour-vote", look=1, error="no evidence was retrieved for this look")
    assert none == Failure(agent="neighbour-vote", look=2, error="no neighbour left after the leak guard")
    assert opposed == Failure(agent="neighbour-vote", look=2, error="no neighbour has a positive similarity")


def test_a_neighbour_of_another_task_is_a_bug() -> None:
    with pytest.raises(ValueError, match=r"expected labels of .*, got 'septoria'"):
        ask(NeighbourVote(TASK), Evidence(neighbours=(neighbour("septoria", 0.9),)))


VOICES = st.lists(st.tuples(st.sampled_from(TASK.labels), st.floats(-1, 1, width=32)), min_size=1, max_size=30)


@given(voices=VOICES, order=st.randoms(use_true_random=False), weighting=st.sampled_from(["similarity", "uniform"]))
def test_votes_sum_to_one_whatever_the_order_of_the_neighbours(
    voices: list[tuple[str, float]], order: Random, weighting: Weighting
) -> None:
    vote = NeighbourVote(TASK, weighting=weighting)
    shares = vote.shares(voices)
    order.shuffle(voices)
    assert vote.shares(voices) == shares
    if shares is None:
        assert weighting == "similarity"
        assert max(similarity for _, similarity in voices) <= 0
    else:
        assert sum(shares) == pytest.approx(1)
        assert min(shares) >= 0


@given(label=st.sampled_from(TASK.labels), similarity=st.floats(1e-3, 1))
def test_a_single_neighbour_decides(label: str, similarity: float) -> None:
    assert NeighbourVote(TASK).shares([(label, similarity)]) == tuple(float(x == label) for x in TASK.labels)


# --- on real features


@pytest.mark.skipif(not FEATURES.exists(), reason=f"no features in {DATA}")
def test_on_real_features_the_vote_is_as_right_as_published_and_chroma_is_exact(tmp_path: Path) -> None:
    with np.load(FEATURES) as file:
        rows, labels, names = unit(file["embedding"]), file["label"], file["name"]
    cases = [Case(id=str(name), photo=Photo.of(str(name).encode())) for name in names]
    items = [
        Item(id=case.id, label=str(label), digest=case.photo.digest) for case, label in zip(cases, labels, strict=True)
    ]
    exact = MemoryStore()
    exact.add(items, rows)
    with build_index(tmp_path, items, rows, "ViT-B/32") as index:
        assert_same_neighbours(exact, index.store, rows, k=11)
        found = Searcher(index, k=10).search(rows, cases)
    for case, neighbours in zip(cases, found, strict=True):
        assert len(neighbours) == 10
        assert case.id not in {n.id for n in neighbours}
        assert all(a.similarity >= b.similarity for a, b in pairwise(neighbours))
    votes = ask(NeighbourVote(TASK), *(Evidence(neighbours=neighbours) for neighbours in found))
    right = [TASK.labels[vote.top] == label for vote, label in zip(votes, labels, strict=True)]
    # Leave-one-out over n = 512; only the own image is held back, since the features name no leaves.
    assert 0.947 <= np.mean(right) <= 0.956


def test_the_room_opens_without_chromadb() -> None:
    code = "import sys, secondlook.retrieval.search; assert 'chromadb' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
