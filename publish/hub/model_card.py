"""The card of a published model: README.md with the front matter that the Hugging Face hub reads.

https://github.com/huggingface/hub-docs/blob/main/modelcard.md
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import yaml

from jzi.errors import HubError
from jzi.publish.hub.citations import CITATIONS
from jzi.publish.hub.hub import RepoName
from jzi.publish.hub.model_figures import default_answer, hub_metrics, is_interval, recall_by_radius, split_name
from jzi.publish.licences import licence_id, similar_ids
from jzi.publish.markdown import escape, table
from jzi.store.geometry.pyramid import Pyramid
from jzi.store.model_config import (
    AnyModelConfig,
    AreaModelConfig,
    RetrieverModelConfig,
    StatewideModelConfig,
    TransferModelConfig,
    ZoomModelConfig,
)
from jzi.store.model_folder import EXPERT_FILES, NOVELTY
from jzi.store.plain import share_text
from jzi.version import __version__

TAGS = ("jzi", "geolocalization", "cross-view", "visual-localization", "remote-sensing", "geospatial")

#: Names of experts, for people.
_EXPERTS = {
    "zoom": "zooms from tile to tile",
    "cells": "compares the photo with all cells",
    "levels": "compares the photo with the tiles of every level",
    "vpr": "compares the photo with the training photos; no cross-view expert",
}


@dataclass(frozen=True)
class ModelCard:
    """What the card of a model says.

    Attributes:
        repo: where it is published.
        config: config.json of the model.
        licence: the licence, as the user gave it.
        title: heading; the repository's name by default.
        evaluation: what `jzi evaluate --json` prints; None if it was not evaluated.
        photos: number of photos by split, if they are known.
        training_photos: number of training photos whose positions the model contains.
        pictures: names of the pictures by what they show: "area", "calibration".
    """

    repo: RepoName
    config: AnyModelConfig
    licence: str
    title: str = ""
    evaluation: Mapping[str, Any] | None = None
    photos: Mapping[str, int] = field(default_factory=dict)
    training_photos: int = 0
    pictures: Mapping[str, str] = field(default_factory=dict)


def check_licence(licence: str) -> str:
    """The id that the hub has for a licence, or "other".

    Raises:
        HubError: none was given, or it says nothing.
    """
    if not licence.strip() or len(licence) > 200 or licence.strip().lower() in ("unknown", "none", "other"):
        raise HubError(
            f"{licence!r:.60} is no licence: name the one that you have the right to give, such as --license cc-by-4.0 "
            "or apache-2.0"
        )
    name = licence_id(licence)
    if name == "other" and (similar := similar_ids(licence)):
        raise HubError(f"{licence!r:.60} is no licence of the hub: did you mean {similar[0]}?")
    return name


def licence_values(licence: str) -> dict[str, str]:
    """Entries of a licence in front matter."""
    name = check_licence(licence)
    if name != "other":
        return {"license": name}
    return {"license": "other", "license_name": " ".join(licence.split())}


def card_text(card: ModelCard) -> str:
    """README.md of the model."""
    sections = [f"# {escape(card.title or card.repo.id.partition('/')[2])}", _summary(card), _usage(card)]
    if isinstance(card.config, AreaModelConfig):
        sections.append("## Area\n\n" + _area(card, card.config.pyramid))
    sections += [
        "## Data and splits\n\n" + _data(card),
        "## Encoder and experts\n\n" + _experts(card),
        "## Evaluation\n\n" + _evaluation(card),
        "## Limits\n\n" + _list(_limits(card)),
        "## What these files disclose\n\n" + _list(_disclosed(card)),
        f"## Licence\n\n{escape(card.licence)}",
        f"## Citation\n\n```bibtex\n{_citation(card)}\n```",
        f"*Written by jzi {__version__}.*",
    ]
    return f"---\n{_front_matter(card)}---\n\n" + "\n\n".join(sections) + "\n"


def _front_matter(card: ModelCard) -> str:
    values: dict[str, Any] = {
        **licence_values(card.licence),
        "library_name": "jzi",
        "pipeline_tag": "image-classification",
        "tags": list(TAGS),
        "metrics": ["recall"],
    }
    if card.config.encoder.from_hub:
        values["base_model"] = card.config.encoder.name
    if metrics := hub_metrics(card.evaluation):
        result = {
            "task": {"type": "image-classification", "name": "Photo geolocalization"},
            "dataset": {"type": "private", "name": f"{split_name(card.evaluation)} photos of the area"},
            "metrics": metrics,
        }
        values["model-index"] = [{"name": card.repo.id.partition("/")[2], "results": [result]}]
    return str(yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=1000))


def _summary(card: ModelCard) -> str:
    what = "Tells where a street-level photo was taken"
    if isinstance(card.config, StatewideModelConfig):
        what += ", by comparing it with the cells of any region of which there is imagery (state-wide retrieval)"
    if isinstance(card.config, AreaModelConfig):
        area = card.config.pyramid
        latitude, longitude = _centre(area)
        what += f", in a square of {_length(area.size)} around {latitude:.4f}, {longitude:.4f}"
    if isinstance(card.config, RetrieverModelConfig):
        what += ", by comparing it with every cell (flat retrieval)"
    return f"{what}. A model of [jzi](https://arxiv.org/abs/2603.25686)."


def _usage(card: ModelCard) -> str:
    code, command = f'locator = jzi.load("{card.repo.id}")', f"`jzi locate photo.jpg --model {card.repo.id}`"
    if isinstance(card.config, RetrieverModelConfig):
        command = command.replace("--model", "--retriever")
    if isinstance(card.config, StatewideModelConfig):
        code = f'locator = jzi.load("{card.repo.id}", cache="index.zarr")  # the index of a region'
        command = (
            "in a folder that `jzi init --region` has set up, "
            f"`jzi index --retriever {card.repo.id}` and `jzi locate photo.jpg --retriever {card.repo.id}`"
        )
    return (
        f'```python\nimport jzi\n{code}\nprint(locator.locate("photo.jpg"))\n```\n\n'
        f"or {command}. Its files are verified by SHA-256, and no code of them is "
        "run."
    )


def _area(card: ModelCard, area: Pyramid) -> str:
    bounds = area.bounds
    edge = np.linspace(0, 1, 33)
    x = np.concatenate([bounds.west + edge * area.size] * 2 + [np.full(33, bounds.west), np.full(33, bounds.east)])
    y = np.concatenate([np.full(33, bounds.south), np.full(33, bounds.north)] + [bounds.south + edge * area.size] * 2)
    latitude, longitude = area.unproject(x, y)
    centre = _centre(area)
    rows = [
        ("centre", f"{centre[0]:.5f}, {centre[1]:.5f}"),
        ("latitudes", f"{latitude.min():.5f} to {latitude.max():.5f}"),
        ("longitudes", f"{longitude.min():.5f} to {longitude.max():.5f}"),
        ("side", _length(area.size)),
        ("cells", f"{area.shape[0]} x {area.shape[1]} of {area.cell_size:.1f} m, in {area.levels} steps of "
                  f"{area.grid} x {area.grid}"),
        ("CRS", escape(area.crs)),
    ]  # fmt: skip
    picture = f"\n\n![The area; green: imagery]({card.pictures['area']})" if "area" in card.pictures else ""
    return table(("", ""), rows) + picture


def _data(card: ModelCard) -> str:
    lines = []
    if card.photos:
        lines.append("Photos: " + ", ".join(f"{count} {name}" for name, count in card.photos.items()) + ".")
    config = card.config
    if isinstance(config, AreaModelConfig) and config.imagery:
        names = ", ".join(f"{name} ({size / 1e6:.0f} MB)" for name, size, *_ in config.imagery.files[:10])
        lines.append(f"Imagery: {escape(names)}; {escape(config.imagery.description)}. It is not part of the model.")
    distance = ((card.evaluation or {}).get("by_training_distance") or {}).get("median_m")
    if isinstance(distance, int | float):
        lines.append(
            f"Half of the {split_name(card.evaluation)} photos lie within {distance:.1f} m of a training photo."
            + (
                " That is near: photos of streets without training photos will be located worse."
                if distance < 25
                else ""
            )
        )
    return "\n\n".join(lines or ["Not recorded."])


def _experts(card: ModelCard) -> str:
    encoder = card.config.encoder
    source = "from the hub" if encoder.from_hub else "contained in the model"
    text = (
        f"Encoder: {escape(encoder.name)}, {source}, {encoder.width} features, photos of {encoder.image_size} pixels "
        f"({escape(encoder.layout)})."
    )
    if isinstance(card.config, RetrieverModelConfig):
        side = card.config.context * card.config.pyramid.cell_size
        return f"{text} Trained by the method {escape(card.config.method)} on reference crops of {side:.0f} m."
    if isinstance(card.config, StatewideModelConfig):
        where = f", in {escape(card.config.area)}" if card.config.area else ""
        method = escape(card.config.method)
        return f"{text} Trained by the method {method} with cells of {card.config.cell_m:g} m{where}."
    if not isinstance(card.config, ZoomModelConfig | TransferModelConfig):
        return text
    names = [*(["zoom"] if isinstance(card.config, ZoomModelConfig) else []), *card.config.experts]
    fusion = card.config.fusion
    weights = fusion.weights.get("+".join(sorted(names)), {}) if fusion else {}
    rows = [
        (escape(name), _EXPERTS.get(name, ""), f"{weights[name]:.2f}" if name in weights else "not fitted")
        for name in names
    ]
    fitted = f" The weights were fitted on {fusion.photos} validation photos." if fusion else ""
    return f"{text}{fitted}\n\n" + table(("expert", "what it does", "weight in the fusion"), rows, 1)


def _evaluation(card: ModelCard) -> str:
    evaluation = card.evaluation
    answers = default_answer(evaluation)
    if not evaluation or not recall_by_radius(answers):
        return "Not evaluated."
    rows = [
        (
            f"recall within {radius}",
            share_text(each["value"]),
            f"{share_text(each['low'])} to {share_text(each['high'])}",
        )
        for radius, each in recall_by_radius(answers).items()
    ]
    median = answers.get("median_error_m", {})
    if is_interval(median):
        rows.append(("median error", f"{median['value']:.1f} m", f"{median['low']:.1f} to {median['high']:.1f} m"))
    answer = "the default answer"
    if isinstance(card.config, StatewideModelConfig):
        answer = f"the most similar of {int(evaluation.get('cells', 0)):,} cells"
    split = split_name(evaluation)
    photos = "photos" if split == "all" else f"photos of the split {split}, which were not trained on"
    text = f"{int(evaluation.get('photos', 0))} {photos}; {answer}, with 95 % intervals.\n\n" + table(
        ("", "", "interval"), rows, 2
    )
    error = answers.get("calibration_error", (evaluation.get("posterior") or {}).get("calibration_error"))
    if isinstance(error, int | float):
        text += f"\n\nConfidences are off by {share_text(error)} (expected calibration error)."
    if "calibration" in card.pictures:
        text += f"\n\n![Confidence and accuracy]({card.pictures['calibration']})"
    return text


def _limits(card: ModelCard) -> list[str]:
    limits = []
    if isinstance(card.config, AreaModelConfig):
        limits.append("It only knows its area: a photo of another place gets an answer in the area all the same.")
        if inside := getattr(card.config, "inside", {}):
            best = max(each.auroc for each in inside.values())
            limits.append(
                "It reports the probability that a photo is from the area at all, which was fitted on made outsiders "
                f"(AUROC {best:.2f} there), not on photos of every other place."
            )
        limits.append("It was trained on imagery and photos of some years; streets that have changed since are harder.")
    if isinstance(card.config, StatewideModelConfig):
        limits.append("It needs imagery of the region in the levels of detail that it was trained on, and its index.")
        limits.append("Regions that look different from where it was trained are harder.")
    limits.append("Night, snow, interiors, close-ups and indistinct views are located badly.")
    limits.append("The figures hold for photos like those that it was evaluated on, not for other cameras.")
    if not card.evaluation:
        limits.append("It was not evaluated.")
    if "vpr" in getattr(card.config, "experts", {}):
        limits.append("Where there are training photos it also recognizes the place from them, not from above alone.")
    limits.append("Do not use it to find out where people are who did not agree to it.")
    return limits


def _disclosed(card: ModelCard) -> list[str]:
    lines = ["Neither imagery nor photos are contained."]
    if card.training_photos:
        lines.append(
            f"`{EXPERT_FILES['vpr']}` has the exact position and an embedding of each of {card.training_photos} "
            "training photos."
        )
    if NOVELTY in card.config.files:
        lines.append(f"`{NOVELTY}` has the mean and the covariance of the training photos' embeddings.")
    if isinstance(card.config, AreaModelConfig):
        what = "cell" if isinstance(card.config, RetrieverModelConfig) else "tile"
        lines.append(f"There is an embedding of every {what} of the imagery, from which similar places can be found.")
    return lines


def _citation(card: ModelCard) -> str:
    config = card.config
    if isinstance(config, RetrieverModelConfig | StatewideModelConfig):
        return CITATIONS.get(config.method, "") or CITATIONS["zoom"]
    return CITATIONS["zoom"]


def _centre(area: Pyramid) -> tuple[float, float]:
    bounds = area.bounds
    latitude, longitude = area.unproject((bounds.west + bounds.east) / 2, (bounds.south + bounds.north) / 2)
    return float(latitude), float(longitude)


def _length(metres: float) -> str:
    return f"{metres / 1000:.3g} km" if metres >= 1000 else f"{metres:.0f} m"


def _list(lines: Sequence[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)
