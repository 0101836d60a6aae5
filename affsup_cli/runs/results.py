"""The content of result.json, validated. No torch."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, StrictFloat, TypeAdapter, ValidationError, model_validator

from affsup_cli.runs.folder import RunFolder
from data_prep.errors import AffsupError, UsageError


class TrainResult(BaseModel):
    """The result of a training run. Metrics have the task's names; accuracies are in 0..1."""

    kind: Literal["train"]
    epochs: int
    best_epoch: int
    metrics: dict[str, StrictFloat]
    seconds: float | None = None


class Measurement(BaseModel):
    """A variant of a cost comparison: seconds of an epoch in each round, and the peak memory in MiB over all rounds."""

    seconds_per_epoch: Annotated[list[Annotated[float, Field(gt=0, allow_inf_nan=False)]], Field(min_length=1)]
    peak_megabytes: float | None


class CostResult(BaseModel):
    """The result of a cost comparison: round i of both variants was measured one after the other."""

    kind: Literal["cost"]
    baseline: Measurement
    treatment: Measurement

    @model_validator(mode="after")
    def _rounds_pair_up(self) -> CostResult:
        if len(self.baseline.seconds_per_epoch) != len(self.treatment.seconds_per_epoch):
            raise ValueError("baseline and treatment have different numbers of rounds")
        return self


_RESULT: TypeAdapter[TrainResult | CostResult] = TypeAdapter(
    Annotated[TrainResult | CostResult, Field(discriminator="kind")]
)


def read_result(run: RunFolder) -> TrainResult | CostResult:
    """Read the result of a run.

    Raises:
        AffsupError: it is not finished, or its result.json is damaged.
    """
    content: dict[str, Any] = run.result()
    try:
        return _RESULT.validate_python(content)
    except ValidationError as error:
        raise AffsupError(f"{run.path / 'result.json'} is damaged: {first_fault(error)}") from error


def read_train_result(run: RunFolder) -> TrainResult:
    """Read the result of a training run.

    Raises:
        UsageError: the run compares costs.
        AffsupError: as for `read_result`.
    """
    result = read_result(run)
    if isinstance(result, CostResult):
        raise UsageError(f"{run.path} compares costs and keeps no model: `affsup list runs` names training runs")
    return result


def first_fault(error: ValidationError) -> str:
    """Return the field of the first validation error, and its message."""
    fault = error.errors()[0]
    message = fault["msg"].removeprefix("Value error, ")
    return f"{'.'.join(map(str, fault['loc']))}: {message[0].lower() + message[1:]}"
