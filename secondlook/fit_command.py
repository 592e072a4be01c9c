"""`secondlook fit`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from secondlook.console import progress
from secondlook.options import DeviceOption, Json, NoCache, absolute, budget_of, device_of, opened_cache

if TYPE_CHECKING:
    from secondlook.orchestrator.policies import PolicyName
    from secondlook.orchestrator.prediction_set import Method


def fit(
    data: Annotated[Path, typer.Argument(metavar="DATA", help="Folder per label, or a CSV: path,label,group,split.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Model folder to write.")],
    encoder: Annotated[
        str,
        typer.Option(
            help="leaf-tiny, an OpenCLIP model name, hf-hub:ORG/NAME, or a folder with open_clip_config.json: "
            "see secondlook doctor --backbones."
        ),
    ] = "leaf-tiny",
    pretrained: Annotated[
        str | None, typer.Option(help="For a model name: OpenCLIP's tag, or a checkpoint file.")
    ] = None,
    text_length: Annotated[
        int | None, typer.Option(help="Tokens of a description, where the text tower is to be stretched: 248, say.")
    ] = None,
    descriptions: Annotated[
        Path | None,
        typer.Option(
            help="YAML: labels: {label: [descriptions]}, negatives: [what the images are not], "
            "costs: {truth: {label: cost}}."
        ),
    ] = None,
    strangers: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Pictures of what the model is not for: what finds strangers is chosen on them too, and not only on "
            "labels held out. Do not evaluate with the same ones.",
        ),
    ] = None,
    templates: Annotated[str, typer.Option(help="File of prompts, one a line, {} for the description.")] = (
        "clip_templates.txt"
    ),
    panel: Annotated[
        str,
        typer.Option(
            help="Heads that look beside the words: kinds such as linear,gda, a YAML file (docs/methods.md), or auto: "
            "compare all there are by cross-validation on train, and take those that help. clip-svd and maple adapt "
            "the encoder itself."
        ),
    ] = "linear",
    panel_seconds: Annotated[float, typer.Option(help="What that comparing may take, in seconds.")] = 300.0,
    agents: Annotated[
        Path | None,
        typer.Option(
            help="YAML of language models that look too, and of one that judges what is said: see docs/vlm.md. "
            "Each call may cost money: see --budget."
        ),
    ] = None,
    fusion: Annotated[
        str,
        typer.Option(
            help="How opinions become one belief: pool, mean, majority, confidence_weighted, cooked, confusion, "
            "joint_confusion, stacked, neighbour_vote, judge, best_agent, or auto: the best on held-out images."
        ),
    ] = "pool",
    target_risk: Annotated[float, typer.Option(help="Error rate among accepted images not to be exceeded.")] = 0.05,
    delta: Annotated[float, typer.Option(help="Chance that this promise fails.")] = 0.1,
    stranger_limit: Annotated[float, typer.Option(help="Share of own images sent to review as unusual.")] = 0.08,
    early_trust: Annotated[
        float | None, typer.Option(help="Least trust to accept before the last look; 1 - target risk by default.")
    ] = None,
    set_level: Annotated[float, typer.Option(help="Share of images whose prediction set holds the truth.")] = 0.9,
    set_method: Annotated[str, typer.Option(help="lac: smallest sets; aps: larger sets for harder images.")] = "lac",
    set_per_label: Annotated[
        bool, typer.Option("--set-per-label", help="Hold that share for the images of each label.")
    ] = False,
    budget: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SCOPE.KIND=MOST",
            help="What looking may cost, repeatable: case. or run., then looks, calls, seconds or usd: run.looks=500. "
            "What it does not allow goes to review. Each command that judges counts from nothing.",
        ),
    ] = None,
    neighbours: Annotated[int, typer.Option("--neighbours", "-k", help="Similar images a second look is shown.")] = 10,
    views: Annotated[
        str,
        typer.Option(help="What a second look sees beside the whole image: zoom, five_crop, subject, with commas."),
    ] = "zoom",
    second_look: Annotated[bool, typer.Option(help="Look again where trust is low, if that helps.")] = True,
    seed: Annotated[int, typer.Option(min=0, help="Of splits and folds.")] = 0,
    device: DeviceOption = "auto",
    no_cache: NoCache = False,
    as_json: Json = False,
) -> None:
    """Learn from labelled images: heads and index on train, everything that decides on calibration.

    DATA without splits is split by group (leaf, patient, part), 60/20/20. Photographs of one thing must share a group,
    or every figure will be too good.

    Example: `secondlook fit photos/ --out model/ --target-risk 0.02 --budget run.looks=500`
    """
    from pydantic import ValidationError

    from secondlook.agents.encoder import EMBEDDED, EncoderSpec
    from secondlook.agents.errors import ConfigError
    from secondlook.eval.agents_file import read_agents
    from secondlook.eval.cases import list_images
    from secondlook.eval.fit import fit as run_fit
    from secondlook.eval.panel_file import read_panel
    from secondlook.orchestrator.config import Config
    from secondlook.orchestrator.language import Language

    language = read_agents(agents) if agents else Language()
    heads = read_panel(panel)
    chosen = {} if heads.panel is None else {"panel": heads.panel}
    try:
        config = Config(
            encoder=EncoderSpec(
                model=encoder if encoder == EMBEDDED else absolute(encoder),
                pretrained=pretrained and absolute(pretrained),
                text_length=text_length,
            ),
            templates=absolute(templates),
            candidates=heads.candidates,
            adapters=heads.adapters,
            boxes=heads.boxes,
            candidate_seconds=panel_seconds,
            **chosen,
            fusion=cast("PolicyName", fusion.replace("-", "_")),
            neighbours=neighbours,
            target_risk=target_risk,
            delta=delta,
            stranger_limit=stranger_limit,
            early_trust=early_trust,
            set_level=set_level,
            set_method=cast("Method", set_method),
            set_per_label=set_per_label,
            language=language,
            budget=budget_of(budget or []),
            views=tuple(view.strip() for view in views.split(",")),
            second_look=second_look,
            seed=seed,
        )
    except ValidationError as error:
        first = error.errors()[0]
        name = "--" + str(first["loc"][0]).replace("_", "-")
        raise ConfigError(f"{name}: {first['msg']}, got {first['input']}.", "See secondlook fit --help.") from error
    with opened_cache(no_cache) as cache, progress(quiet=as_json) as report:
        model = run_fit(
            data,
            out,
            config=config,
            descriptions=descriptions,
            strangers=[case.photo for case in list_images(strangers)] if strangers else (),
            device=device_of(device),
            cache=cache,
            progress=report,
        )
    from secondlook.show import model_json, print_model

    if as_json:
        print(model_json(model))
    else:
        print_model(model)
        print(f"\nWritten to {out}. Next: secondlook evaluate DATA --model {out} --out RUN")
