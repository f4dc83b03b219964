"""Random numbers of SDNQ that are the same in every run, and continue after an interruption."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from converter.checkpoint.journal import Finished
from converter.conversion.kernels.host import Host
from converter.conversion.request import Target

if TYPE_CHECKING:
    from converter.conversion.kernels.devices import Device


@contextmanager
def seeded_randomness(target: Target, finished: Finished, device: Host | Device) -> Iterator[Callable[[], str] | None]:
    """Seed torch's generator for the block, or set it to the state after an interrupted run.

    Args:
        target: its recipe counts.
        finished: what the interrupted run had finished.
        device: where SDNQ computes.

    Yields:
        What returns the state of the generator, for the journal; None where SDNQ uses no random numbers.
    """
    if not target.recipe.is_random:
        yield None
        return
    # Imported here: it imports torch.
    from converter.conversion.kernels.sdnq import seeded_generator

    states = [noted["random_state"] for noted in finished.values() if "random_state" in noted]
    state = states[-1] if states else None
    with seeded_generator(target.recipe.seed, device.torch_device, state) as encode_state:
        yield encode_state
