"""The report: what its page holds, that hostile names stay text, and how a real browser sees it."""

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest
from helpers import SMALL

from iiae_cli.data.datafile import DataFile, Side, Split, write_data_file
from iiae_cli.report.sections import cell

SCRIPT = "<script>alert(1)</script>"
HOSTILE = (
    "\"'></td></table><img src=//evil.example/x onerror=alert(1)>🦄 {{ 7 * 7 }} javascript:"
    + "long" * 75
)[:300]
VOID = {"meta", "link", "img", "br", "hr", "input"}
FAST = ("--lpips", "none", "--samples", 1, "--probe-rows", 60)


class Checked(HTMLParser):
    """A page's tags, checked for balance as they come, and its text."""

    def __init__(self, text):
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.texts: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"</{tag}> closes another"

    def handle_data(self, data):
        if self.open[-1:] != ["style"]:
            self.texts.append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]

    def values(self, *names):
        return [tag[name] for _, tag in self.tags for name in names if name in tag]

    @property
    def text(self):
        return "\n".join(self.texts)


def check_page(text):
    """Checks what holds of every report: accessible, and nothing comes from outside."""
    page = Checked(text)
    ids = page.values("id")
    assert len(ids) == len(set(ids))
    assert page.values("aria-labelledby") and set(page.values("aria-labelledby")) <= set(ids)
    landmarks = ("h1", "main", "nav", "header", "footer", "title")
    assert all(len(page.all(tag)) == 1 for tag in landmarks)
    assert {link["href"] for link in page.all("a")} <= {f"#{name}" for name in ids}
    assert all("scope" in header for header in page.all("th"))
    assert all(image["alt"] for image in page.all("img"))
    assert not page.all("script")
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    references = page.values("src", "href", "srcset")
    assert all(reference.startswith(("data:", "#")) for reference in references)
    assert not re.search(r"url\(|@import", text)
    return page


def report(iiae, tmp_path, run, *more):
    """Evaluates a run; returns the JSON and the checked page."""
    done = iiae("evaluate", "--run", run, *more, "--report", tmp_path / "out", "--json")
    assert done.code == 0, done.err
    return done.json, check_page((tmp_path / "out/index.html").read_text())


@pytest.fixture(scope="module")
def hostile(trained, tmp_path_factory):
    """The trained run's data with names and classes that nobody should believe."""
    path = tmp_path_factory.mktemp("hostile") / "digits.h5"
    split = DataFile(trained.data).split("test")
    for side in (split.x, split.y):
        side.ids = [f"{HOSTILE}\x07{number}" for number in range(len(side))]
        side.labels = [SCRIPT] * len(side)
    write_data_file(path, "digits-cdcb", {"train": split, "test": split}, {})
    return path


# ---- the whole page


def test_the_page_of_a_picture_run(trained, iiae, tmp_path):
    figures, page = report(iiae, tmp_path, trained.run, *FAST)
    assert figures["report"] == str(tmp_path / "out/index.html")
    # Every task is measured where none is named.
    assert {"retrieval", "translation", "disentanglement"} <= set(figures)
    for section in ("Figures", "Training", "Retrieval", "Translation", "Disentanglement", "Run"):
        assert section in page.texts
    assert "{:.3f}".format(figures["retrieval"]["shared"]["x_to_y"]["recall@1"]) in page.texts
    assert "right" in page.values("class") and any("baseline" in text for text in page.texts)
    assert "Analogies within y" in page.text and "bar" in page.values("class")
    assert any(text.startswith("Recall@K") for text in page.values("alt"))
    assert "iiae evaluate --run" in page.text and "iiae train --preset digits-cdcb" in page.text
    assert trained.run.joinpath("config.yaml").read_text().splitlines()[-1] in page.text
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["index.html"]


def test_hostile_names_are_text_only(trained, hostile, iiae, tmp_path):
    run = tmp_path / "run <b>&amp;"
    shutil.copytree(trained.run, run)
    told = {"warnings": [SCRIPT, "\udcff"], "host": HOSTILE}
    (run / "run.json").write_text(json.dumps(told))
    _, page = report(iiae, tmp_path, run, "--data", hostile, "--task", "retrieval")
    text = (tmp_path / "out/index.html").read_text()
    assert "<script" not in text.lower() and "<img src=//evil" not in text
    assert SCRIPT in page.texts  # the warning, and classes
    assert sum(HOSTILE in line for line in page.texts) >= 2
    assert any("run <b>&amp;" in line for line in page.texts)
    assert "\x07" not in text and "\ufffd" in page.text


def test_the_page_of_classes(iiae, tmp_path):
    draw, splits = np.random.default_rng(5), {}
    for name, classes in {"train": list("abcdef"), "test": ["cat", SCRIPT, HOSTILE]}.items():
        labels = [label for label in classes for _ in range(6)]
        ids = [f"{name}/{number}" for number in range(len(labels))]
        x, y = draw.normal(size=(2, len(labels), 12)).astype(np.float32)
        splits[name] = Split(Side(x, ids, labels), Side(y, ids, labels))
    write_data_file(tmp_path / "mine.h5", "mine", splits, {"alignment": "class"})
    small = ("--set", "model.shared=6", "--set", "model.exclusive=4", "--steps", 4)
    arguments = ("train", "--preset", "features", "--data", "mine.h5", "--run", "run")
    assert iiae(*arguments, *small).code == 0
    figures, page = report(iiae, tmp_path, tmp_path / "run")
    assert cell(figures["zero_shot"]["x_to_y"]["map@all"]) in page.texts
    assert "x → y: average precision by class, worst first" in page.texts
    assert SCRIPT in page.texts and HOSTILE in page.texts
    assert "Translation" not in page.texts and "Recall@K" not in page.text
    assert all(source.startswith("data:image/svg") for source in page.values("src"))


def test_without_exclusive_latents_and_without_records(trained, iiae, tmp_path):
    arguments = ("train", "--preset", "digits-cdcb", "--data", trained.data, "--run", "run")
    assert iiae(*arguments, *SMALL, "--steps", 2, "--set", "objective.kind=ii").code == 0
    (tmp_path / "run/metrics.jsonl").unlink()
    (tmp_path / "run/run.json").write_text("[torn")
    _, page = report(iiae, tmp_path, tmp_path / "run", "--task", "retrieval")
    again = ("evaluate", "--run", "run", "--task", "retrieval", "--report", "out")
    assert "exists" in iiae(*again).error()[0] and iiae(*again, "--overwrite").code == 0
    assert "#training" not in page.values("href") and "#translation" in page.values("href")
    assert "Analogies within x" not in page.text


# ---- in a browser

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
browser = pytest.mark.skipif(
    CHROMIUM is None, reason="no chromium or chromium-browser on PATH: apt install chromium"
)


def browse(profile, page, *options):
    """Returns stdout and the console's lines of a headless browser without a network."""
    command = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"]
    command += [f"--user-data-dir={profile}", "--allow-file-access-from-files"]
    command += ["--host-resolver-rules=MAP * ~NOTFOUND", "--disable-background-networking"]
    command += ["--enable-logging=stderr", "--v=0", *options, page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout, [line for line in done.stderr.splitlines() if ":CONSOLE" in line]


@browser
def test_a_browser_shows_it_without_errors(trained, hostile, iiae, tmp_path):
    report(iiae, tmp_path, trained.run, "--data", hostile, *FAST)
    page = tmp_path / "out/index.html"
    text, console = browse(tmp_path / "profile", page, "--dump-dom")
    assert console == []  # which would also say that the page's policy forbade a request
    seen = Checked(text)
    assert SCRIPT in seen.text and not seen.all("script")

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
