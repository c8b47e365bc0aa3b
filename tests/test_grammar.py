"""Words that Hydra cannot read are answered with a word that it reads as what was meant."""

from __future__ import annotations

import re
import shlex

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from accel.config import compose, expand_cells, groups
from accel.errors import ConfigError
from accel.grammar import check_cells, check_override, in_shell

KNOWN = {"sampler": ["ddim", "heun"], "cache": ["deepcache", "none"]}


def typed(word: str, inside: bool = False) -> str:
    """The word that the refusal of `word` says to type, as the shell hands it over."""
    with pytest.raises(ConfigError, match="quotes") as refused:
        check_override(word, KNOWN, inside)
    said = re.search(r"Type, with all these quotes: (.*)$", str(refused.value), re.DOTALL)[1]
    if inside:
        return said
    (whole,) = shlex.split(said)
    return whole


@pytest.mark.parametrize(
    "path",
    ["a=b", "a (1)", "a(1)", "a&b", "it's", "über", "a#b", 'a "b"', "it's \"x\"", "a{b", "[a", "a]b", "~/ü", "a;b",
     "a!b", "`a`", "end\\ü", "x,y=z", "日本", "a=b'"],
)  # fmt: skip
def test_the_word_to_type_reads_as_the_path_that_was_meant(path):
    fixed = typed(f"results=outputs/{path}")
    assert OverridesParser.create().parse_override(fixed).value() == f"outputs/{path}"
    assert compose([fixed]).results == f"outputs/{path}"


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("cells=[[sampler=ddim]]", [["sampler=ddim"]]),
        ("cells=[[sampler=ddim,sampler.steps=5,10],[sampler=heun]]",
         [["sampler=ddim", "sampler.steps=5,10"], ["sampler=heun"]]),
        ("cells=[[stitch.fractions=[0.2,0.3],sampler=heun]]", [["stitch.fractions=[0.2,0.3]", "sampler=heun"]]),
        ("cells=[[sampler=ddim]", [["sampler=ddim"]]),
        ("cells=[['sampler=ddim],[\"sampler=heun\"]]", [["sampler=ddim"], ["sampler=heun"]]),
        ("baseline=[sampler=ddim, sampler.steps=50]", ["sampler=ddim", "sampler.steps=50"]),
        ("suite.stitch=[a b,ü]", ["a b", "ü"]),
    ],
)  # fmt: skip
def test_lists_that_lost_their_quotes_get_them_back(word, meant):
    fixed = typed(word)
    assert OverridesParser.create().parse_override(fixed).value() == meant
    if word.startswith("cells=") and "fractions" not in word:
        assert expand_cells(compose([fixed]).cells)


def test_within_a_cell_no_shell_takes_quotes_away():
    assert typed("results=a (1)", inside=True) == "results='a (1)'"


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("heun", "write sampler=heun"),
        ("sampler", "write sampler=<choice>"),
        ("hoin", "write <setting>=<value>"),
        ("~sampler", "leave it out for the default, or choose one (sampler=<choice>): ddim, heun"),
        ("~cache", "choose `none`: cache=none"),
        ("~cache=deepcache", "choose `none`: cache=none"),
        ("cache=null", "choose `none`: cache=none"),
        ("cache=", "choose `none`: cache=none"),
        ("sampler.steps==5", "type sampler.steps=5"),
        ("sampler steps=5", "'sampler steps' is not the name of a setting"),
        ("a={b: (", "quotes"),
        (5, "5 is not an override"),
    ],
)
def test_other_words_are_answered_in_a_sentence(word, said):
    with pytest.raises(ConfigError, match=re.escape(said)):
        check_override(word, KNOWN)


@pytest.mark.parametrize(
    "word",
    ["sampler=ddim", "+suite.weights=/a/b-c.d", "sampler.steps=5,10", "sampler.steps=range(1,5)", "~sampler.name",
     "a='x (1)'", 'cells=[["sampler=ddim"]]', "suite.stitch_models={small: a/b}", "x=${y}", "title=two words",
     "++a.b=null", "hydra/launcher=x"],
)  # fmt: skip
def test_what_hydra_reads_passes(word):
    check_override(word, KNOWN)


@pytest.mark.parametrize("cells", [5, "abc", True, {"a": 1}, [5], [[5]], [[{"a": 1}]], [[["sampler=ddim"]]], [None]])
def test_cells_of_another_shape_are_refused_with_an_example(cells):
    with pytest.raises(ConfigError, match=r"allowed: .*'cells=\[\[\"sampler=ddim\""):
        check_cells("cells", cells)


@pytest.mark.parametrize("overrides", [["~cache"], ["cache=null"], ["sampler=ddim (1)"], ["heun"], ["a b=5"]])
def test_cells_are_read_before_they_are_expanded(overrides):
    with pytest.raises(ConfigError) as refused:
        expand_cells([["sampler=heun"], overrides])
    assert "hydra.cc" not in str(refused.value)


def test_several_values_where_one_is_meant():
    with pytest.raises(ConfigError, match=r"sampler=ddim,heun has several values.*add -m for one job each$"):
        compose(["sampler=ddim,heun"])
    with pytest.raises(ConfigError, match=re.escape("""quote a comma that belongs to the text: "study='a,b'\"""")):
        compose(["study=a,b"])
    assert compose(["study='a,b'"]).study == "a,b"


def test_shell_words():
    for word in ("a=b", "results='a (1)'", """x='it\\'s "y" $z'"""):
        assert shlex.split(in_shell(word)) == [word]
    assert in_shell("results='a (1)'") == "\"results='a (1)'\""


def test_every_group_without_none_is_named_in_its_refusal():
    for group, choices in groups().items():
        with pytest.raises(ConfigError, match="none" if "none" in choices else "leave it out for the default"):
            compose([f"{group}=null"])
