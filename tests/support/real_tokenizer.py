"""DeepSeek-V3.2's own tokenizer, from its tokenizer.json, which is kept compressed."""

from __future__ import annotations

import lzma
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from baleen.text.tokenizer import Tokenizer, load_tokenizer
from baleen.text.tokenizer_files import TOKENIZER_FILE

_FILE = Path(__file__).parents[1] / "data" / "tokenizer" / "deepseek_v32.tokenizer.json.xz"


@cache
def real_tokenizer() -> Tokenizer:
    """The tokenizer, loaded as from a checkpoint's directory."""
    with TemporaryDirectory() as directory:
        write_real_tokenizer(Path(directory))
        tokenizer = load_tokenizer(Path(directory))
    assert tokenizer is not None
    return tokenizer


def write_real_tokenizer(directory: Path) -> None:
    """Write tokenizer.json into a directory."""
    (directory / TOKENIZER_FILE).write_bytes(lzma.decompress(_FILE.read_bytes()))
