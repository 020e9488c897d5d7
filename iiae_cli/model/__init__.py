"""The method itself, in pure torch: it reads no file and knows no config.

Shape legend, used in every module below and above this package:

    B   batch                     S   shared latent, flattened (C·H·W for a map, D for a vector)
    C   channels                  E   exclusive latent
    H W height, width             F   feature width
    Q   queries                   G   gallery
    K   cut-off rank
"""

from typing import Literal, TypeAlias

Domain: TypeAlias = Literal["x", "y"]
DOMAINS: tuple[Domain, Domain] = ("x", "y")


def other_domain(domain: Domain) -> Domain:
    """Returns the domain that `domain` is paired with."""
    return "y" if domain == "x" else "x"
