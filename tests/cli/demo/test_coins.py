import numpy as np
from skimage import data

from backend.cli.demo.coins import COIN, find_coins, sample_tasks


def test_every_coin_of_the_photograph_has_its_own_mask() -> None:
    coins = find_coins(data.coins())
    assert coins.max() == 24
    areas = np.bincount(coins.ravel())[1:]
    assert areas.min() > 1000
    assert areas.max() < 3300


def test_coins_are_brighter_than_what_is_around_them() -> None:
    photograph = data.coins().astype(float)
    coins = find_coins(data.coins())
    for number in range(1, 25):
        assert photograph[coins == number].mean() > photograph[coins == 0].mean() + 30


def test_tiles_are_the_photograph_cut_without_loss() -> None:
    tasks = sample_tasks()
    rows = [np.concatenate([task.image for task in tasks[first : first + 3]], axis=1) for first in (0, 3)]
    assert np.array_equal(np.concatenate(rows)[..., 0], data.coins())


def test_every_tile_has_several_coins_and_masks_of_its_size() -> None:
    for task in sample_tasks():
        assert task.image.shape == (*task.masks[COIN].shape, 3)
        assert np.array_equal(task.masks[COIN], task.objects > 0)
        assert len(np.unique(task.objects)) - 1 >= 4
