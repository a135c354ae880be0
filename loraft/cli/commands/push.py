"""`loraft push`: what was trained, on the Hub."""

from __future__ import annotations

from dataclasses import dataclass

from loraft import api
from loraft.cli.console import print_json, print_note
from loraft.cli.options import JsonOption, argument, flag, option
from loraft.cli.text_tables import print_document
from loraft.cli.views.progress import watching


@dataclass(frozen=True)
class PushOptions:
    """What is put where."""

    target: str = argument("TARGET", "A run, an adapter, a checkpoint, or the folder of a model.")
    repo: str = argument("REPO", "OWNER/NAME; made where it is not there.")
    public: bool = flag("A repository that is made can be seen by all [default: by its owner alone].")
    revision: str = option("BRANCH", "The branch; made where it is not there.", default="main")
    message: str = option("TEXT", "What the commit says.", "--message", "-m", default="Upload by loraft")
    dry_run: bool = flag("Tell what would be sent, and ask the Hub for nothing.")


def push(given: PushOptions, as_json: JsonOption = False) -> None:
    """Put an adapter or a model on the Hub, with its card.

    Only files that others load are sent, in one commit. A file that holds a token or a password is refused, and so is
    an adapter that names its base by a path of this machine. Who you are says `hf auth login`, or HF_TOKEN in the
    environment.
    """
    with watching("push") as view:
        done = api.push(**vars(given), observer=view)
    print_note(*done.notes)
    if as_json:
        print_json(done.as_dict())
        return
    sizes = [{"file": name, "bytes": size} for name, size in done.files.items()]
    what = {"repository": done.repo, "folder": str(done.folder), "sent": "nothing: a dry run"}
    if done.address is not None:
        what["sent"] = done.address
    if done.left:
        what["stays here"] = ", ".join(done.left)
    print_document({**what, "files": sizes}, rest="hub")
