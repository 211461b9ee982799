"""`fsm-train completion bash|zsh|fish`.

Rule of this file: a script is text that is made of the parsers of all commands. It names what there was when it was
made, and runs nothing of this package while one types.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping

import attrs

from .output import write_json
from .status import AGREES

PROGRAM = "fsm-train"


@attrs.frozen
class Option:
    """An option of a command.

    Attributes:
        names: as they are typed, such as -o and --output.
        help: what it is for.
        takes_value: whether a value follows it.
        choices: the values that there are; of none, any can be given, such as the path of a file.
    """

    names: tuple[str, ...]
    help: str
    takes_value: bool
    choices: tuple[str, ...]


@attrs.frozen
class Command:
    """A command.

    Attributes:
        help: what it does.
        options: those that it takes.
        choices: the words that it takes without an option; of none, they are paths of files.
    """

    help: str
    options: tuple[Option, ...]
    choices: tuple[str, ...] = ()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", choices=tuple(SCRIPTS), help=f"in its startup file: {_how_to('bash')}")


def run(options: argparse.Namespace) -> int:
    from . import COMMANDS, parsers

    commands = {name: _command(each, COMMANDS[name]) for name, each in parsers(COMMANDS)[1].items()}
    script = "\n".join(SCRIPTS[options.shell](commands))
    if options.json:
        write_json({"shell": options.shell, "script": script})
    else:
        sys.stdout.write(script + "\n")
    return AGREES


def _command(parser: argparse.ArgumentParser, text: str) -> Command:
    # argparse has no public name for what a parser was given; that of completion libraries is this one too.
    actions = parser._actions
    options = tuple(
        Option(tuple(a.option_strings), a.help or "", a.nargs != 0, tuple(map(str, a.choices or ())))
        for a in actions
        if a.option_strings
    )
    choices = tuple(str(choice) for a in actions if not a.option_strings for choice in a.choices or ())
    return Command(text, options, choices)


# ------------------------------------------------------------------------------------------ scripts


def bash(commands: Mapping[str, Command]) -> Iterator[str]:
    """Completion for bash: words where they are known, and otherwise what it does by itself, files."""
    yield f"# {_how_to('bash')}"
    yield "_fsm_train() {"
    yield '    local current=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD-1]} command="" words="" word'
    yield '    [[ $current == "=" ]] && current=""  # --option=value comes as three words'
    yield '    [[ $before == "=" ]] && before=${COMP_WORDS[COMP_CWORD-2]}'
    yield '    for word in "${COMP_WORDS[@]:1:COMP_CWORD-1}"; do'
    yield "        [[ $word == -* ]] || { command=$word; break; }"
    yield "    done"
    yield "    COMPREPLY=()"
    yield '    case "$command $before" in'
    for name, command in commands.items():
        for option in command.options:
            if option.takes_value:
                pattern = "|".join(f'"{name} {each}"' for each in option.names)
                yield f"        {pattern}) words={_words(option.choices)} ;;"
    yield "        *)"
    yield '            case "$command:$current" in'
    yield f"                :*) words={_words((*commands, '--help', '--version'))} ;;"
    for name, command in commands.items():
        yield f"                {name}:-*) words={_words(_option_names(command))} ;;"
        if command.choices:
            yield f"                {name}:*) words={_words(command.choices)} ;;"
    yield "            esac ;;"
    yield "    esac"
    yield '    COMPREPLY=($(compgen -W "$words" -- "$current"))'
    yield "}"
    yield f"complete -o bashdefault -o default -F _fsm_train {PROGRAM}"


def zsh(commands: Mapping[str, Command]) -> Iterator[str]:
    """Completion for zsh, with what each word is for."""
    yield f"#compdef {PROGRAM}"
    yield f"# {_how_to('zsh')}, after compinit"
    yield "_fsm_train() {"
    yield "    local -a commands=("
    for name, command in commands.items():
        yield f"        {shlex.quote(f'{name}:{command.help}')}"
    yield "    )"
    yield "    if (( CURRENT == 2 )); then"
    yield "        _describe command commands; compadd -- --help --version; return"
    yield "    fi"
    yield "    shift words; (( CURRENT-- ))"
    yield "    case $words[1] in"
    for name, command in commands.items():
        yield f"        {name}) _arguments -S \\"
        for option in command.options:
            value = f":value:{_zsh_values(option.choices)}" if option.takes_value else ""
            for each in option.names:
                yield f"            {shlex.quote(f'{each}[{_zsh_help(option.help)}]{value}')} \\"
        yield f"            {shlex.quote(f'*:argument:{_zsh_values(command.choices)}')} ;;"
    yield "    esac"
    yield "}"
    yield f"compdef _fsm_train {PROGRAM}"


def fish(commands: Mapping[str, Command]) -> Iterator[str]:
    """Completion for fish, with what each word is for."""
    yield f"# {PROGRAM} completion fish | source"
    none = f"not __fish_seen_subcommand_from {' '.join(commands)}"
    for name, command in commands.items():
        yield f"complete -c {PROGRAM} -f -n {_fish(none)} -a {name} -d {_fish(command.help)}"
    for name, command in commands.items():
        here = _fish(f"__fish_seen_subcommand_from {name}")
        for option in command.options:
            names = " ".join(f"-{'l' if each.startswith('--') else 's'} {each.lstrip('-')}" for each in option.names)
            value = (f" -x -a {_fish(' '.join(option.choices))}" if option.choices else " -r") * option.takes_value
            yield f"complete -c {PROGRAM} -n {here} {names}{value} -d {_fish(option.help)}"
        if command.choices:
            yield f"complete -c {PROGRAM} -f -n {here} -a {_fish(' '.join(command.choices))}"


SCRIPTS: Mapping[str, Callable[[Mapping[str, Command]], Iterator[str]]] = {"bash": bash, "zsh": zsh, "fish": fish}


def _how_to(shell: str) -> str:
    """What to write into the startup file of a shell."""
    return f'eval "$({PROGRAM} completion {shell})"'


def _option_names(command: Command) -> tuple[str, ...]:
    return tuple(name for option in command.options for name in option.names)


def _words(words: Iterable[str]) -> str:
    return shlex.quote(" ".join(words))


def _zsh_values(choices: Iterable[str]) -> str:
    """What _arguments completes a value with: these words, or files."""
    words = " ".join(choices)
    return f"({words})" if words else "_files"


def _zsh_help(text: str) -> str:
    """Text between the brackets of a specification of _arguments."""
    return "".join(f"\\{c}" if c in "[]:\\" else c for c in text)


def _fish(text: str) -> str:
    """Text in quotes of fish, where a backslash escapes a quote and itself."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
