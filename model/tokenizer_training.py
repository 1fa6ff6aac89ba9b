"""How a VQ tokenizer is trained: reconstruction + commitment, an EMA or gradient codebook with
revival of dead codes, and perceptual and adversarial terms as options (VQ-VAE, arXiv 1711.00937;
VQGAN, arXiv 2012.09841)."""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from model.config import TokenizerLossConfig
from model.perceptual import PerceptualDistance
from model.randomness import uniforms
from model.vq import VQTokenizer, fast_layout


class PatchDiscriminator(nn.Sequential):
    """Judges each patch as real or reconstructed: images (B, 3, H, W) -> verdicts (B, 1, h, w)."""

    def __init__(self, channels: int = 64) -> None:
        layers: list[nn.Module] = [nn.Conv2d(3, channels, 4, 2, 1), nn.LeakyReLU(0.2)]
        for c in (channels, 2 * channels):
            layers += [nn.Conv2d(c, 2 * c, 4, 2, 1), nn.GroupNorm(32, 2 * c), nn.LeakyReLU(0.2)]
        super().__init__(*layers, nn.Conv2d(4 * channels, 1, 3, 1, 1))


class TokenizerTraining(nn.Module):
    """The module that is optimised: images (B, 3, H, W) in [0, 1] -> scalar loss.

    Its state holds usage averages, the counter of micro batches and all weights, so a resumed run
    goes on exactly. Statistics are summed over ranks; revived codes come from rank 0's batch, which
    sends them to all.
    """

    usage: Tensor
    vector_sum: Tensor
    batches: Tensor

    def __init__(self, tokenizer: VQTokenizer, config: TokenizerLossConfig, seed: int) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self.config = config
        self.seed = seed
        k, dim = tokenizer.codebook.shape
        self.register_buffer("usage", torch.zeros(k))
        self.register_buffer("vector_sum", torch.zeros(k, dim))
        self.register_buffer("batches", torch.zeros((), dtype=torch.int64))
        tokenizer.quantize.requires_grad_(config.codebook == "gradient")
        self.discriminator = PatchDiscriminator() if config.adversarial else None
        self.perceptual = PerceptualDistance() if config.perceptual else None

    @torch.no_grad()
    def keep_codebook(self, samples: int) -> None:
        """Begin with the tokenizer's own codes, as if all were used equally often, instead of
        vectors of the first batch. samples: of a micro batch on a rank."""
        ranks = dist.get_world_size() if dist.is_initialized() else 1
        self.usage.fill_(samples * ranks * self.tokenizer.config.tokens / self.usage.numel())
        self.vector_sum.copy_(self.usage.unsqueeze(1) * self.tokenizer.codebook)

    def forward(self, images: Tensor) -> Tensor:
        """Return the loss, a scalar (VQ-VAE eq. 3); in training, also update the codebook."""
        c, tokenizer = self.config, self.tokenizer
        layout = fast_layout(images.device)
        z = tokenizer.encoder(images.contiguous(memory_format=layout))
        if self.training and int(self.batches) % c.revive_every == 0:
            self._revive(z.detach())
        ids = tokenizer.quantize(z.detach())
        codes = tokenizer.embed(ids)
        if self.training:
            self._observe(z.detach(), ids)
        loss = c.commitment * F.mse_loss(z, codes.detach())
        if c.codebook == "gradient":
            loss = loss + F.mse_loss(codes, z.detach())
        straight_through = z + (codes - z).detach()
        restored = tokenizer.decode(straight_through.contiguous(memory_format=layout))
        distance = F.l1_loss if c.reconstruction == "l1" else F.mse_loss
        loss = loss + distance(restored, images)
        if self.perceptual is not None:
            loss = loss + c.perceptual * self.perceptual(restored, images)
        if self.discriminator is not None:
            loss = loss + self._adversarial(restored, images)
        return loss

    def _adversarial(self, restored: Tensor, images: Tensor) -> Tensor:
        """Return the hinge losses of both players, for one backward pass: the discriminator's
        weights are constants to the decoder, and the reconstruction is a constant to the
        discriminator. So one optimizer trains both."""
        assert self.discriminator is not None
        frozen = {name: p.detach() for name, p in self.discriminator.named_parameters()}
        fooled = -torch.func.functional_call(self.discriminator, frozen, (restored,)).mean()
        real, fake = self.discriminator(images), self.discriminator(restored.detach())
        judged = 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())
        weight = self.config.adversarial * float(int(self.batches) > self.config.adversarial_start)
        return weight * fooled + judged

    @torch.no_grad()
    def _observe(self, z: Tensor, ids: Tensor) -> None:
        """Update the moving averages of usage and vector sums; with `ema`, the codebook follows
        them. z: (B, Dz, h, w), ids: (B, L)."""
        k = self.usage.numel()
        flat = z.permute(0, 2, 3, 1).reshape(-1, z.shape[1]).float()
        counts = torch.bincount(ids.flatten(), minlength=k).float()
        sums = torch.zeros_like(self.vector_sum).index_add_(0, ids.flatten(), flat)
        if dist.is_initialized():
            dist.all_reduce(counts)
            dist.all_reduce(sums)
        d = self.config.ema_decay
        self.usage.mul_(d).add_(counts, alpha=1 - d)
        self.vector_sum.mul_(d).add_(sums, alpha=1 - d)
        if self.config.codebook == "ema":
            seen = self.usage > 1e-3
            means = self.vector_sum / self.usage.clamp_min(1e-3).unsqueeze(1)
            self.tokenizer.codebook.copy_(
                torch.where(seen.unsqueeze(1), means, self.tokenizer.codebook)
            )
        self.batches += 1

    @torch.no_grad()
    def _revive(self, z: Tensor) -> None:
        """Move dead codes onto badly represented vectors of this batch.

        The vectors are drawn with a probability proportional to their squared distance to the
        nearest code (k-means++): a uniform draw would put many equal codes on a plain background,
        and make its tokens noise. At the first batch all codes are dead, so this is also how the
        codebook starts.
        """
        started = bool(self.usage.sum() > 0)
        mean = float(self.usage.mean()) if started else 1.0
        dead = (
            (self.usage < self.config.revive_below * mean).nonzero().flatten() if started else None
        )
        count = self.usage.numel() if dead is None else dead.numel()
        if not count:
            return
        flat = z.permute(0, 2, 3, 1).reshape(-1, z.shape[1]).float()
        u = torch.from_numpy(uniforms(self.seed, "revival", int(self.batches), 1, count)[0]).float()
        if dead is None:
            dead = torch.arange(count, device=flat.device)
            chosen = self._spread(flat, u)
        else:
            chosen = flat[
                _drawn(self.tokenizer.quantize.distances(flat).min(1).values.clamp_min(0), u)
            ]
        if dist.is_initialized():
            dist.broadcast(chosen, 0)
        self.tokenizer.codebook[dead] = chosen.to(self.tokenizer.codebook.dtype)
        self.usage[dead] = 0.5 * mean
        self.vector_sum[dead] = 0.5 * mean * chosen

    @staticmethod
    def _spread(flat: Tensor, u: Tensor) -> Tensor:
        """Return k-means++ seeds: each new one is drawn in proportion to the squared distance to
        those before it. flat: (N, Dz), u: (K,) uniforms -> (K, Dz)."""
        chosen = [flat[int(u[0] * len(flat))]]
        nearest = (flat - chosen[0]).square().sum(1)
        for draw in u[1:]:
            chosen.append(flat[int(_drawn(nearest, draw))])
            nearest = torch.minimum(nearest, (flat - chosen[-1]).square().sum(1))
        return torch.stack(chosen)


def _drawn(weights: Tensor, u: Tensor) -> Tensor:
    """Draw indices in proportion to weights (N,) by uniforms u. They have the shape of u, and are
    on the device of the weights.

    The running sum is made on the CPU: on CUDA its order is not fixed, and deterministic runs
    refuse it.
    """
    cdf = weights.cpu().cumsum(0)
    return torch.searchsorted(cdf, u * cdf[-1]).clamp_max(len(cdf) - 1).to(weights.device)
