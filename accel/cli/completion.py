"""`accel completion <shell>`: TAB completes groups, choices, settings and subcommands, without loading torch or Hydra.

eval "$(accel completion bash)"      in ~/.bashrc
eval "$(accel completion zsh)"       in ~/.zshrc, after compinit
accel completion fish | source       in ~/.config/fish/config.fish
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence

from accel.cli.words import COMMANDS, FLAGS, OURS
from accel.config import groups
from accel.errors import ConfigError, unknown
from accel.registry import CONF, file_of

# bash takes `=` for the end of a word and replaces only what follows it, so what stands before it is cut from the
# candidates. No space is added after them: a choice may be followed by a comma, a group by its setting.
BASH = """\
_accel() {
    local line="${COMP_LINE:0:COMP_POINT}" candidate
    local word="${line##*[[:space:]]}" cut=""
    case "$COMP_WORDBREAKS" in *=*) case "$word" in *=*) cut="${word%=*}=" ;; esac ;; esac
    COMPREPLY=()
    while IFS= read -r candidate; do
        COMPREPLY+=("${candidate#"$cut"}")
    done < <("${COMP_WORDS[0]}" completion query "$line" 2>/dev/null)
}
complete -o nospace -F _accel accel
"""
ZSH = """\
_accel() {
    local -a found
    found=("${(@f)$("${words[1]}" completion query "${LBUFFER}" 2>/dev/null)}")
    compadd -Q -S '' -- "${(@)found:#}"
}
compdef _accel accel
"""
FISH = """\
complete -c accel -f -a '(accel completion query (commandline -cp) 2>/dev/null)'
"""
SCRIPTS = {"bash": BASH, "zsh": ZSH, "fish": FISH}
VALUES = {
    "plan": ["true", "false"],
    "explain": ["true", "false"],
    "aa": ["true", "false"],
    "parts": ["true", "false"],
    "locks": ["auto", "flock", "lease"],
    "wandb": ["disabled", "offline", "online"],
    "evaluation.device": ["auto", "cpu", "cuda"],
    "evaluation.timing": ["true", "false"],
    "evaluation.controls": ["true", "false"],
}


def main(words: list[str]) -> int:
    if words[:1] == ["query"] and len(words) == 2:
        sys.stdout.writelines(f"{candidate}\n" for candidate in candidates(words[1]))
        return 0
    if len(words) != 1:
        raise ConfigError(f"accel completion takes the name of a shell: accel completion {'|'.join(SCRIPTS)}")
    if words[0] not in SCRIPTS:
        raise unknown("shell", words[0], SCRIPTS)
    sys.stdout.write(SCRIPTS[words[0]])
    return 0


def candidates(line: str) -> list[str]:
    """What the last word of a command line, as far as it is typed, may become."""
    words = line.split()
    word = words.pop() if words and not line[-1].isspace() else ""
    known, before = groups(), words[1:]
    if before[:1] and before[0] in COMMANDS:
        names = {"completion": SCRIPTS, "list": known, "help": known}.get(before[0], ())
        found = list(names) if len(before) == 1 else []
    elif "=" in word:
        found = _values(word, known)
    elif word.startswith("-"):
        found = [flag for flag in (*FLAGS, *OURS) if flag.startswith("--")]
    else:
        found = [*([] if before else COMMANDS), *(f"{name}=" for name in [*known, *_keys("config")])]
        if "." in word:
            group = word.partition(".")[0].lstrip("+")
            found = [f"{group}.{key}=" for key in _settings(group, before, known)]
        elif len(fits := [group for group in known if group.startswith(word)]) == 1 and word:
            found += [f"{fits[0]}.{key}=" for key in _settings(fits[0], before, known)]
    return sorted({candidate for candidate in found if candidate.startswith(word)})


def _values(word: str, known: dict[str, list[str]]) -> list[str]:
    key, _, value = word.partition("=")
    begun = value[: value.rfind(",") + 1]  # a sweep: sampler=ddim,un
    return [f"{key}={begun}{choice}" for choice in known.get(key.lstrip("+"), VALUES.get(key, []))]


def _settings(group: str, before: Sequence[str], known: dict[str, list[str]]) -> list[str]:
    """The settings of a group as it is chosen in the words before, or by default."""
    chosen = [word.partition("=")[2] for word in before if word.startswith(f"{group}=")]
    default = re.search(rf"^ +- {group}: *(\w+)", _text("config"), re.MULTILINE)
    choice = chosen[-1] if chosen else default and default[1]
    return _keys(f"{group}/{choice}") if choice in known.get(group, ()) else []


def _keys(name: str) -> list[str]:
    """The settings of a file in conf/, with those of the files that it is based on."""
    text = _text(name)
    own = [key for key in re.findall(r"^(\w+):", text, re.MULTILINE) if key not in ("_target_", "defaults", "hydra")]
    bases = re.search(r"^defaults: *\[(.*?)\]", text, re.MULTILINE)
    for base in bases[1].replace(" ", "").split(",") if bases else ():
        if base != "_self_" and base != name.rpartition("/")[2]:
            own += _keys(f"{name.rpartition('/')[0]}/{base}")
    return list(dict.fromkeys(own))


def _text(name: str) -> str:
    group, _, choice = name.rpartition("/")
    return (file_of(group, choice)[0] if group else CONF / f"{name}.yaml").read_text(encoding="utf-8")
