"""What ``plan`` does: the student of a teacher and the memory of both, or the smallest change that fits a budget."""

import json
import sys
from typing import TYPE_CHECKING, Any

from jsonargparse import Namespace

from ..config import StudentConfig
from ..errors import UserError
from ..units import parse_bytes
from .collector import collector_off
from .text import budget_commands, budget_text, free_width_text, memory_table, nothing_fits, training_text

if TYPE_CHECKING:
    from ..families.registry import Family, Found
    from ..students.plan import StudentPlan


@collector_off()
def run_plan(arguments: Namespace) -> None:
    from ..families.registry import find_network
    from ..sources.latent_images import side_of

    budget = None if arguments.budget is None else parse_bytes(arguments.budget)
    family, model = find_network(arguments.teacher)
    if arguments.image_size is not None and arguments.image_size < 1:
        raise UserError(f"image_size must be at least 1, not {arguments.image_size}")
    if arguments.batch_size is not None and arguments.batch_size < 1:
        raise UserError(f"batch_size must be at least 1, not {arguments.batch_size}")
    for option in ("batch_size", "widen", "architecture", "cheap"):
        if budget is not None and arguments[option] is not None:
            what = {
                "batch_size": "a budget is of one image that is sampled",
                "widen": "a budget is met by the smallest change",
                "architecture": "a budget is met by changing the teacher",
                "cheap": "a budget is met by the smallest change",
            }[option]
            raise UserError(f"--{option} and --budget do not go together: {what}")
    model.say()
    side = side_of(arguments.image_size, family.size_of(model.config), model.pixels_per_latent)
    config = model.config if side is None else family.sized(model.config, side)
    if budget is None:
        plan_by_options(arguments, family, model, config)
    else:
        plan_by_budget(arguments, model, config, budget)


def plan_by_options(arguments: Namespace, family: "Family", model: "Found", config: dict[str, Any]) -> None:
    """``config``: the teacher's, of the size that is planned for."""
    from ..students.decoder_memory import decoder_memory
    from ..students.footprint import planned_report
    from ..students.free_width import free_width
    from ..students.plan import plan_student

    options = {key: arguments[key] for key in ("reduction", "red_placement", "widen", "architecture", "arguments")}
    plan = plan_student(config, StudentConfig(**options, cheap=arguments.cheap))
    memory = planned_report(model.config, plan)
    if model.autoencoder:
        decoder = decoder_memory(model.autoencoder.config, plan.sample_size)
        memory = {name: found | decoder for name, found in memory.items()}
    peaks: dict[str, Any] = {name: memory["student"].get(name) for name in ("tensor_peak", "tensor_peak_lean")}
    free = None if plan.widens or not family.WIDENS else free_width(model.config, plan, **peaks)
    training = None if arguments.batch_size is None else training_memory(model, plan, arguments.batch_size)
    if arguments.json:
        result = {"plan": plan.to_dict(), "memory": memory, "free": free.to_dict() if free else None}
        result |= {"training": training} if training else {}
        print(json.dumps({"teacher": arguments.teacher, **result}, indent=2))
        return
    print(plan)
    print(memory_table(memory))
    if free:
        print(free_width_text(free))
    if training:
        print(training_text(training))


def training_memory(model: "Found", plan: "StudentPlan", batch_size: int) -> dict[str, int]:
    """Bytes of an eager step of this plan with the default recipe, as JSON has them."""
    from ..training.planned_memory import planned_step

    return planned_step(model, plan, batch_size)


def plan_by_budget(arguments: Namespace, model: "Found", config: dict[str, Any], budget: int) -> None:
    """``budget``: bytes. Exits with 1 where nothing fits."""
    from ..students.budget import plan_under_budget
    from ..students.footprint import planned_memory

    narrowed = {"reduction": arguments.reduction, "red_placement": arguments.red_placement}
    found = plan_under_budget(config, budget, arguments.budget_counts, **narrowed)
    if arguments.json:
        print(json.dumps({"teacher": arguments.teacher, **found.to_dict()}, indent=2))
    else:
        print(budget_text(found))
        if found.plan:  # lean execution is in the lines above
            print(found.plan)
            profiles = planned_memory(model.config, found.plan)
            print(memory_table({name: profile.to_dict() for name, profile in profiles.items()}))
        if found.chosen:
            size = None if arguments.image_size == model.config.get("sample_size") else arguments.image_size
            print(budget_commands(arguments.teacher, size, found.chosen))
    if not found.chosen:
        print(f"ddpm-redistill: {nothing_fits(found)}", file=sys.stderr)
        sys.exit(1)
