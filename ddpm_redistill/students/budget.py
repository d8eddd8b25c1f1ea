"""The smallest change to a teacher that fits a memory budget: candidates in order, each by its exact peak."""

import copy
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any, Literal, cast

import torch
from diffusers import UNet2DModel
from torch import nn

from ..config import StudentConfig
from ..core.peak import tensor_peak_within
from ..errors import UserError
from ..families.registry import family_of
from ..pipelines.lean import LEAN_SETTINGS, CannotRunLeanError, lean_execution
from .derive import student_on_meta
from .plan import StudentPlan, plan_student, teacher_table

Counts = Literal["activations", "total"]

# Smallest change first: what needs no training before what does, and what changes no weight before what rounds them.
REDUCTIONS = (1, 2, 4, 8)  # 1 is the teacher itself
DTYPES = (torch.float32, torch.bfloat16)
EXECUTIONS = (None, *LEAN_SETTINGS)  # None is eager


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One way to run a network at batch 1; sizes in bytes.

    Args:
        reduction: from teacher to student; 1 is the teacher itself, which has no ``red_placement``.
        dtype: float32 or bfloat16, of weights and activations.
        lean: a setting of lean execution; None is eager.
        activations: exact tensor peak of one denoising step.
        weights: parameters and buffers.
        over: what the budget lacks for it; it fits where this is not above 0.
        exact: False where the pass was stopped when it was past the budget: ``activations`` and ``over`` are then
            lower bounds.
    """

    reduction: int
    red_placement: str | None
    dtype: str
    lean: str | None
    activations: int
    weights: int
    over: int
    exact: bool

    def __str__(self) -> str:
        network = (
            "the teacher itself" if self.reduction == 1 else f"reduction {self.reduction}, RED {self.red_placement}"
        )
        return f"{network}, {self.dtype}, {f'lean {self.lean}' if self.lean else 'eager'}"


@dataclass(frozen=True, kw_only=True)
class BudgetPlan:
    """What was tried for a budget, in order, and the first that fits.

    Args:
        budget: bytes; ``counts`` says of what.
        chosen: None when nothing fits; ``candidates`` are then all there are.
        plan: of the student that was chosen; None for the teacher itself.
        skipped: for each reduction that the teacher cannot take, the reason.
    """

    budget: int
    counts: Counts
    chosen: Candidate | None
    plan: StudentPlan | None
    candidates: tuple[Candidate, ...]
    skipped: tuple[str, ...]

    @property
    def nearest(self) -> Candidate:
        """The candidate that the budget lacks least for; its ``over`` is exact."""
        return min(self.candidates, key=lambda candidate: (candidate.over, not candidate.exact))

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "budget": self.budget,
            "budget_counts": self.counts,
            "fits": self.chosen is not None,
            "chosen": asdict(self.chosen) if self.chosen else None,
            "plan": self.plan.to_dict() if self.plan else None,
            "candidates": [asdict(candidate) for candidate in self.candidates],
            "skipped": list(self.skipped),
        }


def plan_under_budget(
    teacher_config: dict[str, Any],
    budget: int,
    counts: Counts = "activations",
    *,
    reduction: int | None = None,
    red_placement: str | None = None,
) -> BudgetPlan:
    """The first of all candidates, smallest change first, whose peak at batch 1 is within ``budget`` bytes.

    Nothing is computed, and nothing past the first that fits is looked at.

    Args:
        teacher_config: of a ``UNet2DModel`` or a student; its ``sample_size`` is the size that is planned for.
        counts: activations, the exact tensor peak; or total, that and the weights.
        reduction: look at this one only (1 is the teacher itself).
        red_placement: of students; None is the default recipe's.

    Raises:
        UserError: the teacher has no student here, or not with the given reduction.
    """
    teacher_table(teacher_config)  # raises, with the reason
    tried: list[Candidate] = []
    networks: list[_Network] = []  # of each one tried
    skipped: list[str] = []
    fits = False
    for wanted in REDUCTIONS if reduction is None else (reduction,):
        try:
            network = _network(teacher_config, wanted, red_placement)
        except UserError as error:
            if reduction is not None:
                raise
            skipped.append(str(error))
            continue
        for dtype, lean in product(DTYPES, EXECUTIONS):
            if not fits and network.can_run(lean):
                tried.append(network.candidate(dtype, lean, counts, budget))
                networks.append(network)
                fits = tried[-1].over <= 0
    if not fits:
        _settle_the_nearest(tried, networks, counts, budget)
    return BudgetPlan(
        budget=budget,
        counts=counts,
        chosen=tried[-1] if fits else None,
        plan=networks[-1].plan if fits else None,
        candidates=tuple(tried),
        skipped=tuple(skipped),
    )


@dataclass
class _Network:
    """The teacher (no plan) or one student, on the meta device, in each dtype that was asked for."""

    plan: StudentPlan | None
    unets: dict[torch.dtype, UNet2DModel]

    def can_run(self, lean: str | None) -> bool:
        """Every network runs eagerly, and not every one lean."""
        try:
            with lean_execution(self.unets[torch.float32], lean) if lean else nullcontext():
                return True
        except CannotRunLeanError:
            return False

    def candidate(
        self, dtype: torch.dtype, lean: str | None, counts: Counts, budget: int, limit: float | None = None
    ) -> Candidate:
        """Exact where what is counted is within ``limit``, the budget if there is none; else as far as it was run.

        Eager passes are short: they are always run to their end, and a person learns what each network takes.
        """
        if dtype not in self.unets:
            self.unets[dtype] = copy.deepcopy(self.unets[torch.float32])
            nn.Module.to(self.unets[dtype], dtype)  # diffusers' own `to` warns
        unet = self.unets[dtype]
        weights = sum(t.nbytes for t in unet.state_dict().values())
        counted = weights if counts == "total" else 0
        room = (budget if limit is None else limit) - counted if lean else float("inf")
        peak, exact = 0, False
        if room >= 0:
            inputs = family_of(unet.config)[1].with_input(unet, 1, None, dtype)[1]
            with lean_execution(unet, lean) if lean else nullcontext():
                peak, exact = tensor_peak_within(unet, inputs, room)
        return Candidate(
            reduction=self.plan.step if self.plan else 1,
            red_placement=self.plan.options.red_placement if self.plan else None,
            dtype=str(dtype).removeprefix("torch."),
            lean=lean,
            activations=peak,
            weights=weights,
            over=counted + peak - budget,
            exact=exact,
        )


def _network(teacher_config: dict[str, Any], reduction: int, red_placement: str | None) -> _Network:
    """The network of a reduction, 1 for the teacher itself; of a placement left open the default recipe's."""
    if reduction == 1:
        return _Network(None, {torch.float32: family_of(teacher_config)[1].network_on_meta(teacher_config)})
    options = cast(dict[str, Any], {"reduction": reduction, "red_placement": red_placement})
    plan = plan_student(teacher_config, StudentConfig(**options))
    return _Network(plan, {torch.float32: student_on_meta(teacher_config, plan)})


def _settle_the_nearest(tried: list[Candidate], networks: list[_Network], counts: Counts, budget: int) -> None:
    """Nothing fits: a person will ask for the nearest next, so no lower bound may be left below its exact figure.

    From the candidate that saves most backwards: its figure stops the passes of the others early.
    """
    nearest = min((candidate.over for candidate in tried if candidate.exact), default=float("inf"))
    for i in reversed(range(len(tried))):
        if tried[i].exact or tried[i].over > nearest:
            continue
        dtype = getattr(torch, tried[i].dtype)
        tried[i] = networks[i].candidate(dtype, tried[i].lean, counts, budget, limit=budget + nearest)
        if tried[i].exact:
            nearest = tried[i].over
