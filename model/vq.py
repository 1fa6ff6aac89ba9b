"""The VQ tokenizer: images <-> discrete codes (ADDP section 3.1; the MaskGIT VQGAN, PyTorch
layout).

    images (B, 3, H, W) --encoder--> z (B, Dz, h, w) --nearest code--> ids (B, L), L = h * w
    images (B, 3, H, W) <--decoder-- z (B, Dz, h, w) <--codebook------ ids (B, L)

Names follow the official file.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.config import TokenizerConfig


def fast_layout(device: torch.device, *, compiled: bool = False) -> torch.memory_format:
    """Return the memory layout in which a tokenizer's convolutions are fastest: channels last on
    CPUs and where they are compiled, NCHW in eager mode on GPUs. Its input takes the layout, and
    all that is made of it follows.

    On GPUs, GroupNorm and the convolutions would convert channels last at every layer, which took
    19 to 39 % of the time (docs/gpu.md).
    """
    last = device.type == "cpu" or compiled
    return torch.channels_last if last else torch.contiguous_format


def _norm(channels: int, groups: int) -> nn.GroupNorm:
    return nn.GroupNorm(groups, channels, eps=1e-6)


def _silu(x: Tensor) -> Tensor:
    """SiLU, in place if nothing is kept for a backward pass, as other operators here are: fresh
    memory costs a CPU more than the function itself."""
    return F.silu(x, inplace=not torch.is_grad_enabled())


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions, each after GroupNorm and SiLU, and a shortcut around them."""

    def __init__(self, c_in: int, c_out: int, groups: int) -> None:
        super().__init__()
        self.norm1 = _norm(c_in, groups)
        self.conv1 = nn.Conv2d(c_in, c_out, 3, padding=1, bias=False)
        self.norm2 = _norm(c_out, groups)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, padding=1, bias=False)
        if c_in != c_out:
            self.nin_shortcut = nn.Conv2d(c_out, c_out, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, c_in, H, W) -> (B, c_out, H, W)."""
        h = self.conv1(_silu(self.norm1(x)))
        h = self.conv2(_silu(self.norm2(h)))
        # An oddity of the original weights: where the width changes, the shortcut starts from the
        # block's own output.
        shortcut = self.nin_shortcut(h) if hasattr(self, "nin_shortcut") else x
        return h + shortcut if torch.is_grad_enabled() else h.add_(shortcut)


class _Level(nn.Module):
    """Residual blocks of one resolution, and the upsampling after them (decoder only)."""

    def __init__(
        self, c_in: int, c_out: int, count: int, groups: int, upsample: bool = False
    ) -> None:
        super().__init__()
        self.block = nn.ModuleList(
            ResidualBlock(c_in if i == 0 else c_out, c_out, groups) for i in range(count)
        )
        if upsample:
            self.upsample = nn.ModuleDict({"conv": nn.Conv2d(c_out, c_out, 3, padding=1)})

    def forward(self, x: Tensor) -> Tensor:
        for block in self.block:
            x = block(x)
        if hasattr(self, "upsample"):
            x = self.upsample["conv"](F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return x


def _middle(channels: int, groups: int) -> nn.ModuleDict:
    return nn.ModuleDict({f"block_{i}": ResidualBlock(channels, channels, groups) for i in (1, 2)})


class Encoder(nn.Module):
    """Levels of residual blocks, each but the last followed by an average pool of stride 2."""

    def __init__(self, c: TokenizerConfig) -> None:
        super().__init__()
        widths = [c.channels * m for m in c.channel_multipliers]
        self.conv_in = nn.Conv2d(3, c.channels, 3, padding=1, bias=False)
        self.down = nn.ModuleList(
            _Level(c_in, c_out, c.residual_blocks, c.norm_groups)
            for c_in, c_out in zip([c.channels, *widths[:-1]], widths, strict=True)
        )
        self.mid = _middle(widths[-1], c.norm_groups)
        self.norm_out = _norm(widths[-1], c.norm_groups)
        self.conv_out = nn.Conv2d(widths[-1], c.code_dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, Dz, h, w)."""
        x = self.conv_in(x)
        for i, level in enumerate(self.down):
            x = level(x)
            if i + 1 < len(self.down):
                x = F.avg_pool2d(x, 2)
        for block in self.mid.values():
            x = block(x)
        return self.conv_out(_silu(self.norm_out(x)))


class Decoder(nn.Module):
    """The encoder's mirror image, with nearest-neighbour upsampling."""

    def __init__(self, c: TokenizerConfig) -> None:
        super().__init__()
        widths = [c.channels * m for m in c.channel_multipliers]
        self.conv_in = nn.Conv2d(c.code_dim, widths[-1], 3, padding=1)
        self.mid = _middle(widths[-1], c.norm_groups)
        # Levels are numbered from the highest resolution; the data runs through them from the
        # lowest.
        self.up = nn.ModuleList(
            _Level(c_in, c_out, c.residual_blocks, c.norm_groups, upsample=i > 0)
            for i, (c_in, c_out) in enumerate(zip([*widths[1:], widths[-1]], widths, strict=True))
        )
        self.norm_out = _norm(widths[0], c.norm_groups)
        self.conv_out = nn.Conv2d(widths[0], 3, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        """(B, Dz, h, w) -> (B, 3, H, W)."""
        x = self.conv_in(z)
        for block in self.mid.values():
            x = block(x)
        for level in reversed(self.up):
            x = level(x)
        return self.conv_out(_silu(self.norm_out(x)))


class Quantizer(nn.Module):
    """The codebook; finds the nearest code in squared Euclidean distance."""

    def __init__(self, codebook_size: int, code_dim: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(codebook_size, code_dim)
        nn.init.uniform_(self.embedding.weight, -1 / codebook_size, 1 / codebook_size)

    def distances(self, z: Tensor) -> Tensor:
        """Return the squared distances of z (N, Dz) to the codes, (N, K), in float32 at least."""
        codes = self.embedding.weight
        dtype = torch.promote_types(z.dtype, torch.float32)
        z, codes = z.to(dtype), codes.to(dtype)
        return z.square().sum(1, keepdim=True) + codes.square().sum(1) - 2 * z @ codes.t()

    def forward(self, z: Tensor) -> Tensor:
        """Return the nearest codes of z (B, Dz, h, w): ids (B, L), int64, in raster order."""
        flat = z.flatten(2).transpose(1, 2)
        return self.distances(flat.reshape(-1, z.shape[1])).argmin(1).view(flat.shape[:2])


class VQTokenizer(nn.Module):
    """Images (B, 3, H, W) in [0, 1], no normalisation <-> token ids (B, L) in [0, K)."""

    kind = "tokenizer"

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.quantize = Quantizer(config.codebook_size, config.code_dim)

    @property
    def codebook(self) -> Tensor:
        """Return the code vectors, (K, Dz)."""
        return self.quantize.embedding.weight

    def encode(self, images: Tensor) -> Tensor:
        """Encode images (B, 3, H, W) to ids (B, L)."""
        return self.quantize(self.encoder(images))

    def embed(self, ids: Tensor) -> Tensor:
        """Return the codes of ids (B, L) on the grid, z (B, Dz, h, w)."""
        return self.to_grid(self.codebook[ids])

    def soft_embed(self, probabilities: Tensor) -> Tensor:
        """Return the expected codes under probabilities (B, L, K) on the grid, z (B, Dz, h, w)
        (section 3.2)."""
        return self.to_grid(probabilities.to(self.codebook.dtype) @ self.codebook)

    def to_grid(self, codes: Tensor) -> Tensor:
        """Lay codes (B, L, Dz) out on the grid: (B, Dz, h, w)."""
        b, n, d = codes.shape
        side = int(n**0.5)
        return codes.transpose(1, 2).reshape(b, d, side, side)

    def decode(self, z: Tensor) -> Tensor:
        """Decode z (B, Dz, h, w) to images (B, 3, H, W), nominally in [0, 1]."""
        return self.decoder(z)

    def reconstruct(self, images: Tensor) -> Tensor:
        """Return what of images (B, 3, H, W) survives quantisation, in the same shape."""
        return self.decode(self.embed(self.encode(images)))
