"""Every snippet of the README runs."""

import json
import re
import shlex

import pytest
from support.models import ROOT

from e5core import cli
from e5core.checkpoint import hub

README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)
SCRIPTS = ("bash scripts/quickstart.sh", "bash scripts/test.sh")


@pytest.fixture
def stage(tmp_path, monkeypatch, real_folder):
    """A folder with what the snippets name; every hub id leads to the real small model."""
    (tmp_path / "multilingual-e5-small").symlink_to(real_folder)
    (tmp_path / "passages.txt").write_text(
        "The café opens at nine.\nWhere is the railway station?\nMy dog likes the beach.\n", "utf-8"
    )
    rows = [{"id": 7, "body": "The café opens at nine."}, {"id": 8, "body": None}]
    (tmp_path / "articles.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.chdir(tmp_path)
    resolve = hub.resolve
    monkeypatch.setattr(
        hub,
        "resolve",
        lambda model, **options: (
            real_folder if str(model).startswith("intfloat/") else resolve(model, **options)
        ),
    )
    return tmp_path


def test_the_kinds_of_blocks_are_those_that_are_run():
    assert {language for language, _ in BLOCKS} == {"bash", "python", "text"}


def test_python_snippets(stage, capsys):
    names: dict[str, object] = {}
    for language, code in BLOCKS:
        if language == "python":
            exec(compile(code, "README.md", "exec"), names)
    assert "[0]" in capsys.readouterr().out  # the protein passage is found
    assert names["result"].token_counts.tolist() == [6, 10]
    assert (stage / "my-e5-small" / "model.safetensors").is_file()


def test_shell_snippets(stage, capsys):
    commands = [
        line for language, code in BLOCKS if language == "bash" for line in code.split("\n")
    ]
    run = [shlex.split(command)[1:] for command in commands if command.startswith("e5core ")]
    assert len(run) == 4
    for arguments in run:
        assert cli.main(arguments) == 0
    assert (stage / "vectors.npy").is_file()
    for name in ("articles.npy", "articles.npy.ids.jsonl", "articles.npy.rejects.jsonl"):
        assert (stage / name).is_file()
    assert "1. 0.8" in capsys.readouterr().out
    # What remains are the two commands, which continuous integration runs.
    remaining = [command for command in commands if command and not command.startswith("e5core ")]
    assert tuple(remaining) == SCRIPTS
    ci = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert all(command in ci for command in SCRIPTS)
