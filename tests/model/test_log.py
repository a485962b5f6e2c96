"""What `Model` says: in the log at the level that the user wants, printed with progress alone."""

from __future__ import annotations

import logging

import pytest
from small_models import small_data

from fastvae import Model

HOW = "training is on the CPU"


def fitted(progress: bool) -> Model:
    model = Model(small_data(), batch_key="batch", n_hidden=4, n_latent=2)
    return model.fit(1, seed=0, device="cpu", progress=progress)


@pytest.mark.parametrize("level", [logging.WARNING, logging.INFO])
@pytest.mark.parametrize("progress", [False, True])
def test_decisions_are_told_once(
    level: int, progress: bool, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    with caplog.at_level(level, logger="fastvae"):
        fitted(progress)
    logged = [record for record in caplog.records if record.name == "fastvae"]
    shown = capsys.readouterr()
    assert shown.out == ""
    if level == logging.INFO:
        assert [record.levelname for record in logged if HOW in record.getMessage()] == ["INFO"]
        assert HOW not in shown.err
    else:
        assert logged == []
        assert (HOW in shown.err) == progress
    assert ("epoch 1/1" in shown.err) == progress
    if not progress:
        assert shown.err == ""
