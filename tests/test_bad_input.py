"""What people give by mistake: one bad image costs one case; everything else ends with a sentence and a remedy."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from bad_images import noise, write_bad_images
from command import Ran, run_cli
from PIL import Image
from tiny_clip import write_tiny_clip
from toy import LABELS, evaluated, toy, toy_image, write_toy

from secondlook.agents.embedding_cache import EmbeddingCache
from secondlook.eval.evaluate import evaluate, triage
from secondlook.eval.run_folder import LOCK, MANIFEST, VERDICTS
from secondlook.eval.tally import Row, read_rows

# -- one image among many


def write_odd_images(folder: Path) -> list[Path]:
    """Images of unusual kinds that can be judged all the same."""
    folder.mkdir(parents=True, exist_ok=True)
    picture = toy_image("green", 0)
    gray16 = Image.fromarray(np.random.default_rng(0).integers(0, 65536, (40, 40), np.uint16))
    turned = Image.Exif()
    turned[0x0112] = 6
    made = {
        "gray16.png": (gray16, {}),
        "cmyk.jpg": (picture.convert("CMYK"), {}),
        "palette.png": (picture.convert("P", palette=Image.Palette.ADAPTIVE), {}),
        "alpha.png": (picture.convert("RGBA"), {}),
        "turned.jpg": (picture, {"exif": turned}),
        "bit.png": (picture.convert("1"), {}),
        "smallest.png": (noise(8, 8), {}),
        "still.gif": (picture.convert("P"), {}),
    }
    for name, (image, options) in made.items():
        image.save(folder / name, **options)  # type: ignore[arg-type]
    return [folder / name for name in made]


class Texts(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.append(tag)


def judged(images: Path, out: Path, cache: Path) -> dict[str, Row]:
    with EmbeddingCache(cache) as store:
        found = triage(images, toy().model, out, cache=store, batch_size=5)
    rows = {row.id: row for row in read_rows(out / VERDICTS)}
    assert found.n == len(rows)
    return rows


def test_bad_images_go_to_review_by_name_and_change_nothing_else(tmp_path: Path) -> None:
    images = tmp_path / "images"
    good = [toy_image(label, 100 + i) for label in LABELS for i in range(4)]
    images.mkdir()
    for i, image in enumerate(good):
        image.save(images / f"m{i:02}.png")
    alone = judged(images, tmp_path / "alone", tmp_path / "cache-1")

    refusals = write_bad_images(images / "bad")
    # Before, between and after the others in the order of the run.
    refusals |= {images / "a.jpg": "is empty", images / "m05a.jpg": "is empty", images / "z.jpg": "is empty"}
    for name in ("a.jpg", "m05a.jpg", "z.jpg"):
        (images / name).touch()
    odd = write_odd_images(images / "odd")
    together = judged(images, tmp_path / "together", tmp_path / "cache-2")

    for name, before in alone.items():
        after = together[name]
        assert (after.label, after.action, after.reason) == (before.label, before.action, before.reason), name
        assert after.prediction_set == before.prediction_set
        # In another batch the encoder rounds otherwise in the last bits.
        assert after.probs == pytest.approx(before.probs, abs=1e-5)
        assert (after.trust, after.typicality) == (
            pytest.approx(before.trust, abs=1e-5),
            pytest.approx(before.typicality, abs=1e-9),
        )
    for path, words in refusals.items():
        row = together[path.relative_to(images).as_posix()]
        assert (row.action, row.reason, row.label, row.confidence) == ("review", "no_outcome", None, None), path
        assert words in row.why
        assert path.name in row.why
        assert set(row.prediction_set) == set(LABELS)
    for path in odd:
        row = together[path.relative_to(images).as_posix()]
        assert row.label in LABELS, row.why
        assert row.reason != "no_outcome"
    assert len(together) == len(alone) + len(refusals) + len(odd)

    page = (tmp_path / "together" / "report.html").read_text(encoding="utf-8")
    parser = Texts()
    parser.feed(page)
    assert parser.tags[0] == "html"
    assert "bomb.png" in page
    assert "</html>" in page[-20:]


def test_file_names_of_any_bytes_are_judged_and_resumed(tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    names = ["ü.png", "new\nline.png", "=1+1.png", "<b>.png", "\udcff.png", "\udcfe.png", " .png", "a" * 250 + ".png"]
    for i, name in enumerate(names):
        toy_image("red", 200 + i).save(images / "x.png")
        (images / "x.png").rename(images / name)
    (images / "\udcfd.jpg").touch()
    rows = judged(images, tmp_path / "run", tmp_path / "cache")
    assert len(rows) == len(names) + 1
    assert {"\\udcff.png", "\\udcfe.png", "\\udcfd.jpg"} <= set(rows)
    assert rows["\\udcfd.jpg"].reason == "no_outcome"
    again = judged(images, tmp_path / "run", tmp_path / "cache")
    assert list(again) == list(rows)


@pytest.mark.parametrize("n_bad", [3, 6])
def test_an_evaluation_counts_what_cannot_be_read_even_if_it_is_everything(tmp_path: Path, n_bad: int) -> None:
    for i in range(6):
        path = tmp_path / "data" / LABELS[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        toy_image(LABELS[i % 2], 300 + i).save(path)
        if i < n_bad:
            path.write_bytes(b"gone")
    with EmbeddingCache(tmp_path / "cache") as store:
        found = evaluate(tmp_path / "data", toy().model, tmp_path / "run", cache=store)
    m = found.metrics
    assert (m["n"], m["n_failed"], m["agents/linear-head/n"], m["agents/neighbour-vote@2/n"]) == (
        6,
        n_bad,
        6 - n_bad,
        6 - n_bad,
    )
    assert m["acc/top1"] <= 1 - n_bad / 6  # type: ignore[operator]
    if n_bad == 6:
        assert (m["acc/top1"], m["sel/coverage"], m["sel/accepted_error"]) == (0, 0, None)
    assert found.report
    assert found.report.is_file()


# -- everything else: exit code 2, a sentence, a remedy


@dataclass(frozen=True)
class Mistake:
    """Arguments made in a folder of its own, and words that the message must hold."""

    make: Callable[[Path], list[object]]
    says: str
    remedy: str


MISTAKES: dict[str, Mistake] = {}


def mistake(says: str, remedy: str) -> Callable[[Callable[[Path], list[object]]], Callable[[Path], list[object]]]:
    def keep(make: Callable[[Path], list[object]]) -> Callable[[Path], list[object]]:
        MISTAKES[make.__name__] = Mistake(make, says, remedy)
        return make

    return keep


def fitting(data: object, home: Path, *more: object) -> list[object]:
    return ["fit", data, "--out", home / "model", "--encoder", toy().clip, "--no-cache", *more]


def triaging(images: object, home: Path, *more: object, model: Path | None = None) -> list[object]:
    return ["triage", images, "--model", model or toy().model, "--out", home / "run", "--no-cache", *more]


def evaluating(data: object, home: Path, *more: object, model: Path | None = None) -> list[object]:
    return ["evaluate", data, "--model", model or toy().model, "--out", home / "run", "--no-cache", *more]


def with_csv(home: Path, *lines: str) -> Path:
    """Write a CSV beside three images."""
    for label in LABELS:
        toy_image(label, 400).save(home / f"{label}.png")
    (home / "data.csv").write_text("\n".join(lines) + "\n")
    return home / "data.csv"


def copied_model(home: Path) -> Path:
    return Path(shutil.copytree(toy().model, home / "other"))


@mistake("There are no images in", "Give a folder with one sub-folder of images per label")
def no_images(home: Path) -> list[object]:
    (home / "empty").mkdir()
    return fitting(home / "empty", home)


@mistake("holds only one label, 'red'", "one sub-folder of images per label")
def one_label(home: Path) -> list[object]:
    return fitting(with_csv(home, "path,label", "red.png,red", "blue.png,red"), home)


@mistake("Too few calibration cases of blue (1), green (1), red (1)", "Add images of these labels to the calibration")
def few_calibration_cases(home: Path) -> list[object]:
    data = write_toy(home / "data")
    for image in (data / "calibration").rglob("*.png"):
        if image.name != "8_0.png":
            image.unlink()
    (data / "index.csv").unlink()
    return fitting(data, home)


@mistake("has no column label; its columns are: path, class", "path,label and optionally group,split")
def missing_column(home: Path) -> list[object]:
    return fitting(with_csv(home, "path,class", "red.png,red"), home)


@mistake("lists 1 of 2 files that do not exist: gone.png", "Relative paths start at")
def missing_file(home: Path) -> list[object]:
    return fitting(with_csv(home, "path,label", "red.png,red", "gone.png,blue"), home)


@mistake("holds labels that are not of the task: purple", "The labels are blue, green, red")
def unknown_label(home: Path) -> list[object]:
    return evaluating(with_csv(home, "path,label", "red.png,red", "blue.png,purple"), home)


@mistake("The group 'g' stands in two splits: red.png in train, blue.png in test", "Keep all images of a leaf")
def group_in_two_splits(home: Path) -> list[object]:
    lines = ("path,label,group,split", "red.png,red,g,train", "blue.png,blue,g,test", "green.png,green,h,train")
    return fitting(with_csv(home, *lines), home)


@mistake("no-model is not a model folder: it holds no model.json", "secondlook fit DATA --out FOLDER")
def missing_model(home: Path) -> list[object]:
    return triaging(toy().data, home, model=home / "no-model")


@mistake("was written in format 99; this version reads format", "Run fit again")
def model_of_another_version(home: Path) -> list[object]:
    model = copied_model(home)
    found = json.loads((model / "model.json").read_text())
    (model / "model.json").write_text(json.dumps(found | {"format": 99}))
    return triaging(toy().data, home, model=model)


@mistake("cannot be read as a model folder", "run fit again")
def damaged_model(home: Path) -> list[object]:
    model = copied_model(home)
    (model / "arrays.safetensors").write_bytes(b"\x00" * 40)
    return triaging(toy().data, home, model=model)


@mistake("fitted_on.txt cannot be read", "run fit again")
def model_without_its_list_of_images(home: Path) -> list[object]:
    model = copied_model(home)
    (model / "fitted_on.txt").unlink()
    return evaluating(toy().data, home, model=model)


@mistake("its weights or its configuration have changed", "Put the old weights back, or run fit again")
def encoder_changed_since_the_fit(home: Path) -> list[object]:
    model = copied_model(home)
    found = json.loads((model / "model.json").read_text())
    found["config"]["encoder"]["model"] = str(write_tiny_clip(home / "clip", seed=1))
    (model / "model.json").write_text(json.dumps(found))
    return triaging(toy().data, home, model=model)


@mistake("'no-such-clip' has no weights", "Add --pretrained TAG or FILE")
def encoder_without_weights(home: Path) -> list[object]:
    return fitting(toy().data, home, "--encoder", "no-such-clip")


@mistake("cannot be loaded", "Give an OpenCLIP name with --pretrained")
def encoder_that_does_not_exist(home: Path) -> list[object]:
    return fitting(toy().data, home, "--encoder", "no-such-clip", "--pretrained", "random")


@mistake("holds no open_clip_config.json", "Give a folder as OpenCLIP saves it")
def encoder_folder_of_something_else(home: Path) -> list[object]:
    return fitting(toy().data, home, "--encoder", home)


@mistake("cannot be written", "Choose a writable --out")
def run_below_a_file(home: Path) -> list[object]:
    (home / "run").touch()
    return triaging(toy().data, home, "--out", home / "run" / "x")


@mistake("/proc/x cannot be written", "Choose a writable --out")
def model_where_nothing_can_be_written(home: Path) -> list[object]:
    return fitting(toy().data, home, "--out", "/proc/x")


@mistake("is not a run folder", "Choose another --out")
def run_into_a_folder_of_other_things(home: Path) -> list[object]:
    return triaging(toy().data, home, "--out", toy().data)


@mistake("is not a model folder", "Choose another --out")
def model_into_a_folder_of_other_things(home: Path) -> list[object]:
    return fitting(toy().data, home, "--out", toy().data)


@mistake("holds another run: triage of elsewhere", "delete that folder")
def run_into_another_run(home: Path) -> list[object]:
    manifest = json.loads((evaluated()[0] / MANIFEST).read_text()) | {"kind": "triage", "data": "elsewhere"}
    (home / "run").mkdir()
    (home / "run" / MANIFEST).write_text(json.dumps(manifest))
    return triaging(toy().data, home)


@mistake("--target-risk: Input should be less than 1, got 2.0", "secondlook fit --help")
def target_risk_of_two(home: Path) -> list[object]:
    return fitting(toy().data, home, "--target-risk", 2)


@mistake(", got nan", "secondlook fit --help")
def target_risk_of_nan(home: Path) -> list[object]:
    return fitting(toy().data, home, "--target-risk", "nan")


@mistake("--neighbours: Input should be greater than or equal to 1, got 0", "secondlook fit --help")
def no_neighbours(home: Path) -> list[object]:
    return fitting(toy().data, home, "-k", 0)


@mistake("There is no device 'foo'", "--device auto, cpu or cuda")
def unknown_device(home: Path) -> list[object]:
    return triaging(toy().data, home, "--device", "foo")


@mistake("words.yaml cannot be read: No such file", "labels: {LABEL: [a description")
def missing_descriptions(home: Path) -> list[object]:
    return fitting(toy().data, home, "--descriptions", home / "words.yaml")


@mistake("words.yaml are not YAML", "labels: {LABEL: [a description")
def bad_descriptions(home: Path) -> list[object]:
    (home / "words.yaml").write_text("labels: {red: [")
    return fitting(toy().data, home, "--descriptions", home / "words.yaml")


@mistake("Descriptions of unknown labels: ['purple']", "The labels are ['blue', 'green', 'red']")
def descriptions_of_unknown_labels(home: Path) -> list[object]:
    (home / "words.yaml").write_text("labels: {purple: [a purple thing]}")
    return fitting(toy().data, home, "--descriptions", home / "words.yaml")


@mistake("the template 'a photo' does not hold {} once", "a photo of {}.")
def template_without_a_place(home: Path) -> list[object]:
    (home / "words.txt").write_text("a photo\n")
    return fitting(toy().data, home, "--templates", home / "words.txt")


@mistake("There is no template file nowhere.txt", "one template a line")
def missing_templates(home: Path) -> list[object]:
    return fitting(toy().data, home, "--templates", "nowhere.txt")


@mistake("84 of 84 images were used to fit", "--allow-seen")
def scoring_what_was_fitted_on(home: Path) -> list[object]:
    return evaluating(toy().data, home, "--split", "calibration")


@mistake("has no cases in the split 'tune'", "Add a tune/ folder")
def unknown_split(home: Path) -> list[object]:
    return evaluating(toy().data, home, "--split", "tune")


@mistake("'gray' is taken", "Rename the folder")
def strangers_of_the_same_name(home: Path) -> list[object]:
    folders = [home / side / "gray" for side in "ab"]
    for folder in folders:
        folder.mkdir(parents=True)
        noise().save(folder / "x.png")
    return evaluating(toy().data, home, "--ood", folders[0], "--ood", folders[1])


@mistake("There are no images in", "Images end in .jpg")
def strangers_without_images(home: Path) -> list[object]:
    (home / "gray").mkdir()
    return evaluating(toy().data, home, "--ood", home / "gray")


@mistake("is a URL; images are not fetched", "Download it")
def images_by_url(home: Path) -> list[object]:
    return triaging("https://example.org/leaf.jpg", home)


@mistake("There is no https:/example.org/leaves", "Give a folder")
def data_by_url(home: Path) -> list[object]:
    return fitting("https://example.org/leaves", home)


@mistake("missing.jpg: No such file or directory", "Check the path")
def missing_image(home: Path) -> list[object]:
    return triaging(home / "missing.jpg", home)


@mistake("is not a model folder: it holds no model.json", "secondlook fit")
def show_of_something_else(home: Path) -> list[object]:
    return ["show", toy().data]


@mistake("cannot be read as a model folder", "run fit again")
def show_of_another_model_json(home: Path) -> list[object]:
    (home / "model.json").write_text("[" * 3000)
    return ["show", home]


@mistake("exists and is not a demonstration's folder", "Choose another --out")
def demo_into_a_folder_of_other_things(home: Path) -> list[object]:
    return ["demo", "--out", toy().data]


@mistake("cannot be written", "Choose a writable --out")
def demo_into_a_file(home: Path) -> list[object]:
    (home / "file").touch()
    return ["demo", "--out", home / "file"]


def complains(ran: Ran, says: str, remedy: str) -> None:
    flat = " ".join(ran.err.split())
    assert ran.code == 2, ran
    assert ran.out == ""
    assert "Traceback" not in ran.err
    errors, _, tries = flat.rpartition("try: ")
    assert "error: " in errors, flat
    assert says in errors
    assert remedy in tries


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_ends_with_exit_code_2_a_sentence_and_a_remedy(tmp_path: Path, name: str) -> None:
    found = MISTAKES[name]
    complains(run_cli(*found.make(tmp_path), cache=tmp_path / "cache"), found.says, found.remedy)
    assert not (tmp_path / "run" / VERDICTS).exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["no-such-command"], "No such command"),
        (["fit"], "Missing argument 'DATA'"),
        (["fit", "DATA"], "Missing option '--out'"),
        (["triage", "IMAGES", "--model", "M", "--out", "R", "--batch-size", "0"], "'--batch-size'"),
        (["fit", "DATA", "--out", "M", "--seed", "-1"], "'--seed'"),
        (["fit", "DATA", "--out", "M", "--target-risk", "low"], "'--target-risk'"),
        (["show", "M", "--unknown"], "No such option"),
    ],
)
def test_wrong_usage_ends_with_exit_code_2_too(arguments: list[str], says: str) -> None:
    ran = run_cli(*arguments)
    assert (ran.code, ran.out) == (2, "")
    assert says in ran.err
    assert "Traceback" not in ran.err


def test_the_installed_command_complains_alike(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "from secondlook.cli import main; main()"]
    ran = subprocess.run([*command, "show", tmp_path], capture_output=True, text=True, timeout=100, check=False)
    complains(Ran(ran.returncode, ran.stdout, ran.stderr), "is not a model folder", "secondlook fit DATA")


def test_another_process_that_writes_to_the_run_is_respected(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    script = (
        "import fcntl, sys; lock = open(sys.argv[1], 'w'); fcntl.flock(lock, fcntl.LOCK_EX);"
        "print('locked', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, tmp_path / "run" / LOCK], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout
        assert other.stdout.readline() == b"locked\n"
        ran = run_cli(*triaging(toy().data, tmp_path))
        other.communicate(timeout=20)
    complains(ran, f"Another process is writing to {tmp_path / 'run'}", "Wait for it")
    assert run_cli(*triaging(toy().data / "test", tmp_path, "--no-report")).code == 0


def test_seen_images_may_be_scored_on_demand_and_the_run_is_stamped(tmp_path: Path) -> None:
    ran = run_cli(*evaluating(toy().data, tmp_path, "--split", "calibration", "--allow-seen", "--json"))
    assert ran.code == 0, ran.err
    notes = json.loads((tmp_path / "run" / MANIFEST).read_text())["notes"]
    assert "84 of 84 images were used to fit the model: these figures are too good." in notes
    assert "these figures are too good" in (tmp_path / "run" / "report.html").read_text()


def test_what_could_steer_a_terminal_is_made_visible(tmp_path: Path) -> None:
    ran = run_cli("show", tmp_path / "\x1b[31mred\x07")
    assert ran.code == 2
    assert "\\x1b[31mred\\x07" in ran.err
    assert "\x1b" not in ran.err


def test_a_full_disk_is_named_without_a_traceback(tmp_path: Path) -> None:
    arguments = triaging(toy().data / "test", tmp_path, "--no-report")
    assert run_cli(*arguments).code == 0
    (tmp_path / "run" / "verdicts.csv.partial").symlink_to("/dev/full")
    complains(run_cli(*arguments), "No space left on device", "give the same command again")


def test_of_data_without_splits_what_was_fitted_on_is_left_out(tmp_path: Path) -> None:
    # A folder per label, as a person has it: half of it is what the model was fitted on.
    for label in sorted(path.name for path in (toy().data / "test").iterdir()):
        (tmp_path / "flat" / label).mkdir(parents=True)
        for split in ("test", "calibration"):
            for path in sorted((toy().data / split / label).iterdir())[:6]:
                (tmp_path / "flat" / label / f"{split}-{path.name}").write_bytes(path.read_bytes())
    ran = run_cli(*evaluating(tmp_path / "flat", tmp_path, "--json"))
    assert ran.code == 0, ran.err
    assert json.loads(ran.out)["n"] == 18
    notes = json.loads((tmp_path / "run" / MANIFEST).read_text())["notes"]
    assert "18 of 36 images were used to fit the model and were left out." in notes
