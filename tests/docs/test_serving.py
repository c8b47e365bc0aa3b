"""docs/serving.md: its script and its service, on a tiny pipeline with a recipe file beside it."""

from __future__ import annotations

import gc
import io
import re
import threading
import types
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import hub_tiny
import pytest
import torch

from accel import Recipe
from accel.caching import DeepCache
from accel.guidance import CFG
from accel.samplers import DiffusersSampler

PAGE = (Path(__file__).parents[2] / "docs/serving.md").read_text()
BLOCKS = re.findall(r"`(\w+\.py)`[^`]*(?:`[^`\n]+`[^`]*)*?\n\n```python\n(.*?)```", PAGE, re.DOTALL)
RECIPE = Recipe(DiffusersSampler("DDIMScheduler", steps=2), guidance=CFG(3.0), cache=DeepCache(interval=2, branch=1))
WANTED = [{"prompt": prompt, "seed": seed} for seed, prompt in enumerate(hub_tiny.PROMPTS)]


def run(name: str) -> types.ModuleType:
    """The page's file `name`, as a module."""
    module = types.ModuleType(name.removesuffix(".py"))
    exec(compile(dict(BLOCKS)[name], name, "exec", dont_inherit=True), vars(module))
    return module


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with a checkpoint, a recipe that was saved with it, and prompts; the current one."""
    from diffusers import StableDiffusionPipeline

    folder = hub_tiny.save("sd", tmp_path / "my_checkpoint")
    RECIPE.save(tmp_path / "fast", pipe=StableDiffusionPipeline.from_pretrained(folder, use_safetensors=True))
    (tmp_path / "prompts.txt").write_text("\n".join(hub_tiny.PROMPTS * 3))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_both_files_are_on_the_page():
    assert [name for name, _ in BLOCKS] == ["batch.py", "service.py"]


def test_the_script_draws_each_prompt_from_its_own_noise(here):
    import numpy as np
    from diffusers import StableDiffusionPipeline
    from PIL import Image

    import accel

    run("batch.py")
    drawn = [np.asarray(Image.open(path)).astype(int) for path in sorted((here / "pictures").iterdir())]
    assert len(drawn) == 3 * len(hub_tiny.PROMPTS)
    assert (drawn[0] != drawn[8]).any()  # one prompt, two noises
    pipe = StableDiffusionPipeline.from_pretrained("my_checkpoint", use_safetensors=True)
    accel.apply(pipe, "fast")
    alone = pipe(hub_tiny.PROMPTS[1], generator=torch.Generator().manual_seed(9)).images[0]
    assert abs(np.asarray(alone).astype(int) - drawn[9]).max() <= 1


@pytest.fixture
def service(here):
    pytest.importorskip("fastapi", reason="the service of docs/serving.md needs fastapi")
    pytest.importorskip("httpx", reason="its test client needs httpx")
    return run("service.py")


@pytest.fixture
def ask(service):
    """ask(request) -> (status, bytes): one request, by a client of its own, from any thread."""
    from fastapi.testclient import TestClient

    def ask(wanted: dict) -> tuple[int, bytes]:
        answer = TestClient(service.app).post("/image", json=wanted)
        return answer.status_code, answer.content

    return ask


def tensors() -> int:
    """How many tensors live."""
    gc.collect()
    return sum(isinstance(one, torch.Tensor) for one in gc.get_objects())


def test_a_hundred_requests_of_four_threads_get_the_images_that_each_gets_alone(ask):
    from PIL import Image

    alone = [ask(wanted) for wanted in WANTED]
    assert {status for status, _ in alone} == {200}
    assert len({png for _, png in alone}) == len(WANTED)
    assert Image.open(io.BytesIO(alone[0][1])).size == (16, 16)
    before = tensors()
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(ask, WANTED * 25))
    assert len(answers) == 100
    assert all(answer == alone[i % len(WANTED)] for i, answer in enumerate(answers))
    assert tensors() <= before, "memory is flat"


def test_who_finds_no_seat_hears_503_at_once_and_a_seat_is_free_again(service, ask, monkeypatch):
    begun, go_on, plain = threading.Semaphore(0), threading.Event(), service.pipe

    def slow(*args, **kwargs):
        begun.release()
        assert go_on.wait(30)
        return plain(*args, **kwargs)

    monkeypatch.setattr(service, "pipe", slow)
    with ThreadPoolExecutor(service.SEATS) as pool:
        taken = [pool.submit(ask, WANTED[0]) for _ in range(service.SEATS)]
        for _ in taken:
            assert begun.acquire(timeout=30)
        assert ask(WANTED[0])[0] == 503
        go_on.set()
        assert {seat.result()[0] for seat in taken} == {200}
    assert ask(WANTED[0])[0] == 200
    assert service.health() == {"recipe": RECIPE.label, "seats": service.SEATS}


@pytest.mark.parametrize("wanted", [{}, {"prompt": ""}, {"prompt": "a", "seed": -1}, {"prompt": "a", "seed": "x"}])
def test_a_wrong_request_is_refused_before_the_pipeline_runs(ask, wanted):
    assert ask(wanted)[0] == 422
