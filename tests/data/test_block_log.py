"""The append-only file of blocks: round trips, kills at every byte, damage, full disks."""

import errno

import numpy as np
import pytest

from iiae_cli.common.errors import IiaeError
from iiae_cli.data.block_log import BlockLog


@pytest.fixture
def path(tmp_path):
    return tmp_path / "a.blocks"


def some_blocks(count=3):
    draw = np.random.default_rng(0)
    return [
        (
            {
                "rows": draw.normal(size=(number + 1, 2)).astype("f4"),
                "half": draw.normal(size=number).astype("f2"),
                "pixels": draw.integers(0, 256, (2, 3, 3), np.uint8),
                "none": np.empty((0, 4), np.int64),
            },
            [f"é {number}", "tab\tand\nline"][:number],
        )
        for number in range(count)
    ]


def write(path, blocks):
    with BlockLog(path) as log:
        for arrays, lines in blocks:
            log.append(arrays, lines)


def assert_same(path, blocks):
    with BlockLog(path) as log:
        assert len(log) == len(blocks)
        for found, (arrays, lines) in zip(log, blocks, strict=True):
            assert found.lines == lines and list(found.arrays) == list(arrays)
            for name, values in arrays.items():
                assert found.arrays[name].dtype == values.dtype
                np.testing.assert_array_equal(found.arrays[name], values)


def test_blocks_come_back_in_order_and_by_number(path):
    blocks = some_blocks()
    write(path, blocks)
    assert_same(path, blocks)
    with BlockLog(path) as log:
        np.testing.assert_array_equal(log.read(2).arrays["rows"], blocks[2][0]["rows"])


def test_a_file_cut_at_any_byte_keeps_its_whole_blocks_and_goes_on(path):
    blocks = some_blocks()
    write(path, blocks)
    content = path.read_bytes()
    ends = [0]
    for number in range(1, 4):
        path.unlink()
        write(path, blocks[:number])
        ends.append(path.stat().st_size)
    assert ends[-1] == len(content)
    for length in [*range(0, len(content), 7), len(content) - 1]:
        path.write_bytes(content[:length])
        whole = sum(end <= length for end in ends[1:])
        assert_same(path, blocks[:whole])
        assert path.stat().st_size == ends[whole]
        write(path, blocks[whole:])
        assert path.read_bytes() == content


@pytest.mark.parametrize("tail", [b"\0" * 500, b"iiaeblk1" + b"\xff" * 40, b"garbage"])
def test_what_is_no_block_is_cut_off(path, tail):
    blocks = some_blocks(1)
    write(path, blocks)
    with path.open("ab") as file:
        file.write(tail)
    assert_same(path, blocks)


def test_a_flipped_bit_ends_the_blocks(path):
    blocks = some_blocks()
    write(path, blocks)
    content = bytearray(path.read_bytes())
    write(path.with_name("one"), blocks[:1])
    content[path.with_name("one").stat().st_size + 60] ^= 1
    path.write_bytes(content)
    assert_same(path, blocks[:1])


def test_arrays_may_be_strided_or_memory_maps(path):
    wide = np.arange(12).reshape(3, 4)
    write(path, [({"every other": wide[:, ::2], "turned": wide.T}, [])])
    assert_same(path, [({"every other": wide[:, ::2].copy(), "turned": wide.T.copy()}, [])])


def test_a_full_disk_is_a_users_error_and_keeps_what_was_there(path, monkeypatch):
    blocks = some_blocks()
    write(path, blocks[:1])
    with BlockLog(path) as log:

        class Full:
            def __getattr__(self, name):
                return getattr(file, name)

            def write(self, data):
                file.write(bytes(data)[:3])
                raise OSError(errno.ENOSPC, "full")

        file = log._file
        monkeypatch.setattr(log, "_file", Full())
        with pytest.raises(IiaeError, match="no space left"):
            log.append(*blocks[1])
        file.flush()
    assert_same(path, blocks[:1])


def test_a_place_that_cannot_be_written_is_a_users_error(tmp_path):
    with pytest.raises(IiaeError, match="cannot write"):
        BlockLog(tmp_path)


@pytest.mark.parametrize(
    "header", [b"{", b"[]", b'{"arrays": [["a", "|O", [1]]], "lines": []}', b'{"arrays": 3}']
)
def test_a_block_of_another_program_is_refused_and_nothing_is_unpickled(path, header):
    import struct
    import zlib

    payload = struct.pack("<I", len(header)) + header + b"\0" * 8
    path.write_bytes(struct.pack("<8sQI", b"iiaeblk1", len(payload), zlib.crc32(payload)) + payload)
    with BlockLog(path) as log, pytest.raises(IiaeError, match="is damaged"):
        log.read(0)
