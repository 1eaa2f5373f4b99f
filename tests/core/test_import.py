"""What importing costs, in fresh interpreters."""

import subprocess
import sys

# torch itself imports numpy and, in some releases, tqdm; what counts is what e5core adds.
ADDED = "import torch, sys; before = set(sys.modules); {}; print(*(set(sys.modules) - before))"
OPTIONAL = {"huggingface_hub", "transformers", "tqdm", "onnxruntime", "requests", "httpx"}
INTERFACES = {"langchain_core", "llama_index", "mteb", "sklearn", "sentence_transformers", "ray"}


def packages_added_by(code: str) -> set[str]:
    command = [sys.executable, "-c", ADDED.format(code)]
    names = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    return {name.split(".")[0] for name in names}


def test_importing_loads_no_optional_package():
    assert not packages_added_by("import e5core") & (OPTIONAL | INTERFACES)
    # The check itself can see such a package.
    assert packages_added_by("import huggingface_hub") & OPTIONAL


def test_the_interface_of_sentence_transformers_does_without_it():
    added = packages_added_by("import e5core.integrations.sentence_transformers")
    assert "e5core" in added
    assert not added & (OPTIONAL | INTERFACES)


def test_importing_loads_little_beyond_torch():
    """Packages rather than seconds: a timed test fails on a busy machine. On a quiet one these
    take 0.025 s after torch."""
    added = packages_added_by("import e5core") - set(sys.stdlib_module_names)
    assert "e5core" in added
    # The last one is what SentencePiece 0.2.0 is bound with.
    assert added <= {"e5core", "sentencepiece", "safetensors", "numpy", "swig_runtime_data4"}


def test_every_public_name_is_there():
    import e5core

    assert len(e5core.__all__) == len(set(e5core.__all__)) == 25
    assert all(hasattr(e5core, name) for name in e5core.__all__)
