"""Random generators that are functions of a key: the one place where numbers get their seed."""

import hashlib

import torch


def seeded_generator(*key: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator of ``device`` that is a function of ``key``: the same numbers on any number of processes.

    Generators of CPUs and of GPUs give different numbers for one seed.
    """
    digest = hashlib.blake2b("/".join(map(str, key)).encode(), digest_size=8).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest, "big") >> 1)
