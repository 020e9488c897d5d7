"""What a case is: a function that writes hostile input into a folder and returns the command line that reads it.

    @malformed("pictures", times=3)
    def truncated(make: Making) -> list[object]: ...

registers three cases, each with a random generator of its own, decided by the seed and the case's name alone.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

USER_ERROR = frozenset({2})
LEFT_OUT = frozenset({3})  # the rest of the input is good
DAMAGE = frozenset({2, 3})
# Random damage may lie where nothing reads, or change values that can be anything; then the input is acceptable.
MAYBE = frozenset({0, 2, 3})
ACCEPTED = frozenset({0})  # odd, but as good as any other input


@dataclass
class Ground:
    """What is whole: made once, read by all cases, changed by none of them."""

    folder: Path

    def __post_init__(self) -> None:
        self.pictures = (
            self.folder / "pictures.h5"
        )  # 16 x 16 x 3, 24 pairs to train, 8 to test, labels, a factor
        self.features = self.folder / "features.h5"  # 12 numbers, paired by class
        self.preset = self.folder / "tiny.yaml"  # two steps on pictures
        self.feature_preset = self.folder / "tiny-features.yaml"
        self.run = self.folder / "run"
        self.feature_run = self.folder / "feature-run"
        self.stopped = self.folder / "stopped"  # a run with a checkpoint before its end
        self.cache = self.folder / "x.h5"  # latents of x, by `run`
        self.picture = self.folder / "good.png"


@dataclass
class Making:
    """What a case is made with.

    Attributes:
        folder: for its inputs; the command runs in another.
        ground: what is whole.
        rng: decides everything drawn; `numbers` likewise, for arrays.
        canary: a file that code within an input would make.
        stdin: what the command reads from standard input.
    """

    folder: Path
    ground: Ground
    rng: random.Random
    canary: Path
    stdin: bytes = b""
    environment: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.numbers = np.random.default_rng(self.rng.getrandbits(32))

    def file(self, name: str, content: bytes | str) -> Path:
        """Write an input file."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path


Build = Callable[[Making], "list[object]"]


@dataclass(frozen=True)
class Case:
    """One input, named `KIND/FUNCTION-NUMBER`.

    Attributes:
        allowed: exit codes.
    """

    kind: str
    name: str
    build: Build
    allowed: frozenset[int]

    def rng(self, seed: int) -> random.Random:
        """The case's own random numbers."""
        return random.Random(zlib.crc32(f"{seed}/{self.kind}/{self.name}".encode()))


CASES: list[Case] = []


def malformed(
    kind: str, times: int = 1, allowed: frozenset[int] = USER_ERROR
) -> Callable[[Build], Build]:
    """Register a function as `times` cases."""

    def register(build: Build) -> Build:
        CASES.extend(
            Case(kind, f"{build.__name__}-{number}", build, allowed) for number in range(times)
        )
        return build

    return register


def each(
    kind: str, *variants: object, allowed: frozenset[int] = USER_ERROR
) -> Callable[..., Callable[..., object]]:
    """Register a function of a variant as one case for each."""

    def register(build: Callable[[Making, object], list[object]]) -> Callable[..., object]:
        for number, variant in enumerate(variants):
            CASES.append(
                Case(
                    kind,
                    f"{build.__name__}-{number}",
                    lambda make, one=variant: build(make, one),
                    allowed,
                )
            )
        return build

    return register


def flipped(
    content: bytes, rng: random.Random, first: int = 0, last: int | None = None, most: int = 8
) -> bytes:
    """Some bytes between `first` and `last` replaced, one bit or all of it."""
    damaged = bytearray(content)
    end = min(len(damaged), len(damaged) if last is None else last)
    for _ in range(rng.randint(1, most)):
        place = rng.randrange(first, end)
        damaged[place] ^= rng.choice([1 << rng.randrange(8), rng.randint(1, 255)])
    return bytes(damaged)


def truncated(content: bytes, rng: random.Random) -> bytes:
    """A beginning, never the whole."""
    return content[: rng.randrange(len(content))]
