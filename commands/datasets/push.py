"""`jzi push`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from jzi.commands.shared.common import json_option, print_result

if TYPE_CHECKING:
    from jzi.workspace.push import Prepared, PushRequest


@click.command("push")
@click.argument("path", type=click.Path(path_type=Path, file_okay=False), metavar="MODEL")
@click.argument("repo", metavar="USER/NAME")
@click.option("--license", "licence", required=True, metavar="ID",
              help="Licence that you have the right to give, such as cc-by-4.0 or apache-2.0.")  # fmt: skip
@click.option("--private", is_flag=True, help="Only you, or your organization, may see it.")
@click.option("--branch", default="", help="Branch to commit to, which is made if there is none.  [default: main]")
@click.option("--message", default="", help="Message of the commit.")
@click.option("--title", default="", help="Heading of the card.  [default: the repository's name]")
@click.option("--evaluation", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
              help="What `jzi evaluate --json` printed.  [default: evaluate on the cache of jzi.toml]")  # fmt: skip
@click.option("--config", "config_file", type=click.Path(path_type=Path), default="jzi.toml", show_default=True,
              help="The settings of the model and its cache.")  # fmt: skip
@click.option("--dry-run", is_flag=True, help="List every file, its size and what it discloses; send nothing.")
@click.option("--card", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
              help="Also write the text of the card to this file, to read it in a dry run.")  # fmt: skip
@json_option
def push_command(
    path: Path,
    repo: str,
    licence: str,
    private: bool,
    branch: str,
    message: str,
    title: str,
    evaluation: Path | None,
    config_file: Path,
    dry_run: bool,
    card: Path | None,
    as_json: bool,
) -> None:
    """Publish a model or a retriever on Hugging Face.

    MODEL may also be a cache or a data set that `jzi dataset publish` wrote. Afterwards, `jzi locate --model USER/NAME`
    (`--retriever` of a retriever) and `jzi.load("USER/NAME")` download and verify it. Neither imagery nor photos are
    published with a model, but the positions of its training photos may be: --dry-run says what each file discloses.
    Log in with `hf auth login`, or set HF_TOKEN.
    """
    from jzi.publish.hub.hub import RepoName
    from jzi.publish.hub.hub_upload import HubTarget
    from jzi.workspace.push import PushRequest

    target = HubTarget(RepoName.of(repo), private=private, branch=branch, message=message)
    run_push(PushRequest(path, target, licence, title, evaluation, config_file), dry_run, as_json, card)


def run_push(request: PushRequest, dry_run: bool, as_json: bool, card: Path | None = None) -> None:
    """Prepare, say what will be published, and publish it unless it is a dry run; `card` is written with its card."""
    from jzi.store.disk.files import write_whole
    from jzi.workspace.push import prepare, push

    prepared = prepare(request)
    if card:
        write_whole(card, lambda path: path.write_bytes(prepared.card))
    for note in prepared.notes:
        click.echo(f"note: {note}", err=True)
    repo = request.target.repo.id
    if not dry_run:
        seen = "visible to its owners" if request.target.private else "visible to everyone"
        click.echo(f"publishing {len(prepared.files)} files, {_size(prepared.size)}, in {repo}, {seen}", err=True)
        for line in prepared.disclosed:
            click.echo(f"  discloses {line}", err=True)
    address = "" if dry_run else push(request, prepared)
    values: dict[str, Any] = {
        "repo": repo,
        "kind": prepared.kind,
        "published": not dry_run,
        "url": address or None,
        "files": [{"name": each.name, "bytes": each.size, "discloses": each.discloses} for each in prepared.files],
    }
    print_result(as_json, values, _listing(prepared, request) if dry_run else _published(prepared, request, address))


def _published(prepared: Prepared, request: PushRequest, address: str) -> str:
    repo = str(request.target.repo.id) + (f"@{request.target.branch}" if request.target.branch else "")
    following = f"jzi locate photo.jpg --{'retriever' if prepared.retriever else 'model'} {repo}"
    if prepared.kind != "model":
        name = request.target.repo.id
        following = f"hf download {name} --repo-type dataset --local-dir {name.partition('/')[2]}"
    return f"published: {address}\nnext: {following}"


def _listing(prepared: Prepared, request: PushRequest) -> str:
    files = prepared.files
    if len(files) > 40:  # chunks of a cache: by what they are
        groups: dict[str, list[int]] = {}
        for each in files:
            groups.setdefault(each.discloses, []).append(each.size)
        rows = [(f"{len(sizes)} files", sum(sizes), what) for what, sizes in groups.items()]
    else:
        rows = [(each.name, each.size, each.discloses) for each in files]
    width = max(len(name) for name, *_ in rows)
    lines = [f"  {name:<{width}}  {_size(size):>9}  {what}" for name, size, what in rows]
    total = (
        f"{prepared.kind}, {len(files)} files, {_size(prepared.size)}, for {request.target.repo.id}; nothing was sent"
    )
    return "\n".join([*lines, total])


def _size(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count >= 1e5 else f"{count / 1e3:.1f} kB"
