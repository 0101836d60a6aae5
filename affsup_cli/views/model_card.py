"""The model card of an exported model: task, results, data, training, loading, limits."""

from __future__ import annotations

import inspect
import json
import shlex
from collections.abc import Iterator, Mapping
from typing import Any

import data_prep
from affsup_cli.options import OPTION_OF_FIELD
from affsup_cli.recipe import Recipe, RelnetRecipe, SceneSetRecipe, differences, load_recipe, recipe_names
from affsup_cli.reporting.render.markdown import markdown_text
from affsup_cli.runs.export import TrainedModel
from affsup_cli.runs.results import TrainResult
from affsup_cli.views.console import metric_text
from data_prep.errors import counted, printable, shorten

HEAD = "---\nlibrary_name: affsup\n"
"""Front matter of every card, which model hubs read."""

_PAPER = "*Affinity Graph Supervision for Visual Recognition* (CVPR 2020)"


def model_card(trained: TrainedModel, result: TrainResult, file: str) -> str:
    """Return the card as Markdown.

    Args:
        trained: the model.
        result: the result of its run.
        file: name of the exported file, in the same folder.

    Raises:
        AffsupError: the weights cannot be read.
    """
    sections = {
        "Results": _results(trained, result),
        "Data": _data(trained),
        "How it was trained": _training(trained, result),
        "How to load it": _loading(trained, file),
        "Intended use and limits": _limits(trained),
        "Environment": _environment(trained),
        "Recipe": f"```toml\n{trained.recipe.to_toml()}```",
    }
    what = inspect.getdoc(type(trained.recipe)) or trained.recipe.task
    front = f"{HEAD}tags: [affsup, {trained.recipe.task}]\n---"
    begin = f"{front}\n\n# {_plainly(trained.name)}\n\n{what}\n\n{_network(trained)}"
    return "\n\n".join([begin, *(f"## {title}\n\n{text}" for title, text in sections.items())]) + "\n"


def train_command(recipe: Recipe) -> str | None:
    """Return the command that trains `recipe`; None where no shipped recipe can be set to it."""
    if recipe.name not in recipe_names():
        return None
    data = str(recipe.flat()["data.name"])
    shipped = load_recipe(recipe.name, {"data.name": data})
    changed = {key: value for key, (_, value) in differences(shipped.identity(), recipe.identity()).items()}
    same_fields = shipped.flat().keys() == recipe.flat().keys()
    if not same_fields or load_recipe(recipe.name, {"data.name": data, **changed}).digest() != recipe.digest():
        return None
    words = ["affsup", "train", recipe.name, "--dataset", data]
    for key, value in changed.items():
        option = OPTION_OF_FIELD.get(key)
        # Of such values JSON is TOML.
        words += [option, str(value)] if option else ["--set", f"{key}={json.dumps(value)}"]
    return shlex.join(words)


def _network(trained: TrainedModel) -> str:
    fields = trained.recipe.flat()
    prefix = "network." if "network.affinity.loss" in fields else ""
    lines = [f"- paper: {_PAPER}", f"- task `{trained.recipe.task}`, network `{fields[f'{prefix}model.arch']}`"]
    form = fields.get(f"{prefix}affinity.loss")
    if form == "none":
        lines.append("- without affinity supervision: a base network")
    elif form:
        of_part_a = " of part A" if prefix else ""
        gamma, weight = fields[f"{prefix}affinity.gamma"], fields[f"{prefix}affinity.lambda"]
        lines.append(f"- affinity supervision{of_part_a}: L_G of form `{form}`, gamma {gamma:g}, lambda {weight:g}")
    lines.append(f"- SHA-256 of the weights: `{trained.digest}`")
    return "\n".join(lines)


def _results(trained: TrainedModel, result: TrainResult) -> str:
    rows = [(name, value) for name, value in trained.metrics.items() if not name.startswith("train_")]
    table = ["| metric | value |", "|---|---:|", *(f"| {name} | {metric_text(name, value)} |" for name, value in rows)]
    chosen = "the last" if trained.recipe.train.select == "last" else "the best on the validation split"
    of = f"Of epoch {result.best_epoch} of {result.epochs}, {chosen}; one run, seed {trained.recipe.seed}."
    return "\n".join(table) + f"\n\n{of} `test_mass` is M, the share of the affinity on supervised pairs."


def _data(trained: TrainedModel) -> str:
    data = trained.environment["data"]
    known = data_prep.datasets().get(data["name"])
    lines = [f"- `{data['name']}`" + (f": {known.summary}" if known else "")]
    limit = data.get("limit")
    lines.append(f"- trained on {f'{limit:,} images' if limit else 'all'} of its split `train`, tested on `test`")
    if data.get("complete") is False:
        lines.append("- the data set was not complete: the numbers do not compare with those of the whole")
    if data.get("official") is False:
        lines.append("- the checksum of its archive is not the official one")
    lines.append(f"- content `{data['digest']}`")
    for what, names in (("class", trained.classes), ("category", data.get("categories", []))):
        if names:
            plural = {"class": "classes", "category": "categories"}[what]
            lines.append(
                f"- {len(names)} {plural if len(names) > 1 else what}: {_plainly(', '.join(map(shorten, names)))}"
            )
    return "\n".join(lines)


def _training(trained: TrainedModel, result: TrainResult) -> str:
    train, recipe, data = trained.recipe.train, trained.recipe, trained.environment["data"]
    command = train_command(recipe)
    limit = f" --limit {data['limit']}" if data.get("limit") else ""
    drops = f", divided by 10 after epoch {', '.join(map(str, train.milestones))}" if train.milestones else ""
    lines = [
        f"```\naffsup prepare {data['name']}{limit}\n{command or f'affsup train {recipe.name}.toml'}\n```",
        "",
        f"- {counted(train.epochs, 'epoch')} in batches of {counted(train.batch_size, 'image')}, {train.precision}",
        f"- SGD, learning rate {train.learning_rate:g}{drops}, momentum {train.momentum:g}, "
        f"weight decay {train.weight_decay:g}",
        f"- seed {recipe.seed}",
    ]
    if result.seconds:
        took = f"{result.seconds / 3600:.1f} hours" if result.seconds >= 3600 else f"{result.seconds:.1f} seconds"
        lines.append(f"- {took} of training")
    if command is None:
        lines.append(f"- `{recipe.name}.toml` is the recipe at the end of this page")
    return "\n".join(lines)


def _loading(trained: TrainedModel, file: str) -> str:
    return _loading_onnx(trained, file) if file.endswith(".onnx") else _loading_safetensors(trained, file)


def _loading_onnx(trained: TrainedModel, file: str) -> str:
    classifier = not isinstance(trained.recipe, SceneSetRecipe)
    if classifier:
        record = trained.environment["data"]["preprocessing"]
        takes = (
            f"`images` float32 `[N, {', '.join(map(str, record['image_shape']))}]`: pixels in 0..1, less "
            f"{record['mean']}, divided by {record['std']} (channels in this order). It gives `features` and `logits`."
        )
    else:
        takes = (
            "`images` float32 `[1, 3, H, W]`: one RGB image of the size in the file, pixels in 0..255. It gives the "
            "proposals: `boxes` `[P, 4]` (x1, y1, x2, y2 in pixels of the image), `probabilities` `[P, classes]` "
            "without the background, and `present` `[P]`, false for padding. Non-maximum suppression is not in the "
            "file."
        )
    lines = [
        "```python",
        "import json",
        "",
        "import onnxruntime",
        "",
        f"session = onnxruntime.InferenceSession({json.dumps(file)})",
        'known = json.loads(session.get_modelmeta().custom_metadata_map["affsup"])  # recipe (TOML), classes',
        "```",
        "",
        f"The input is {takes}",
    ]
    return "\n".join(lines)


def _loading_safetensors(trained: TrainedModel, file: str) -> str:
    with_affsup = []
    if isinstance(trained.recipe, SceneSetRecipe):
        with_affsup.append(f"affsup predict {shlex.quote(file)} picture.jpg")
    if isinstance(trained.recipe, RelnetRecipe):
        with_affsup.append(f"affsup train scene --pretrained {shlex.quote(file)}")
    lines = ["With affsup:", "", "```", *with_affsup, "```", ""] if with_affsup else []
    lines += [
        "In Python, without affsup:",
        "",
        "```python",
        "import json",
        "",
        "from safetensors import safe_open",
        "from safetensors.torch import load_file",
        "",
        f"weights = load_file({json.dumps(file)})  # tensors by name",
        f'with safe_open({json.dumps(file)}, framework="pt") as opened:',
        '    known = json.loads(opened.metadata()["affsup"])  # recipe (TOML), environment, metrics, classes',
        "```",
    ]
    return "\n".join(lines)


def _limits(trained: TrainedModel) -> str:
    return (
        f"Made to repeat and extend the experiments of {_PAPER}. It knows the names above and pictures like those it "
        "has seen in training; elsewhere its scores mean little. No care was taken that it treats groups of people "
        "alike: not for decisions about people.\n\n"
        f"Licence: affsup's covers its code. What the weights may be used for depends on the terms of the data set "
        f"`{trained.environment['data']['name']}` and its pictures"
        f"{_and_of_pretrained(trained)}: read them before passing the file on."
    )


def _and_of_pretrained(trained: TrainedModel) -> str:
    fields = trained.recipe.flat()
    used = fields.get("network.model.weights", fields.get("model.weights", "none"))
    return "" if used == "none" else f", and of the pretrained weights that it began from (`model.weights = {used}`)"


def _environment(trained: TrainedModel) -> str:
    ran_on = trained.environment
    commit = ran_on.get("commit")
    changed = ", with changes that were not committed" if ran_on.get("dirty") else ""
    facts = {
        "begun": ran_on.get("started"),
        "affsup": f"{ran_on.get('affsup')}, commit {commit}{changed}" if commit else ran_on.get("affsup"),
        "torch": ran_on.get("torch"),
        "python": ran_on.get("python"),
        "device": f"{ran_on.get('device')} ({ran_on.get('device_name')}), {ran_on.get('threads')} threads",
        "platform": ran_on.get("platform"),
    }
    return "\n".join(_facts(facts))


def _plainly(text: str) -> str:
    """Return names from outside so that Markdown shows them as they are."""
    return markdown_text(printable(text).replace("`", "'"))


def _facts(facts: Mapping[str, Any]) -> Iterator[str]:
    for name, value in facts.items():
        if value is not None:
            yield f"- {name}: {value}"
