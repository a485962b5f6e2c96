"""bench/compare.py: what it calls slower, and that it leaves no checkout behind."""

import subprocess
import sys

import pytest


@pytest.fixture
def compare(monkeypatch):
    import compare

    return compare


@pytest.fixture
def repository(tmp_path):
    """Two commits of a file."""
    root = tmp_path / "repository"
    root.mkdir()

    def git(*command):
        done = subprocess.run(
            ["git", "-c", "user.name=a", "-c", "user.email=a@b", *command],
            cwd=root,
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout

    git("init", "-q", "-b", "main")
    for text in ("one", "two"):
        (root / "file").write_text(text)
        git("add", "file")
        git("commit", "-q", "-m", text)
    return root, git


def test_checkouts_hold_the_commits_and_are_gone_after(compare, repository):
    from _compare.checkouts import checked_out, resolve

    root, git = repository
    commits = [resolve(name, root) for name in ("main~1", "main")]
    with checked_out(commits, root) as trees:
        assert [(tree / "file").read_text() for tree in trees] == ["one", "two"]
    assert not any(tree.parent.exists() for tree in trees)
    with pytest.raises(RuntimeError), checked_out(commits, root) as trees:
        raise RuntimeError
    assert not any(tree.parent.exists() for tree in trees)
    with pytest.raises(SystemExit, match="cannot check out"), checked_out(["0" * 40], root):
        pass
    assert len(git("worktree", "list").splitlines()) == 1
    with pytest.raises(SystemExit, match="'nobody' is no commit"):
        resolve("nobody", root)


class Scripted:
    """A worker that answers with what it was given."""

    def __init__(self, milliseconds, value=1.0, error=None):
        self.answers, self.value, self.error = iter(milliseconds), value, error

    def ask(self, case, seconds):
        if self.error:
            return {"error": self.error}
        ms = next(self.answers)
        return {"milliseconds": [ms, 100 * ms, ms], "value": self.value}


def row(compare, base, head, **other):
    return compare.measure(Scripted(base), Scripted(head, **other), "case", len(base), 0.0)


def test_ratio_is_that_of_each_round(compare):
    found = row(compare, [1.0, 2.0, 4.0, 8.0], [1.3, 2.6, 5.2, 9.6])  # a machine slowing down
    assert found.ratios == pytest.approx((1.3, 1.3, 1.3, 1.2))
    assert found.verdict(0.25) == "slower"
    assert found.fails(0.25)
    assert not found.fails(0.35)
    assert "| case | 3.00 | 3.90 | 1.300 | 1.200 to 1.300 | slower |" in compare.as_table(
        [found], 0.25
    )


def test_noise_is_not_slower(compare):
    found = row(compare, [1.0, 1.0, 1.0, 1.0, 1.0], [0.8, 0.9, 1.2, 1.3, 1.3])
    assert found.verdict(0.1) == "too noisy to say"
    assert not found.fails(0.1)
    assert row(compare, [2.0, 2.0, 2.0], [1.0, 1.1, 1.0]).verdict(0.1) == "faster"


def test_one_unlucky_process_is_not_slower(compare):
    lucky, unlucky = (row(compare, [1.0] * 3, [ms] * 3) for ms in (1.02, 2.3))
    found = compare.together([lucky, unlucky, lucky, lucky, unlucky])
    assert found.ratios == pytest.approx((1.02, 2.3, 1.02, 1.02, 2.3))
    assert not found.fails(0.1)
    assert compare.together([unlucky, lucky, unlucky, unlucky, unlucky]).fails(0.1)
    lost = row(compare, [1.0], [1.0], error="gone")
    assert compare.together([lucky, lost]).fails(0.1)
    assert not row(compare, [1.0], [3.0]).fails(0.1)


def test_another_result_fails_and_so_does_what_the_new_commit_lost(compare):
    found = row(compare, [1.0], [1.0], value=1.01)
    assert found.fails(0.1)
    assert found.verdict(0.1) == "other result: 1, then 1.01"
    assert row(compare, [1.0], [1.0], error="gone").fails(0.1)
    new_case = compare.measure(Scripted([], error="no such"), Scripted([1.0]), "case", 1, 0.0)
    assert not new_case.fails(0.1)
    assert new_case.note == "BASE: no such"


def test_worker_measures_the_package_it_was_sent_to(compare, tmp_path):
    """Not the installed one: a fastvae of one function stands in for a commit."""
    package = tmp_path / "fastvae"
    package.mkdir()
    (package / "__init__.py").write_text(
        "import time, types\n"
        "def zinb_nll(x, scale, library, log_theta, zi):\n"
        "    time.sleep(0.02)\n"
        "    return scale.sum() + log_theta.sum() + zi.sum()\n"
        "functional = types.SimpleNamespace(zinb_nll=zinb_nll)\n"
    )
    with compare.Worker(tmp_path, 1) as worker:
        answer = worker.ask("likelihood 128 x 2000", 0.0)
        assert len(answer["milliseconds"]) == 3
        assert min(answer["milliseconds"]) >= 20
        assert "ImportError" in worker.ask("training step 128 x 2000", 0.0)["error"]
    assert worker.process.returncode is not None


def test_nothing_to_compare_is_said(compare, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["compare.py", "HEAD", "--cases", "nonsense"])
    with pytest.raises(SystemExit, match="no case has"):
        compare.main()
