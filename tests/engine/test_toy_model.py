"""The toy model notices what it is there to notice."""

from __future__ import annotations

import pytest
from engine_harness import Harness

from baton.core.errors import ConfigError
from baton.core.layout import KvLayout
from baton.testing.toy_model import TOY_LAYOUT, ToyRunner, toy_reference

PROMPT = list(range(3, 17))


def test_reference_by_hand() -> None:
    # state[0] = 7 * 5 + 1 = 36, digest[0] = 36; token 36: state[1] = 31 * 36 + 7 * 36 + 2 = 1370, digest[1] = 2776
    assert toy_reference([5], 2) == [36, 2776 % 101]
    assert toy_reference([5], 9, eos_token_ids={36}) == [36]


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("kv", [0, 1])
@pytest.mark.parametrize("element", range(4))
@pytest.mark.parametrize("position", [0, 6, 13])
def test_any_changed_element_of_the_context_changes_the_output(
    layer: int, kv: int, element: int, position: int
) -> None:
    harness = Harness()
    attempt = harness.submit("a", PROMPT, 30)
    harness.step()
    (request,) = harness.engine._scheduler.live
    page = int(request.pages.view[position // 4])
    harness.pool.tensor[layer, page, kv, position % 4, 0, element] += 1
    harness.run()
    assert harness.outputs[attempt] != toy_reference(PROMPT, 30)


def test_layouts_that_it_cannot_compute_with_are_refused() -> None:
    with pytest.raises(ConfigError, match="not in bfloat16"):
        ToyRunner(KvLayout("toy", "bfloat16", 2, 4, 1, 4))
    with pytest.raises(ConfigError, match="no pool is bound"):
        ToyRunner(TOY_LAYOUT).forward(None)  # type: ignore[arg-type]
