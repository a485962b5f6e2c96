"""Run ``fastvae`` commands within the process of the tests."""

from typing import Any

from typer.testing import CliRunner

from fastvae.cli import app

RUNNER = CliRunner()


def run(*arguments: Any, code: int = 0) -> Any:
    """Run a command; it must end with `code`, and no exception may escape."""
    result = RUNNER.invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.output
    return result
