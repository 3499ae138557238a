"""Images as sequences: one pixel a step, augmented in batched tensor code on the stored uint8.

Order as in torchvision's usual recipe: crop, flip, to float, normalise; so the border that a crop
brings in is a black pixel (0 before normalisation), not an average one.
"""

from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional

_RESIZE_CHUNK = 1024  # images held as float32 at once: 12 MB for 32x32 RGB


@dataclass(frozen=True, eq=False)
class PixelSequence:
    """(B, C, H, W) uint8 -> (B, T, m) float32, T = H W and m = C, in row order.

    Args:
        scale: pixel value that becomes 1.
        mean, std: per channel, of the scaled values; empty leaves them as they are.
        planar: flatten colour planes instead: step t holds the C neighbouring values C t..C t + C-1
            of the (C, H, W) array, so of one colour only.
        order: permutation of the steps, (T,) int64; step t shows pixel order[t].
        crop: training only: pad by this many zero pixels, cut the old size at a random place.
        flip: training only: mirror left-right with probability 1/2.
    """

    scale: float = 255.0
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    planar: bool = False
    order: Tensor | None = None
    crop: int = 0
    flip: bool = False

    def __call__(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Map a batch; augment only where a generator is given. Repeats bit for bit from it."""
        if generator is not None and (self.crop or self.flip):
            x = self.augmented(x, generator)
        x = x.float() / self.scale  # (B, C, H, W)
        if self.mean:
            mean, std = (x.new_tensor(values)[:, None, None] for values in (self.mean, self.std))
            x = (x - mean) / std
        if self.planar:
            x = rearrange(x.flatten(1), "b (t m) -> b t m", m=x.shape[1])
        else:
            x = rearrange(x, "b c h w -> b (h w) c")
        if self.order is not None:
            x = x[:, self.order.to(x.device)]
        return x.contiguous()

    def augmented(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Shift each image of (B, C, H, W) by up to `crop` pixels and mirror half of them.

        Numbers are drawn on the generator's device: a CPU one gives the same epoch on every device.
        """

        def draw(high: int) -> Tensor:
            r = torch.randint(high, (len(x), 1), generator=generator, device=generator.device)
            return r.to(x.device)

        image, plane, row, column = (torch.arange(k, device=x.device) for k in x.shape)
        rows, columns = draw(2 * self.crop + 1) + row, draw(2 * self.crop + 1) + column
        if self.flip:
            columns = torch.where(draw(2).bool(), columns.flip(1), columns)
        image, plane = image[:, None, None, None], plane[:, None, None]
        padded = functional.pad(x, (self.crop,) * 4)  # zeros
        return padded[image, plane, rows[:, None, :, None], columns[:, None, None]]


def resized(x: Tensor, side: int | None) -> Tensor:
    """(N, C, H, W) uint8 stretched to (N, C, side, side): bilinear with anti-aliasing, rounded."""
    if side is None or x.shape[2:] == (side, side):
        return x
    floats = (part.float() for part in x.split(_RESIZE_CHUNK))
    scaled = (functional.interpolate(f, (side, side), mode="bilinear", antialias=True) for f in floats)
    return torch.cat([part.round().byte() for part in scaled])
