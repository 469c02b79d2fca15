"""Makes the two tokenizers in baleen/data again: `python examples/train_tokenizers.py`, with CPython 3.11.

`bytes` has one piece per byte. `text` is byte-level BPE, trained on the docstrings of Python's standard library.
"""

from __future__ import annotations

import ast
import json
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

DATA = Path(__file__).resolve().parents[1] / "baleen" / "data"
TEXT_IDS = 2048

FIRST = ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>")
# In DeepSeek-V3.2's order, after all pieces. True: left out of decoded text when special tokens are skipped.
LAST = (
    ("｜DSML｜", True),
    ("<dsml:", False),
    ("</dsml:", False),
    ("<｜search▁begin｜>", False),
    ("<｜search▁end｜>", False),
    ("<think>", False),
    ("</think>", False),
    ("<｜fim▁hole｜>", False),
    ("<｜fim▁begin｜>", False),
    ("<｜fim▁end｜>", False),
    ("<｜User｜>", False),
    ("<｜Assistant｜>", False),
    ("<|EOT|>", True),
    ("<｜tool▁calls▁begin｜>", False),
    ("<｜tool▁calls▁end｜>", False),
    ("<｜tool▁call▁begin｜>", False),
    ("<｜tool▁call▁end｜>", False),
    ("<｜tool▁outputs▁begin｜>", False),
    ("<｜tool▁outputs▁end｜>", False),
    ("<｜tool▁output▁begin｜>", False),
    ("<｜tool▁output▁end｜>", False),
    ("<｜tool▁sep｜>", False),
)


def byte_symbols() -> list[str]:
    """The character that byte-level tokenizers write for each byte value, 0 to 255.

    Printable Latin-1 bytes stand for themselves, the others for the characters from U+0100 on, in order.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = (byte for byte in range(256) if byte not in printable)
    shifted = {byte: chr(0x100 + place) for place, byte in enumerate(others)}
    return [shifted.get(byte, chr(byte)) for byte in range(256)]


def assemble(pieces: list[str], merges: list[tuple[str, str]]) -> Tokenizer:
    """A byte-level tokenizer: the first special strings, then `pieces`, then the other special strings."""
    vocabulary = {piece: number for number, piece in enumerate([*FIRST, *pieces])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\p{N}{1,3}"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(text, normalized=False, special=True) for text in FIRST])
    for text, special in LAST:
        tokenizer.add_tokens([AddedToken(text, normalized=False, special=special)])
    return tokenizer


def docstrings() -> Iterator[str]:
    """Docstrings of the standard library's modules, classes and functions, in order of file names."""
    root = Path(sysconfig.get_paths()["stdlib"])
    skipped = {"test", "tests", "idle_test", "site-packages", "dist-packages", "lib2to3", "__pycache__"}
    for path in sorted(root.rglob("*.py")):
        if skipped & set(path.relative_to(root).parts):
            continue
        tree = ast.parse(path.read_bytes())
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                text = ast.get_docstring(node)
                if text:
                    yield text


def train_text() -> Tokenizer:
    """Learn merges from the docstrings; the vocabulary ends at TEXT_IDS ids, special strings included."""
    symbols = byte_symbols()
    learner = assemble(symbols, [])
    size = TEXT_IDS - len(FIRST) - len(LAST)
    learner.train_from_iterator(
        docstrings(), trainers.BpeTrainer(vocab_size=size, initial_alphabet=symbols, show_progress=False)
    )
    merges = [tuple(pair) for pair in json.loads(learner.to_str())["model"]["merges"]]
    return assemble([*symbols, *("".join(pair) for pair in merges)], merges)


def main() -> int:
    """Write both files."""
    for name, tokenizer in (("bytes", assemble(byte_symbols(), [])), ("text", train_text())):
        path = DATA / f"{name}.tokenizer.json"
        path.write_text(tokenizer.to_str() + "\n", encoding="utf-8")
        sys.stdout.write(f"{path}: {tokenizer.get_vocab_size()} ids\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
