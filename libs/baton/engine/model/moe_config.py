"""What a mixture of experts looks like, read from a checkpoint's config.json."""

from __future__ import annotations

from dataclasses import dataclass

from baton.core.errors import CheckpointError
from baton.engine.model.family import Mixture
from baton.engine.model.fields import Fields


@dataclass(frozen=True, slots=True)
class Routing:
    """How a token's experts are chosen: the `active` ones with the best scores, weighted by these scores.

    Scores are shares of all (softmax), or `sigmoid`s. Of `groups` of experts only the `active_groups` best are looked
    at, each judged by its `group_judges` best experts. Weights of the chosen are `normalized` to a sum of one, then
    multiplied by `scale`; `least_sum` is added to what they are divided by. `weighs_input`: they weigh what an expert
    gets instead of what it makes.
    """

    active: int
    sigmoid: bool = False
    groups: int = 1
    active_groups: int = 1
    group_judges: int = 1
    normalized: bool = False
    least_sum: float = 1e-20
    scale: float = 1.0
    weighs_input: bool = False


@dataclass(frozen=True, slots=True)
class MoeConfig:
    """A mixture of experts. `layers`: those that have one; the others have an MLP. Sizes are intermediate sizes.
    `corrected`: experts are chosen by scores to which a number of each expert is added."""

    mixture: Mixture
    layers: frozenset[int]
    experts: int
    size: int
    shared_size: int  # 0: there is no shared expert
    corrected: bool
    routing: Routing


def moe_of(mixture: Mixture, fields: Fields, layers: int) -> MoeConfig | None:
    """None where there are no experts, or no layer has any."""
    named = [key for key in mixture.experts_keys if key in fields.raw]
    experts_key = (named or mixture.experts_keys)[0]
    moe_layers = _moe_layers(mixture, fields, layers)
    if fields.raw.get(experts_key) in ((0, 1) if mixture.layers == "period" else (0,)) or not moe_layers:
        return None
    experts, size = fields.size(experts_key), fields.size(mixture.size_key)
    grouped = mixture.group_judges and fields.get("topk_method") != "greedy"
    groups = fields.size("n_group", 1) if grouped else 1
    routing = Routing(
        active=fields.size("num_experts_per_tok"),
        sigmoid=mixture.sigmoid,
        groups=groups,
        active_groups=fields.size("topk_group", groups) if groups > 1 else 1,
        group_judges=mixture.group_judges,
        normalized=fields.told(mixture.normalized),
        least_sum=mixture.least_sum,
        scale=fields.number("routed_scaling_factor", 1),
        weighs_input=mixture.weighs_input,
    )
    if routing.active > experts:
        raise CheckpointError(f"num_experts_per_tok is {routing.active}; there are {experts} experts")
    if experts % groups or routing.active_groups > groups:
        raise CheckpointError(f"n_group is {groups}, topk_group {routing.active_groups}; there are {experts} experts")
    shared_size = 0
    if mixture.shared_size_key is not None:
        shared_size = fields.size(mixture.shared_size_key)
    elif mixture.shared_count_key is not None and fields.get(mixture.shared_count_key):
        shared_size = size * fields.size(mixture.shared_count_key)
    return MoeConfig(
        mixture=mixture,
        layers=moe_layers,
        experts=experts,
        size=size,
        shared_size=shared_size,
        corrected=mixture.names.correction is not None and fields.told(mixture.corrected),
        routing=routing,
    )


def _moe_layers(mixture: Mixture, fields: Fields, layers: int) -> frozenset[int]:
    if mixture.layers == "first":
        return frozenset(range(int(fields.get(mixture.dense_count_key)), layers))
    if mixture.layers == "period":
        period, offset = fields.size("expert_layer_period"), fields.get("expert_layer_offset")
        return frozenset(layer for layer in range(layers) if layer % period == offset)
    if mixture.layers == "typed":
        kinds = fields.get("mlp_layer_types") or ["dense"] + ["sparse"] * (layers - 1)
        return frozenset(layer for layer, kind in enumerate(kinds) if kind == "sparse")
    if mixture.layers == "listed":
        step, listed = fields.size("interleave_moe_layer_step"), fields.get("moe_layers")
        return frozenset(range(step - 1, layers, step) if listed is None else map(int, listed))
    if mixture.layers == "step":
        step, dense = fields.size("decoder_sparse_step"), fields.get("mlp_only_layers") or ()
        return frozenset(layer for layer in range(layers) if (layer + 1) % step == 0 and layer not in dense)
    return frozenset(range(layers))
