"""`report`: the one way in which the running server logs."""

import logging
from collections.abc import Iterator

import pytest

from chatserver.context import report

logger = logging.getLogger("chatserver.somewhere")


class Broken:
    """Has no text."""

    def __str__(self) -> str:
        raise ValueError("no text")

    __repr__ = __str__


class Breaking(logging.Handler):
    """Fails at every record."""

    def emit(self, record: logging.LogRecord) -> None:
        raise RuntimeError("a handler is broken")


@pytest.fixture(autouse=True)
def everything_is_logged(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    with caplog.at_level(logging.DEBUG):
        yield


def test_event_level_logger_and_fields_are_passed_on(caplog: pytest.LogCaptureFixture) -> None:
    report(logger, logging.WARNING, "it happened", code=7, who="alice")
    [record] = caplog.records
    assert (record.name, record.levelno, record.getMessage()) == (
        "chatserver.somewhere",
        logging.WARNING,
        "it happened",
    )
    assert record.__dict__["code"] == 7
    assert record.__dict__["who"] == "alice"


def test_the_exception_is_passed_on(caplog: pytest.LogCaptureFixture) -> None:
    error = ValueError("ours")
    report(logger, logging.ERROR, "failed", exc_info=error)
    [record] = caplog.records
    assert record.exc_info
    assert record.exc_info[1] is error


def test_the_line_names_the_caller(caplog: pytest.LogCaptureFixture) -> None:
    def caller() -> None:
        report(logger, logging.INFO, "here")

    caller()
    [record] = caplog.records
    assert (record.pathname, record.funcName) == (__file__, "caller")
    assert record.lineno == caller.__code__.co_firstlineno + 1


def test_a_percent_sign_in_an_event_is_just_that(caplog: pytest.LogCaptureFixture) -> None:
    report(logger, logging.INFO, "100 %s")
    assert caplog.records[0].getMessage() == "100 %s"


def test_a_level_that_is_off_logs_nothing(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR):
        report(logger, logging.INFO, "unheard")
    assert not caplog.records


@pytest.mark.parametrize("name", ["name", "message", "args", "exc_text", "levelname"])
def test_a_field_that_logging_keeps_for_itself_raises_nothing(name: str) -> None:
    report(logger, logging.INFO, "event", **{name: "x"})


def test_a_field_without_text_raises_nothing() -> None:
    report(logger, logging.INFO, "event", exc_info=ValueError(Broken()), field=Broken())


def test_a_broken_handler_raises_nothing_and_the_next_line_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    broken = Breaking()
    logger.addHandler(broken)
    try:
        report(logger, logging.ERROR, "one")
    finally:
        logger.removeHandler(broken)
    report(logger, logging.ERROR, "two")
    assert caplog.messages == ["two"]


def test_an_end_of_the_program_is_no_fault_of_a_handler() -> None:
    class Interrupted(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            raise KeyboardInterrupt

    handler = Interrupted()
    logger.addHandler(handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            report(logger, logging.ERROR, "event")
    finally:
        logger.removeHandler(handler)
