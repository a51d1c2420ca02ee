"""A commit is compared with the code of that commit, and what the code gained or lost is what the ratio says."""

import shutil
import subprocess
from contextlib import nullcontext

import pytest

from benchmarks import commits
from benchmarks.commits import ROOT, checkout_of, compare_commits

from .test_comparisons import SMALL

SLOWER = """
import time
_forward = SetCriterion.__call__
def _slow(*arguments):
    time.sleep(0.3)
    return _forward(*arguments)
SetCriterion.__call__ = _slow
"""
in_a_repository = pytest.mark.skipif(not (ROOT / ".git").exists(), reason="these files are no git checkout")


@in_a_repository
@pytest.mark.slow
def test_every_part_is_timed_on_both_sides_and_the_slower_one_is_seen(tmp_path, monkeypatch):
    shutil.copytree(ROOT / "detr_hf", tmp_path / "detr_hf", ignore=shutil.ignore_patterns("assets", "__pycache__"))
    with open(tmp_path / "detr_hf/model/loss_detr.py", "a", encoding="utf-8") as file:
        file.write(SLOWER)
    monkeypatch.setattr(commits, "checkout_of", lambda commit: nullcontext(tmp_path))
    pictures = {"forward": (1, (64, 64)), "forward_padded": (2, (64, 96)), "train_step": (2, (64, 64))}
    criterion = {"layers": 2, "batch": 2, "objects": 3, "queries": 10}
    record = compare_commits("HEAD", runs=2, pictures=pictures, criterion=criterion, **SMALL)
    assert record["settings"]["base"] == record["settings"]["here"]
    for part in ("forward", "forward_padded", "criterion", "train_step"):
        assert record[part]["sides"] == ["here", "base"] and record[part]["largest_difference"] == 0.0
        assert record[part]["cpu_ratio"]["median"] > 0
    assert record["criterion"]["peer_s"] > 0.3 > record["criterion"]["ours_s"]
    assert record["criterion"]["ratio"]["median"] > 2 > record["criterion"]["cpu_ratio"]["median"]  # it only slept


@in_a_repository
def test_a_checkout_holds_the_files_of_its_commit_and_goes_away():
    before = subprocess.run(["git", "-C", ROOT, "worktree", "list"], capture_output=True, check=True).stdout
    with checkout_of("HEAD") as checkout:
        assert (checkout / "detr_hf/__init__.py").is_file() and checkout != ROOT
    assert not checkout.exists()
    assert subprocess.run(["git", "-C", ROOT, "worktree", "list"], capture_output=True, check=True).stdout == before


@in_a_repository
def test_what_does_not_exist_is_refused():
    with pytest.raises(ValueError, match="no commit 'nowhere'"):
        compare_commits("nowhere")
    with pytest.raises(ValueError, match="no part 'backward'; choose from forward"):
        compare_commits("HEAD", ["backward"])


def test_a_worker_that_imports_another_package_is_refused(tmp_path):
    with pytest.raises(RuntimeError, match="expected the package of"):
        commits.Side("base", tmp_path, tmp_path)
