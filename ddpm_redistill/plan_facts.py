"""What is said of a plan on pages and cards, without the networks that it is of: reading it loads no torch."""

from typing import Any


def plan_facts(plan: dict[str, Any]) -> dict[str, Any]:
    """What pages say of a plan, read from its JSON, old or new and of any values: its fields and options by name, and
    ``blocks``, the RED blocks, and ``cheap``, how many convolutions are of which cheap kind, empty for none."""
    if "edits" not in plan:
        return plan
    options, edits = plan.get("options"), plan["edits"]
    red = [edit for edit in edits if isinstance(edit, dict) and edit.get("edit") == "red"] if edits else []
    kinds = [edit.get("convolution") for edit in edits if isinstance(edit, dict) and edit.get("edit") == "cheap"]
    cheap = ", ".join(f"{kinds.count(kind)} {kind}" for kind in dict.fromkeys(kinds)) if edits else ""
    blocks = [{**block, "name": f"{block.get('path')}.{block.get('side')}"} for block in red]
    return {**(options if isinstance(options, dict) else {}), **plan, "blocks": blocks, "cheap": cheap}
