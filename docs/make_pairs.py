"""Makes pairs for the tutorial: outlines (x), and the same shapes filled in a random colour (y).

python docs/make_pairs.py FOLDER [COUNT]
"""

import sys
from math import cos, pi, sin
from pathlib import Path
from random import Random

from PIL import Image, ImageDraw

SIZE, SCALE = 64, 4


def main(folder: Path, count: int) -> None:
    """Writes FOLDER/x/NNN.png and FOLDER/y/NNN.png."""
    draw = Random(0)
    for domain in "xy":
        (folder / domain).mkdir(parents=True, exist_ok=True)
    for number in range(count):
        corners = draw.randint(3, 9)
        turn = draw.random() * 2 * pi
        points = []
        for corner in range(corners):
            angle, radius = turn + 2 * pi * corner / corners, draw.uniform(0.2, 0.48)
            points.append(tuple(SIZE * SCALE * (0.5 + radius * f(angle)) for f in (cos, sin)))
        colour = tuple(draw.randint(0, 255) for _ in range(3))
        ink = tuple(draw.randint(0, 160) for _ in range(3))
        for domain, fill, line in (("x", None, ink), ("y", colour, colour)):
            picture = Image.new("RGB", (SIZE * SCALE, SIZE * SCALE), "white")
            ImageDraw.Draw(picture).polygon(points, fill, line, width=12)
            picture.resize((SIZE, SIZE), Image.Resampling.BOX).save(
                folder / domain / f"{number:03}.png"
            )


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 200)
