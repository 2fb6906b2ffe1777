"""Windows as torch items and sequences: the same numbers as the grid, however many workers fetch them."""

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from data_loaders import WindowDataset, window_loader
from neurofuse.errors import NeurofuseError
from neurofuse.jitters.lag_laws import WindowLag
from neurofuse.tokens import tokenize
from neurofuse.windows import Windows, cut_windows


@pytest.fixture(scope="module")
def windows(tiny) -> Windows:
    # The LFP stops early, so that some windows hold tokens that are absent.
    part = tiny.but(streams=(tiny["spikes"], tiny["lfp"].between(2, 21)))
    return cut_windows(
        tokenize(part), window_s=1.0, max_lag_s=0.2, jitter=WindowLag(0.1), rng=np.random.default_rng(0)
    )


def test_an_item_is_a_row_of_the_batch(windows):
    data = WindowDataset(windows)
    assert len(data) == len(windows)
    batch = windows.batch(slice(None))
    for k in (0, 5, -1):
        item = data[k]
        assert sorted(item) == ["lag", "movement", "present0", "present1", "values0", "values1"]
        for c in (0, 1):
            np.testing.assert_array_equal(item[f"values{c}"].numpy(), batch.values[c][k])
            np.testing.assert_array_equal(item[f"present{c}"].numpy(), batch.present[c][k])
        np.testing.assert_array_equal(item["movement"].numpy(), batch.movement[k])
        np.testing.assert_array_equal(item["lag"].numpy(), batch.lag[k])
    assert {v.dtype for v in item.values()} == {torch.float32, torch.bool}


def test_items_collate_into_batches(windows):
    batches = list(DataLoader(WindowDataset(windows), batch_size=16))
    assert sum(len(b["movement"]) for b in batches) == len(windows)
    whole = windows.batch(slice(0, 16))
    np.testing.assert_array_equal(batches[0]["values1"].numpy(), whole.values[1])
    assert batches[0]["movement"].shape == (16, 50, 2)
    assert batches[0]["lag"].shape == (16, 50, 1)


def test_no_worker_and_two_workers_give_the_same_numbers(windows):
    data = WindowDataset(windows, redraw=True, seed=3)
    data.set_epoch(2)
    single, together = (list(DataLoader(data, batch_size=20, num_workers=n)) for n in (0, 2))
    assert len(single) == len(together) > 1
    for a, b in zip(single, together, strict=True):
        for key in a:
            np.testing.assert_array_equal(a[key].numpy(), b[key].numpy())


def test_lags_are_drawn_anew_with_the_epoch_and_the_seed(windows):
    def lags(data: WindowDataset, epoch: int) -> np.ndarray:
        data.set_epoch(epoch)
        return np.array([float(data[k]["lag"][0, 0]) for k in range(12)])

    data, still = WindowDataset(windows, redraw=True), WindowDataset(windows)
    np.testing.assert_array_equal(lags(data, 1), lags(data, 1))
    assert not np.array_equal(lags(data, 0), lags(data, 1))
    assert not np.array_equal(lags(data, 0), lags(WindowDataset(windows, redraw=True, seed=1), 0))
    assert np.unique(lags(data, 0)).size > 6, "each window draws its own"
    np.testing.assert_array_equal(lags(still, 0), lags(still, 1))


def test_sequences_hold_the_grid_and_nothing_else(windows):
    data = WindowDataset(windows)
    absent = 0
    for k in range(0, len(windows), 7):
        batch = windows.batch(slice(k, k + 1))
        sequences = data.sequences(k)
        assert len(sequences) == 2
        for c, sequence in enumerate(sequences):
            time_s = sequence.time_s.numpy()
            assert (np.diff(time_s) >= 0).all()
            step = np.rint(time_s / windows.tokens.token_s - 0.5).astype(int) + windows.reach
            np.testing.assert_allclose(
                time_s, (step - windows.reach + 0.5) * windows.tokens.token_s, atol=1e-6
            )
            grid = np.zeros_like(batch.values[c][0])
            grid[step, sequence.source.numpy()] = sequence.value.numpy()
            np.testing.assert_array_equal(grid, batch.values[c][0])
            counted = windows.tokens.clocks[c].counted
            there = batch.present[c][0]
            absent += int((~there).sum())
            expected = (grid[:, counted] != 0).sum() + there.sum() * (~counted).sum()
            assert len(time_s) == expected, "units without spikes and steps that were absent are left out"
            assert len(np.unique(np.stack([step, sequence.source.numpy()]), axis=1).T) == len(time_s)
    assert absent > 0
    for a, b in zip(data.sequences(-1), data.sequences(len(data) - 1), strict=True):
        assert torch.equal(a.value, b.value)


def test_a_window_that_is_not_there_is_an_index_error(windows):
    data = WindowDataset(windows)
    for access in (data.__getitem__, data.sequences):
        for index in (len(data), -len(data) - 1):
            with pytest.raises(IndexError, match=f"window {index} of {len(data)}"):
                access(index)


def test_a_loop_of_ones_own_gets_all_windows_of_a_recording(tiny):
    loader = window_loader(tiny, window_s=1.0, stride_s=0.5, max_lag_s=0.2, batch_size=8)
    windows = cut_windows(
        tokenize(tiny), window_s=1.0, stride_s=0.5, max_lag_s=0.2, rng=np.random.default_rng(0)
    )
    movement = torch.cat([b["movement"] for b in loader])
    np.testing.assert_array_equal(movement.numpy(), windows.movement)
    first = [
        next(iter(window_loader(tiny, window_s=1.0, shuffle=True, seed=s)))["movement"] for s in (1, 1, 2)
    ]
    assert torch.equal(first[0], first[1])
    assert not torch.equal(first[0], first[2])


def test_windows_longer_than_the_recording_are_refused(tiny):
    with pytest.raises(NeurofuseError, match="'simulation' has no stretch of 90 s; use shorter windows"):
        window_loader(tiny, window_s=90.0)
