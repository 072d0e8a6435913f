"""What a router has asked a device group over one connection, and is not answered yet."""

import asyncio
from collections.abc import Callable

from fabric.core.errors import Overloaded, RequestError, Unavailable
from fabric.rpc.failures import error_of
from fabric.rpc.frames import Answer, Question, Refused

MAX_WAITING = 32


class Questions:
    """Matches answers to questions; what nobody answers in time is given up."""

    def __init__(self, group: str, timeout_s: float) -> None:
        self._group = group
        self._timeout_s = timeout_s
        self._last = -1
        self._waiting: dict[int, asyncio.Future[Answer]] = {}

    async def ask(
        self, send: Callable[[Question], None], make: Callable[[int], Question]
    ) -> Answer:
        """Send the question that ``make`` makes of a number, and wait for its answer.

        Raises:
            RequestError: The group refuses, is lost, or does not answer in time.
        """
        if len(self._waiting) >= MAX_WAITING:
            raise Overloaded(f"device group {self._group} has {MAX_WAITING} questions open", 1.0)
        self._last += 1
        number = self._last
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting[number] = answer
        try:
            send(make(number))
            async with asyncio.timeout(self._timeout_s):
                answered = await answer
        except TimeoutError:
            late = f"device group {self._group} has not answered for {self._timeout_s:g} s"
            raise Unavailable(late, 1.0) from None
        finally:
            self._waiting.pop(number, None)
        if isinstance(answered, Refused):
            raise error_of(answered.failure)
        return answered

    def settle(self, answer: Answer) -> None:
        """Hand an answer to whoever waits for it; nobody does after the time is over."""
        waiter = self._waiting.pop(answer.question, None)
        if waiter is not None and not waiter.done():
            waiter.set_result(answer)

    def fail(self, error: RequestError) -> None:
        """End all questions with an error."""
        for waiter in self._waiting.values():
            if not waiter.done():
                waiter.set_exception(error)
