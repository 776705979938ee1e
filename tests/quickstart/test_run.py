"""Settings that a run has from its folder rather than from this version's defaults."""

from speechlm_jax.audio.mel_config import MelConfig
from speechlm_jax.quickstart.folders import Folders
from speechlm_jax.quickstart.run import Chain
from speechlm_jax.quickstart.sizes import make_config


def test_mel_frames_that_are_there_keep_their_settings(tmp_path, write_features):
    """Versions before `MelConfig.level` made them as Whisper does; their runs go on so."""
    q = Chain(Folders(tmp_path), config=make_config("micro"), seed=0)
    assert q.mel == MelConfig(level="peak")
    rows = [{"id": "0", "text": "a", "speaker": "ann", "split": "train"}]
    write_features(q.folders.features, rows, [40])
    assert q.mel == MelConfig()
