"""Images as sequences: layout, augmentation, resizing."""

import torch

from ctrnn_assembly.data.task import PixelSequence, cropped_and_mirrored, resized


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_rgb_and_planar_layouts_of_a_hand_built_image():
    x = torch.arange(12, dtype=torch.uint8).view(1, 3, 2, 2)  # red 0..3, green 4..7, blue 8..11
    rgb = PixelSequence(scale=1.0)(x)
    assert rgb[0].tolist() == [[0, 4, 8], [1, 5, 9], [2, 6, 10], [3, 7, 11]]
    planar = PixelSequence(scale=1.0, planar=True)(x)
    assert planar[0].tolist() == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10, 11]]


def test_augmentation_repeats_from_its_generator_and_is_off_in_evaluation():
    x = torch.randint(0, 256, (16, 3, 32, 32), generator=generator(), dtype=torch.uint8)
    sequence, plain = PixelSequence(augment=True), PixelSequence()
    assert torch.equal(sequence(x, generator(1)), sequence(x, generator(1)))
    assert not torch.equal(sequence(x, generator(1)), sequence(x, generator(2)))
    assert torch.equal(sequence(x), plain(x))


def test_augmentation_matches_torchvision_one_image_at_a_time():
    from torchvision.transforms import functional

    x = torch.randint(1, 256, (64, 3, 16, 16), generator=generator(), dtype=torch.uint8)
    out = cropped_and_mirrored(x, generator(3))
    draws = generator(3)
    top, left, flip = (torch.randint(high, (64,), generator=draws) for high in (5, 5, 2))
    assert flip.unique().numel() == 2
    for i in range(64):
        one = functional.crop(functional.pad(x[i], [2]), int(top[i]), int(left[i]), 16, 16)
        assert torch.equal(out[i], functional.hflip(one) if flip[i] else one)


def test_resize_of_a_constant_image_is_that_constant():
    x = torch.full((3, 1, 9, 6), 201, dtype=torch.uint8)
    assert torch.equal(resized(x, 4), torch.full((3, 1, 4, 4), 201, dtype=torch.uint8))
    assert resized(x, None) is x
