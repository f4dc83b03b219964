"""How products of adapters are computed: in blocks of rows where that gives the same bits, else as a whole."""

from __future__ import annotations

from converter.conversion.execution.jobs import kinds_of
from converter.conversion.execution.work import Work, memory_budget
from converter.conversion.planning.methods import Kind
from converter.libraries import library_threads
from converter.memory import return_free_memory


def choose_products(work: Work, allowed: int | None) -> Work:
    """The same work, with products in blocks if that is exact for all of its shapes.

    Blocks need torch with one thread, which it has for all workers or for none. SDNQ's factorisations need the threads
    of the reference.

    Args:
        work: what to do, without blocks.
        allowed: memory that the user allows, as for ``memory_budget``.

    Raises:
        MemoryLimitError: the test takes more memory than the user allows.
    """
    shapes = {
        (job.addition.shape, adapter.rank)
        for job in work.jobs
        if job.addition is not None and not job.addition.is_bias
        for adapter in job.addition.adapters
    }
    if not shapes or Kind.WHOLE in kinds_of(work.jobs):
        return work
    in_blocks = work.with_blocks()
    memory_budget(in_blocks, allowed)
    # Imported here: it imports torch.
    from converter.conversion.adapters.weights import blocks_are_exact

    threads = library_threads()
    is_exact = all(blocks_are_exact(shape, rank, threads) for shape, rank in sorted(shapes, key=repr))
    # The largest product took as much as many pieces.
    return_free_memory()
    return in_blocks if is_exact else work
