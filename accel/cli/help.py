"""`accel --help` and `accel help [group]`."""

from __future__ import annotations

import sys

from accel.config import AXES, groups

TEXT = """\
accel {version}: which sampler, grid, guidance, cache, stitch and precision give the best images for a budget?

What people type
  accel sampler=dpmpp_2m sampler.steps=8 cache=deepcache       run one recipe, scored and timed against a baseline
  accel -m sampler=ddim,unipc sampler.steps=5,10,20            a sweep: one job for each combination, one table
  accel experiment=demo                                        a whole study: cells, equal-cost controls, table, figures
  accel experiment=demo plan=true                              show cells, what is done and the time left; run nothing
  accel search=timesteps sampler=ddim_accel sampler.steps=4    search on this model, and print how to run what was found
  accel list                                                   the axes; `accel list sampler`: a line for each choice

Your own checkpoint: accel recommend model=<folder or hub id> prompts=prompts.txt reference=<images> budget=60m
searches, validates, and writes the best recipe as a file (docs/recommend.md). One recipe or a study on it: accel
suite=hub suite.model=<folder or hub id> suite.prompts.path=prompts.txt ... (docs/hub.md).

Axes of a recipe (<axis>=<choice>, settings as <axis>.<setting>=<value>; what is not named keeps its default)
{axes}
Other groups
{others}
Settings
  suite.*        the model and its data; N, seed, device and timing are evaluation.n, .seed, .device, .timing
  baseline=      the recipe that differences and speed-ups are against: 'baseline=["sampler=ddim","sampler.steps=50"]'
  cells=         the recipes of a study, commas for alternatives: 'cells=[["sampler=ddim,heun","sampler.steps=5,10"]]'
  evaluation.n=auto       as many samples as the verdicts need       evaluation.seed=0,1,2   more samples: pooled seeds
  plan=true      show what would run and how long it takes
  explain=true   draw which network does what at which step, for each cell
  aa=true        evaluate the same recipes on other seeds, too: how often is the same told apart?
  parts=true     run the parts of combined recipes alone, too: what they promise beside what they do together
  study=<name>   runs of one name share a table          results=<folder>   where everything goes (default: outputs)
  wandb=disabled | offline | online                      threads=<number>   CPU threads
  workers=<number>         processes that share the cells of a study, threads and GPUs; times are taken alone
  launcher=ray|submitit    what starts them, on other machines, too; locks=lease for folders that machines share

Results: <results>/tables (Markdown, CSV), /figures, /records (one hashed JSON a run), /wandb (offline runs). The same
command again computes only what is missing: an interrupted run resumes, a larger evaluation.n adds samples.

Exit codes: 0 done; 1 some cells failed (the others are there); 2 the request is wrong, nothing was written;
130 interrupted, 143 terminated: finished shards are kept.

From measurement to deployment (accel <command>; docs/deploy.md)
  recipe <study> <row> --to <folder>   a measured row as a file that accel.apply runs
  generate <recipe> "prompt" ...       images, from the noise of the study; of labels: accel generate <recipe> 3 5
  verify <recipe>                      whether files, model, first images, quality and speed still hold; exit code
  threshold <recipe>                   of adaptive guidance, caches, learned routers: what each value saves and costs
  export <recipe> --to code|folder     a plain diffusers script (where it can be), or a pipeline folder with the recipe
  gate <baseline> <candidate>          pass, fail or undecided on common seeds, for CI: exit code and table

Other commands: `accel report <study> ...` (one HTML page to look at and to send), `accel table <study> --format
latex|csv|md|html`, `accel rebuild tables|figures|plain` (figures also with --format pdf|svg), `accel claims` (what the
records say of the papers' claims), `accel workspace <entity>/<project>` (a saved view of wandb runs),
`accel work <study>` (one of many workers on a shared folder), `accel workers` (all of them), `accel bench <name>`,
`accel train`, `accel reference` (features of a folder of real images), `accel convert` (pickled
weights to safetensors); each explains itself with --help.
More: `accel list <group>`; `accel <overrides> --cfg job` prints every setting; `accel completion bash` makes TAB
complete; `accel --hydra-help` is the help of Hydra, whose overrides these are; `accel --version`.
"""


def text() -> str:
    """The whole help."""
    from accel import __version__

    known = groups()
    axes = [_line(axis, known) for axis in AXES if axis in known]
    others = [_line(group, known) for group in known if group not in AXES]
    return TEXT.format(version=__version__, axes="".join(axes), others="".join(others))


def main(words: list[str]) -> int:
    if words:
        from accel.cli import listing

        return listing.main(words)
    sys.stdout.write(text())
    return 0


def _line(group: str, known: dict[str, list[str]]) -> str:
    names, shown = [name for name in known[group] if name != "none"], ""
    for name in names:
        more = f" ... ({len(names)})"
        if len(shown) + len(name) + len(more) > 98:
            return f"  {group:<12}{shown}{more}\n"
        shown += f" {name}"
    return f"  {group:<12}{shown}\n"
