"""``matchwright store info|refit``: what is in a store, and fitting its next generation."""

from __future__ import annotations

import contextlib
import enum
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from matchwright.engine.cli import store_copies, store_epochs, store_erase
from matchwright.engine.cli._embed_progress import Tell, embed_progress
from matchwright.engine.cli._failures import Interrupted
from matchwright.engine.cli._models_options import (
    ModelsOption,
    TritonCaOption,
    TritonOption,
    models_of,
)
from matchwright.engine.cli._models_options import opened as opened_models
from matchwright.engine.cli._options import (
    WAIT_S,
    AsOfOption,
    FormatOption,
    OutputOption,
    StoreOption,
    WaitOption,
    date_of,
    day_of,
)
from matchwright.engine.cli._output import View, Writer, facts, plainly
from matchwright.engine.cli._progress import say
from matchwright.engine.errors import InvalidArgument

if TYPE_CHECKING:
    from rich.console import Console

    from matchwright.engine.config import ModelsConfig

REFIT_SAMPLE = 50_000
_SEED_MAX = 2**63 - 1


class EncoderOption(enum.StrEnum):
    """Which encoder a generation gets."""

    EMBEDDED = "embedded"
    SERVED = "served"


group = typer.Typer(help="Look at a store, fit it, check it.", rich_markup_mode=None)


@group.command()
def info(store: StoreOption, format_: FormatOption = None, output: OutputOption = None) -> None:
    """Say what is in a store: records, epoch, generation, bytes."""
    from matchwright.engine.store import Store

    with Store.open(store) as opened:
        document = opened.info()
    with Writer(format_, output) as writer:
        writer.add(view(document))


@group.command()
def refit(
    store: StoreOption,
    seed: Annotated[int, typer.Option(help="Of the sample and of the fit.")] = 0,
    sample: Annotated[
        int, typer.Option(help="Records of each kind to fit on, at most.")
    ] = REFIT_SAMPLE,
    as_of: AsOfOption = None,
    encoder: Annotated[
        EncoderOption, typer.Option(help="Embedded, or served by Triton (--models, --triton).")
    ] = EncoderOption.EMBEDDED,
    encoder_version: Annotated[
        int | None,
        typer.Option("--encoder-version", min=1, help="Of a served encoder; else the newest."),
    ] = None,
    models: ModelsOption = None,
    triton: TritonOption = None,
    triton_ca: TritonCaOption = None,
    wait: WaitOption = WAIT_S,
    format_: FormatOption = None,
    output: OutputOption = None,
) -> None:
    """Fit the next generation on a seeded sample, encode everything again, then switch.

    It is built beside the one in force. Texts that a served encoder has encoded before, here or by
    `matchwright embed`, are not sent again.
    """
    from matchwright.engine.store import Store

    if not 0 <= seed <= _SEED_MAX or sample < 1:
        raise InvalidArgument(
            f"--seed takes 0 to 2^63 - 1 and --sample at least 1, got {seed} and {sample}"
        )
    day = day_of(as_of)
    began = time.monotonic()
    config = models_of(models, triton, tls_ca=triton_ca, wait_s=wait)
    check_encoder(encoder, config)
    try:
        with (
            opened_models(config) as served,
            Store.open(store, mode="w", wait_s=wait, waiting=say, models=served) as opened,
            encoding(served is not None) as tell,
        ):
            before = opened.generation.id
            say(f"fitting on at most {sample:,} records of each kind, seed {seed}, {date_of(day)}")
            generation = opened.refit(
                seed=seed,
                sample=sample,
                as_of=day,
                encoder=encoder.value,
                encoder_version=encoder_version,
                tell=tell,
            )
    except KeyboardInterrupt:
        raise Interrupted(
            "the generation that was in force still is; texts that were encoded stay encoded"
        ) from None
    document = {
        "generation": generation.id,
        "replaces": before,
        "dimensions": generation.d,
        "encoder": encoder.value,
        "seed": seed,
        "sample": sample,
        "as_of": date_of(day),
        "seconds": round(time.monotonic() - began, 1),
    }
    with Writer(format_, output) as writer:
        writer.add(view(document))


def check_encoder(encoder: EncoderOption, config: ModelsConfig | None) -> None:
    """Refuse a served encoder without the models, and the models without it."""
    whole = config is not None and config.repository is not None and config.triton is not None
    wrong = not whole if encoder is EncoderOption.SERVED else config is not None
    if wrong:
        raise InvalidArgument(
            "--encoder served goes with --models DIR and --triton HOST:PORT, and they with it"
        )


@contextlib.contextmanager
def encoding(shown: bool) -> Iterator[Tell]:
    """The progress of encoding texts, where there are any to encode."""
    if shown:
        with embed_progress() as tell:
            yield tell
    else:
        yield lambda done, total: None


def view(document: dict[str, Any]) -> View:
    """Names and values, in every format."""
    flat = dict(flatten(plainly(document)))

    def draw(console: Console) -> None:
        console.print(facts(flat.items()))

    return View(document, [flat], draw)


def flatten(document: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """``{"a": {"b": 1}}`` as ``[("a.b", 1)]``."""
    pairs: list[tuple[str, Any]] = []
    for name, value in document.items():
        if isinstance(value, dict):
            pairs += flatten(value, f"{prefix}{name}.")
        else:
            pairs.append((f"{prefix}{name}", value))
    return pairs


def register(app: typer.Typer) -> None:
    """Add the commands."""
    store_copies.add_to(group)
    store_epochs.add_to(group)
    store_erase.register(group)
    app.add_typer(group, name="store")
