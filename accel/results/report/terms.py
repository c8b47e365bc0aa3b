"""What the words of a page mean: headings, verdicts, marks and roles; a page has those that it shows."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple


class Term(NamedTuple):
    """A term, the headings that it explains (searched for in them), and what it means."""

    name: str
    pattern: str
    text: str


TERMS = (
    Term(
        "recipe",
        r"^(recipe|control)$",
        "A sampler with its number of steps, its grid, and what accelerates it; labels are spelled out below. ○: a "
        "plain sampler, with nothing but guidance beside it.",
    ),
    Term(
        "rank",
        r"^rank$",
        "1 + the number of recipes that are better than this one, in that value in which most are; =: shared.",
    ),
    Term(
        "FID",
        r"FID",
        "Fréchet distance between features of the generated and of the reference images, in the feature space that "
        "is named; lower is better. Values of different feature spaces, N or references do not compare.",
    ),
    Term(
        "KID",
        r"KID",
        "Kernel distance (squared MMD) between the same features; lower is better; near 0 it may come out below 0.",
    ),
    Term(
        "fd",
        r"\bFD\b",
        "Fréchet distance in the feature space that is named, as FID is; lower is better.",
    ),
    Term(
        "accuracy",
        r"accuracy",
        "Share of samples that the suite's classifier takes for what they should show; higher is better.",
    ),
    Term(
        "adherence",
        r"adherence",
        "Share of the wanted objects that are found in the picture as the prompt says; higher is better.",
    ),
    Term(
        "exact",
        r"exact",
        "Share of samples that show all that the prompt says, and nothing else; higher is better.",
    ),
    Term(
        "CLIP score",
        r"CLIP score",
        "100 times the cosine between the embeddings of prompt and picture; higher is better.",
    ),
    Term(
        "Inception score",
        r"(?i)inception score",
        "How sure a classifier is of single samples, and how evenly they spread over classes; higher is better.",
    ),
    Term(
        "precision, recall",
        r"(?i)Δ?(precision|recall)",
        "Shares of generated samples that lie among the real ones in feature space, and of real ones that lie "
        "among the generated; higher is better.",
    ),
    Term(
        "distance",
        r"^Δ?distance",
        "Root mean square difference to the converged sample of the same seed and guidance (or the exact "
        "solution); lower is better.",
    ),
    Term(
        "nearest training image",
        r"nearest",
        "Distance to the nearest image of the training data: near 0 would be a copy.",
    ),
    Term(
        "FID to held-out images",
        r"held-out images$",
        "Frechet distance to real images that neither the model nor the reference has seen; lower is better.",
    ),
    Term(
        "PSNR, SSIM, LPIPS",
        r"PSNR|SSIM|LPIPS",
        "Likeness of the 8-bit pictures of one seed to the converged ones, or, where the heading ends in *to "
        "plain*, to the same recipe without acceleration. PSNR and SSIM: higher is better; LPIPS: lower.",
    ),
    Term(
        "sharpness",
        r"sharpness",
        "Variance of the Laplacian of the luminance. No side is better: lower than the baseline's means blurrier.",
    ),
    Term(
        "temporal difference",
        r"temporal difference",
        "Mean absolute difference of consecutive frames. No side is better: lower than the baseline's means calmer.",
    ),
    Term(
        "quality",
        r"^Δ?quality",
        "A value of the record that a recipe is ranked by.",
    ),
    Term(
        "Δ",
        r"^Δ",
        "A value less the baseline's (or less the control's, or the other seeds'), paired on common seeds, with "
        "its 95 % interval.",
    ),
    Term(
        "all values",
        r"^all values$",
        "Whether a recipe is non-inferior to the baseline in each value that a user would miss, or in which not "
        "and why.",
    ),
    Term(
        "margin",
        r"margin",
        "The largest loss of a value that is still taken for none, stated beforehand; a point is one per cent of "
        "the samples.",
    ),
    Term(
        "NFE",
        r"^NFE$",
        "Network evaluations an image, counted; of rows that guidance doubles both count.",
    ),
    Term(
        "MACs",
        r"MACs",
        "Multiply-accumulates an image of all networks that sampling runs, counted; ÷ baseline: over the "
        "baseline's, so lower is cheaper.",
    ),
    Term(
        "ms/image",
        r"^ms/image|^time$",
        "The baseline's time an image, the median of all its timings in the study, divided by the recipe's speed-up.",
    ),
    Term(
        "speed-up",
        r"speed-up",
        "Time of the baseline over that of the recipe, both measured in the same rounds; higher is faster. *Not "
        "told apart*: its interval reaches 1, or what baseline or recipe show against themselves (the A/A floor).",
    ),
    Term(
        "outside the denoiser %",
        r"outside the denoiser",
        "What part of a call's time is not the denoiser's: text encoders, scheduler, autoencoder and the rest.",
    ),
    Term(
        "bound",
        r"^bound$",
        "The speed-up over the baseline that a denoiser without any cost would give this row: its other stages stay.",
    ),
    Term(
        "bit operations ÷ float",
        r"bit operations",
        "Multiplications of single bits over those of the same network in 32-bit floating point.",
    ),
    Term(
        "weights MB, peak MB, cache MB",
        r" MB$",
        "Memory: of the weights; the most at once, while sampling, on the CPU or GPU; of what a cache keeps.",
    ),
    Term(
        "reused %",
        r"reused %",
        "Evaluations that a cache answered with an earlier one, decided while sampling. 0: its threshold never hit.",
    ),
    Term(
        "set-up",
        r"set-up|earned",
        "Seconds before the first image: searches, fits, calibration, compilation. Earned: after how many images "
        "the time that the recipe saves is as much.",
    ),
    Term(
        "at equal",
        r"^at equal$",
        "What an equal-cost control costs as much of as the recipe: MACs, measured time, or both, to the nearest "
        "whole step.",
    ),
    Term(
        "predicted, measured, interaction",
        r"^(predicted|measured|interaction|parts)$",
        "What the parts of a combined recipe promise, each alone; what it does; and by how much that differs.",
    ),
    Term(
        "reason",
        r"^reason$",
        "Why a recipe has no result.",
    ),
    Term(
        "environment",
        r"^(records|of|device|threads|batch|instructions|system|made with)$",
        "Where samples and times of how many records were made; threads are the CPU's, batch the images that are "
        "sampled together.",
    ),
)
ALWAYS = (
    Term(
        "N, seed",
        "",
        "How many samples a value is taken of, and where their noise begins: sample i of one seed starts alike in "
        "every recipe.",
    ),
    Term(
        "interval, ±",
        "",
        "95 %, by the delete-group jackknife for values and by order statistics for times. Of 20 intervals one "
        "misses what it is about.",
    ),
    Term(
        "better, worse",
        "",
        "The interval of the paired difference excludes 0.",
    ),
    Term(
        "non-inferior, equivalent",
        "",
        "The worse end of that interval stays inside the margin; both ends do.",
    ),
    Term(
        "undecided",
        "",
        "Neither is shown: more samples would be needed. It is no evidence of equality.",
    ),
    Term(
        "‡, †",
        "",
        "What survives when all comparisons of the table are taken together: Holm (‡), or Benjamini-Hochberg only "
        "(†), at 5 %.",
    ),
    Term(
        "baseline, conventional, best plain sampler",
        "",
        "What recipes are held against: the study's own baseline; what most people run; the plain sampler that "
        "loses nothing in the fewest steps.",
    ),
    Term(
        "control",
        "",
        "A plain sampler given the cost of an accelerated recipe: does acceleration beat fewer steps?",
    ),
    Term(
        "converged, reference",
        "",
        "The trajectory that a great many steps end in, from the same noise.",
    ),
    Term(
        "floor",
        "",
        "As many real images, scored against the reference like samples: no sampler can be expected to be better.",
    ),
    Term(
        "simulated",
        "",
        "Rounded as in the real kernel, but not faster, so never timed.",
    ),
    Term(
        "front",
        "",
        "Recipes that no other beats in both cost and quality; of what recipes are ranked by, a loss beyond the "
        "margin in any value counts first.",
    ),
    Term(
        "|x − converged|",
        "",
        "Difference of each pixel to the converged sample of the same seed, brightened by one factor for the whole "
        "page section.",
    ),
)


def terms(headings: Iterable[str]) -> list[Term]:
    """What a page with these headings has to explain, in the order of the lists above."""
    shown = list(headings)
    return [*(t for t in TERMS if any(re.search(t.pattern, heading) for heading in shown)), *ALWAYS]


def unexplained(headings: Iterable[str]) -> list[str]:
    """The headings that no term explains."""
    return [heading for heading in headings if not any(re.search(term.pattern, heading) for term in TERMS)]
