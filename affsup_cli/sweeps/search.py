"""A search over fields of a recipe with Optuna: each trial is a run, and the score is of the validation split."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from affsup_cli.recipe import Recipe, differences, in_words, load_recipe, parse_override
from affsup_cli.runs.folder import RunFolder, RunInUse
from affsup_cli.runs.index import RunIndex
from affsup_cli.runs.results import read_train_result
from affsup_cli.sweeps.grid import split_values
from affsup_cli.tasks.launch import OutOfMemory, data_digest, evaluate_run, run_name, train_run
from affsup_cli.tasks.prerequisite import Prerequisite, find_network
from affsup_cli.training.observers import Observer
from affsup_cli.training.step import Diverged
from data_prep.errors import AffsupError, UsageError
from data_prep.store import read_manifest

if TYPE_CHECKING:
    from optuna import Study
    from optuna.distributions import BaseDistribution

STORAGE = "search.db"
"""The SQLite file of all studies, in the folder of the runs."""
SCORES = {
    "minibatch": "val_accuracy",
    "scene": "val_accuracy",
    "frcnn": "val_map_all",
    "relnet": "val_map_all",
    "relpn": "val_map_all",
}
"""The metric that chooses the best epoch, by task (`training.task.Task.score`)."""

_DEFINITION = "affsup"
_FIXED = ("seed", "name", "task", "data.name")
_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
_RANGE = re.compile(rf"({_NUMBER})\.\.({_NUMBER})(:log)?")
_FORMS = "KEY=LOW..HIGH, KEY=LOW..HIGH:log or KEY=A,B"


@dataclass(frozen=True)
class Range:
    """A field that takes any number from `low` to `high`; `log`: evenly on a logarithmic scale."""

    field: str
    low: float
    high: float
    log: bool

    def probes(self) -> tuple[float, ...]:
        """Return values that a recipe must accept."""
        return self.low, self.high

    def distribution(self, current: Any) -> BaseDistribution:
        """Return Optuna's distribution; of whole numbers where the field's `current` value is one."""
        from optuna.distributions import FloatDistribution, IntDistribution

        if isinstance(current, int):
            return IntDistribution(int(self.low), int(self.high), log=self.log)
        return FloatDistribution(self.low, self.high, log=self.log)

    def value(self, drawn: Any) -> Any:
        """Return the field's value for what Optuna has drawn."""
        return drawn


@dataclass(frozen=True)
class Choices:
    """A field that takes one of several values, written as for `--set`."""

    field: str
    texts: tuple[str, ...]

    def probes(self) -> tuple[Any, ...]:
        """Return values that a recipe must accept."""
        return tuple(map(self.value, self.texts))

    def distribution(self, current: Any) -> BaseDistribution:
        """Return Optuna's distribution over the texts."""
        from optuna.distributions import CategoricalDistribution

        return CategoricalDistribution(self.texts)

    def value(self, drawn: Any) -> Any:
        """Return the field's value for what Optuna has drawn."""
        return parse_override(f"{self.field}={drawn}")[1]


Dimension = Range | Choices


@dataclass(frozen=True)
class Trial:
    """A trial that has ended.

    Attributes:
        number: its place in the study, from 0.
        values: the value of each field of the search.
        score: the metric on the validation split; None where the run has failed.
        run: its run folder; None where the recipe refuses the values, or the run was moved away.
    """

    number: int
    values: dict[str, Any]
    score: float | None
    run: RunFolder | None


def parse_dimension(text: str) -> Dimension:
    """Read `KEY=LOW..HIGH`, `KEY=LOW..HIGH:log` or `KEY=A,B`.

    Raises:
        UsageError: it is none of these, a value is given twice, or the bounds are not in order.
    """
    key, _, values = (part.strip() for part in text.partition("="))
    parts = split_values(values)
    if not key or not all(parts):
        raise UsageError(f"--field {text}: expected {_FORMS}")
    if key in _FIXED or key.startswith("run."):
        raise UsageError(f"--field {key}: a search does not choose {', '.join(_FIXED)} and fields of [run]")
    bounds = _RANGE.fullmatch(values)
    if bounds:
        low, high, log = float(bounds[1]), float(bounds[2]), bounds[3] is not None
        if low >= high or (log and low <= 0):
            expected = "0 < LOW < HIGH" if log else "LOW < HIGH"
            raise UsageError(f"--field {text}: expected {expected}")
        return Range(key, low, high, log)
    if len(parts) < 2 or len(set(parts)) < len(parts):
        raise UsageError(f"--field {text}: expected {_FORMS}, with two or more different values")
    return Choices(key, tuple(parts))


class Search:
    """A search, from its definition to its trials; the same definition gives the same study.

    Args:
        recipe: name of a shipped recipe, or a TOML file.
        space: the fields that vary.
        extra: overrides of every trial.
        metric: name of the metric on the validation split, which is maximised; None for the score of the task.
        data_dir: the folder of the prepared data sets.
        runs_dir: the folder of the run folders and of the studies' file.
        study: its name; None for one made from the definition.

    Attributes:
        name: of the study.
        metric: name of the metric.
        fields: the names of the fields that vary.

    Raises:
        UsageError: a field does not exist, is given twice or refuses a bound; the metric is not of the validation
            split; the data set has no such split; or the study of this name has another definition.
        AffsupError: Optuna is not installed, the data set is not prepared, or the studies' file cannot be used.
    """

    def __init__(
        self,
        recipe: str,
        space: Sequence[Dimension],
        extra: Mapping[str, Any],
        metric: str | None,
        data_dir: Path,
        runs_dir: Path,
        study: str | None = None,
    ) -> None:
        _require_optuna()
        self._recipe, self._space, self._extra = recipe, space, extra
        self._data_dir, self._runs_dir = data_dir, runs_dir
        base = load_recipe(recipe, extra)
        self._seed = base.seed
        self._distributions = self._checked_space(base)
        self.fields = tuple(self._distributions)
        self.metric = metric or SCORES[base.task]
        if not self.metric.startswith("val_"):
            raise UsageError(f"--metric {metric}: expected one of the validation split, such as {SCORES[base.task]}")
        dataset = str(base.flat()["data.name"])
        manifest = read_manifest(data_dir / dataset)
        if "val" not in manifest.splits:
            raise UsageError(
                f"data set {dataset} has no validation split, and a search never chooses on the test split"
            )
        definition = {
            **{key: value for key, value in base.identity().items() if key not in self._distributions},
            "data": manifest.digest,
            "metric": self.metric,
            **{each.field: json.dumps(asdict(each)) for each in space},
        }
        digest = hashlib.sha256(json.dumps(definition, sort_keys=True).encode()).hexdigest()
        self.name = study or f"{base.label()}-{digest[:8]}"
        self._study = _open_study(runs_dir / STORAGE, self.name, definition)

    def _checked_space(self, base: Recipe) -> dict[str, BaseDistribution]:
        current = base.flat()
        distributions: dict[str, BaseDistribution] = {}
        for dimension in self._space:
            name = dimension.field
            if name in distributions or name in self._extra:
                raise UsageError(f"--field {name}: expected each field once, and not in another option as well")
            for value in dimension.probes():
                whole = isinstance(value, float) and value.is_integer() and isinstance(current.get(name), int)
                load_recipe(self._recipe, {**self._extra, name: int(value) if whole else value})
            distributions[name] = dimension.distribution(current[name])
        return distributions

    def run(
        self,
        trials: int,
        observers: Callable[[int, RunFolder], Sequence[Observer]],
        ended: Callable[[Trial, str], None],
    ) -> int:
        """Run trials one after another until `trials` of the study have ended; return how many have.

        A trial whose run was stopped is continued first; one that another process runs is left to it. A trial whose
        values the recipe refuses, whose loss is not finite, or that lacks memory counts as one of the worst.

        Args:
            trials: of the study, with those of earlier calls.
            observers: creates the observers of a run, from the number of the trial and the folder.
            ended: is called with each trial that has ended, and the reason of a failure or "".

        Raises:
            Stopped: a run was stopped, and has saved.
            UsageError: the runs have no such metric.
            AffsupError: a run failed for another reason; the next call continues with its trial.
        """
        elsewhere: set[int] = set()
        while True:
            known = self._study.get_trials(deepcopy=False)
            done = sum(trial.state.is_finished() and trial.state.name != "FAIL" for trial in known)
            running = [trial for trial in known if not trial.state.is_finished()]
            if done + sum(trial.number in elsewhere for trial in running) >= trials:
                return done
            mine = [trial for trial in running if trial.number not in elsewhere]
            number, drawn = (mine[0].number, mine[0].params) if mine else self._ask(len(known))
            if drawn.keys() != self._distributions.keys():  # a process was killed while it drew them
                self._tell(number, None, failed_to_begin=True)
                continue
            try:
                ended(*self._try(number, drawn, observers))
            except RunInUse:
                elsewhere.add(number)

    def results(self) -> list[Trial]:
        """Return the trials that have ended, by descending score, the failed ones last."""
        index = RunIndex(self._runs_dir)
        found = []
        for trial in self._study.get_trials(deepcopy=False):
            if trial.state.is_finished() and trial.state.name != "FAIL":
                found.append(self._ended(trial.number, trial.params, trial.value, index))
        return sorted(found, key=lambda trial: (trial.score is None, -(trial.score or 0.0), trial.number))

    def _ended(self, number: int, drawn: Mapping[str, Any], score: float | None, index: RunIndex) -> Trial:
        values = self._values(drawn)
        try:
            run, _ = self._folder(self._recipe_of(values), index)
        except UsageError:
            return Trial(number, values, score, None)
        return Trial(number, values, score, run if run.exists else None)

    def _ask(self, known: int) -> tuple[int, dict[str, Any]]:
        """Draw the values of a new trial: a function of the seed and the trials before, not of stops."""
        from optuna.samplers import TPESampler

        (drawn,) = np.random.SeedSequence([self._seed, known]).generate_state(1)
        self._study.sampler = TPESampler(seed=int(drawn))
        trial = self._study.ask(self._distributions)
        return trial.number, trial.params

    def _try(
        self, number: int, drawn: Mapping[str, Any], observers: Callable[[int, RunFolder], Sequence[Observer]]
    ) -> tuple[Trial, str]:
        """Do the run of a trial, tell the study how it ended, and return it with the reason of a failure."""
        index = RunIndex(self._runs_dir)
        try:
            recipe = self._recipe_of(self._values(drawn))
        except UsageError as error:
            return self._failed(number, drawn, error, index)
        run, network = self._folder(recipe, index)
        if not run.finished:
            path = network.path if network else None
            try:
                train_run(recipe, self._data_dir, run, run.exists, lambda: observers(number, run), path)
            except (Diverged, OutOfMemory) as error:
                return self._failed(number, drawn, error, index)
            except UsageError as error:
                if run.exists:  # the values were accepted: the mistake is another, and would recur
                    raise
                return self._failed(number, drawn, error, index)
        score = self._score(run, recipe)
        self._tell(number, score)
        return self._ended(number, drawn, score, index), ""

    def _failed(self, number: int, drawn: Mapping[str, Any], error: AffsupError, index: RunIndex) -> tuple[Trial, str]:
        self._tell(number, None)
        return self._ended(number, drawn, None, index), str(error)

    def _score(self, run: RunFolder, recipe: Recipe) -> float:
        """Return the metric of a finished run; the split is evaluated where the run itself did not do so."""
        metrics = read_train_result(run).metrics
        if not any(name.startswith("val_") for name in metrics):
            metrics = evaluate_run(run, self._data_dir, "val", recipe.run.device)
        of_split = [name for name in metrics if name.startswith("val_")]
        if self.metric not in of_split:
            raise UsageError(f"--metric {self.metric}: the runs have {', '.join(of_split)}")
        return metrics[self.metric]

    def _tell(self, number: int, score: float | None, failed_to_begin: bool = False) -> None:
        from optuna.trial import TrialState

        if score is not None:
            self._study.tell(number, score, skip_if_finished=True)
        else:
            # Of trials without a score the sampler takes pruned ones for the worst, and leaves failed ones out.
            state = TrialState.FAIL if failed_to_begin else TrialState.PRUNED
            self._study.tell(number, state=state, skip_if_finished=True)

    def _values(self, drawn: Mapping[str, Any]) -> dict[str, Any]:
        return {each.field: each.value(drawn[each.field]) for each in self._space}

    def _recipe_of(self, values: Mapping[str, Any]) -> Recipe:
        return load_recipe(self._recipe, {**self._extra, **values})

    def _folder(self, recipe: Recipe, index: RunIndex) -> tuple[RunFolder, Prerequisite | None]:
        """Return the run that there is for a recipe, or the folder of a new one; and the run that it builds on."""
        network = find_network(recipe, None, self._data_dir, self._runs_dir)
        digests = data_digest(recipe, self._data_dir), network.data if network else None
        found = index.find(recipe, "train", *digests)
        return found or RunFolder(self._runs_dir / run_name(recipe, *digests)), network


def _require_optuna() -> None:
    try:
        import optuna
    except ImportError:
        raise AffsupError(
            "affsup search needs optuna, which is not installed: `pip install 'affsup[search]'`"
        ) from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)


def _open_study(path: Path, name: str, definition: Mapping[str, Any]) -> Study:
    """Create the study, or open the one of this name and definition."""
    import optuna
    from sqlalchemy.exc import SQLAlchemyError

    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        study = optuna.create_study(
            storage=f"sqlite:///{path}", study_name=name, direction="maximize", load_if_exists=True
        )
        stored = study.user_attrs.get(_DEFINITION)
        if stored is None:
            study.set_user_attr(_DEFINITION, dict(definition))
    except (SQLAlchemyError, optuna.exceptions.OptunaError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise AffsupError(
            f"{path} cannot be used ({reason}): move it away and run the command again for a new one"
        ) from error
    if stored is not None and (changed := differences(stored, definition)):
        raise UsageError(f"the study {name} in {path} is another search: {in_words(changed)}. Take another --study")
    return study
