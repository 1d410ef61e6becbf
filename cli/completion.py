"""`warren-raft completion`: the script that makes a shell complete the command line.

Not here: the completions themselves; each command and type has its own. Invariant: the manager is not asked.
"""

from __future__ import annotations

from typing import Final

import click
from click.shell_completion import get_completion_class

from .common import ShowingCommand

VARIABLE: Final = "_WARREN_RAFT_COMPLETE"
"""click's name for the variable by which the shell asks the program for completions."""
SHELLS: Final = ("bash", "zsh", "fish")


@click.command("completion", cls=ShowingCommand)
@click.argument("shell", type=click.Choice(SHELLS))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print a script that completes this command line in a shell.

    \b
    Example: warren-raft completion bash >/etc/bash_completion.d/warren-raft
             warren-raft completion zsh >"${fpath[1]}/_warren-raft"
             warren-raft completion fish | source
    """
    made = get_completion_class(shell)
    assert made is not None  # click has all of SHELLS
    click.echo(made(ctx.find_root().command, {}, "warren-raft", VARIABLE).source())
