"""Three families of networks (paper, appendix D), each of which makes what `iiae.py` composes.

* `ImageNetworks`: convolutions down to a grid, the shared latent a map (S, H, W);
* `FlatNetworks` (the Cars networks): the same grid, flattened, the shared latent a vector (S,);
* `FeatureNetworks`: linear layers on vectors.

Each makes the same four kinds for a domain's `width`, its channels or features: `exclusive`
q(z^x|x); `features` FE, which r and q read; `shared`, r(z^s|·) of one domain's or q(z^s|x,y) of two
domains' FE outputs; `decoder` p(x|z^x, z^s), or p(x|z^s) if `exclusive_dim` is 0.

Shapes: B batch, C channels, H W height and width, F features, S shared and E exclusive latent, n
domains (1 or 2). A head returns means and log-variances: twice the latent on dimension 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from torch import nn

from iiae_cli.model.layers import (
    FeatureDecoder,
    FlatEntry,
    ImageDecoder,
    TiledEntry,
    conv_trunk,
    grid_after,
    halving,
    linear_trunk,
    vector_head,
)


@dataclass(frozen=True)
class ImageNetworks:
    """For pictures, with a map as shared latent.

    Args:
        size: (H, W), the same in both domains, ≥ 16.
        widths: filters of FE's and the exclusive encoder's convolutions; the paper: 32 … 256.
        decoder_widths: filters of the decoder's transposed convolutions but the last.
        shared_dim: channels of the shared map (paper: 128).
        dropout: in the decoder's first stages (paper: 0.5).

    Raises:
        ValueError: `decoder_widths` and `widths` differ in length.
    """

    size: tuple[int, int]
    widths: Sequence[int]
    decoder_widths: Sequence[int]
    shared_dim: int
    dropout: float = 0.5

    def __post_init__(self) -> None:
        encoder, decoder = len(self.widths), len(self.decoder_widths)
        if encoder != decoder:
            raise ValueError(f"{encoder} encoder widths need as many decoder widths, not {decoder}")

    @property
    def multiple(self) -> int:
        """What pictures' sides are extended to a multiple of."""
        stages: int = 2 ** (len(self.widths) + 1)
        return stages

    @property
    def grid(self) -> tuple[int, int]:
        """(H, W) of the latent grid."""
        stages = len(self.widths) + 1
        return grid_after(self.size[0], stages), grid_after(self.size[1], stages)

    @property
    def trunk_grid(self) -> tuple[int, int]:
        """(H, W) of the grid before the last halving."""
        return 2 * self.grid[0], 2 * self.grid[1]

    @property
    def shared_shape(self) -> tuple[int, ...]:
        """(S, H, W)."""
        return self.shared_dim, *self.grid

    def exclusive(self, width: int, exclusive_dim: int) -> nn.Module:
        """(B, C, H, W) → (B, 2E)."""
        cells = self.trunk_grid[0] * self.trunk_grid[1] * self.widths[-1]
        trunk = conv_trunk(width, self.widths, self.multiple)
        return nn.Sequential(trunk, nn.Flatten(), nn.Linear(cells, 2 * exclusive_dim))

    def features(self, width: int) -> nn.Module:
        """(B, C, H, W) → (B, widths[-1], *trunk_grid)."""
        return conv_trunk(width, self.widths, self.multiple)

    def shared(self, *widths: int) -> nn.Module:
        """(B, n·widths[-1], *trunk_grid) → (B, 2S, *grid): one more convolution."""
        return halving(len(widths) * self.widths[-1], 2 * self.shared_dim)

    def decoder(self, width: int, exclusive_dim: int) -> nn.Module:
        """(B, S, *grid) and (B, E) → (B, C, H, W)."""
        return self._decoder(TiledEntry(), self.shared_dim + exclusive_dim, width)

    def _decoder(self, entry: nn.Module, in_channels: int, channels: int) -> nn.Module:
        return ImageDecoder(
            entry,
            in_channels,
            widths=self.decoder_widths,
            channels=channels,
            size=self.size,
            dropout=self.dropout,
        )


@dataclass(frozen=True)
class FlatNetworks(ImageNetworks):
    """For pictures, with a vector of `shared_dim` as shared latent (Cars).

    Args:
        hidden: of the linear heads, and filters of FE's fifth convolution (paper: 256).
        flat_width: channels of the grid that the decoder begins with. The paper's table has 262,144
            units here, the released code 8·8·512 = 32,768; the code is followed.
    """

    hidden: int = 256
    flat_width: int = 512

    @property
    def shared_shape(self) -> tuple[int, ...]:
        """(S,)."""
        return (self.shared_dim,)

    @property
    def flat_features(self) -> int:
        """Width of FE's output."""
        return self.grid[0] * self.grid[1] * self.hidden

    def features(self, width: int) -> nn.Module:
        """(B, C, H, W) → (B, flat_features)."""
        super().features(width)  # draws random numbers: every seed keeps its initial weights
        return nn.Sequential(
            conv_trunk(width, [*self.widths, self.hidden], self.multiple), nn.Flatten()
        )

    def shared(self, *widths: int) -> nn.Module:
        """(B, n·flat_features) → (B, 2S)."""
        return vector_head(len(widths) * self.flat_features, [self.hidden], self.shared_dim)

    def decoder(self, width: int, exclusive_dim: int) -> nn.Module:
        """(B, S) and (B, E) → (B, C, H, W)."""
        latent = self.shared_dim + exclusive_dim
        entry = FlatEntry(latent, self.flat_width, self.grid, self.dropout)
        return self._decoder(entry, self.flat_width, width)


@dataclass(frozen=True)
class FeatureNetworks:
    """For feature vectors; the defaults are the paper's for 512-d VGG features (appendix D.2)."""

    feature_width: int = 512
    exclusive_hidden: Sequence[int] = (512, 256)
    shared_hidden: int = 256
    joint_hidden: int = 512
    decoder_hidden: int = 128
    shared_dim: int = 64

    @property
    def shared_shape(self) -> tuple[int, ...]:
        """(S,)."""
        return (self.shared_dim,)

    def exclusive(self, width: int, exclusive_dim: int) -> nn.Module:
        """(B, F) → (B, 2E)."""
        return vector_head(width, self.exclusive_hidden, exclusive_dim)

    def features(self, width: int) -> nn.Module:
        """(B, F) → (B, feature_width)."""
        return linear_trunk(width, [self.feature_width])

    def shared(self, *widths: int) -> nn.Module:
        """(B, n·feature_width) → (B, 2S)."""
        hidden = self.shared_hidden if len(widths) == 1 else self.joint_hidden
        return vector_head(len(widths) * self.feature_width, [hidden], self.shared_dim)

    def decoder(self, width: int, exclusive_dim: int) -> nn.Module:
        """(B, S) and (B, E) → (B, F)."""
        return FeatureDecoder(self.shared_dim + exclusive_dim, self.decoder_hidden, width)


Networks: TypeAlias = ImageNetworks | FeatureNetworks
