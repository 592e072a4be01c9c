"""An answer that was returned is on disk, whatever happens next; a question on its way is asked once."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secondlook.agents.answer_cache import AnswerCache
from secondlook.agents.cost import Cost
from secondlook.agents.errors import ConfigError
from secondlook.agents.prediction import Prediction

UNIT = st.floats(0, 1, allow_subnormal=False)
SAID = st.builds(
    Prediction,
    agent=st.text(st.characters(codec="utf-8"), max_size=8),
    look=st.sampled_from((1, 2)),
    scale=st.sampled_from(("logit", "probability", "stated", "sampled")),
    scores=st.lists(UNIT, min_size=2, max_size=4).map(tuple),
    reason=st.text(st.characters(codec="utf-8"), max_size=20),
    again=st.booleans(),
    prompt=st.sampled_from(("", "ab" * 32)),
    cost=st.builds(Cost, vlm_calls=st.just(1.0), usd=UNIT),
)
ONE = Prediction(agent="eye", scale="stated", scores=(0.9, 0.0), reason="dark spots", cost=Cost(vlm_calls=1, usd=0.01))
OTHER = ONE.model_copy(update={"scores": (0.0, 0.8)})


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> AnswerCache:
    return AnswerCache(tmp_path_factory.mktemp("answers"))


@given(said=SAID, key=st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=10))
def test_what_is_kept_comes_back_as_it_was(shared: AnswerCache, said: Prediction, key: str) -> None:
    kept = shared.add(key, said)
    assert shared.get(key) == kept
    with AnswerCache(shared.path.parent) as again:
        assert again.get(key) == kept


def test_the_first_answer_stays_whoever_answers_second(tmp_path: Path) -> None:
    with AnswerCache(tmp_path) as one, AnswerCache(tmp_path) as other:
        assert one.add("key", ONE) == ONE
        assert other.add("key", OTHER) == ONE, "and whoever was slower says what the others say"
        assert other.get("key") == one.get("key") == ONE
        assert one.get("another key") is None
        assert len(one) == 1


def test_a_killed_process_loses_no_answer_that_it_was_given(tmp_path: Path) -> None:
    program = f"""
import os, signal
from pathlib import Path
from secondlook.agents.answer_cache import AnswerCache
from secondlook.agents.prediction import Prediction
cache = AnswerCache(Path({str(tmp_path)!r}))
for i in range(20):
    cache.add(str(i), Prediction(agent="eye", scale="stated", scores=(i / 20, 0.0)))
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", program], timeout=60, check=False, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    with AnswerCache(tmp_path) as cache:
        assert len(cache) == 20
        assert cache.get("19") == Prediction(agent="eye", scale="stated", scores=(0.95, 0.0))


def refused(folder: Path) -> str:
    with pytest.raises(ConfigError) as caught, AnswerCache(folder) as cache:
        cache.get("key")
    assert "answers.sqlite" in caught.value.what
    assert "delete the file" in caught.value.remedy
    return caught.value.what


def test_a_file_that_is_no_cache_is_the_users_to_put_right(tmp_path: Path) -> None:
    (tmp_path / "answers.sqlite").write_bytes(b"no database" * 100)
    assert "not a database" in refused(tmp_path)


def test_a_database_of_somebody_else_is_refused(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "answers.sqlite") as database:
        database.execute("CREATE TABLE answers (question TEXT)")
    database.close()
    refused(tmp_path)


def test_a_cache_with_bytes_overwritten_is_refused_and_never_read_as_an_answer(tmp_path: Path) -> None:
    with AnswerCache(tmp_path) as cache:
        for i in range(200):
            cache.add(f"{i:03}", ONE)
    path = tmp_path / "answers.sqlite"
    data = bytearray(path.read_bytes())
    data[4096 : len(data)] = b"\xff" * (len(data) - 4096)
    path.write_bytes(data)
    assert "malformed" in refused(tmp_path)


@pytest.mark.parametrize(
    "value", ["", "{}", '{"agent": "eye"}', "no JSON", ONE.model_dump_json().replace("stated", "x")]
)
def test_a_row_that_is_no_prediction_is_refused(tmp_path: Path, value: str) -> None:
    with AnswerCache(tmp_path) as cache:
        cache.add("key", ONE)
    database = sqlite3.connect(tmp_path / "answers.sqlite")
    with database:
        database.execute("UPDATE answers SET value = ?", (value,))
    database.close()
    assert "key is no answer" in refused(tmp_path)


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    refused(tmp_path / "file")


def test_use_after_close_is_a_bug_and_not_the_users(tmp_path: Path) -> None:
    cache = AnswerCache(tmp_path)
    cache.close()
    with pytest.raises(sqlite3.ProgrammingError):
        cache.get("key")


def test_the_first_to_join_asks_and_the_others_hear_of_it(shared: AnswerCache) -> None:
    first, second = shared.join("question"), shared.join("question")
    assert first.is_mine
    assert not second.is_mine
    assert not second.landed.cancel(), "one who gives up waiting does not end it for the others"
    shared.land("question", ONE)
    assert second.landed.result() == ONE
    again = shared.join("question")
    assert again.is_mine, "and it may be asked anew"
    shared.land("question", None)


def test_by_default_it_is_in_the_folder_of_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECONDLOOK_CACHE", str(tmp_path / "own"))
    with AnswerCache.default() as cache:
        assert cache.path == tmp_path / "own" / "answers.sqlite"
