"""The grid of `translate`: a model's outputs beside what they were made of, laid out as in the paper.

sampled        input | sample 1 | sample 2 | …                                         (Table 1)
interpolation  input | step 1 | … | step N, the two references above its ends
analogy        query | reference | output, and once more for a second reference         (Tables 8 and 11)
guided         input | outputs, the references above; also an analogy of many references, which would repeat them

Samples, outputs guided by references and by each input's partner may stand side by side: input | samples | guided.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from iiae_cli.model import Domain
from iiae_cli.report.grids import Picture, Tile, draw_grid

TRIPLES = 2  # references that are shown beside every output, as the paper does


@dataclass
class TranslationGrid:
    """What a grid shows; `inputs` and `outputs` grow as inputs are translated.

    Attributes:
        source: domain of the inputs.
        target: domain of the outputs.
        names: (K,) what each output was made with: `sample 1`, `step 1`, a reference's file name, ….
        references: picture and id of `target` for each of the K outputs, None for one that has none; empty: none has.
        interpolated: whether the outputs lie between the first and the last reference.
        inputs: pictures and ids of `source`.
        outputs: per input its K pictures.
    """

    source: Domain
    target: Domain
    names: Sequence[str]
    references: Sequence[tuple[Picture, str] | None] = ()
    interpolated: bool = False
    inputs: list[tuple[Picture, str]] = field(default_factory=list)
    outputs: list[Sequence[Picture]] = field(default_factory=list)

    def add(self, picture: Picture, name: str, outputs: Sequence[Picture]) -> None:
        """One more row."""
        self.inputs.append((picture, name))
        self.outputs.append(outputs)

    def draw(self) -> Image.Image:
        """The grid of all rows added."""
        references = [one for one in self.references if one is not None]
        paired = len(references) == len(self.names) <= TRIPLES and not self.interpolated
        if references and paired and self.source == self.target:
            return self._analogies(references)
        rows = [
            [_named(*given), *map(Tile, outputs)]
            for given, outputs in zip(self.inputs, self.outputs, strict=True)
        ]
        headers = [f"input {self.source}", *(f"{self.target}: {name}" for name in self.names)]
        if references:
            above = [Tile(None) if one is None else _named(*one) for one in self.references]
            for number, tile in enumerate(above, 1):
                if tile.picture is None:
                    continue
                if self.interpolated:
                    tile.caption = f"reference {self.target}\n{tile.caption}"
                else:
                    headers[number] = f"reference {self.target}"
            rows.insert(0, [Tile(None), *above])
        return draw_grid(rows, headers, gaps_after=[0])

    def _analogies(self, references: Sequence[tuple[Picture, str]]) -> Image.Image:
        rows = []
        for given, outputs in zip(self.inputs, self.outputs, strict=True):
            pairs = zip(references, outputs, strict=True)
            rows.append(
                [
                    _named(*given),
                    *(
                        tile
                        for reference, output in pairs
                        for tile in (_named(*reference), Tile(output))
                    ),
                ]
            )
        each = (f"reference {self.target}", f"output {self.target}")
        headers = [f"query {self.source}", *each * len(references)]
        return draw_grid(
            rows, headers, gaps_after=[2 * number for number in range(1, len(references))]
        )


def _named(picture: Picture, name: str) -> Tile:
    return Tile(picture, Path(name).stem)
