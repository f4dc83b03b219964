"""Objects that live in processes on nodes, and the errors that they raise.

Ray pickles exceptions, which those of lensconv do not survive: they travel as JSON values. All other exceptions are
faults of lensconv, and Ray shows them as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from converter.cluster.environment import adopt_environment, describe_software, refuse_differences
from converter.errors import LensconvError
from converter.temporary import mark_folders

#: Keys of an answer: what was returned, or the error that was raised.
VALUE, ERROR = "value", "error"


class Host:
    """A process on a node that holds one object; Ray makes it an actor.

    Args:
        environment: from ``shared_environment`` of the process that it works for.
        mark: in the names of temporary folders.
        software: that this process must have, too.
    """

    def __init__(self, environment: Mapping[str, str], mark: str, software: Mapping[str, Any]) -> None:
        adopt_environment(environment)
        mark_folders(mark)
        self._software = software
        self._held: Any = None

    def make(self, kind: Callable[..., Any], arguments: tuple[Any, ...]) -> dict[str, Any]:
        """Make the object."""

        def construct() -> None:
            if self._software:
                refuse_differences(node_id()[:8], describe_software(), self._software)
            self._held = kind(*arguments)

        return _answer(construct)

    def call(self, method: str, arguments: tuple[Any, ...]) -> dict[str, Any]:
        """Call a method of the object."""
        return _answer(lambda: getattr(self._held, method)(*arguments))

    def stream(self, method: str, arguments: tuple[Any, ...]) -> Iterator[dict[str, Any]]:
        """Call a method of the object that yields values."""
        try:
            for value in getattr(self._held, method)(*arguments):
                yield {VALUE: value}
        except LensconvError as error:
            yield error.to_dict()


def answer_function(environment: Mapping[str, str], function: Callable[..., Any], *arguments: Any) -> dict[str, Any]:
    """Call a function on a node; Ray makes it a task."""
    adopt_environment(environment)
    return _answer(lambda: function(*arguments))


def take(answer: Mapping[str, Any]) -> Any:
    """Return what was returned on a node.

    Raises:
        LensconvError: as it was raised there.
    """
    if ERROR in answer:
        raise LensconvError.from_dict(answer[ERROR])
    return answer[VALUE]


def _answer(function: Callable[[], Any]) -> dict[str, Any]:
    try:
        return {VALUE: function()}
    except LensconvError as error:
        return error.to_dict()


def node_id() -> str:
    """Ray's name of the node that this process is on."""
    import ray

    return str(ray.get_runtime_context().get_node_id())
