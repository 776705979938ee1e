"""The corpus job: whatever the parts, places, formats and lengths, the same codes of each clip."""

import errno
import io
import json
import sys
import tarfile
import types
from pathlib import Path

import fsspec
import numpy as np
import pytest
import soundfile

from speechlm_jax import artifacts
from speechlm_jax import config as configs
from speechlm_jax.cli import main as cli
from speechlm_jax.data.parquet import read_parquet
from speechlm_jax.errors import EXIT_OK, EXIT_USAGE, UserError
from speechlm_jax.speech_tokenizer.reading import Transcriber
from speechlm_jax.speech_tokenizer.windows import WindowConfig
from speechlm_jax.verbs import encoding
from speechlm_jax.verbs.tokenize import TokenizeConfig, tokenize

pytestmark = pytest.mark.filterwarnings("ignore")
SHORT = WindowConfig(1.92, 0.32)


def noise(seconds: float, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.1, int(16_000 * seconds)).astype(np.float32)


def flac(seconds: float, seed: int = 0) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, noise(seconds, seed), 16_000, format="FLAC")
    return file.getvalue()


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> Path:
    """Seven recordings of 0.5 to 5 s, of which one is silent."""
    folder = tmp_path_factory.mktemp("clips")
    for i in range(7):
        (folder / f"{i}.flac").write_bytes(flac(0.5 + 0.75 * i, i))
    soundfile.write(folder / "4.flac", np.zeros(9_000), 16_000)
    return folder


@pytest.fixture(scope="module")
def whole(run, clips, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "codes"
    tokenize([clips], run=run, out=out, config=TokenizeConfig(SHORT))
    return out


def rows_of(out: Path) -> dict[str, list[int]]:
    return {row["id"]: row["codes"] for row in artifacts.read_jsonl(out / "codes.jsonl")}


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_row_tells_its_time_and_its_audio(whole, clips):
    rows = list(artifacts.read_jsonl(whole / "codes.jsonl"))
    assert [row["id"] for row in rows] == [f"{i}.flac" for i in (0, 1, 2, 3, 5, 6)]
    for row in rows:
        seconds = len(soundfile.read(clips / row["id"])[0]) / 16_000
        assert (row["start"], row["seconds"]) == (0.0, seconds)
        assert row["sha256"] == artifacts.sha256_file(clips / row["audio"])
        assert len(row["codes"]) == pytest.approx(seconds * 12.5, abs=1)
    (bad,) = artifacts.read_jsonl(whole / "bad.jsonl")
    assert bad["id"] == "4.flac" and "is silent" in bad["reason"]
    manifest = artifacts.read_manifest(whole)
    assert configs.from_json(WindowConfig, manifest.config["window"]) == SHORT
    assert not artifacts.verify(whole) and manifest.counts["clips"] == 6


def test_parts_in_any_order_join_to_the_same_bytes(run, clips, whole, tmp_path, monkeypatch):
    monkeypatch.setattr(encoding, "SHARD_ROWS", 2)
    for part in (3, 1, 2):
        assert not (tmp_path / "codes.jsonl").exists()
        said = tokenize([clips], run=run, out=tmp_path, config=TokenizeConfig(SHORT, part, 3))
    monkeypatch.setattr(Transcriber, "iter_codes", None)  # nothing is left to be encoded
    again = tokenize([clips], run=run, out=tmp_path, config=TokenizeConfig(SHORT, 1, 3))
    assert said == again and files(tmp_path) == files(whole)


def test_a_shard_whose_recording_changed_is_made_again(run, clips, whole, tmp_path, monkeypatch):
    monkeypatch.setattr(encoding, "SHARD_ROWS", 2)
    inputs, out = tmp_path / "in", tmp_path / "out"
    inputs.mkdir()
    for path in clips.iterdir():
        (inputs / path.name).write_bytes(flac(1.0) if path.name == "3.flac" else path.read_bytes())
    tokenize([inputs], run=run, out=out, config=TokenizeConfig(SHORT, 1, 2))
    (inputs / "3.flac").write_bytes((clips / "3.flac").read_bytes())
    for part in (1, 2):
        tokenize([inputs], run=run, out=out, config=TokenizeConfig(SHORT, part, 2))
    assert rows_of(out) == rows_of(whole)


def test_parquet_holds_the_same_rows(run, clips, whole, tmp_path):
    config = TokenizeConfig(SHORT, format="parquet")
    tokenize([clips], run=run, out=tmp_path, config=config)
    made = list(read_parquet(tmp_path / "codes.parquet"))
    assert made == list(artifacts.read_jsonl(whole / "codes.jsonl"))
    assert set(artifacts.read_manifest(tmp_path).files) == {"codes.parquet", "bad.jsonl"}


def write_tar(path: Path, clips: Path, mode: str = "w") -> Path:
    with tarfile.open(path, mode) as tar:
        for file in sorted(clips.iterdir()):
            told = json.dumps({"speaker": "Ann", "id": "no"}).encode()
            parts = {file.name: file.read_bytes(), f"{file.stem}.json": told}
            for name, data in {**parts, f"{file.stem}.txt": b"it is"}.items():
                member = tarfile.TarInfo(f"../{name}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return path


@pytest.mark.parametrize(("name", "mode"), [("a.tar", "w"), ("a.tar.gz", "w:gz")])
def test_tar_files_are_read_in_one_go(run, clips, whole, tmp_path, name, mode):
    tar = write_tar(tmp_path / name, clips, mode)
    tokenize([tar], run=run, out=tmp_path / "out", config=TokenizeConfig(SHORT))
    made = {key.rpartition("/")[2]: codes for key, codes in rows_of(tmp_path / "out").items()}
    assert made == rows_of(whole)
    row = next(artifacts.read_jsonl(tmp_path / "out/codes.jsonl"))
    assert (row["id"], row["text"], row["speaker"]) == (f"{name}/../0.flac", "it is", "Ann")
    tar.write_bytes(tar.read_bytes()[: tar.stat().st_size // 2])
    tokenize([tmp_path], run=run, out=tmp_path / "cut", config=TokenizeConfig(SHORT))
    *_, bad = artifacts.read_jsonl(tmp_path / "cut/bad.jsonl")
    assert f"{name}: is damaged or cut off" in bad["reason"]
    assert 0 < len(rows_of(tmp_path / "cut")) < 6


def test_addresses_are_read_as_folders_are(run, clips, whole, tmp_path):
    system = fsspec.filesystem("memory")
    for file in clips.iterdir():
        system.pipe(f"/corpus/{file.name}", file.read_bytes())
    row = {"audio": "0.flac", "text": "it is", "speaker": "Ann"}
    gone = {**row, "audio": "gone.flac"}
    lines = "".join(json.dumps(r) + "\n" for r in (row, gone, {**row, "audio": "../x.flac"}))
    system.pipe("/told/manifest.jsonl", lines.encode())
    system.pipe("/told/0.flac", (clips / "0.flac").read_bytes())
    system.pipe("/told/a.tar", write_tar(tmp_path / "a.tar", clips).read_bytes())
    out = tmp_path / "a"
    argv = ["tokenize", "memory://corpus", "--run", run, "--out", out]
    window = ["--window-seconds", 1.92, "--context-seconds", 0.32]
    assert cli.main(list(map(str, argv + window))) == EXIT_OK
    assert {key.rpartition("/")[2]: codes for key, codes in rows_of(out).items()} == rows_of(whole)
    for place, count in (("memory://told", 1), ("memory://told/a.tar", 6)):
        out = tmp_path / f"{count}"
        tokenize([place], run=run, out=out, config=TokenizeConfig(SHORT))
        assert len(rows_of(out)) == count
    reasons = [row["reason"] for row in artifacts.read_jsonl(tmp_path / "1/bad.jsonl")]
    assert "no such object" in reasons[0] and "outside of the manifest's folder" in reasons[1]
    with pytest.raises(UserError, match="memory://nowhere: no such object"):
        tokenize(["memory://nowhere"], run=run, out=tmp_path / "n")


@pytest.mark.parametrize("kind", ["FLAC", "WAV", "RAW"])
def test_standard_input_is_a_recording(run, clips, whole, tmp_path, monkeypatch, capsys, kind):
    samples, _ = soundfile.read(clips / "3.flac", dtype="int16")
    file = io.BytesIO()
    if kind == "RAW":
        file.write(samples.tobytes())
    else:
        soundfile.write(file, samples, 16_000, format=kind)
    file.seek(0)
    monkeypatch.setattr(sys, "stdin", types.SimpleNamespace(buffer=file))
    argv = ["tokenize", "-", "--run", run, "--out", tmp_path, "--window-seconds", 1.92]
    argv += ["--context-seconds", 0.32, *(["--sample-rate", 16_000] if kind == "RAW" else [])]
    assert cli.main(list(map(str, argv))) == EXIT_OK
    assert json.loads(capsys.readouterr().out)["clips"] == 1
    assert rows_of(tmp_path) == {"stdin": rows_of(whole)["3.flac"]}


def test_too_many_bad_rows_end_the_job_and_a_larger_share_goes_on(run, clips, tmp_path):
    with pytest.raises(UserError, match=r"1 of 7 .* more than --max-bad 0.1; the first: .*4.flac"):
        tokenize([clips], run=run, out=tmp_path, config=TokenizeConfig(SHORT, max_bad=0.1))
    assert not (tmp_path / "codes.jsonl").exists()
    said = tokenize([clips], run=run, out=tmp_path, config=TokenizeConfig(SHORT, max_bad=0.2))
    assert said["clips"] == 6


def test_codes_of_another_window_tokenizer_or_job_are_refused_and_both_named(
    run, other_run, clips, whole, tmp_path
):
    before = files(whole)
    for given, config, said in (
        (run, TokenizeConfig(), "codes of window.*seconds=1.92, this run has 30.0"),
        (other_run, TokenizeConfig(SHORT), "codes of tokenizer=.*, this run has"),
    ):
        with pytest.raises(UserError, match=said):
            tokenize([clips], run=given, out=whole, config=config)
    assert files(whole) == before
    changed = artifacts.read_json(whole / artifacts.MANIFEST)
    changed["config"]["mel"]["floor"] = "fixed"
    artifacts.write_json(tmp_path / "mel" / artifacts.MANIFEST, changed)
    with pytest.raises(UserError, match="codes of mel.floor='fixed', this run has 'clip'"):
        tokenize([clips], run=run, out=tmp_path / "mel", config=TokenizeConfig(SHORT))
    tokenize([clips], run=run, out=tmp_path, config=TokenizeConfig(SHORT, 1, 2))
    with pytest.raises(UserError, match=r"unfinished job of codes of parts=2, .* 3; .*remove"):
        tokenize([clips], run=run, out=tmp_path, config=TokenizeConfig(SHORT, 1, 3))


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--part", "17/16"], "'17/16' is no part such as 3/16"),
        (["--part", "0/4"], "is no part"),
        (["--part", "1"], "is no part"),
        (["--max-bad", "2"], "'2' is no number from 0 to 1"),
        (["--context-seconds", "40"], "context_seconds: 40; give less than seconds, 30"),
        (["--context-seconds", "0.1"], "no whole number of codes"),
        (["--sample-rate", "16000"], "give - for standard input"),
        (["-", "-"], "standard input can be read once"),
    ],
)
def test_what_cannot_be_asked_for_is_one_line(run, clips, tmp_path, capsys, argv, said):
    given = ["tokenize", clips, *argv, "--run", run, "--out", tmp_path / "out"]
    assert cli.main(list(map(str, given))) == EXIT_USAGE
    out, err = capsys.readouterr()
    assert out == "" and said in err and "Traceback" not in err
    assert not (tmp_path / "out/codes.jsonl").exists()


def test_a_full_disk_is_one_line_and_costs_a_shard(
    run, clips, whole, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(encoding, "SHARD_ROWS", 3)
    argv = ["tokenize", str(clips), "--run", str(run), "--out", str(tmp_path)]
    argv += ["--window-seconds", "1.92", "--context-seconds", "0.32"]

    def write(self, file, waiting, counts, really=encoding.Encoder._write):
        really(self, file, waiting, counts)
        if any(clip.one.number == 5 for clip in waiting):
            raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(encoding.Encoder, "_write", write)
        assert cli.main(argv) == EXIT_USAGE
    assert "No space left on device; make room, then run it again" in capsys.readouterr().err
    assert len(list(tmp_path.rglob("00000"))) == 1
    assert cli.main(argv) == EXIT_OK and files(tmp_path) == files(whole)


def test_a_broken_line_of_a_manifest_costs_itself_alone(run, clips, tmp_path):
    row = {"text": "it is", "speaker": "Ann"}
    lines = [json.dumps({"audio": str(clips / "0.flac"), **row}), "{", '"a text"', ""]
    lines.append(json.dumps({"audio": str(clips / "1.flac"), **row}))
    (tmp_path / "list.jsonl").write_text("\n".join(lines))
    config = TokenizeConfig(audio_anywhere=True)
    said = tokenize([tmp_path / "list.jsonl"], run=run, out=tmp_path / "out", config=config)
    assert said["clips"] == 2 and len(said["set_aside"]) == 2
    assert "list.jsonl:2: is not JSON" in said["set_aside"][0]
