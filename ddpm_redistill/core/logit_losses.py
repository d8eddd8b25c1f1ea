"""Losses of a classifier on its logits, in float32 whatever these are."""

import torch
from torch.nn import functional as F


def cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Mean of -log softmax(logits)[label]: logits (B, K), labels int64 (B,) -> scalar."""
    return F.cross_entropy(logits.float(), labels)


def logit_distillation(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
    """T^2 KL(softmax(teacher / T) || softmax(student / T)), a mean over the batch: logits (B, K) each -> scalar.

    Hinton et al. 2015, arXiv 1503.02531, section 2, whose cross-entropy with soft targets is this and a constant.
    """
    ours, theirs = (F.log_softmax(logits.float() / temperature, dim=1) for logits in (student, teacher))
    return temperature**2 * F.kl_div(ours, theirs, reduction="batchmean", log_target=True)
