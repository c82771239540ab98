"""Write the log of a run: lines for people or, with LOG_FORMAT=json, one object a line."""

from __future__ import annotations

import codecs
import io
import json
import logging
import os
import sys
from datetime import UTC, datetime
from logging.config import fileConfig
from types import TracebackType
from typing import Any

from alembic.config import Config
from alembic.util import messaging

from . import streams
from .errors import REFUSED, TRY_AGAIN, ConfigurationError, UsageRollupError

log = logging.getLogger(__name__)

# What `alembic` exits with by itself: -1, as a process sees it.
ALEMBIC_REFUSED = 255


def wants_json() -> bool:
    """Say whether LOG_FORMAT is json; raise ConfigurationError when it is neither that nor text."""
    value = os.environ.get("LOG_FORMAT") or "text"
    if value not in {"text", "json"}:
        raise ConfigurationError(f"LOG_FORMAT is neither text nor json: {value!r}")
    return value == "json"


class Formatter(logging.Formatter):
    """Format a record as LOG_FORMAT says, text by the given format; alembic.ini names this class.

    Text begins with the time, unless it goes to a terminal, where somebody watches. JSON has besides what the
    record has in `fields`: values that a program would look for.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.json = wants_json()

    def format(self, record: logging.LogRecord) -> str:
        """Return one line of JSON, or what the standard formatter makes of the record."""
        time = datetime.fromtimestamp(record.created, UTC)
        if not self.json:
            text = super().format(record)
            return text if sys.stderr.isatty() else f"{time:%Y-%m-%dT%H:%M:%SZ} {text}"
        entry = {
            "time": time.isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        # Whoever logs a refusal does so while handling it, Alembic too.
        error = sys.exc_info()[1]
        if isinstance(error, UsageRollupError) and record.levelno >= logging.ERROR:
            fields = error.refusal.fields()
            entry |= {"message": fields.pop("error"), **fields}
        if record.exc_info:
            entry["traceback"] = self.formatException(record.exc_info)
        return json.dumps(entry, default=str)


class Handler(logging.StreamHandler[Any]):
    """Write to what standard error is at that moment; alembic.ini names this class.

    While a bar moves on a terminal that is rich's, which puts a line above the bar instead of into it.
    """

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> Any:
        """Return standard error."""
        return sys.stderr


def configure() -> None:
    """Log the commands of `usage-rollup` to standard error: messages, or JSON.

    Raises ConfigurationError.
    """
    logging.basicConfig(level=logging.WARNING, handlers=[_handler(Handler(), "%(message)s")])
    logging.getLogger("usage_rollup").setLevel(logging.INFO)
    _choose_levels()
    if wants_json():
        _log_what_python_prints()


def configure_alembic(config: Config) -> None:
    """Log a run of `alembic` as its ini file says; with JSON nothing of alembic is printed beside it.

    What may pass by itself ends the command line with the refusal's own exit status. Raises
    ConfigurationError.
    """
    escape_output()
    config.stdout = sys.stdout
    streams.print_instead_on_error()
    if config.config_file_name is not None:
        fileConfig(config.config_file_name, disable_existing_loggers=False)
    _choose_levels()
    # Only the command line reports a refusal there, before it prints FAILED: and exits.
    messaging.log.setLevel(logging.ERROR)
    messaging.log.propagate = False
    if wants_json():
        messaging.log.addHandler(_handler(_Refusal(), None))
        _log_what_python_prints()
    else:
        messaging.log.addHandler(_TryAgain(config))


def choose(level: int) -> None:
    """Log from `level` on, whatever a file says: WARNING for less, DEBUG for every statement that is sent."""
    global _chosen
    _chosen = level
    _choose_levels()


_chosen: int | None = None


def _choose_levels() -> None:
    if _chosen is None:
        return
    for name in ("alembic", "usage_rollup"):
        logging.getLogger(name).setLevel(_chosen)
    if _chosen == logging.DEBUG:
        logging.getLogger("sqlalchemy.engine").setLevel(logging.INFO)


def require_answer() -> None:
    """Exit with 1, and a sentence in the log, where the answer could not be written to standard output."""
    if why := streams.unwritten():
        log.error("%s", why)
        sys.exit(REFUSED)


def escape_output() -> None:
    """Let nothing fail that is printed or logged, whatever becomes of standard output and error.

    What their encoding has no character for is shown escaped, and a byte that was no UTF-8 as `\\xff`.
    """
    streams.guard()
    codecs.register_error("escape", _escape)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="escape")


def _escape(error: UnicodeError) -> tuple[str | bytes, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end]
    escaped = (
        rf"\x{ord(c) - 0xDC00:02x}" if "\udc80" <= c <= "\udcff" else ascii(c).strip("'") for c in text
    )
    return "".join(escaped), error.end


class _Refusal(Handler):
    """Log what alembic refuses, and exit, before it prints the same as FAILED: again."""

    def emit(self, record: logging.LogRecord) -> None:
        super().emit(record)
        sys.exit(TRY_AGAIN if _may_pass() else ALEMBIC_REFUSED)


class _TryAgain(logging.Handler):
    """Print what may pass by itself as alembic would, and exit with its status; leave the rest to alembic."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config

    def emit(self, record: logging.LogRecord) -> None:
        if _may_pass():
            messaging.msg(f"FAILED: {record.getMessage()}", **self.config.messaging_opts)
            sys.exit(TRY_AGAIN)


def _may_pass() -> bool:
    """Tell whether the refusal being handled, by alembic, is one that may pass by itself."""
    error = sys.exc_info()[1]
    return isinstance(error, UsageRollupError) and error.exit_status == TRY_AGAIN


def _handler(handler: logging.Handler, text: str | None) -> logging.Handler:
    handler.setFormatter(Formatter(text))
    return handler


def _log_what_python_prints() -> None:
    """Log warnings and the exception that ends the process, which would be plain lines on stderr."""
    logging.captureWarnings(True)
    sys.excepthook = _log_exception


def _log_exception(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    log.critical("%s: %s", kind.__name__, error, exc_info=(kind, error, traceback))
