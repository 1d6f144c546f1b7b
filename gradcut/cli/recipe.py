"""``gradcut recipe``: an exported encoder and a published way to train it -> artifacts, trained on images."""

from __future__ import annotations

import warnings
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from gradcut.cli.console import rows, warn

if TYPE_CHECKING:
    from gradcut.recipes import GAN, Program, Recipe
    from gradcut.recipes.runs import Run


#: Roles of the inputs that a person feeds.
_FED = ("user", "label")


class RecipeCommand(TyperCommand):
    """Its help lists the recipes with their options; they are imported only then."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        from gradcut.recipes import GAN, RECIPES

        super().format_help(ctx, formatter)
        with formatter.section("Recipes, with their options and defaults"):
            known: dict[str, type[Recipe] | type[GAN]] = {**RECIPES, GAN.name: GAN}
            formatter.write_dl([(name, one.summary()) for name, one in sorted(known.items())])


def command(
    name: Annotated[
        str, typer.Argument(metavar="NAME[:OPTIONS]", help="A recipe, such as simsiam:projector=128,dim=128.")
    ],
    encoder: Annotated[str, typer.Argument(metavar="ENCODER", help="The encoder, an exported .onnx file.")],
    discriminator: Annotated[
        str | None,
        typer.Argument(metavar="[DISCRIMINATOR]", help="Of gan, whose first model is a generator."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="DIR", help="Where to write; by default <stem>.gradcut.")
    ] = None,
    embedding: Annotated[
        str | None, typer.Option(metavar="VALUE", help="What of the encoder is the embedding; its only float output.")
    ] = None,
    data: Annotated[
        Path | None, typer.Option(metavar="F.npz", help="Images [N, C, H, W] to train on, labels for k-NN beside them.")
    ] = None,
    no_stop_gradient: Annotated[
        bool, typer.Option("--no-stop-gradient", help="Take the mark out, and nothing else.")
    ] = False,
    compare: Annotated[bool, typer.Option("--compare", help="Train without the mark as well, and draw both.")] = False,
    train: Annotated[
        list[str] | None, typer.Option(metavar="P", help="Parameters that train, those of heads too; all by default.")
    ] = None,
    freeze: Annotated[list[str] | None, typer.Option(metavar="P", help="Parameters that do not.")] = None,
    optimizer: Annotated[
        str | None, typer.Option(metavar="SPEC", help="The published one by default: sgd:lr=0.05,momentum=0.9.")
    ] = None,
    augment: Annotated[
        str,
        typer.Option(metavar="SPEC", help="What views differ in: crop, flip, rotation, scale, shift, noise, ..."),
    ] = "rotation=15,scale=0.15,shift=1.5,noise=0.1",
    epochs: Annotated[int, typer.Option(metavar="N")] = 60,
    batch_size: Annotated[
        int, typer.Option(metavar="N", help="Images a batch; what is left of an epoch is left out.")
    ] = 128,
    schedule: Annotated[str, typer.Option(metavar="SPEC", help="Of the learning rate.")] = "cosine",
    eval_split: Annotated[float, typer.Option(metavar="SHARE", help="Of the images, those that do not train.")] = 0.25,
    seed: Annotated[int, typer.Option(metavar="N", help="Of the heads, the order and the views.")] = 0,
    seeds: Annotated[int, typer.Option(metavar="N", help="How many runs, with --seed and the numbers behind it.")] = 1,
    force: Annotated[bool, typer.Option("--force", help="Overwrite a DIR that was trained.")] = False,
) -> None:
    """Compile a recipe around ENCODER and, with --data, train it."""
    from gradcut.artifacts import check_target, exclusive
    from gradcut.errors import GradcutWarning
    from gradcut.recipes import GAN, build, parse
    from gradcut.recipes.runs import Plan, compared, images_for, rehearse, train_all, whole_run
    from gradcut.recipes.views import Augmentation

    warnings.simplefilter("ignore", GradcutWarning)  # they are said below
    recipe = parse(f"{name}{',' if ':' in name else ':'}stop_gradient=false" if no_stop_gradient else name)
    folder = output if output is not None else Path(f"{Path(encoder).stem}.gradcut")
    check_target(folder, force)
    if isinstance(recipe, GAN) or discriminator is not None:
        _write_players(recipe, encoder, discriminator, optimizer, seed, folder, force)
        return
    plan = Plan(
        augmentation=Augmentation.parse(augment),
        epochs=epochs,
        batch_size=batch_size,
        schedule=schedule,
        seeds=range(seed, seed + seeds),
    )
    images = None if data is None else images_for(recipe, encoder, embedding, data, eval_split)
    recipe = recipe if images is None else whole_run(recipe, images, plan)
    wanted = compared(recipe) if compare else {recipe.name: recipe}
    make = partial(build, encoder=encoder, output=embedding, train=train, freeze=freeze or (), optimizer=optimizer)
    program = make(recipe, seed=seed)
    if images is not None:
        rehearse(program, images, plan)
    program.artifacts.save(folder, force=force)
    rows(_summary(program))
    for text in filter(None, (recipe.note, *program.artifacts.manifest["warnings"])):
        warn(text)
    if images is not None:
        with exclusive(folder):
            train_all(wanted, make, images, plan, folder, watch=lambda run: typer.echo(_said(run)))
    written = ["encoder.onnx", "metrics.jsonl", "curves.svg"] if images is not None else []
    rows([("files", f"{folder}/ ({', '.join([*written, 'training_model.onnx', 'checkpoint.safetensors'])}, ...)")])


def _write_players(
    recipe: Recipe | GAN,
    generator: str,
    discriminator: str | None,
    optimizer: str | None,
    seed: int,
    folder: Path,
    force: bool,
) -> None:
    from gradcut.errors import SpecError
    from gradcut.recipes import GAN, gan

    if not isinstance(recipe, GAN) or discriminator is None:
        raise SpecError("gan takes two models, GENERATOR and DISCRIMINATOR, and every other recipe one")
    players = gan(generator, discriminator, recipe, optimizer, seed)
    players.artifacts.save(folder, force=force)
    rows([("recipe", f"{recipe.spec()} ({recipe.category})"), ("steps", ", ".join(players.artifacts.steps))])
    rows([("files", f"{folder}/ (a folder for each step, checkpoint.safetensors, ...)")])


def _summary(program: Program) -> list[tuple[str, str]]:
    from gradcut.text import counted

    manifest = program.artifacts.manifest
    inputs = ", ".join(port["name"] for port in manifest["graphs"]["training_model"]["inputs"] if port["role"] in _FED)
    return [
        ("recipe", f"{program.recipe.spec()} ({program.recipe.category})"),
        ("embedding", f"{program.encoder.embedding.name} [N, {program.encoder.width}]"),
        ("trains", f"{counted(len(manifest['trainable']), 'tensor')}, by {manifest['optimizer']['spec']}"),
        ("feeds", inputs),
    ]


def _said(run: Run) -> str:
    """A run on one line."""
    last = run.last
    figures = {"loss": last.loss, **last.diagnostics}
    said = ", ".join(f"{name} {value:.4f}" for name, value in figures.items())
    knn = "" if last.knn is None or run.knn_before is None else f", 1-NN {run.knn_before:.3f} -> {last.knn:.3f}"
    return f"{run.name}, seed {run.seed}: {last.epoch} epochs, {last.step} steps, {said}{knn}"
