"""Open a judge with what it said before, and make the stage that re-ranks a locator's candidates by it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jzi.errors import ConfigError
from jzi.rerank.config import RerankConfig
from jzi.rerank.designs.schedule import PAIR_DESIGNS
from jzi.workspace.inputs import open_map, open_rasters
from jzi.workspace.setup.settings import FILE, RegionSettings, Settings
from jzi.workspace.setup.settings_file import load_area

if TYPE_CHECKING:
    from jzi.encode.rasters.imagery import Imagery
    from jzi.locate.expert import Expert
    from jzi.locate.locator import Locator
    from jzi.rerank.ask import Asker
    from jzi.rerank.crops import Crops
    from jzi.rerank.fuse import Weights
    from jzi.rerank.question import Judge
    from jzi.rerank.stage import RerankStage
    from jzi.rerank.weights_file import WeightsFile
    from jzi.store.geometry.cell_grid import CellGrid

#: Names, in the folder of rerank.path, of the judgments, the crops and the weights.
JUDGMENTS, CROPS, WEIGHTS = "judgments.sqlite", "crops", "rerank.json"


@dataclass(frozen=True)
class RerankRequest:
    """The options of a command about re-ranking; None for the settings of jzi.toml.

    Attributes:
        judge: Hugging Face id, folder or URL of the model; a URL may end in # and the model's name there. Empty for
            rerank.judge.
        settings: other values of the section [rerank].
        send_photos: whether photos may leave this machine, to an endpoint.
        pure: order candidates by the judge alone, as in the paper.
        budget: the most that may be spent, as of `jzi.rerank.cost.Budget.parse`.
        crops_only: render the crops of candidates, and ask nothing.
        dry_run: count what would be asked, and ask nothing.
    """

    judge: str = ""
    settings: dict[str, Any] | None = None
    send_photos: bool = False
    pure: bool = False
    budget: str | None = None
    crops_only: bool = False
    dry_run: bool = False

    def config(self, base: RerankConfig) -> RerankConfig:
        """The section [rerank] with these options.

        Raises:
            ConfigError: a value is out of range.
        """
        return replace(base, **{name: value for name, value in (self.settings or {}).items() if value is not None})


def is_endpoint(name: str) -> bool:
    """Whether the name of a judge is the URL of an endpoint."""
    return "://" in name


def open_judge(config: RerankConfig, request: RerankRequest, folder: Path = Path()) -> Judge:
    """Load a vision-language model, or connect to an endpoint.

    Args:
        config: the section [rerank].
        request: names the model, if `config` does not.
        folder: of jzi.toml, to which paths in it are relative.

    Raises:
        RerankError: it cannot be loaded, or does not answer.
        ConfigError: no model is named, or photos may not be sent to it.
    """
    name = request.judge or config.judge
    if not name:
        raise ConfigError(
            "no vision-language model is named: give the id, folder or URL of one, or set rerank.judge in jzi.toml"
        )
    if is_endpoint(name):
        from jzi.rerank.judges.endpoint import EndpointJudge

        url, _, model = name.partition("#")
        config = replace(config, model=model or config.model)
        return EndpointJudge.open(url, config, send_photos=request.send_photos)
    from jzi.encode.device import best_device
    from jzi.rerank.judges.local import LocalJudge

    if not request.judge and (folder / name).is_dir():
        name = str(folder / name)
    return LocalJudge.load(name, config, best_device())


def open_asker(config: RerankConfig, request: RerankRequest, folder: Path = Path()) -> Asker:
    """Open a judge and the judgments that are kept; arguments and errors as `open_judge`."""
    from jzi.rerank.ask import Asker
    from jzi.rerank.cost import Budget
    from jzi.rerank.judgments import Judgments

    budget = None if request.budget is None else Budget.parse(request.budget)
    judge = open_judge(config, request, folder)
    return Asker(judge, Judgments.open(kept(config, folder) / JUDGMENTS), config, budget)


def kept(config: RerankConfig, folder: Path = Path()) -> Path:
    """The folder in which judgments, crops and weights are kept."""
    return folder / Path(config.path).expanduser()


@dataclass(frozen=True)
class Fitted:
    """The weights of a fusion, where they come from, and the preference for A.

    Attributes:
        weights: of the front end and the judge.
        bias: subtracted where a pair is asked about once.
        note: for users; empty if there is nothing to say.
    """

    weights: Weights
    bias: float = 0.0
    note: str = ""


def new_weights(config: RerankConfig, judge: Judge, front: str, weights: Weights, bias: float = 0.0) -> WeightsFile:
    """What rerank.json records of weights that were fitted with these settings."""
    from jzi.rerank.judges.prompts import VERSION
    from jzi.rerank.weights_file import WeightsFile, shown_as

    return WeightsFile(
        judge=judge.fingerprint,
        prompts=VERSION,
        method=config.design,
        orders=config.orders,
        front=front,
        pictures=shown_as(config),
        weights=weights,
        bias=bias,
    )


def front_name(expert: Expert) -> str:
    """Name of a front end in rerank.json: of its experts and of the encoder."""
    return f"{expert.name} {expert.encoder.fingerprint[:12]}"


def open_weights(
    config: RerankConfig, request: RerankRequest, judge: Judge, front: str, folder: Path = Path()
) -> Fitted:
    """The weights that were fitted for this judge, method and front end, or those of one that is not calibrated.

    Args:
        config: the section [rerank].
        request: whether the judge's order alone counts.
        judge: the judge.
        front: of `front_name`, or the name of a list.
        folder: of jzi.toml.

    Raises:
        RerankError: the file of the weights is damaged.
    """
    from jzi.rerank.fuse import PURE, Weights
    from jzi.rerank.weights_file import read_weights

    path, hint = kept(config, folder) / WEIGHTS, "not calibrated: fit the weights with `jzi rerank calibrate`"
    wanted = new_weights(config, judge, front, PURE if request.pure else Weights())
    biased = "in one order, the judge's preference for A counts: `jzi rerank calibrate --orders one` measures it"
    biased = biased if config.orders == "one" and config.design in PAIR_DESIGNS else ""
    try:
        found = read_weights(path)
    except FileNotFoundError:
        return Fitted(wanted.weights, note=_joined(biased, "" if request.pure else hint))
    known = found.same_bias(wanted) and found.orders == "one"
    bias, biased = (found.bias, "") if known else (0.0, biased)
    other = found.mismatch(wanted)
    if request.pure or other:
        note = "" if request.pure else f"{path} is of another {other}; {hint}"
        return Fitted(wanted.weights, bias, _joined(biased, note))
    if not found.weights.judge:
        biased = "the judge was no clear gain on validation photos: candidates keep their order, and nothing is asked"
    return Fitted(found.weights, bias, biased)


def _joined(*notes: str) -> str:
    return "; ".join(note for note in notes if note)


def settings_beside(config_file: Path, area: CellGrid | None = None) -> Settings | RegionSettings | None:
    """The settings of a jzi.toml, if there is one, and if it is of this area."""
    if not config_file.exists():
        return None
    settings = load_area(config_file)
    if area is not None and isinstance(settings, Settings) and settings.pyramid != area:
        return None
    return settings


def open_crops(area: CellGrid, config: RerankConfig, folder: Path, imagery: Callable[[], Imagery | None]) -> Crops:
    """Crops of a map, kept in the folder of rerank.path."""
    from jzi.rerank.crops import Crops

    return Crops(area, config, kept(config, folder) / CROPS, imagery)


def imagery_around(
    area: CellGrid, rasters: Sequence[str], settings: Settings | RegionSettings | None
) -> Imagery | None:
    """The map on which cells of an area are shown: these rasters, else those of the settings; None if there are none.

    Raises:
        ConfigError: there is no such raster.
        ImageryError: a raster cannot be used.
    """
    if rasters:
        return open_rasters(rasters, area)
    if settings is None or not settings.map.rasters:
        return None
    try:
        return open_map(settings, area)
    except ConfigError:  # the rasters are elsewhere: crops may be here
        return None


def reranked(
    locator: Locator, request: RerankRequest, config_file: Path = Path(FILE), rasters: Sequence[str] = ()
) -> tuple[Locator, RerankStage]:
    """The same locator with a stage that re-ranks its candidates, after the others, and that stage.

    Args:
        locator: the locator.
        request: the model, and how candidates are compared.
        config_file: the jzi.toml with the section [rerank] and the map; it need not exist.
        rasters: the map; by default that of `config_file`.

    Raises:
        JziError: the judge, the judgments, the weights or the imagery cannot be used.
    """
    from jzi.rerank.stage import RerankStage

    area, folder = locator.expert.area, config_file.parent
    settings = settings_beside(config_file, area)
    config = request.config(settings.rerank if settings else RerankConfig())
    crops = open_crops(area, config, folder, lambda: imagery_around(area, rasters, settings))
    if request.crops_only:
        stage = RerankStage(None, crops, config)
    else:
        asker = open_asker(config, request, folder)
        fitted = open_weights(config, request, asker.judge, front_name(locator.expert), folder)
        stage = RerankStage(
            asker, crops, config, fitted.weights, bias=fitted.bias, dry_run=request.dry_run, note=fitted.note
        )
    return locator.with_stage(stage), stage
