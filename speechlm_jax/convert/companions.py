"""What lies beside a released model's weights: how text becomes a chat, and where answers end.

Chat templates are carried as they are; nothing here runs one. Ids of the text vocabulary are the
same in the joint one, so what names them stays true; what names none of them is dropped, because
its id may be a code's now.
"""

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from speechlm_jax import artifacts
from speechlm_jax.convert.folder_files import has, inside, read_object, read_text, shown
from speechlm_jax.convert.tokenizers import CONFIG, FILE
from speechlm_jax.errors import UserError

SPECIAL_TOKENS = "special_tokens_map.json"
GENERATION = "generation_config.json"
MODEL = "config.json"
TEMPLATE, TEMPLATES = "chat_template.jinja", "additional_chat_templates"
NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
MORE = ("additional_special_tokens", "extra_special_tokens")
KEPT = ("chat_template", "padding_side", "truncation_side", "model_input_names")
IDS = ("suppress_tokens", "begin_suppress_tokens")  # of a generation config, beside `*_token_id`

_log = logging.getLogger("speechlm.convert")


@dataclasses.dataclass(frozen=True)
class Companions:
    """What lies beside a model's weights.

    Attributes:
      tokenizer: fields of tokenizer_config.json.
      templates: text of each chat template that is a file, by its name.
      generation: fields of generation_config.json.
    """

    tokenizer: dict[str, Any] = dataclasses.field(default_factory=dict)
    templates: dict[str, str] = dataclasses.field(default_factory=dict)
    generation: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def eos(self) -> str | None:
        """The token that ends what the model says."""
        token = self.tokenizer.get("eos_token")
        return token["content"] if isinstance(token, dict) else token

    def write(self, folder: Path) -> list[str]:
        """Writes them as files that `read_companions` reads; returns their names."""
        for name, template in self.templates.items():
            artifacts.write_bytes(folder / name, template.encode())
        written = {CONFIG: self.tokenizer, GENERATION: self.generation}
        written = {name: data for name, data in written.items() if data}
        for name, data in written.items():
            artifacts.write_json(folder / name, data)
        return [*self.templates, *written]

    def of_export(self, *, length: int, eos: tuple[str, int]) -> "Companions":
        """Those of an exported model.

        Args:
          length: its longest context.
          eos: token and id that end its documents: one more end of what it says.
        """
        token, id_ = eos
        fields = {
            "eos_token": token,
            "pad_token": token,  # or a class of `transformers` adds tokens of its own for these two
            "unk_token": token,
            **self.tokenizer,
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": length,
            "clean_up_tokenization_spaces": False,
        }
        ends = list(dict.fromkeys([*_listed(self.generation.get("eos_token_id")), id_]))
        generation = {**self.generation, "eos_token_id": ends if len(ends) > 1 else id_}
        return dataclasses.replace(self, tokenizer=fields, generation=generation)


def read_companions(folder: Path, tokens: Mapping[str, int], *, size: int) -> Companions:
    """Those of a model's folder; files that are not there are empty.

    Args:
      tokens: of the text vocabulary, and their ids.
      size: rows of the model's table.

    Raises:
      UserError: a file is broken, or a field is not what it must be.
    """
    found: dict[str, Any] = {}
    for name in (SPECIAL_TOKENS, CONFIG):  # the second one goes before the first
        found |= read_object(folder, name) if has(folder, name) else {}
    fields = {name: found[name] for name in KEPT if found.get(name) is not None}
    _check_template(fields.get("chat_template"), folder)
    for name in NAMED:
        if found.get(name) is not None and _is_there(found[name], tokens, f"{folder}: {name}"):
            fields[name] = found[name]
    for name in MORE:
        more = found.get(name)
        more = list(more.values()) if isinstance(more, dict) else more or []
        if not isinstance(more, list):
            raise UserError(f"{folder}: {name} is {shown(more)}, no list of tokens")
        if kept := [one for one in more if _is_there(one, tokens, f"{folder}: {name}")]:
            fields[name] = kept
    return Companions(fields, _templates(folder), _generation(folder, size))


def _is_there(token: Any, tokens: Mapping[str, int], where: str) -> bool:
    content = token.get("content") if isinstance(token, dict) else token
    if not isinstance(content, str):
        raise UserError(f"{where} is {shown(token)}, no token")
    if content not in tokens:
        _log.warning("%s: %s is no token of %s; dropped", where, shown(content), FILE)
    return content in tokens


def _check_template(template: Any, folder: Path) -> None:
    several = template if isinstance(template, list) else []
    are_named = several and all(
        isinstance(one, dict)
        and isinstance(one.get("name"), str)
        and isinstance(one.get("template"), str)
        for one in several
    )
    if not (template is None or isinstance(template, str) or are_named):
        raise UserError(f"{folder / CONFIG}: chat_template is {shown(template)}, no template")


def _templates(folder: Path) -> dict[str, str]:
    names = [TEMPLATE] if has(folder, TEMPLATE) else []
    if (folder / TEMPLATES).is_dir():
        found = sorted(inside(folder, TEMPLATES).glob("*.jinja"))
        names += [f"{TEMPLATES}/{path.name}" for path in found]
    return {name: read_text(folder, name) for name in names}


def _generation(folder: Path, size: int) -> dict[str, Any]:
    """A generation config, whose ends stand in config.json where it has none."""
    found = read_object(folder, GENERATION) if has(folder, GENERATION) else {}
    for name in ("_from_model_config", "transformers_version"):
        found.pop(name, None)
    if found.get("eos_token_id") is None and has(folder, MODEL):
        found["eos_token_id"] = read_object(folder, MODEL).get("eos_token_id")
    for name in [key for key in found if key in IDS or key.endswith("_token_id")]:
        ids = _listed(found[name])
        if any(type(id_) is not int for id_ in ids):
            raise UserError(f"{folder}: {name} is {shown(found[name])}, no id and no list of ids")
        kept = [id_ for id_ in ids if 0 <= id_ < size]
        if kept != ids:
            _log.warning("%s: %s names ids that the model has no row for; dropped", folder, name)
        found[name] = kept if isinstance(found[name], list) or not kept else kept[0]
        if not kept:
            del found[name]
    return found


def _listed(ids: Any) -> Sequence[Any]:
    if ids is None:
        return []
    return ids if isinstance(ids, list) else [ids]
