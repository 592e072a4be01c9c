"""Datasets are read as they lie, without opening an image, and what is wrong with them is named."""

from __future__ import annotations

import os
import time
from collections import defaultdict
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from secondlook.agents.case import Case
from secondlook.agents.errors import ConfigError
from secondlook.agents.photo import Photo
from secondlook.eval.cases import (
    Dataset,
    LabelledCase,
    check_counts,
    check_disjoint,
    digest_of_split,
    digests_of,
    list_images,
    read_dataset,
    split_by_group,
    with_digests,
)

DATA = Path(os.environ.get("SECONDLOOK_DATA") or Path(__file__).parents[1].parent / "shared" / "data")


def plant(root: Path, *paths: str) -> Path:
    """Write files that are called as images are; their text is their path, so that all differ."""
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(path)
    return root


def table(root: Path, text: str, name: str = "leaves.csv") -> Path:
    (root / name).write_text(text)
    return root / name


def dataset(groups: list[str | None], truths: list[str]) -> Dataset:
    cases = tuple(
        LabelledCase(case=Case(id=f"{i}.jpg", photo=Photo(f"{i}".encode()), group=group), truth=truth)
        for i, (group, truth) in enumerate(zip(groups, truths, strict=True))
    )
    return Dataset(root=Path("leaves"), labels=tuple(sorted(set(truths))), cases=cases)


def refusal(data: Path, labels: list[str] | None = None) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        read_dataset(data, labels=labels)
    assert caught.value.remedy
    return caught.value


# Folders


def test_a_folder_per_label_is_read_sorted_and_ids_are_paths_below_it(tmp_path: Path) -> None:
    plant(tmp_path, "scab/b.JPG", "scab/a.jpeg", "healthy/x/deep.tiff", "scab/.hidden.jpg", "scab/notes.txt")
    plant(tmp_path, ".cache/c.jpg", "scab/.thumbs/d.png", "README.md")
    data = read_dataset(tmp_path)
    assert [item.case.id for item in data.cases] == ["healthy/x/deep.tiff", "scab/a.jpeg", "scab/b.JPG"]
    assert [item.truth for item in data.cases] == ["healthy", "scab", "scab"]
    assert data.labels == ("healthy", "scab")
    assert data.counts() == {"healthy": 1, "scab": 2}
    assert data.splits == ()
    assert data.cases[1].case.photo.path == tmp_path / "scab/a.jpeg"


def test_reading_opens_no_image(tmp_path: Path) -> None:
    # None of these is an image: whoever opened one would know.
    plant(tmp_path, "scab/a.jpg", "rust/b.jpg")
    (tmp_path / "rust/empty.jpg").touch()
    assert len(read_dataset(tmp_path).cases) == 3


def test_a_folder_per_split_gives_splits(tmp_path: Path) -> None:
    plant(tmp_path, *(f"{split}/{label}/1.jpg" for split in ("Train", "val", "test") for label in ("rust", "scab")))
    data = read_dataset(tmp_path)
    assert data.splits == ("train", "test", "calibration")
    assert [item.case.id for item in data.split("calibration")] == ["val/rust/1.jpg", "val/scab/1.jpg"]
    assert data.counts("test") == {"rust": 1, "scab": 1}
    with pytest.raises(ConfigError, match="no cases in the split 'tune'; it has the splits train, test, calibration"):
        data.split("tune")


def test_labels_may_be_called_valid_and_invalid(tmp_path: Path) -> None:
    data = read_dataset(plant(tmp_path, "valid/1.jpg", "invalid/1.jpg"))
    assert data.labels == ("invalid", "valid")
    assert data.splits == ()


def test_the_labels_of_the_task_give_the_order_and_admit_no_other(tmp_path: Path) -> None:
    plant(tmp_path, "scab/a.jpg", "rust/b.jpg")
    assert read_dataset(tmp_path, labels=["scab", "rust", "healthy"]).labels == ("scab", "rust", "healthy")
    error = refusal(tmp_path, labels=["scab", "healthy"])
    assert "not of the task: rust" in error.what
    assert "scab, healthy" in error.remedy


def test_one_label_is_enough_only_where_the_task_is_known(tmp_path: Path) -> None:
    plant(tmp_path, "scab/a.jpg")
    assert "only one label, 'scab'" in str(refusal(tmp_path))
    assert read_dataset(tmp_path, labels=["rust", "scab"]).counts() == {"rust": 0, "scab": 1}


@pytest.mark.parametrize(
    ("paths", "says"),
    [
        ([], "no images in"),
        (["scab/notes.txt", "rust/.a.jpg"], "no images in"),
        (["a.jpg", "b.jpg"], "a.jpg, b.jpg in .* stand outside"),
        (["scab/a.jpg", "rust/b.jpg", "cover.png"], "cover.png in .* stands outside"),
        (["train/a.jpg", "train/scab/b.jpg", "test/rust/c.jpg"], "train/a.jpg in .* stands outside"),
        (["train/scab/a.jpg", "extra/rust/b.jpg"], r"splits \(train\) beside folders that are none \(extra\)"),
    ],
    ids=["empty", "no image files", "no labels", "stray", "stray in a split", "split beside label"],
)
def test_a_folder_that_is_no_dataset_says_why(paths: list[str], says: str, tmp_path: Path) -> None:
    plant(tmp_path, *paths)
    assert refusal(tmp_path).what
    with pytest.raises(ConfigError, match=says):
        read_dataset(tmp_path)


def test_data_that_is_not_there_or_no_table_is_named(tmp_path: Path) -> None:
    assert "There is no" in str(refusal(tmp_path / "nowhere"))
    assert "There is no" in str(refusal(Path("a" * 5000)))
    assert "neither a folder nor a CSV" in str(refusal(plant(tmp_path, "a.jpg") / "a.jpg"))


# Tables


def test_a_csv_gives_path_label_group_and_split_in_its_own_order(tmp_path: Path) -> None:
    plant(tmp_path, "b.jpg", "sub/a.jpg")
    text = "\ufeff Path , label,group,split,camera\nsub/../b.jpg,scab,leaf 1,Test,x\n\n./sub/a.jpg, rust ,,val\n"
    data = read_dataset(table(tmp_path, text))
    assert [(item.case.id, item.truth, item.case.group, item.split) for item in data.cases] == [
        ("b.jpg", "scab", "leaf 1", "test"),
        ("sub/a.jpg", "rust", None, "calibration"),
    ]


def test_an_index_in_the_folder_wins_over_the_folders(tmp_path: Path) -> None:
    plant(tmp_path, "x/a.jpg", "x/b.jpg", "y/c.jpg")
    table(tmp_path, "path,label\nx/a.jpg,rust\nx/b.jpg,scab\n", "index.csv")
    data = read_dataset(tmp_path)
    assert [item.case.id for item in data.cases] == ["x/a.jpg", "x/b.jpg"]
    assert data.labels == ("rust", "scab")


def test_absolute_paths_may_lead_anywhere_and_relative_ones_must_stay(tmp_path: Path) -> None:
    elsewhere = plant(tmp_path / "elsewhere", "a.jpg") / "a.jpg"
    here = plant(tmp_path / "here", "b.jpg")
    data = read_dataset(table(here, f"path,label\n{elsewhere},rust\nb.jpg,scab\n"))
    assert [item.case.id for item in data.cases] == [elsewhere.as_posix(), "b.jpg"]
    error = refusal(table(here, "path,label\nb.jpg,scab\nx/../../elsewhere/a.jpg,rust\n"))
    assert "line 3" in error.what
    assert "leads out of the folder" in error.what


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "holds no images"),
        ("path,label\n", "holds no images"),
        ("file,label\na.jpg,rust\n", "no column path; its columns are: file, label"),
        ("path;label\na.jpg;rust\n", "no column path and no column label; its columns are: path;label"),
        ("path,label\na.jpg,\n", "line 2: the label is empty"),
        ("path,label\na.jpg\n", "line 2: the label is empty"),
        ("path,label\n,rust\n", "line 2: the path is empty"),
        ("path,label\na.jpg,rust\nb.jpg,rust\n", "only one label, 'rust'"),
        ("path,label\na.jpg,rust\n./a.jpg,scab\n", r"lists .*a\.jpg more than once"),
        (
            "path,label\n1.jpg,rust\na.jpg,scab\n2.jpg,x\n3.jpg,x\n4.jpg,x\n",
            r"4 of 5 files .*: 1.jpg, 2.jpg, 3.jpg and",
        ),
        ("path,label\n.,rust\nb.jpg,scab\n", "1 of 2 files that do not exist"),
        (f"path,label\n{'a' * 5000},rust\nb.jpg,scab\n", "1 of 2 files that do not exist"),
        ("path,label,split\na.jpg,rust,train\nb.jpg,scab,holdout\n", "line 3: there is no split 'holdout'"),
        ("path,label,split\na.jpg,rust,train\nb.jpg,scab,\n", "none for 1: b.jpg"),
        (
            "path,label,group,split\na.jpg,rust,g,train\nb.jpg,scab,g,test\n",
            r"'g' stands in two splits: a.jpg in",
        ),
        (f"path,label\na.jpg,{'x' * 200_000}\n", "cannot be read as CSV: field larger"),
    ],
    ids=lambda text: text[:30].replace("\n", " "),
)
def test_what_is_wrong_with_a_csv_is_named(text: str, says: str, tmp_path: Path) -> None:
    path = table(plant(tmp_path, "a.jpg", "b.jpg"), text)
    assert str(path) in refusal(path).what or "stands in two splits" in says
    with pytest.raises(ConfigError, match=says):
        read_dataset(path)


def test_a_csv_in_another_encoding_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "latin.csv"
    path.write_bytes("path,label\na.jpg,Äpfel\n".encode("latin-1"))
    assert "not UTF-8 (byte 17)" in str(refusal(path))  # "path,label\na.jpg," is 17 bytes


# Images without labels


def test_images_are_listed_sorted_through_all_folders(tmp_path: Path) -> None:
    plant(tmp_path, "b/2.png", "b/10.png", "a.jpg", "b/.x.png", "notes.txt")
    assert [case.id for case in list_images(tmp_path)] == ["a.jpg", "b/10.png", "b/2.png"]
    assert list_images(tmp_path / "a.jpg")[0].id == "a.jpg"
    assert list_images(str(tmp_path / "a.jpg"))[0].photo.path == tmp_path / "a.jpg"


def test_several_sources_keep_their_order_and_a_file_met_twice_is_listed_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(plant(tmp_path, "b/2.png", "b/1.png", "c/1.png", "a.jpg"))
    assert [case.id for case in list_images(["c", "b/2.png", "b", "a.jpg"])] == [
        "c/1.png",
        "b/2.png",
        "b/1.png",
        "a.jpg",
    ]


def test_nothing_to_judge_is_an_error(tmp_path: Path) -> None:
    for source, says in ((tmp_path, "no images in"), (tmp_path / "none", "No such file"), ([], "list is empty")):
        with pytest.raises(ConfigError, match=says) as caught:
            list_images(source)
        assert caught.value.remedy


# Splits


labels = st.sampled_from(["healthy", "rust", "scab"])


@settings(max_examples=60, deadline=None)
@given(
    items=st.lists(st.tuples(st.one_of(st.none(), st.integers(0, 30).map(str)), labels), min_size=1, max_size=120),
    seed=st.integers(0, 2**32 - 1),
)
def test_however_it_is_split_no_group_stands_on_two_sides(items: list[tuple[str | None, str]], seed: int) -> None:
    data = dataset(*map(list, zip(*items, strict=True)))
    groups = len({item.case.group or item.case.id for item in data.cases})
    if groups < 3:
        with pytest.raises(ConfigError, match=f"holds {groups} groups"):
            split_by_group(data, seed=seed)
        return
    done = split_by_group(data, seed=seed)
    homes = defaultdict(set)
    for item in done.cases:
        assert item.split in ("train", "calibration", "test")
        homes[item.case.group or item.case.id].add(item.split)
    assert all(len(home) == 1 for home in homes.values())
    assert [item.case for item in done.cases] == [item.case for item in data.cases]
    assert done == split_by_group(data, seed=seed)


def test_single_images_are_split_in_exactly_the_shares_asked_for_in_every_label() -> None:
    done = split_by_group(dataset([None] * 150, ["rust"] * 100 + ["scab"] * 50))
    assert {name: done.counts(name) for name in done.splits} == {
        "train": {"rust": 60, "scab": 30},
        "calibration": {"rust": 20, "scab": 10},
        "test": {"rust": 20, "scab": 10},
    }


def test_groups_of_uneven_size_keep_the_shares_of_every_label_within_a_group() -> None:
    # 40 groups of 1 to 10 images each, of two labels: no share is off by more than the largest group.
    groups = [f"{g}" for g in range(40) for _ in range(1 + g % 10)]
    truths = ["rust" if int(g) % 20 < 10 else "scab" for g in groups]
    done = split_by_group(dataset(groups, truths), (0.5, 0.3, 0.2))
    for name, share in (("train", 0.5), ("calibration", 0.3), ("test", 0.2)):
        for label, n in done.counts(name).items():
            assert abs(n - share * truths.count(label)) <= 10


def test_another_seed_is_another_split_and_names_are_free() -> None:
    data = dataset([None] * 60, ["rust", "scab"] * 30)
    assert split_by_group(data, seed=0) != split_by_group(data, seed=1)
    halves = split_by_group(data, (0.5, 0.5), names=("fit", "judge"))
    assert halves.counts("fit") == halves.counts("judge") == {"rust": 15, "scab": 15}
    for fractions in ((0.5, 0.5), (0.5, 0.5, 0.5), (1.0, 0.0, 0.0), (float("nan"), 0.5, 0.5)):
        with pytest.raises(ConfigError, match="Fractions"):
            split_by_group(data, fractions)


def test_identical_files_become_one_group_whatever_their_names_and_groups(tmp_path: Path) -> None:
    plant(tmp_path, *(f"{name}.jpg" for name in "abcdefgh"))
    for copy, original in (("b", "a"), ("d", "c"), ("f", "e")):
        (tmp_path / f"{copy}.jpg").write_bytes((tmp_path / f"{original}.jpg").read_bytes())
    for empty in "gh":
        (tmp_path / f"{empty}.jpg").write_bytes(b"")
    group = {"c": "leaf 1", "d": "leaf 2", "e": "leaf 2", "f": ""}
    rows = "".join(f"{n}.jpg,{'rust' if n in 'aceg' else 'scab'},{group.get(n, '')}\n" for n in "abcdefgh")
    data = with_digests(read_dataset(table(tmp_path, "path,label,group\n" + rows)))
    # a = b; c = d, whose group holds e, and e = f: one group of four. Empty files hold no image, so are no twins.
    assert [item.case.group for item in data.cases] == ["a.jpg"] * 2 + ["leaf 1"] * 4 + [None] * 2


def test_splits_that_share_an_image_or_a_group_are_refused(tmp_path: Path) -> None:
    plant(tmp_path, *(f"{split}/{label}/1.jpg" for split in ("train", "test") for label in ("rust", "scab")))
    check_disjoint(read_dataset(tmp_path).by_split())
    for empty in ("train", "test"):
        (tmp_path / empty / "rust/empty.jpg").touch()
    check_disjoint(read_dataset(tmp_path).by_split())
    (tmp_path / "test/rust/other name.png").write_bytes((tmp_path / "train/scab/1.jpg").read_bytes())
    with pytest.raises(ConfigError, match=r"test/rust/other name.png in test, train/scab/1.jpg in train") as caught:
        check_disjoint(read_dataset(tmp_path).by_split())
    assert "Remove one" in caught.value.remedy
    one, other = dataset(["g", None], ["rust", "scab"]), dataset([None, None, "g"], ["rust", "scab", "scab"])
    with pytest.raises(ConfigError, match=r"group 'g' stands in two splits: 0.jpg in train, 2.jpg in tune"):
        check_disjoint({"train": one.cases[:1], "tune": other.cases[2:]})


def test_a_split_is_named_by_its_images_not_by_their_names_or_order(tmp_path: Path) -> None:
    plant(tmp_path, "rust/a.jpg", "scab/b.jpg", "scab/c.jpg")
    data = read_dataset(tmp_path)
    name = digest_of_split(data.cases)
    assert digest_of_split(data.cases[::-1]) == name
    assert digest_of_split(data.cases[:2]) != name
    (tmp_path / "rust/a.jpg").rename(tmp_path / "rust/z.jpg")
    assert digest_of_split(read_dataset(tmp_path).cases) == name
    assert len(name) == 16
    assert list(digests_of(data.cases)) == ["rust/a.jpg", "scab/b.jpg", "scab/c.jpg"]


def test_labels_with_too_few_cases_are_named_with_their_counts() -> None:
    data = dataset([None] * 9, ["rust"] * 5 + ["scab"] * 4)
    check_counts(data.cases, minimum=4)
    with pytest.raises(ConfigError, match=r"Too few calibration cases of scab \(4\): each label needs at least 5"):
        check_counts(data.cases)
    with pytest.raises(ConfigError, match=r"Too few train cases of healthy \(0\):"):
        check_counts(data.cases, minimum=1, split="train", labels=["healthy", *data.labels])
    with pytest.raises(ConfigError, match="Too few calibration cases of every label"):
        check_counts([])


# Size, and the real thing


def test_many_files_are_read_and_split_in_a_moment(tmp_path: Path) -> None:
    for label in range(10):
        (tmp_path / f"{label}").mkdir()
    for i in range(1_000):
        (tmp_path / f"{i % 10}" / f"{i}.jpg").touch()
    start = time.process_time()
    split = split_by_group(read_dataset(tmp_path))
    elapsed_s = time.process_time() - start
    assert len(split.cases) == 1_000
    assert set(split.counts("train").values()) == {60}
    assert elapsed_s < 1  # of the processor: 0.06 s where this was written


def test_the_apple_leaves_are_read_by_their_index() -> None:
    if not (DATA / "plantvillage-apple" / "index.csv").exists():
        pytest.skip(f"no shared data at {DATA}")
    data = read_dataset(DATA / "plantvillage-apple")
    assert len(data.cases) == 1549
    assert data.labels == ("black-rot", "healthy", "rust", "scab")
    assert [len(data.split(name)) for name in ("train", "calibration", "test")] == [695, 571, 283]
    check_disjoint(data.by_split())
    with Image.open(data.cases[0].case.photo.path or "") as image:
        assert image.size == (256, 256)
