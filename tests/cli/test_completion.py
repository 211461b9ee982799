"""`fsm-train completion`: what a shell completes while one types, tried in a real bash."""

from __future__ import annotations

import json
import os
import pty
import shutil
import subprocess
from pathlib import Path

import pytest

from fsm_train.cli import COMMANDS, main, parsers
from fsm_train.cli.completion import SCRIPTS, Command, Option

Captured = pytest.CaptureFixture[str]


@pytest.fixture
def script(tmp_path: Path, capsys: Captured) -> Path:
    """The script for bash, in a folder with a log."""
    assert main(["completion", "bash"]) == 0
    (tmp_path / "run.jsonl").touch()
    (tmp_path / "completion.bash").write_text(capsys.readouterr().out)
    return tmp_path / "completion.bash"


def completed(script: Path, *words: str) -> list[str]:
    """What bash offers for the last of these words."""
    ask = '_fsm_train; printf "%s\\n" "${COMPREPLY[@]}"'
    given = " ".join(f"'{word}'" for word in ("fsm-train", *words))
    code = f"source {script}; COMP_WORDS=({given}); COMP_CWORD={len(words)}; {ask}"
    done = subprocess.run(["bash", "-c", code], capture_output=True, text=True, check=True, cwd=script.parent)
    assert done.stderr == ""
    return done.stdout.split()


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["sh"], ["show"]),
        ([""], [*COMMANDS, "--help", "--version"]),
        (["--v"], ["--version"]),
        (["graph", "--f"], ["--format"]),
        (["graph", "--format", "me"], ["mermaid"]),
        (["graph", "--format", "=", "me"], ["mermaid"]),
        (["graph", "--watched", "--format", "=", "te"], ["text"]),
        (["completion", ""], ["bash", "zsh", "fish"]),
        (["completion", "--j"], ["--json"]),
        (["show", "run"], []),
        (["weights", "-o", "--"], []),
        (["nonsense", "--"], []),
    ],
    ids=" ".join,
)
def test_bash_offers_what_fits(words: list[str], offered: list[str], script: Path) -> None:
    """Commands, options and values where they are known; where there is nothing, bash completes files."""
    assert completed(script, *words) == offered


def test_a_person_types_less(script: Path) -> None:
    """In an interactive bash, with the tab key: a command, an option, its value, and the path of a log."""
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "dumb", "PS1": "ready> ", "INPUTRC": os.devnull, "HISTFILE": os.devnull}
    typed = [
        b'fsm-train() { echo "called with $@"; }; source completion.bash\n',
        b"fsm-train sho\tru\t\n",
        b"fsm-train gra\t--fo\tmerm\t\n",
        b"exit\n",
    ]
    command = ["bash", "--norc", "--noprofile", "-i"]
    with subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment, cwd=script.parent, start_new_session=True
    ) as bash:
        os.close(theirs)
        written = b""
        for number, line in enumerate(typed):
            while written.count(b"ready> ") <= number:  # however long it takes
                written += os.read(ours, 1 << 16)
            os.write(ours, line)
        try:
            while piece := os.read(ours, 1 << 16):
                written += piece
        except OSError:
            pass  # as Linux says that nobody has the other end any more
        os.close(ours)
        assert bash.wait() == 0

    called = [line for line in written.decode().splitlines() if line.startswith("called with")]
    assert called == ["called with show run.jsonl", "called with graph --format mermaid"]


@pytest.mark.parametrize("shell", SCRIPTS)
def test_each_command_and_option_is_in_each_script(shell: str, capsys: Captured) -> None:
    """Those that the parsers have, so that none is forgotten that is added later."""
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out

    for name, parser in parsers(COMMANDS)[1].items():
        assert name in script
        for action in parser._actions:
            for option in action.option_strings:
                assert f"-l {option[2:]}" in script or f"-s {option[1:]}" in script or option in script


@pytest.mark.parametrize("shell", SCRIPTS)
def test_it_can_be_had_as_json(shell: str, capsys: Captured) -> None:
    """As from each command."""
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert main(["completion", "--json", shell]) == 0

    assert json.loads(capsys.readouterr().out) == {"shell": shell, "script": script.rstrip("\n")}


ODD = {
    "odd": Command(
        "It's [odd]: 5 \\ 2",
        (Option(("-o",), "a [path]: it's \\", True, ()), Option(("--kind",), "it's", True, ("a", "b"))),
    )
}


@pytest.mark.parametrize("shell", SCRIPTS)
def test_help_with_odd_characters_is_quoted(shell: str, tmp_path: Path) -> None:
    """The shell itself finds no fault in the script, where it is installed."""
    script = "\n".join(SCRIPTS[shell](ODD)) + "\n"
    (path := tmp_path / "script").write_text(script)

    expected = {
        "bash": "\"odd --kind\") words='a b' ;;",
        "zsh": "'--kind[it'\"'\"'s]:value:(a b)'",
        "fish": "-x -a 'a b' -d 'it\\'s'",
    }
    assert expected[shell] in script
    if shutil.which(shell):
        subprocess.run([shell, "-n", str(path)], check=True, capture_output=True)


def test_another_shell_is_refused(capsys: Captured) -> None:
    """With those that there are."""
    with pytest.raises(SystemExit) as caught:
        main(["completion", "tcsh"])

    assert caught.value.code == 2
    assert "choose from bash, zsh, fish" in capsys.readouterr().err.replace("'bash', 'zsh', 'fish'", "bash, zsh, fish")
