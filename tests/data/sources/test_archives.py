"""Archives: whole ones, damaged ones, and those that mean harm."""

import hashlib
import io
import os
import stat
import tarfile
import zipfile
import zlib
from pathlib import Path

import pytest

from iiae_cli.common.errors import IiaeError
from iiae_cli.data.sources import archives
from iiae_cli.data.sources.archives import MARKER, find_folder, marker_of, open_source, unpack

FILES = {
    "set/train/1.txt": b"one",
    "set/train/2.txt": b"two" * 100_000,
    "set/empty.txt": b"",
    "set/ünï→.txt": b"u",
}
LIMITS = {"max_bytes": 10_000_000, "max_entries": 100}


def member(name, body=b"abc", **fields):
    info = tarfile.TarInfo(name)
    info.size = len(body)
    for field, value in fields.items():
        setattr(info, field, value)
    return info, body


def tar(path, *members, mode="w"):
    with tarfile.open(path, mode) as file:
        for info, body in members:
            file.addfile(info, io.BytesIO(body))
    return path


def zipped(path, files, compression=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, body in files.items():
            file.writestr(name, body)
    return path


def special(name, mode, body=b""):
    info = zipfile.ZipInfo(name)
    info.create_system, info.external_attr = 3, mode << 16
    return info, body


def tree(folder):
    """Contents by name, without the marker."""
    return {
        str(one.relative_to(folder)): one.read_bytes()
        for one in folder.rglob("*")
        if one.is_file() and one.name != MARKER
    }


@pytest.fixture
def target(tmp_path):
    return tmp_path / "made" / "set"


@pytest.fixture
def path(tmp_path):
    return tmp_path / "archive"


def refusal(archive, target, **options):
    """The refusal's message; nothing stays behind, in the target or anywhere else."""
    beside = {one for one in target.parent.parent.iterdir() if one != target.parent}
    with pytest.raises(IiaeError) as caught:
        unpack(archive, target, **{**LIMITS, **options})
    assert caught.value.hint and "\n" not in caught.value.message
    assert (
        not target.exists()
        and not list(target.parent.glob("*"))
        and not list(target.parent.glob(".*"))
    )
    assert {one for one in target.parent.parent.iterdir() if one != target.parent} == beside
    return caught.value.message


# ---- whole archives


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
@pytest.mark.parametrize("layout", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_a_tar_is_unpacked_whatever_its_name(path, target, mode, layout):
    with tarfile.open(path, mode, format=layout) as file:
        for name, body in FILES.items():
            info, body = member(name, body)
            file.addfile(info, io.BytesIO(body))
    assert unpack(path, target, **LIMITS) == target
    assert tree(target) == FILES


@pytest.mark.parametrize(
    "compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]
)
def test_a_zip_is_unpacked(path, target, compression):
    unpack(zipped(path, FILES, compression), target, **LIMITS)
    assert tree(target) == FILES


def test_long_names_and_folders_are_unpacked(path, target):
    name = "/".join(["folder" * 20] * 4) + "/file.txt"
    tar(
        path,
        member("./", b"", type=tarfile.DIRTYPE),
        member("a/b", b"", type=tarfile.DIRTYPE),
        member(f"./{name}"),
    )
    unpack(path, target, **LIMITS)
    assert tree(target) == {name: b"abc"} and (target / "a" / "b").is_dir()


def test_permissions_are_plain(path, target):
    previous = os.umask(0o027)
    try:
        tar(
            path,
            member("a", mode=0o6777),
            member("d", b"", type=tarfile.DIRTYPE, mode=0),
            member("d/b", mode=0),
        )
        unpack(path, target, **LIMITS)
    finally:
        os.umask(previous)
    modes = {name: stat.S_IMODE((target / name).stat().st_mode) for name in ("a", "d", "d/b", ".")}
    assert modes == {"a": 0o750, "d": 0o750, "d/b": 0o640, ".": 0o750}


def test_junk_and_what_is_not_selected_is_left_out(path, target):
    names = ("x/1.png", "x/._1.png", "__MACOSX/x/1.png", "x/.DS_Store", "y/2.png", MARKER)
    unpack(
        zipped(path, dict.fromkeys(names, b"abc")),
        target,
        **LIMITS,
        select=lambda name: name.startswith("x/"),
    )
    assert set(tree(target)) == {"x/1.png"}
    assert marker_of(target) is not None


def test_nothing_selected_is_an_error(path, target):
    zipped(path, FILES)
    assert "holds none of the files looked for" in refusal(path, target, select=lambda name: False)
    assert "holds no files" in refusal(zipped(path, {}), target)
    assert "holds no files" in refusal(tar(path), target)


def test_of_two_files_of_one_name_the_later_stays(path, target):
    tar(path, member("a", b"first, longer", mode=0o755), member("./a", b"second", mode=0o644))
    unpack(path, target, **LIMITS)
    assert tree(target) == {"a": b"second"} and not (target / "a").stat().st_mode & 0o100


@pytest.mark.parametrize("names", [("a", "a/b"), ("a/b", "a")])
def test_a_file_and_a_folder_of_one_name_are_refused(path, target, names):
    assert "a file and a folder of one name" in refusal(tar(path, *map(member, names)), target)


# ---- targets


def test_a_target_of_the_same_archive_is_reused(path, target):
    unpack(tar(path, member("a")), target, **LIMITS)
    (target / "a").write_bytes(b"kept")
    unpack(path, target, **LIMITS)
    assert (target / "a").read_bytes() == b"kept"
    marker = marker_of(target)
    assert (marker.archive, marker.sha256) == (
        "archive",
        hashlib.sha256(path.read_bytes()).hexdigest(),
    )


def test_a_target_of_another_archive_is_named_and_left_alone(path, target, tmp_path):
    unpack(tar(path, member("a")), target, **LIMITS)
    old = marker_of(target).sha256
    for name, origin in (("other", "archive"), ("archive", "another archive")):
        changed = tar(tmp_path / name, member("b"))
        with pytest.raises(IiaeError) as caught:
            unpack(changed, target, **LIMITS)
        assert caught.value.message == (
            f"{target} was unpacked from {origin} (SHA-256 {old}), not from this {changed.name}"
        )
        assert str(target) in caught.value.hint and "delete" in caught.value.hint
    assert tree(target) == {"a": b"abc"}


@pytest.mark.parametrize("content", [None, "", "{", "[]", "{}"])
def test_a_target_that_was_not_unpacked_is_left_alone(path, target, content):
    target.mkdir(parents=True)
    if content is not None:
        (target / MARKER).write_text(content)
    with pytest.raises(IiaeError, match="exists, and was not unpacked from archive"):
        unpack(tar(path, member("a")), target, **LIMITS)
    assert tree(target) == {}


def test_a_target_that_appears_meanwhile_is_taken_if_it_is_the_same(path, target, monkeypatch):
    tar(path, member("a"))
    write_all = archives._write_all

    def slowly(*arguments):
        write_all(*arguments)
        monkeypatch.setattr(archives, "_write_all", write_all)
        unpack(path, target, **LIMITS)

    monkeypatch.setattr(archives, "_write_all", slowly)
    assert unpack(path, target, **LIMITS) == target
    assert tree(target) == {"a": b"abc"} and [one.name for one in target.parent.iterdir()] == [
        "set"
    ]


def test_a_full_disk_is_said_and_leaves_nothing(path, target, monkeypatch):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    tar(path, member("a"))
    monkeypatch.setattr(archives, "_write", full)
    assert f"no space left while writing {target}" in refusal(path, target)


# ---- archives that mean harm

HOSTILE_NAMES = [
    "../evil",
    "a/../../evil",
    "/tmp/iiae-evil",
    "a/..",
    "..",
    "..\\evil",
    "a\\b",
    "C:/evil",
    "c:evil",
    "//x",
]


@pytest.mark.parametrize("name", HOSTILE_NAMES)
def test_names_that_leave_the_target_are_refused(path, target, name):
    for make in (
        lambda: tar(path, member("good"), member(name)),
        lambda: zipped(path, {"good": b"", name: b"abc"}),
    ):
        message = refusal(make(), target)
        assert "has a name that" in message and repr(name) in message
    assert not Path("/tmp/iiae-evil").exists()


def test_names_with_a_nul_or_too_long_are_refused(path, target):
    info = zipfile.ZipInfo("placeholder")
    info.filename = "good.png\0.exe"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr(info, b"abc")
    assert "has a name that" in refusal(path, target)
    assert "is too long" in refusal(tar(path, member("n" * 256)), target)
    assert "is too long" in refusal(tar(path, member("d/" * 33 + "f")), target)


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE])
@pytest.mark.parametrize("goal", ["..", "/tmp", "inside", "../../outside"])
def test_links_and_writing_through_them_are_refused(path, target, kind, goal, tmp_path):
    (tmp_path / "outside").mkdir()
    link, _ = member("link", b"", type=kind, linkname=goal)
    assert "has a link" in refusal(
        tar(path, member("inside"), (link, b""), member("link/evil")), target
    )
    assert list((tmp_path / "outside").iterdir()) == []


@pytest.mark.parametrize("kind", [tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE])
def test_devices_and_pipes_are_refused(path, target, kind):
    assert "no plain file or folder" in refusal(
        tar(path, member("null", b"", type=kind, devmajor=1)), target
    )


@pytest.mark.parametrize(
    ("kind", "words"),
    [(stat.S_IFLNK, "has a link"), (stat.S_IFIFO, "no plain"), (stat.S_IFCHR, "no plain")],
)
def test_links_and_devices_in_a_zip_are_refused(path, target, kind, words):
    with zipfile.ZipFile(path, "w") as file:
        file.writestr(*special("link", kind | 0o777, b"/etc/passwd"))
    assert words in refusal(path, target)


def test_what_is_not_selected_may_be_anything_that_stays_inside(path, target):
    link, _ = member("other/link", b"", type=tarfile.SYMTYPE, linkname="/")
    tar(path, (link, b""), member("set/a"))
    unpack(path, target, **LIMITS, select=lambda name: name.startswith("set/"))
    assert tree(target) == {"set/a": b"abc"}


def test_too_many_entries_are_refused(path, target):
    names = [f"f{number}" for number in range(11)]
    for make in (
        lambda: tar(path, *map(member, names)),
        lambda: zipped(path, dict.fromkeys(names, b"")),
    ):
        assert "more than the 10 entries" in refusal(make(), target, max_entries=10)
        assert unpack(path, target, max_bytes=100, max_entries=11) == target
        for one in target.iterdir():
            one.unlink()
        target.rmdir()
    # Folders and junk count too.
    folders = [member(f"d{number}", b"", type=tarfile.DIRTYPE) for number in range(11)]
    assert "more than the 10 entries" in refusal(tar(path, *folders), target, max_entries=10)


def test_bombs_are_refused_by_what_they_declare(path, target):
    big = bytes(5_000_000)
    assert len(zipped(path, {"a": big, "b": big}).read_bytes()) < 20_000
    assert "more than the 9000000 bytes" in refusal(path, target, max_bytes=9_000_000)
    assert "more than" in refusal(
        tar(path, member("a", big), member("b", big), mode="w:gz"), target, max_bytes=9_000_000
    )
    unpack(path, target, max_bytes=10_000_000, max_entries=2)


def test_a_zip_that_lies_about_its_sizes_writes_no_more_than_it_says(path, target):
    body = bytes(3_000_000)
    raw = bytearray(zipped(path, {"a": body}).read_bytes())
    true = len(body).to_bytes(4, "little")
    while (place := raw.find(true)) >= 0:
        raw[place : place + 4] = (100).to_bytes(4, "little")
    path.write_bytes(raw)
    assert "is damaged or incomplete" in refusal(path, target, max_bytes=1000)


def test_a_tar_that_declares_more_than_it_has_is_incomplete(path, target):
    info, _ = member("a", b"")
    info.size = 5_000_000
    path.write_bytes(info.tobuf() + bytes(2048))
    assert "is damaged or incomplete" in refusal(path, target)
    info.size = 2**60
    path.write_bytes(info.tobuf() + bytes(2048))
    assert "unpacks to more than" in refusal(path, target)


def test_a_header_of_gigabytes_is_not_read_into_memory(path, target):
    info = tarfile.TarInfo("pax")
    info.type, info.size = tarfile.XHDTYPE, 2**33
    path.write_bytes(
        info.tobuf(tarfile.USTAR_FORMAT if info.size < 8**11 else tarfile.GNU_FORMAT) + bytes(2048)
    )
    assert "has a header of 8589934592 bytes" in refusal(path, target)


def test_skipped_content_is_bounded_too(path, target):
    tar(path, member("skipped", bytes(3_000_000)), member("wanted"), mode="w:gz")
    message = refusal(
        path, target, max_bytes=1_000_000, max_entries=10, select=lambda name: name == "wanted"
    )
    assert "unpacks to more than" in message


def test_a_negative_size_is_refused(path, target):
    info, _ = member("a", b"")
    block = bytearray(info.tobuf())
    block[124:136] = b"\xff" * 11 + b"\xf0"
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    path.write_bytes(bytes(block) + bytes(1024))
    refusal(path, target)


# ---- what is no archive, or no longer one


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
def test_a_truncated_tar_is_damaged_at_every_length(path, target, mode):
    noise = zlib.compress(os.urandom(30_000))
    whole = tar(path, member("a", noise), member("b", noise), mode=mode).read_bytes()
    for share in (0.1, 0.5, 0.9):
        path.write_bytes(whole[: int(len(whole) * share)])
        if (
            mode == "w" and share == 0.9 and len(whole) * share > 61_500
        ):  # only the end's padding is missing
            continue
        with pytest.raises(IiaeError, match="is damaged or incomplete") as caught:
            unpack(path, target, **LIMITS)
        assert f"delete {path}" in caught.value.hint and not target.exists()


def test_a_plain_tar_cut_or_broken_between_entries_is_damaged(path, target):
    whole = tar(path, member("a"), member("b")).read_bytes()
    path.write_bytes(whole[:1024])  # b's header and the end are missing
    assert "no end" in refusal(path, target)
    path.write_bytes(whole[:1024] + b"?" * 512 + whole[1536:])
    assert "no end" in refusal(path, target)


def test_flipped_bytes_are_noticed(path, target):
    for make in (
        lambda: tar(path, member("a", os.urandom(5000)), mode="w:gz"),
        lambda: zipped(path, {"a": b"x" * 5000}),
    ):
        raw = bytearray(make().read_bytes())
        raw[len(raw) // 2 if raw[0] == 0x1F else 40] ^= 0xFF
        path.write_bytes(raw)
        assert "is damaged or incomplete" in refusal(path, target)


def test_a_truncated_zip_is_damaged(path, target):
    path.write_bytes(zipped(path, FILES).read_bytes()[:-30])
    assert "is damaged or incomplete" in refusal(path, target)


@pytest.mark.parametrize(
    "content",
    [b"", b"<html>not found</html>", b"7z\xbc\xaf\x27\x1c" + bytes(600), b"\x89PNG\r\n" * 200],
)
def test_other_files_are_no_archives(path, target, content):
    path.write_bytes(content)
    assert refusal(path, target) == f"{path} is neither a tar nor a zip archive"


def test_an_encrypted_zip_says_so(path, target):
    raw = bytearray(zipped(path, {"a": b"abc"}).read_bytes())
    raw[6] |= 1
    raw[raw.find(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(raw)
    with pytest.raises(IiaeError) as caught:
        unpack(path, target, **LIMITS)
    assert caught.value.message == f"{path} is encrypted" and "password" in caught.value.hint


def test_an_unknown_compression_says_so(path, target):
    raw = bytearray(zipped(path, {"a": b"abc" * 100}).read_bytes())
    raw[8] = 97
    raw[raw.find(b"PK\x01\x02") + 10] = 97
    path.write_bytes(raw)
    assert "cannot be read" in refusal(path, target)


def test_a_missing_archive_says_so(tmp_path, target):
    with pytest.raises(IiaeError, match="does not exist"):
        unpack(tmp_path / "none", target, **LIMITS)


# ---- sources and folders within


def test_a_folder_is_its_own_source_and_an_archive_is_unpacked_by_its_stem(tmp_path):
    assert open_source(tmp_path, tmp_path / "downloads") == tmp_path
    for name, stem in (
        ("a.tar.gz", "a"),
        ("b.v2.TGZ", "b.v2"),
        ("c.zip", "c"),
        ("plain", "plain-unpacked"),
    ):
        folder = open_source(tar(tmp_path / name, member("f")), tmp_path / "downloads", **LIMITS)
        assert folder == tmp_path / "downloads" / stem and tree(folder) == {"f": b"abc"}
    with pytest.raises(IiaeError, match="does not exist"):
        open_source(tmp_path / "none.zip", tmp_path)


def test_the_shallowest_folder_with_all_entries_is_found(tmp_path):
    for name in (
        "z/train",
        "z/val",
        "b/c/train",
        "b/c/val",
        "a/c/train",
        "a/c/val",
        "y/train",
        "one/two/three/four/deep",
    ):
        (tmp_path / name).mkdir(parents=True)
    assert find_folder(tmp_path, "train", "val") == tmp_path / "z"
    assert find_folder(tmp_path, "train") == tmp_path / "y"
    assert find_folder(tmp_path / "z", "train", "val") == tmp_path / "z"
    assert find_folder(tmp_path, "c/val") == tmp_path / "a"
    assert find_folder(tmp_path, "train", "test") is None
    assert find_folder(tmp_path, "deep") == tmp_path / "one/two/three/four"
    assert find_folder(tmp_path, "deep", depth=3) is None
    (tmp_path / "one/link").symlink_to(tmp_path / "one/two/three/four")
    assert find_folder(tmp_path, "deep", depth=3) is None
