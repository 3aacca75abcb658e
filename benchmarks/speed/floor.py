"""Updates against the matrix products that they cannot do without."""

from collections.abc import Iterable
from typing import Any, NamedTuple, cast

import torch as th
from sb3_diffbc.critic.denoiser import ResidualDenoiser
from torch import nn

from benchmarks.speed.settings import Settings, spaces_of
from benchmarks.speed.steps import FULL, make_trainers, training_block
from benchmarks.speed.timing import Block, Turns, in_turns, milliseconds, summary, without_gc
from sb3_diffbc import DiffusionBC, DiffusionCritic


class Products(NamedTuple):
    """Matrix products of a linear layer in an update.

    Attributes:
        layer: gives the sizes.
        forward_rows: rows of the forward pass.
        weight_gradient: whether the layer learns.
        input_rows: rows whose gradient goes on to the layer's input; 0 for none.
    """

    layer: nn.Linear
    forward_rows: int
    weight_gradient: bool
    input_rows: int


Operation = tuple[th.Tensor, th.Tensor, th.Tensor]


def operations(parts: Iterable[Products]) -> list[Operation]:
    """Operands and results, laid out in memory as a linear layer has them."""
    made: list[Operation] = []
    for layer, rows, weight_gradient, input_rows in parts:
        size_in, size_out = layer.in_features, layer.out_features
        weight, inputs = th.randn(size_out, size_in), th.randn(rows, size_in)
        gradient = th.randn(rows, size_out)
        made.append((inputs, weight.t(), th.empty(rows, size_out)))
        if weight_gradient:
            made.append((gradient.t(), inputs, th.empty(size_out, size_in)))
        if input_rows:
            made.append((gradient[:input_rows], weight, th.empty(input_rows, size_in)))
    return made


def products_block(parts: Iterable[Products], repeats: int) -> Block:
    """Nothing but the products, ``repeats`` times."""
    to_do = operations(parts)

    @th.no_grad()
    def run() -> None:
        for _ in range(repeats):
            for left, right, result in to_do:
                th.mm(left, right, out=result)

    run()
    return Block(run, repeats)


def _linears(*modules: nn.Module) -> list[nn.Linear]:
    return [part for module in modules for part in module.modules() if isinstance(part, nn.Linear)]


def update_products(trainer: DiffusionBC) -> list[Products]:
    """Of an update with the full loss and a critic of p(a | s) that does not learn."""
    rows = trainer.batch_size
    first, *others = _linears(trainer.policy.mlp_extractor.policy_net, trainer.policy.action_net)
    assert trainer.critic is not None
    denoiser = cast(ResidualDenoiser, trainer.critic.denoiser)
    # The agent's and the expert's pairs share the state; only the agent's go back.
    return [
        Products(first, rows, True, 0),
        *(Products(layer, rows, True, rows) for layer in others),
        Products(denoiser.state_in, rows, False, 0),
        *(
            Products(layer, 2 * rows, False, rows)
            for layer in _linears(denoiser.action_in, denoiser.first, denoiser.second, denoiser.out)
        ),
    ]


def fit_products(denoiser: ResidualDenoiser, rows: int) -> list[Products]:
    """Of a step of the critic's fit."""
    entrances = _linears(denoiser.state_in, denoiser.action_in, denoiser.time_in)
    later = _linears(denoiser.first, denoiser.second, denoiser.out)
    return [
        *(Products(layer, rows, True, 0) for layer in entrances),
        *(Products(layer, rows, True, rows) for layer in later),
    ]


def _row(what: str, seconds: dict[str, Any], name: str) -> dict[str, Any]:
    return {
        "what": what,
        "ms": milliseconds(seconds[name]),
        "floor_ms": milliseconds(seconds["floor"]),
        "time_to_floor": summary(seconds[name] / seconds["floor"]),
    }


def measure(settings: Settings) -> dict[str, Any]:
    """Times of updates relative to those of their matrix products."""
    demonstrations = settings.demonstrations("maze")
    rows = []
    for batch_size in settings.batch_sizes:
        trainer = cast(DiffusionBC, make_trainers(demonstrations, batch_size, settings)[FULL])
        block = training_block(trainer, len(demonstrations), settings.min_updates)
        floor = products_block(update_products(trainer), block.units)
        seconds = in_turns({"update": block, "floor": floor}, settings.blocks)
        rows.append(_row(f"update with the full loss, batch {batch_size}", seconds, "update"))
    critic = DiffusionCritic(
        **spaces_of(demonstrations), seed=0, patience=10**6, device="cpu", **settings.critic
    )
    batch_size = critic.config["batch_size"]
    turns = Turns(
        {
            "floor": products_block(
                fit_products(cast(ResidualDenoiser, critic.denoiser), batch_size),
                settings.min_updates,
            )
        }
    )
    with without_gc():
        critic.fit(demonstrations, progress_bar=False, logger=cast(Any, turns))
    rows.append(_row(f"step of the critic's fit, batch {batch_size}", turns.per_unit(), "fit"))
    return {"demonstrations": "maze", "rows": rows}
