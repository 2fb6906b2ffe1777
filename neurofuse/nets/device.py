"""In: the name of a device. Out: the device, checked to exist; and how many threads torch may use."""

from __future__ import annotations

import torch

from neurofuse.errors import NeurofuseError


def use_threads(n: int) -> None:
    """Set torch's number of threads; one is reproducible, and on a busy machine as fast as more."""
    torch.set_num_threads(n)


def check_device(device: str) -> str:
    """The device that a name stands for on this machine.

    Raises
    ------
    NeurofuseError
        If there is no such device on this machine.
    """
    kind, _, number = device.partition(":")
    if device not in ("auto", "cpu") and not (kind == "cuda" and (number.isdigit() or device == "cuda")):
        raise NeurofuseError(f"there is no device '{device}'; choose auto, cpu, cuda or cuda:NUMBER.")
    n_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if kind == "cuda" and int(number or 0) >= n_gpus:
        raise NeurofuseError(
            f"--device {device}: PyTorch finds {n_gpus} NVIDIA GPU(s) here; "
            f"choose {'auto or cpu' if not n_gpus else f'cuda:0 to cuda:{n_gpus - 1}, auto or cpu'}."
        )
    return ("cuda" if n_gpus else "cpu") if device == "auto" else device
