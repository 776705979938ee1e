"""The report: complete, self-contained, escaped, judged by its figures. All data invented."""

import base64
import json
import re
import wave
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from speechlm_jax.errors import UserError
from speechlm_jax.evals.exposure import Exposure
from speechlm_jax.evals.items import Figure, Item
from speechlm_jax.quickstart.claims import CHANCE, CLAIMS
from speechlm_jax.quickstart.run import ARMS
from speechlm_jax.quickstart.summary import NOTES, TILES
from speechlm_jax.report import charts
from speechlm_jax.report.chain import NODES
from speechlm_jax.report.charts import line_chart, thin
from speechlm_jax.report.claims import chance_of, judge
from speechlm_jax.report.inputs import (
    DUEL,
    Audio,
    Claim,
    Examples,
    MelPair,
    Provenance,
    ReportInputs,
    StepTime,
    Training,
)
from speechlm_jax.report.page import duration
from speechlm_jax.report.write import figures_from_json, write_report

TASKS = Path(__file__).resolve().parents[2] / "tasks/quickstart.py"
VOID = {"meta", "img", "link", "br"}


class Structure(HTMLParser):
    """Checks that tags are closed in order; collects addresses and ids."""

    def __init__(self):
        super().__init__()
        self.open, self.addresses, self.links, self.ids, self.text = [], [], [], [], ""
        self.players = []

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.addresses += [attrs["src"]] if "src" in attrs else []
        self.links += [attrs["href"]] if "href" in attrs else []
        self.players += [attrs] if tag == "audio" else []
        self.ids += [attrs["id"]] if "id" in attrs else []
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def make_figures():
    values = {
        "tokenizer/wer": 0.22,
        "tokenizer/entity_wer": 0.17,
        "tokenizer/wer_shuffled": 0.99,
        "tokenizer/codebook_usage": 0.94,
        "tokenizer/abx_dtw": 0.21,
        "text_to_token/wer": 0.19,
        "qa/s2t/interleaved": 0.86,
        "qa/s2t/baseline": 0.08,
        "qa/s2t/margin": 0.78,
        "qa/s2t_new_wording/interleaved": 0.67,
        "qa/s2t_new_wording/baseline": 0.06,
        "qa/s2t_new_wording/margin": 0.61,
        "qa/s2t_choice/interleaved": 0.88,
        "qa/s2t_choice/baseline": 0.21,
        "qa/s2t_choice/margin": 0.67,
        "qa/s2s/interleaved": 0.16,
        "qa/s2s/baseline": 0.12,
        "qa/s2s/margin": 0.04,
        "qa/s2t_text_only/interleaved": 0.14,
        "qa/s2t_shuffled/interleaved": 0.04,
        "qa/t2t/interleaved": 1.0,
        "qa/t2t/baseline": 0.99,
        "storycloze/s2s/interleaved": 0.58,
        "storycloze/t2t/interleaved": 0.97,
        "speech_decoder/wer": 0.36,
        "speech_decoder/level_difference_db": -1.4,
        "speech_decoder/clipped_ratio": 0.0,
        "chat/speech_only": 0.31,
        "chat/text_guided": 0.61,
    }
    return {name: Figure(x, x - 0.07, min(x + 0.06, 1.0), 240) for name, x in values.items()}


def make_workdir(folder, start, *, tasks=()):
    folder.mkdir(parents=True)
    rng = np.random.default_rng(len(str(folder)))
    with open(folder / "metrics.jsonl", "w") as file:
        for step in range(20, 2001, 20):
            loss = 0.6 + start * np.exp(-step / 500) + rng.normal() * 0.04
            file.write(json.dumps({"step": step, "loss": loss, "learning_rate": 1e-3}) + "\n")
            if step % 400 == 0:
                held = {f"held_out/{task}": loss + 0.1 for task in tasks}
                file.write(json.dumps({"step": step, **held}) + "\n")
    return folder


def write_wav(path):
    time = np.arange(16_000) / 16_000
    samples = np.sin(2 * np.pi * 220 * time) * np.abs(np.sin(7 * time)) * 12_000
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16_000)
        file.writeframes(samples.astype("<i2").tobytes())
    return path


def make_examples(folder):
    rng = np.random.default_rng(0)
    mel = np.cumsum(rng.normal(size=(210, 80)), 1).astype(np.float32)
    wav = write_wav(folder / "answer.wav")
    document = {
        "segments": [
            {"text": "anna lives in the city of paris and"},
            {"codes": rng.integers(0, 512, 34).tolist(), "text": "the animal of bob is a tiger"},
            {"text": "what is the food of carl it is bread"},
            {"codes": rng.integers(0, 512, 12).tolist(), "text": "eve likes green"},
            {"text": "<b>& more</b>"},
        ]
    }
    items = tuple(
        Item(f"qa/s2t/{arm}", "en-rp+f3", f"person {i}/city", "w", "paris", said, float(right), 1.0)
        for i in range(10)
        for arm, said, right in (("interleaved", "it is paris", 1), ("baseline", "", 0))
    )
    return Examples(
        mel_pairs=(MelPair("a held-out clip", mel, mel * 0.8),),
        documents=(document, document),
        audio=(
            Audio(DUEL, "asked by en-rp+f3", wav, "what is the city of anna"),
            Audio(DUEL, "baseline: writes “oslo”, says", None),
            Audio("A dialogue", "Question, voice en-rp+f3", wav, "what is the city of anna"),
            Audio("A dialogue", "Reply, text-guided", wav, "it is paris"),
            Audio("Through the codes", "Original", wav),
        ),
        items=items,
    )


def make_inputs(folder):
    folder.mkdir(parents=True, exist_ok=True)
    tasks = ("q_text", "q_asr")
    return ReportInputs(
        title="speechlm quickstart",
        note="Invented figures: size micro, the shipped world, seed 0. <script>alert(1)</script>",
        figures=make_figures(),
        provenance=Provenance(
            timing={"corpora": StepTime(71.0, 130.5), "tokenizer": StepTime(402.0, 790.0)},
            seeds={"world": 0},
            versions={"speechlm_jax": "0.1.0", "jax": "0.10.2"},
            fingerprints={"lm/interleaved": "0123456789abcdef"},
            command="speechlm quickstart --out 'my runs/a'",
            commit="abc1234-dirty",
            date="2026-11-28",
        ),
        warning="Nothing here was learnt.",
        claims=CLAIMS,
        arms=ARMS,
        tiles=TILES,
        notes=NOTES,
        chance=CHANCE,
        trainings=(
            Training("Tokenizer", "tokenizer", make_workdir(folder / "tokenizer", 5)),
            Training("Language model", "interleaved", make_workdir(folder / "a", 4, tasks=tasks)),
            Training("Language model", "baseline", make_workdir(folder / "b", 4.2, tasks=tasks)),
        ),
        codebook_counts=np.random.default_rng(0).poisson(np.linspace(0, 40, 512)),
        exposure={"interleaved": {"text_only": Exposure(20, 20, 1400, 0, 0)}},
        bad_recordings=({"id": "x", "audio": "clips/x.wav", "reason": "is silent"},),
        examples=make_examples(folder),
    )


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    write_report(folder, make_inputs(folder / "run"))
    return folder


@pytest.fixture(scope="module")
def html(written):
    return (written / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def structure(html):
    parsed = Structure()
    parsed.feed(html)
    return parsed


def test_html_is_well_formed_and_loads_nothing(html, structure):
    assert structure.open == []
    assert len(structure.ids) == len(set(structure.ids))
    assert structure.addresses
    assert all(address.startswith("data:") for address in structure.addresses)
    (paper,) = [link for link in structure.links if not link.startswith("#")]
    assert paper == "https://arxiv.org/abs/2411.17607"
    assert not re.search(r"https?://|@import|url\((?!#)", html.replace(f'href="{paper}"', ""))
    assert "<script" not in html


def test_what_users_wrote_is_escaped(html, structure):
    assert "<script>alert(1)</script>" in structure.text
    assert "<b>& more</b>" in structure.text
    assert "<b>& more" not in html


def test_every_part_is_there(structure):
    for words in (
        "The chain",
        "Two arms",
        "Interleaved examples",
        "Codebook",
        "Training",
        "Listen",
        "Recordings set aside",
        "is silent",
        "0123456789abcdef",
        "+78 points",
        "7 min 53 s",
        "Language model: speech → its text, held out",
        "speechlm_jax 0.1.0",
        "arXiv 2411.17607",
        "2026-11-28",
        "commit abc1234-dirty",
        "speechlm quickstart --out 'my runs/a'",
        "Nothing here was learnt.",
        "(says nothing)",
        "not measured",
        "Variants and controls",
        "-1.4 dB",
    ):
        assert words in structure.text, words
    for node in NODES.values():
        assert node.heading in structure.text


def test_audio_and_pictures_are_the_files(written, structure):
    kinds = [address.split(";")[0] for address in structure.addresses]
    assert kinds.count("data:audio/wav") == 4
    assert all(player["aria-label"] for player in structure.players)
    assert kinds.count("data:image/png") == 2
    audio = next(a for a in structure.addresses if "audio/wav" in a)
    assert base64.b64decode(audio.split(",")[1]) == (written / "run/answer.wav").read_bytes()


def test_the_contents_lead_to_every_section_and_the_duel_comes_first(html, structure):
    anchors = [link[1:] for link in structure.links if link.startswith("#")]
    assert anchors == [name for name in structure.ids if not name.startswith("tip-")]
    assert len(anchors) > 10
    assert anchors.index("one-question-two-arms") == 1  # after the chain's picture


def test_no_task_or_figure_goes_by_its_code_name(structure):
    shown = structure.text.partition("Where this comes from")[0]
    assert not re.search(r"\bq_\w+|held_out/", shown)
    named = {*re.findall(r'"(q_\w+|quickstart_\w+)", \w+\)', TASKS.read_text(encoding="utf-8"))}
    assert len(named) == 9 and {charts.label(n) for n in named} == {*charts.TASKS.values()}


def test_a_curve_of_one_point_is_seen():
    one = line_chart("t", {"a": [(12.0, 6.5)]})
    (points,) = re.findall(r'class="curve series0 dot" points="([^"]+)"', one)
    first, second = points.split()
    assert first == second and "nan" not in one  # a line of no length with round ends
    assert " dot" not in line_chart("t", {"a": [(1.0, 6.5), (2.0, 6.0)]})


def test_json_is_flat_complete_and_read_back(written):
    report = json.loads((written / "report.json").read_text())
    assert figures_from_json(report) == make_figures()
    assert set(report["figures"]["qa/s2t/margin"]) == {"value", "low", "high", "count"}
    assert report["timing"]["total"] == {"wall_seconds": 473.0, "cpu_seconds": 920.5}
    for name in ("seeds", "versions", "fingerprints"):
        assert report[name]
    claims = {(c["figure"], c["part"]): c["met"] for c in report["claims"]}
    assert claims["tokenizer/wer", "value"] is True
    assert claims["qa/s2t_new_wording_choice/margin", "value"] is None
    assert claims["qa/s2s/margin", "low"] is False


def test_same_inputs_same_bytes(tmp_path):
    inputs = make_inputs(tmp_path / "run")
    for name in ("one", "two"):
        write_report(tmp_path / name, inputs)
    for file in ("report.html", "report.json"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_a_report_of_almost_nothing(tmp_path):
    inputs = ReportInputs("t", "n", {}, Provenance({}, {}, {}, {}))
    write_report(tmp_path, inputs)
    html = (tmp_path / "report.html").read_text()
    assert "The chain" in html
    assert "Two arms" not in html


def test_missing_recording_is_named(tmp_path):
    audio = (Audio("g", "t", tmp_path / "gone.wav"),)
    inputs = ReportInputs("t", "n", {}, Provenance({}, {}, {}, {}), examples=Examples(audio=audio))
    with pytest.raises(UserError, match=r"gone\.wav"):
        write_report(tmp_path, inputs)


@pytest.mark.parametrize(
    ("rule", "bar", "part", "met"),
    [
        ("at least", 0.5, "value", True),
        ("at least", 0.51, "value", False),
        ("at most", 0.5, "value", True),
        ("above", 0.4, "low", False),
        ("above", 0.39, "low", True),
        ("below", 0.6, "high", False),
    ],
)
def test_judging(rule, bar, part, met):
    figure = Figure(0.5, 0.4, 0.6, 10)
    claim = Claim("c", "f", rule, bar, part=part)
    assert judge([claim], {"f": figure})[0].met is met
    assert judge([claim], {})[0].met is None


def test_chance_is_by_the_longest_beginning():
    assert chance_of("qa/s2t", {"qa/": 0.1, "qa/s2t": 0.2}) == 0.2
    assert chance_of("tokenizer/wer", CHANCE) is None


def test_thinned_curves_stay_on_a_line_and_keep_their_end():
    curve = np.stack([np.arange(5000.0), 3 - np.arange(5000.0) / 900], 1)
    few = thin(curve)
    assert len(few) == 300
    assert few[-1].tolist() == curve[-1].tolist()
    np.testing.assert_allclose(few[:, 1], 3 - few[:, 0] / 900)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.4, "0 s"), (59.6, "1 min 00 s"), (200.0, "3 min 20 s"), (3900.0, "1 h 05 min")],
)
def test_duration(seconds, words):
    assert duration(seconds) == words
