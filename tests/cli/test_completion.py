"""TAB: what is offered, and the bash function as bash calls it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from accel.cli.completion import candidates
from accel.config import groups

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("accel li", ["list"]),
        ("accel sampler=hel", []),
        ("accel sampler=heu", ["sampler=heun"]),
        ("accel -m sampler=ddim,uni", ["sampler=ddim,unipc", "sampler=ddim,unipc_accel"]),
        ("accel sampler=heun cac", ["cache="]),
        ("accel cache=deepcache cache.int", ["cache.interval="]),
        ("accel sampler=dc_ddim sampler.cor", ["sampler.corrector="]),
        ("accel sampler=ode sampler.sched", []),
        ("accel plan=", ["plan=false", "plan=true"]),
        ("accel --mul", ["--multirun"]),
        ("accel list gui", ["guidance"]),
        ("accel list guidance ", []),
        ("accel completion b", ["bash"]),
        ("accel train sui", []),
        ("accel stud", ["student=", "study="]),
        ("accel dec", ["decoder="]),
    ],
)
def test_what_is_offered(line, offered):
    assert candidates(line) == offered


def test_all_choices_of_a_group_are_offered():
    assert candidates("accel cache=") == [f"cache={choice}" for choice in groups()["cache"]]


@pytest.fixture
def command(tmp_path):
    """An installed `accel`, as its console script is, and a record of what its processes have loaded."""
    script = tmp_path / "bin/accel"
    script.parent.mkdir()
    script.write_text(
        f"#!{sys.executable}\n"
        "import atexit, sys\n"
        f"sys.path.insert(0, {str(ROOT)!r})\n"
        f"atexit.register(lambda: open({str(tmp_path / 'loaded')!r}, 'a').write(' '.join(sys.modules) + '\\n'))\n"
        "from accel.__main__ import main\nmain()\n"
    )
    script.chmod(0o755)
    return os.environ | {"PATH": f"{script.parent}:{os.environ['PATH']}"}, tmp_path / "loaded"


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
@pytest.mark.parametrize("breaks", [" \t\n=:", " \t\n"], ids=["= ends a word", "= does not"])
def test_bash_completes_by_the_documented_line(command, breaks):
    environment, loaded = command
    script = (
        'eval "$(accel completion bash)"\n'
        f"COMP_WORDBREAKS=$'{breaks.encode('unicode_escape').decode()}'\n"
        'try() { COMP_LINE="$1" COMP_POINT=${#1} COMP_WORDS=(accel); _accel; echo "${COMPREPLY[@]}"; }\n'
        'complete -p accel\ntry "accel sampler=heu"\ntry "accel -m sampler=ddim,heu"\ntry "accel lis"\n'
        'try "accel suite=nothing_li"\n'
    )
    done = subprocess.run(["bash", "--norc", "-c", script], env=environment, capture_output=True, text=True)
    cut = "=" in breaks
    assert done.stdout.splitlines() == [
        "complete -o nospace -F _accel accel",
        "heun" if cut else "sampler=heun",
        "ddim,heun" if cut else "sampler=ddim,heun",
        "list",
        "",
    ], done.stderr
    processes = loaded.read_text().splitlines()
    assert len(processes) == 5
    for modules in processes:
        assert not {"torch", "diffusers", "hydra"} & set(modules.split())


@pytest.mark.skipif(shutil.which("zsh") is None, reason="there is no zsh")
def test_zsh_completes_by_the_documented_line(command):
    script = (
        'compdef() { echo "compdef $@" }\n'
        'compadd() { while [[ $1 != -- ]]; do shift; done; shift; echo "$@" }\n'
        'eval "$(accel completion zsh)"\n'
        'try() { local LBUFFER="$1"; local -a words=(accel); _accel }\n'
        'try "accel sampler=heu"\ntry "accel -m sampler=ddim,heu"\ntry "accel lis"\ntry "accel suite=nothing_li"\n'
    )
    done = subprocess.run(["zsh", "-f", "-c", script], env=command[0], capture_output=True, text=True)
    found = ["compdef _accel accel", "sampler=heun", "sampler=ddim,heun", "list", ""]
    assert done.stdout.splitlines() == found, done.stderr
