"""What was measured on what, in words, from the attributes and the coordinates of a result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from fganalysis.arguments import listed
from fganalysis.reporting.parts import Part, parsed
from fganalysis.results import schema

Fact = tuple[str, str]
MOST_NAMES = 12
ATTRIBUTE_LENGTH = 400  # Characters of an attribute.

# Words for attributes, in the order in which a page shows them; those without words follow under their names.
ATTRIBUTES = {
    "network": "network",
    "loss": "loss",
    "dataset": "data",
    "n_examples": "examples in the batch",
    "examples": "examples in the batch",
    "n_guesses": "guesses of each estimator",
    "guesses": "guesses of each estimator",
    "seed": "seed",
    "rounds": "rounds",
    "autodiff": "differentiation",
    schema.CURVATURE_KIND: "curvature",
    "products": "products with the curvature",
    "optimizer": "optimiser",
    "device": "device",
    "dtype": "data type",
    "threads": "threads",
    "block_size": "guesses in a block",
    schema.FEWER_GROUPS: "groups of guesses",
    schema.BY_LAW: "drawn by their law",
    schema.LIMIT: "in the limit",
    schema.TRUTH: "truth",
    schema.TRUTH_ERROR: "relative error of the truth",
    "torch": "torch",
    "versions": "versions",
    "creation_library": "made by",
    "creation_library_version": "its version",
    "git_commit": "its commit",
    "created_at": "made at",
}
WANTED = {"network": "network", "loss": "loss"}  # What a reader asks for first, and a result may not say.
STRUCTURED = ("settings", "estimator", schema.NOT_LOOKED_AT, schema.NOT_MEASURED, schema.NOT_PREDICTED, schema.CAUTIONS)
OF_THE_FILE = ("cell_identity", "peak_memory")


def facts(part: Part) -> list[Fact]:
    """Names and values: the coordinates, the attributes that have words, the settings, every other attribute."""
    given = {
        str(name): value for name, value in part.attributes.items() if str(name) not in (*STRUCTURED, *OF_THE_FILE)
    }
    known = [(words, _in_words(given[name])) for name, words in ATTRIBUTES.items() if name in given]
    others = [(name, _in_words(value)) for name, value in given.items() if name not in ATTRIBUTES]
    return [*_coordinates(part), *known, *_settings(part), *others]


def remarks(part: Part) -> list[str]:
    """Sentences: cautions, what could not be measured or predicted and why, and what a result does not say."""
    unsaid = [words for name, words in WANTED.items() if name not in part.attributes]
    sentences = [f"The result does not say of which {' and which '.join(unsaid)} it is."] if unsaid else []
    for name, beginning in {schema.NOT_MEASURED: "not measured", schema.NOT_PREDICTED: "not predicted"}.items():
        reasons = parsed(part.attributes.get(name))
        if isinstance(reasons, dict):
            sentences += [f"{key}: {beginning}: {reason}." for key, reason in reasons.items()]
    unseen = parsed(part.attributes.get(schema.NOT_LOOKED_AT))
    if isinstance(unseen, list) and unseen:
        sentences.append(f"Trainable parameters that are in no layer: {listed(map(str, unseen), MOST_NAMES)}.")
    cautions = parsed(part.attributes.get(schema.CAUTIONS))
    if isinstance(cautions, dict):
        sentences += [f"{name}: {sentence}." for name, of_name in cautions.items() for sentence in of_name]
    return sentences


def _coordinates(part: Part) -> list[Fact]:
    words = {
        schema.STEP: "steps of training",
        schema.ESTIMATOR: "estimators",
        schema.SPACE: "spaces",
        schema.LAYER: "layers",
        schema.AVERAGED: "guesses averaged",
    }
    datasets = (part.measured, part.subspace)
    return [
        (text, listed([_value(value) for value in values], MOST_NAMES))
        for dim, text in words.items()
        if (values := next((one[dim].values for one in datasets if dim in one.dims), None)) is not None
    ]


def _settings(part: Part) -> list[Fact]:
    """The settings of each estimator: by label, or a list in the order of the estimators."""
    settings = parsed(part.attributes.get("settings"))
    names = [str(name) for name in part.measured[schema.ESTIMATOR].values] if schema.ESTIMATOR in part.measured else []
    if isinstance(settings, list) and len(settings) == len(names):
        settings = dict(zip(names, map(parsed, settings), strict=True))
    elif isinstance(settings, dict) and len(names) == 1 and names[0] not in settings:
        settings = {names[0]: settings}
    if not isinstance(settings, dict):
        return []
    return [
        (f"settings of {name}", ", ".join(f"{key} = {_value(value)}" for key, value in of_name.items()) or "none")
        for name, of_name in settings.items()
        if isinstance(of_name, dict)
    ]


def _in_words(value: object) -> str:
    found = parsed(value)
    if isinstance(found, Mapping):
        text = ", ".join(f"{name} {_value(one)}" for name, one in found.items())
    elif isinstance(found, Sequence | np.ndarray) and not isinstance(found, str):
        text = ", ".join(_value(one) for one in found)
    else:
        text = _value(value)
    return text if len(text) <= ATTRIBUTE_LENGTH else text[: ATTRIBUTE_LENGTH - 1] + "…"


def _value(value: object) -> str:
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if isinstance(value, float | np.floating):
        return f"{value:.6g}"
    return "none" if value is None else str(value)
