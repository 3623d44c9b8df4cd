"""Fuzzes a target with libFuzzer, guided by coverage: `python -m tests.fuzzing calldata --runs N`.

Exit code 0 after so many runs; libFuzzer's own code, with the input in a file, where one fails or
takes longer than `TIMEOUT_S`.
"""

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Final

import atheris

with atheris.instrument_imports(include=["listener", "oncepaid.domain"]):
    from tests.fuzzing.targets import TARGETS

from tests.fuzzing.corpus import write_corpus, write_dictionary

TIMEOUT_S: Final = 5
MAX_BYTES: Final = 16 * 1024


def main() -> None:
    """Read the arguments and fuzz; libFuzzer ends the process."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzzing")
    parser.add_argument("target", choices=sorted(TARGETS))
    parser.add_argument("--runs", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        corpus = Path(name) / "corpus"
        corpus.mkdir()
        count = write_corpus(arguments.target, corpus)
        print(f"{arguments.target}: begins with {count} real inputs", flush=True)
        dictionary = Path(name) / "words.dict"
        write_dictionary(dictionary)
        options = [
            *(f"-runs={arguments.runs}", f"-seed={arguments.seed}", f"-timeout={TIMEOUT_S}"),
            *(f"-max_len={MAX_BYTES}", f"-artifact_prefix={name}/", "-print_final_stats=1"),
            f"-dict={dictionary}",
        ]
        atheris.Setup([sys.argv[0], *options, str(corpus)], TARGETS[arguments.target])
        atheris.Fuzz()


main()
