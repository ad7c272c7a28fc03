"""What must be the same in all processes of a run, in short, to be compared by `Group.check_same`."""

import json

import torch

import llada
from llada.models import Network
from llada.optim.ema import trained_weights
from llada.optim.parts import rows_of
from llada.training.plan import RunPlan
from llada.training.state import Progress


def surroundings(plan: RunPlan) -> dict[str, str]:
    """Return the versions, the settings, the hardware and the data of a run, by their names for people."""
    content = plan.config.to_json()
    parts = [content, *(part for part in content.values() if isinstance(part, dict))]
    settings = {name: value for part in parts for name, value in part.items() if not isinstance(value, dict)}
    del settings["output_dir"]  # may be another path on another machine
    return {
        "llada-trainer": llada.__version__,
        "torch": str(torch.__version__),
        **{f"`{name}`": json.dumps(value) for name, value in settings.items()},
        "kind of `device`": plan.device.type,
        "type of matmuls, which `precision` sets": str(plan.precision.dtype).removeprefix("torch."),
        **{name: digest[:12] for name, digest in plan.data.fingerprints.items()},
    }


def state_in_short(network: Network, progress: Progress) -> dict[str, str]:
    """Return the step, and the sum of the weights, in which any difference between processes would soon show."""
    weights = [weight for weight in trained_weights(network).values() if rows_of(weight) is None]
    total = sum(float(weight.detach().sum(dtype=torch.float64)) for weight in weights)
    return {"step": str(progress.step), "sum of the weights": float(total).hex()}
