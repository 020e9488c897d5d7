"""The report: what its page holds, that hostile names stay text, and how a real browser sees it."""

from __future__ import annotations

import base64
import itertools
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
from helpers import Program, Trained

from iiae_cli.data.datafile import Side, Split, write_data_file
from iiae_cli.evaluation.disentanglement import latent_usage
from iiae_cli.evaluation.protocols import EncodedPairs
from iiae_cli.evaluation.tables import Table
from iiae_cli.inference.trained import Encoded
from iiae_cli.report.curves import read_object, read_records, training_charts
from iiae_cli.report.examples import class_examples, paired_examples, spread
from iiae_cli.report.page import cell, render
from iiae_cli.report.plots import Line, bar_chart, count_chart, line_chart
from iiae_cli.report.retrieval_section import rank_bins, rank_chart

SCRIPT = "<script>alert(1)</script>"
HOSTILE = (
    "\"'></td></table><img src=//evil.example/x onerror=alert(1)>🦄 {{ 7 * 7 }} javascript:"
    + "long" * 75
)[:300]
VOID = {"meta", "link", "img", "br", "hr", "input"}
FAST = ("--lpips", "none", "--samples", "1", "--probe-rows", "60")
SMALL = [
    "--set",
    "model.feature_width=16",
    "--set",
    "model.exclusive_hidden=[16,8]",
    "--set",
    "model.shared_hidden=8",
]
SMALL += [
    "--set",
    "model.shared=6",
    "--set",
    "model.exclusive=4",
    "--set",
    "model.decoder_hidden=8",
]


class Checked(HTMLParser):
    """A page's tags, checked for balance as they come, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(attrs) == len({name for name, _ in attrs}), f"an attribute twice in {tag}"
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, f"</{tag}> closes another"

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] != "style":
            self.texts.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]

    @property
    def text(self) -> str:
        return "\n".join(self.texts)


def check_page(text: str) -> Checked:
    """What holds of every report."""
    page = Checked(text)
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    named = [
        attributes["aria-labelledby"]
        for _, attributes in page.tags
        if "aria-labelledby" in attributes
    ]
    assert named and set(named) <= set(ids)
    assert page.all("html") == [{"lang": "en"}]
    assert all(
        len(page.all(tag)) == 1 for tag in ("h1", "main", "nav", "header", "footer", "title")
    )
    assert {link["href"] for link in page.all("a")} <= {f"#{one}" for one in ids}
    assert len(page.all("table")) == len(page.all("caption"))
    assert all("scope" in header for header in page.all("th"))
    assert all(image["alt"] for image in page.all("img"))
    assert not page.all("script")
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    references = [
        value
        for _, attributes in page.tags
        for name, value in attributes.items()
        if name in ("src", "href", "srcset")
    ]
    assert all(one is not None and one.startswith(("data:", "#")) for one in references)
    assert not re.search(r"url\(|@import", text)
    for one in references:
        if one is not None and one.startswith("data:image/svg"):
            svg = base64.b64decode(one.partition(",")[2]).decode()
            assert not re.search(r'(href|src)="(?!#)', svg)
    return page


@pytest.fixture(scope="module")
def hostile(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trained run's data with names and classes that nobody should believe."""
    path = tmp_path_factory.mktemp("hostile") / "digits.h5"
    shutil.copy(trained.data, path)
    with h5py.File(path, "r+") as file:
        for domain in ("x", "y"):
            ids, labels = file[f"test/{domain}_ids"], file[f"test/{domain}_labels"]
            ids[0] = HOSTILE
            ids[1] = "tab\x07bell"
            labels[:] = [SCRIPT] * len(labels)
    return path


def class_data(path: Path, names: dict[str, list[str]], alignment: str | None = "class") -> Path:
    """Features of some classes per split, 6 rows of each in either domain, y a turned copy of x with noise."""
    rng = np.random.default_rng(5)
    turn = np.linalg.qr(rng.normal(size=(12, 12)))[0]
    splits = {}
    for split, classes in names.items():
        labels = [name for name in classes for _ in range(6)]
        centres = rng.normal(size=(len(classes), 12)).repeat(6, axis=0) * 3
        x = (centres + rng.normal(size=centres.shape)).astype(np.float32)
        y = ((x + 0.1 * rng.normal(size=x.shape)) @ turn).astype(np.float32)
        ids = [f"{split}/{number}" for number in range(len(x))]
        splits[split] = Split(Side(x, ids, labels), Side(y, ids, labels))
    write_data_file(path, "mine", splits, {} if alignment is None else {"alignment": alignment})
    return path


# ---- the whole page


def test_the_page_of_a_picture_run(trained: Trained, iiae: Program, tmp_path: Path) -> None:
    found = iiae("evaluate", "--run", trained.run, *FAST, "--report", "out", "--json")
    assert found.code == 0, found.err
    assert found.json["report"] == "out/index.html"
    assert {"retrieval", "translation", "disentanglement"} <= set(
        found.json
    )  # everything, where no task is named
    text = (tmp_path / "out/index.html").read_text()
    page = check_page(text)
    for section in ("Figures", "Training", "Retrieval", "Translation", "Latents", "Run"):
        assert section in page.texts
    recall = found.json["retrieval"]["shared"]["x_to_y"]["recall@1"]
    assert cell(recall) in page.texts
    assert "Rank of the true partner" in page.texts and "Analogies within y" in page.texts
    assert "iiae evaluate --run" in page.text and "iiae train --preset digits-cdcb" in page.text
    assert trained.run.joinpath("config.yaml").read_text().splitlines()[-1] in page.text
    assert "(prefers-color-scheme: dark)" in text and 'name="viewport"' in text
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["index.html"]
    histogram = next(
        one["alt"] for one in page.all("img") if str(one["alt"]).startswith("Histogram")
    )
    total = sum(int(count) for count in re.findall(r"(\d+) at rank", str(histogram)))
    assert total == 2 * found.json["protocol"]["pairs"]


def test_hostile_names_are_text_only(
    trained: Trained, hostile: Path, iiae: Program, tmp_path: Path
) -> None:
    run = tmp_path / "run <b>&amp;"
    shutil.copytree(trained.run, run)
    info = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(info | {"warnings": [SCRIPT], "host": HOSTILE}))
    arguments = (
        "evaluate",
        "--run",
        run,
        "--data",
        hostile,
        "--task",
        "retrieval",
        "--report",
        tmp_path / "out",
    )
    done = iiae(*arguments)
    assert done.code == 0, done.err
    text = (tmp_path / "out/index.html").read_text()
    page = check_page(text)
    assert "<script" not in text.lower() and "<img src=//evil" not in text
    assert SCRIPT in page.texts  # the warning, and classes
    assert page.texts.count(HOSTILE) >= 2
    assert any("run <b>&amp;" in one for one in page.texts)
    assert "\x07" not in text


def test_the_page_of_classes(iiae: Program, tmp_path: Path) -> None:
    names = {"train": [f"class {code}" for code in range(6)], "test": ["cat", SCRIPT, HOSTILE]}
    data = class_data(tmp_path / "mine.h5", names)
    assert (
        iiae(
            "train", "--preset", "features", "--data", data, "--run", "run", "--steps", 4, *SMALL
        ).code
        == 0
    )
    found = iiae("evaluate", "--run", "run", "--report", "out", "--json")
    assert found.code == 0, found.err
    page = check_page((tmp_path / "out/index.html").read_text())
    assert cell(found.json["zero_shot"]["x_to_y"]["map@all"]) in page.texts
    assert "x → y: average precision by class, worst first" in page.texts
    assert SCRIPT in page.texts and HOSTILE in page.texts
    assert "Rank of the true partner" not in page.texts and "Translation" not in page.texts
    assert all(str(image["src"]).startswith("data:image/svg") for image in page.all("img"))


def test_the_page_of_paired_features_shows_ids(iiae: Program, tmp_path: Path) -> None:
    names = {"train": ["a", "b", "c", "d"], "test": ["e", "f"]}
    data = class_data(tmp_path / "mine.h5", names, alignment=None)
    assert (
        iiae(
            "train", "--preset", "features", "--data", data, "--run", "run", "--steps", 2, *SMALL
        ).code
        == 0
    )
    done = iiae("evaluate", "--run", "run", "--report", "out")
    assert done.code == 0, done.err
    page = check_page((tmp_path / "out/index.html").read_text())
    assert "Rank of the true partner" in page.texts and "test/0" in page.texts
    assert "Translation, sampled and guided" not in page.texts


def test_without_exclusive_latents_and_without_records(
    trained: Trained, iiae: Program, tmp_path: Path
) -> None:
    small = [
        "--set",
        "model.widths=[8,8]",
        "--set",
        "model.decoder_widths=[8,8]",
        "--set",
        "objective.kind=ii",
    ]
    assert (
        iiae(
            "train",
            "--data",
            trained.data,
            "--run",
            "run",
            "--steps",
            2,
            "--preset",
            "digits-cdcb",
            *small,
        ).code
        == 0
    )
    (tmp_path / "run/metrics.jsonl").unlink()
    (tmp_path / "run/run.json").write_text("[torn")
    done = iiae("evaluate", "--run", "run", "--task", "retrieval", "--report", "out")
    assert done.code == 0, done.err
    page = check_page((tmp_path / "out/index.html").read_text())
    assert {"href": "#training"} not in page.all("a") and {"href": "#translation"} in page.all("a")
    assert (
        "shared x" in page.texts
        and "exclusive x" not in page.texts
        and "Analogies within x" not in page.texts
    )


def test_an_existing_folder_is_refused(trained: Trained, iiae: Program, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/notes.txt").write_text("mine")
    arguments = ("evaluate", "--run", trained.run, "--task", "retrieval", "--report", "out")
    message, hint = iiae(*arguments).error()
    assert "out exists already" in message and "--overwrite" in hint
    assert iiae(*arguments, "--overwrite").code == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["index.html", "notes.txt"]


# ---- its parts


def pairs_of(x: list[list[float]], y: list[list[float]]) -> EncodedPairs:
    return EncodedPairs(*(Encoded(shared_mean=np.asarray(one, np.float32)) for one in (x, y)))


def test_paired_examples_by_hand() -> None:
    # x₀ and x₁ find their partners first; x₂'s lies behind both others, at rank 3.
    forward, _ = paired_examples(pairs_of([[0], [10], [4]], [[1], [10], [-20]]), "euclidean", 5)
    assert forward.ranks is not None and forward.ranks.tolist() == [1, 1, 3]
    assert [one.row for one in forward.right] == [0, 1]
    (worst,) = forward.wrong
    assert (worst.row, worst.rank) == (2, 3)
    assert [(one.row, one.distance, one.right) for one in worst.neighbours] == [
        (0, 3.0, False),
        (1, 6.0, False),
        (2, 24.0, True),
    ]


def test_class_examples_by_hand() -> None:
    x, y = [[1, 0], [1, 0.1], [0, 1]], [[1, 0], [0, 1], [1, 1]]
    labels = ["a", "b", "nowhere"]
    split = Split(
        Side(np.zeros((3, 1)), list("012"), labels),
        Side(np.zeros((3, 1)), list("012"), list("abb")),
    )
    forward, _ = class_examples(pairs_of(x, y), split, 5)
    # a: its one item is first, 1. b: its items are second and third, (1/2 + 2/3) / 2.
    assert [(name, count) for name, _, count in forward.classes] == [("b", 1), ("a", 1)]
    assert [value for _, value, _ in forward.classes] == pytest.approx([7 / 12, 1.0])
    assert [one.row for one in forward.right] == [0, 1] and not forward.wrong
    assert [one.right for one in forward.right[1].neighbours] == [False, True, True]


def test_spread_reaches_both_ends() -> None:
    assert spread(10, 4).tolist() == [0, 3, 6, 9]
    assert spread(2, 8).tolist() == [0, 1]
    assert spread(0, 3).tolist() == []


def test_latent_usage_by_hand() -> None:
    mean = np.array([[1, 0], [-1, 0]], np.float32)
    usage = latent_usage(
        Encoded(exclusive_mean=mean, exclusive_logvar=np.zeros((2, 2), np.float32)), "exclusive"
    )
    assert usage is not None
    assert (
        usage.kl.tolist() == [0.5, 0.0]
        and usage.variance.tolist() == [1.0, 0.0]
        and usage.active == 1
    )
    assert latent_usage(Encoded(shared_mean=mean), "exclusive") is None


def test_every_rank_has_one_bin() -> None:
    for largest in (1, 2, 3, 100, 101, 123456):
        bins = rank_bins(largest)
        assert bins[0] == (1, 1) and bins[-1][0] <= largest <= bins[-1][1]
        assert all(after[0] == before[1] + 1 for before, after in itertools.pairwise(bins))
    chart = rank_chart([("x → y", np.array([1, 1, 4])), ("y → x", np.array([1, 2, 2]))])
    assert (
        chart.text
        == "Histogram. x → y: 2 at rank 1, 1 at rank 3–5; y → x: 1 at rank 1, 2 at rank 2."
    )


def test_torn_records_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    good = {"kind": "train", "step": 1, "loss": 2.0, "kl_exclusive_x": 4.0, "kl_shared_x": "much"}
    measured = {
        "kind": "validation",
        "step": 1,
        "shared_recall": [0.5, None],
        "baseline": [0.25, 0.5],
    }
    path.write_text("\n".join([json.dumps(good), "[1]", json.dumps(measured), '{"kind": "tra']))
    records = read_records(path)
    assert records == [good, measured]
    titles = [chart.title for chart in training_charts(records)]
    assert titles == [
        "Loss and its terms",
        "Validation: Recall@1 by shared latents",
        "KL of the exclusive latents to the prior",
    ]
    validation = training_charts(records)[1].text
    assert "x → y: from 0.5 to 0.5." in validation and "baseline y → x: 0.500" in validation
    assert read_records(tmp_path / "none") == [] and training_charts([]) == []
    assert read_object(path) == {} and read_object(tmp_path / "none") == {}


def test_plots_are_the_same_twice_and_never_stumble() -> None:
    lines = [Line("a", [(1, 5.0), (2, float("nan")), (3, -1.0)]), Line("b", [(1, 1.0)])]
    first = line_chart(lines, x_label="step", y_label="nats", scale="log")
    assert first == line_chart(lines, x_label="step", y_label="nats", scale="log")
    assert b"<svg" in first and b"<text" not in first  # letters are paths
    assert b"<svg" in line_chart(
        [Line("nothing", [(1, float("inf"))])], x_label="step", y_label="nats", scale="symlog"
    )
    assert b"<svg" in bar_chart([("a", [0.0])], x_label="dimension", y_label="nats")
    assert b"<svg" in count_chart(["1"], [("a", [0])], x_label="n", y_label="rank")


def test_cells() -> None:
    values = (None, "", 0.99666, 1.0, 1234.5, 0.0000123, 12345, True, [1, "a"], float("nan"))
    assert [cell(one) for one in values] == [
        *("—", "—", "0.9967", "1", "1,234.5", "1.2e-05", "12,345", "True", '[1, "a"]', "nan")
    ]


def test_what_html_cannot_carry_is_replaced() -> None:
    table = Table("\udcff\x00 <b>", ["a"], [])
    fields = (
        "disentanglement",
        "charts",
        "directions",
        "rank_charts",
        "grids",
        "usage_charts",
        "cards",
        "tables",
    )
    page = SimpleNamespace(
        **{name: [] for name in fields},
        **dict.fromkeys(
            ("title", "subtitle", "retrieval_note", "command", "trained_by", "config", "version"),
            "\udcff",
        ),
        **dict.fromkeys(("usage", "protocol", "versions"), table),
        warnings=["\x1b"],
        paper=None,
        dimensions=None,
        active_variance=0.01,
        facts=table,
    )
    text = render(page)  # type: ignore[arg-type]
    assert "�� &lt;b&gt;" in text and "\udcff" not in text and "\x1b" not in text
    assert text.startswith("<!doctype html>")


# ---- in a browser

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
browser = pytest.mark.skipif(
    CHROMIUM is None, reason="no chromium or chromium-browser on PATH: apt install chromium"
)


def browse(profile: Path, page: Path, *options: str) -> tuple[str, list[str]]:
    """(stdout, lines of the page's console) of a headless browser with an empty profile and no network."""
    command = [
        str(CHROMIUM),
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        f"--user-data-dir={profile}",
    ]
    command += [
        "--host-resolver-rules=MAP * ~NOTFOUND",
        "--disable-background-networking",
        "--no-first-run",
    ]
    command += [
        "--enable-logging=stderr",
        "--v=0",
        "--allow-file-access-from-files",
        *options,
        page.as_uri(),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout, [line for line in done.stderr.splitlines() if ":CONSOLE" in line]


def requests_of_pages(log: Path) -> list[str]:
    """What pages asked any network for; the browser's own errands have no page as their initiator."""
    found = [event.get("params", {}) for event in json.loads(log.read_text())["events"]]
    return [
        one["url"]
        for one in found
        if one.get("initiator", "not an origin") != "not an origin" and "url" in one
    ]


@browser
def test_a_browser_shows_it_without_errors_or_requests(
    trained: Trained, hostile: Path, iiae: Program, tmp_path: Path
) -> None:
    from PIL import Image

    done = iiae(
        "evaluate", "--run", trained.run, "--data", hostile, *FAST, "--report", tmp_path / "out"
    )
    assert done.code == 0, done.err
    page, log = tmp_path / "out/index.html", tmp_path / "net.json"
    text, console = browse(tmp_path / "profile", page, "--dump-dom", f"--log-net-log={log}")
    assert console == []
    assert requests_of_pages(log) == []
    seen = Checked(text)
    assert SCRIPT in seen.text and not seen.all("script")

    for width, scheme, dark in ((1200, 0, True), (390, 1, False)):
        shot = tmp_path / f"{width}.png"
        options = (f"--window-size={width},1600", f"--screenshot={shot}", "--hide-scrollbars")
        _, console = browse(
            tmp_path / "profile", page, *options, f"--blink-settings=preferredColorScheme={scheme}"
        )
        assert console == []
        pixels = np.asarray(Image.open(shot).convert("L"))
        assert pixels.shape == (1600, width)
        assert (np.median(pixels) < 64) == dark and pixels.std() > 10

    # Nothing but the tables' and grids' own boxes scrolls sideways, and every picture has loaded.
    frames = "".join(
        f'<iframe src="out/index.html" width="{width}" height="800"></iframe>'
        for width in (390, 1200)
    )
    script = """onload = () => document.body.append(...Array.from(frames).map(f => ' [' + [
        f.document.documentElement.scrollWidth <= f.innerWidth,
        Array.from(f.document.images).every(i => i.complete && i.naturalWidth > 0)] + '] '))"""
    (tmp_path / "frames.html").write_text(f"<body>{frames}<script>{script}</script>")
    text, _ = browse(tmp_path / "profile", tmp_path / "frames.html", "--dump-dom")
    assert text.count("[true,true]") == 2, re.findall(r"\[\w+,\w+\]", text)


@browser
def test_the_browser_would_tell(tmp_path: Path) -> None:
    page = tmp_path / "bad.html"
    page.write_text(
        '<!doctype html><img src="https://evil.example/x.png"><script>nonsense()</script>'
    )
    log = tmp_path / "net.json"
    _, console = browse(tmp_path / "profile", page, "--dump-dom", f"--log-net-log={log}")
    assert any("nonsense" in line for line in console)
    assert requests_of_pages(log) == ["https://evil.example/x.png"]
